/* Memory for secrets: whole pages of their own, locked where allowed, left out of core dumps, wiped before they go. */
#ifndef GPK_CPU_MEMORY_H
#define GPK_CPU_MEMORY_H

#include <stddef.h>
#include <stdint.h>

namespace gpk {

/* Zeroed, page-aligned; NULL if there is none. *locked tells whether mlock succeeded: the limit may be small. */
void *secret_alloc(size_t size, int *locked);
void secret_free(void *memory, size_t size);
void wipe(void *memory, size_t size);
/* Overwrites the stack below the caller, where its callees kept secrets. What they left in vector registers stays there
 * until something else uses those. */
void wipe_stack(void);
/* Large enough for any batch on any lane. */
constexpr size_t WORKSPACE_SIZE = 1024 * 1024;
/* Memory of that size, all zero, from secret_alloc or from an earlier call; NULL if there is none. Returned zero. */
void *take_workspace(void);
void return_workspace(void *workspace);

/* 1, or 0 if the system has no randomness to give. */
int random_bytes(void *to, size_t size);

/* For tests under valgrind (tests/native/kernel_secrets.cpp): what is not secret although it was computed from secrets,
 * and what is secret although nothing else says so. */
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
