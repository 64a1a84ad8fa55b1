#define _GNU_SOURCE
#include "process.h"

#include <pthread.h>
#include <stdatomic.h>
#include <time.h>

static _Atomic uint32_t fork_epoch;
static pthread_once_t fork_once = PTHREAD_ONCE_INIT;

static void in_forked_child(void)
{
    atomic_fetch_add_explicit(&fork_epoch, 1, memory_order_relaxed);
}

static void watch_forks(void)
{
    pthread_atfork(NULL, NULL, in_forked_child);
}

void gp_watch_forks(void)
{
    pthread_once(&fork_once, watch_forks);
}

uint32_t gp_fork_epoch(void)
{
    return atomic_load_explicit(&fork_epoch, memory_order_relaxed);
}

uint64_t gp_now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}
