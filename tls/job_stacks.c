#include "job_stacks.h"

#include <openssl/async.h>
#include <openssl/opensslv.h>
#include <sys/mman.h>
#include <unistd.h>

#if OPENSSL_VERSION_NUMBER >= 0x30400000L

/* Of every stack, since it is freed without its size. OpenSSL asks for 32 KiB. */
#define STACK_BYTES 65536u

static size_t guard_bytes(void)
{
    return (size_t)sysconf(_SC_PAGESIZE);
}

static void *allocate(size_t *size)
{
    const size_t whole = guard_bytes() + STACK_BYTES;
    char *base;

    if (*size > STACK_BYTES)
        return NULL;
    base = mmap(NULL, whole, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
    if (base == MAP_FAILED)
        return NULL;
    if (mprotect(base, guard_bytes(), PROT_NONE) != 0) {
        munmap(base, whole);
        return NULL;
    }
    *size = STACK_BYTES;
    return base + guard_bytes();
}

static void release(void *stack)
{
    if (stack != NULL)
        munmap((char *)stack - guard_bytes(), guard_bytes() + STACK_BYTES);
}

int gp_job_stacks_guard(void)
{
    return ASYNC_set_mem_functions(allocate, release);
}

#else

int gp_job_stacks_guard(void)
{
    return 0;
}

#endif
