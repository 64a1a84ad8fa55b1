/* Memory for secrets: pages of its own, locked where allowed, left out of core dumps, wiped before it is freed. */
#ifndef GPK_CPU_MEMORY_H
#define GPK_CPU_MEMORY_H

#include <stddef.h>
#include <stdint.h>

namespace gpk {

/* Zeroed and page-aligned; NULL if there is none. *locked: whether mlock succeeded, for the limit may be small. */
void *secret_alloc(size_t size, int *locked);
void secret_free(void *memory, size_t size);
void wipe(void *memory, size_t size);
/* Overwrites the stack below the caller, where its callees kept secrets. What they left in vector registers stays until
 * those are used again. */
void wipe_stack(void);
/* Large enough for any batch on any ISA. */
constexpr size_t WORKSPACE_SIZE = 1024 * 1024;
/* Zeroed memory of that size; NULL if there is none. It must be zero again when it is returned. */
void *take_workspace(void);
void return_workspace(void *workspace);

/* Returns 1, or 0 if the system provides no randomness. */
int random_bytes(void *to, size_t size);

/* For tests under valgrind (tests/native/kernel_secrets.cpp). GPK_PUBLIC: not secret, although computed from secrets.
 * GPK_SECRET: secret, although valgrind can't know it. */
#ifdef GPK_CHECK_SECRETS
#include <valgrind/memcheck.h>
#define GPK_PUBLIC(variable) VALGRIND_MAKE_MEM_DEFINED(&(variable), sizeof(variable))
#define GPK_SECRET(memory, size) VALGRIND_MAKE_MEM_UNDEFINED(memory, size)
#else
#define GPK_PUBLIC(variable) ((void)0)
#define GPK_SECRET(memory, size) ((void)0)
#endif

} // namespace gpk

#endif
