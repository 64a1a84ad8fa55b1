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

/* Zeroed workspaces, kept between calls: mapping and locking one costs as much as several operations. */
static void *idle[64];

void *take_workspace(void)
{
    int locked;

    for (void *&slot : idle) {
        void *workspace = __atomic_exchange_n(&slot, NULL, __ATOMIC_ACQ_REL);
        if (workspace != NULL)
            return workspace;
    }
    return secret_alloc(WORKSPACE_SIZE, &locked);
}

void return_workspace(void *workspace)
{
    for (void *&slot : idle) {
        void *vacant = NULL;
        if (__atomic_compare_exchange_n(&slot, &vacant, workspace, false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED))
            return;
    }
    secret_free(workspace, WORKSPACE_SIZE);
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
