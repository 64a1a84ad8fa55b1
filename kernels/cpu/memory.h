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
/* Overwrites the stack below the caller, where its callees kept secrets. */
void wipe_stack(void);
/* Large enough for any batch on any ISA. */
constexpr size_t WORKSPACE_SIZE = 1024 * 1024;
/* Of the stack that a workspace has of its own. */
constexpr size_t STACK_SIZE = 64 * 1024;
/* Zeroed memory of that size; NULL if there is none. It must be zero again when it is returned. */
void *take_workspace(void);
void return_workspace(void *workspace);
/* Calls function(argument, workspace) on the workspace's stack, with a guard page below, and wipes it. Of the caller's
 * own stack a few hundred bytes are needed: it may be an OpenSSL job, which has 32 KiB. 0: out of memory. */
int call_in_workspace(void (*function)(void *argument, void *workspace), void *argument);

template <class Function> int in_workspace(Function function)
{
    return call_in_workspace([](void *argument, void *workspace) { (*static_cast<Function *>(argument))(workspace); },
                             &function);
}

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
