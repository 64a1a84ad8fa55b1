#include "cpu/memory.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>

namespace gpk {

void *secret_alloc(size_t size, int *locked)
{
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (memory == MAP_FAILED)
        return NULL;
    *locked = mlock(memory, size) == 0;
    madvise(memory, size, MADV_DONTDUMP);
    return memory;
}

void secret_free(void *memory, size_t size)
{
    if (memory == NULL)
        return;
    wipe(memory, size);
    munmap(memory, size);
}

/* Zeroed workspaces, kept between calls: mapping and locking one costs as much as several operations. Below each, in
 * the same mapping, are its stack and a guard page. */
static void *idle[64];
constexpr size_t GUARD_SIZE = 4096, BELOW_WORKSPACE = GUARD_SIZE + STACK_SIZE;

void *take_workspace(void)
{
    int locked;

    for (void *&slot : idle) {
        void *workspace = __atomic_exchange_n(&slot, NULL, __ATOMIC_ACQ_REL);
        if (workspace != NULL)
            return workspace;
    }
    void *memory = secret_alloc(BELOW_WORKSPACE + WORKSPACE_SIZE, &locked);
    if (memory == NULL)
        return NULL;
    if (mprotect(memory, GUARD_SIZE, PROT_NONE) != 0) {
        munmap(memory, BELOW_WORKSPACE + WORKSPACE_SIZE);
        return NULL;
    }
    return static_cast<uint8_t *>(memory) + BELOW_WORKSPACE;
}

void return_workspace(void *workspace)
{
    for (void *&slot : idle) {
        void *vacant = NULL;
        if (__atomic_compare_exchange_n(&slot, &vacant, workspace, false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED))
            return;
    }
    munmap(static_cast<uint8_t *>(workspace) - BELOW_WORKSPACE, BELOW_WORKSPACE + WORKSPACE_SIZE);
}

/* valgrind takes what lies above the stack pointer of another stack for freed. */
#if defined(__x86_64__) && !defined(GPK_CHECK_SECRETS)

extern "C" void gpk_call_on_stack(void *argument, void *workspace, void (*function)(void *, void *));

/* Calls function(argument, workspace) on the stack that ends where the workspace begins. Calls and returns stay paired,
 * so a processor that checks return addresses against a stack of its own is content, and the frame pointer leads
 * debuggers back. */
__asm__(".text\n"
        ".type gpk_call_on_stack, @function\n"
        "gpk_call_on_stack:\n"
        ".cfi_startproc\n"
        "pushq %rbp\n"
        ".cfi_def_cfa_offset 16\n"
        ".cfi_offset %rbp, -16\n"
        "movq %rsp, %rbp\n"
        ".cfi_def_cfa_register %rbp\n"
        "movq %rsi, %rsp\n"
        "call *%rdx\n"
        "movq %rbp, %rsp\n"
        "popq %rbp\n"
        ".cfi_def_cfa %rsp, 8\n"
        "ret\n"
        ".cfi_endproc\n"
        ".size gpk_call_on_stack, . - gpk_call_on_stack\n");

static void call_on_stack(void *argument, void *workspace, void (*function)(void *, void *))
{
    gpk_call_on_stack(argument, workspace, function);
    wipe(static_cast<uint8_t *>(workspace) - STACK_SIZE, STACK_SIZE);
}

#else

static void call_on_stack(void *argument, void *workspace, void (*function)(void *, void *))
{
    function(argument, workspace);
    wipe_stack();
}

#endif

int call_in_workspace(void (*function)(void *argument, void *workspace), void *argument)
{
    void *workspace = take_workspace();

    if (workspace == NULL)
        return 0;
    call_on_stack(argument, workspace, function);
    return_workspace(workspace);
    return 1;
}

void wipe(void *memory, size_t size)
{
    memset(memory, 0, size);
    __asm__ volatile("" : : "r"(memory) : "memory"); /* keeps the compiler from dropping the memset */
}

__attribute__((noinline)) void wipe_stack(void)
{
    uint8_t below[48 * 1024];

    wipe(below, sizeof(below));
}

int random_bytes(void *to, size_t size)
{
    uint8_t *bytes = static_cast<uint8_t *>(to);

    for (size_t done = 0; done < size;) {
        const ssize_t got = getrandom(bytes + done, size - done, 0);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return 0;
        done += (size_t)got;
    }
    GPK_SECRET(bytes, size);
    return 1;
}

} // namespace gpk
