#include "wakeup.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define RINGS 1024u
#define RING_BITS 10u
#define FIRST_CAPACITY 256u

_Static_assert(sizeof(void *) == sizeof(uint64_t), "the callback's argument holds a ring number and a connection id");

struct ring {
    pthread_mutex_t lock; /* held for a copy, or for one write to the eventfd, never longer */
    int descriptor;       /* -1 when closed */
    int lost;
    size_t count;
    size_t capacity;
    uint64_t *ids;
};

/* taken[i] decides who owns number i, so opening needs no lock of the whole table, which a fork could copy locked. */
static atomic_int taken[RINGS];
static _Atomic(struct ring *) rings[RINGS];

static struct ring *ring_of(size_t number)
{
    return number < RINGS ? atomic_load_explicit(&rings[number], memory_order_acquire) : NULL;
}

int gp_wakeup_open(void)
{
    unsigned number = 0;
    for (;; number++) {
        int no = 0;
        if (number == RINGS)
            return -EMFILE;
        if (atomic_compare_exchange_strong(&taken[number], &no, 1))
            break;
    }
    struct ring *ring = ring_of(number);
    if (ring == NULL) {
        ring = calloc(1, sizeof(*ring));
        if (ring == NULL || pthread_mutex_init(&ring->lock, NULL) != 0) {
            free(ring);
            atomic_store(&taken[number], 0);
            return -ENOMEM;
        }
        ring->descriptor = -1;
        atomic_store_explicit(&rings[number], ring, memory_order_release);
    }
    int descriptor = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (descriptor < 0) {
        int error = errno;
        atomic_store(&taken[number], 0);
        return -error;
    }
    pthread_mutex_lock(&ring->lock);
    ring->descriptor = descriptor;
    pthread_mutex_unlock(&ring->lock);
    return (int)number;
}

int gp_wakeup_descriptor(int ring)
{
    return ring_of((size_t)ring)->descriptor;
}

void gp_wakeup_close(int number)
{
    struct ring *ring = ring_of((size_t)number);
    pthread_mutex_lock(&ring->lock);
    close(ring->descriptor);
    ring->descriptor = -1;
    free(ring->ids);
    ring->ids = NULL;
    ring->count = ring->capacity = 0;
    ring->lost = 0;
    pthread_mutex_unlock(&ring->lock);
    atomic_store(&taken[number], 0);
}

void gp_wakeup_abandon(int number)
{
    struct ring *ring = ring_of((size_t)number);

    close(ring->descriptor);
    ring->descriptor = -1;
}

size_t gp_wakeup_take(int number, uint64_t *ids, size_t capacity, int *lost)
{
    struct ring *ring = ring_of((size_t)number);
    uint64_t ignored;
    pthread_mutex_lock(&ring->lock);
    size_t count = ring->count < capacity ? ring->count : capacity;
    if (count > 0) {
        memcpy(ids, ring->ids, count * sizeof(*ids));
        memmove(ring->ids, ring->ids + count, (ring->count - count) * sizeof(*ids));
        ring->count -= count;
    }
    *lost = ring->lost;
    ring->lost = 0;
    if (ring->count == 0 && read(ring->descriptor, &ignored, sizeof(ignored)) < 0)
        ignored = 0; /* nothing was to be taken: EAGAIN */
    pthread_mutex_unlock(&ring->lock);
    return count;
}

static int has_room(struct ring *ring)
{
    if (ring->count < ring->capacity)
        return 1;
    size_t capacity = ring->capacity == 0 ? FIRST_CAPACITY : 2 * ring->capacity;
    uint64_t *ids = realloc(ring->ids, capacity * sizeof(*ids));
    if (ids == NULL)
        return 0;
    ring->ids = ids;
    ring->capacity = capacity;
    return 1;
}

/* The SSL may be freed by now: use only the argument. */
static int on_async(SSL *ssl, void *argument)
{
    const uint64_t one = 1;
    uint64_t packed = (uint64_t)(uintptr_t)argument;
    struct ring *ring = ring_of(packed & (RINGS - 1u));
    (void)ssl;
    if (ring == NULL)
        return 0;
    pthread_mutex_lock(&ring->lock);
    if (ring->descriptor >= 0) {
        int was_empty = ring->count == 0 && !ring->lost;
        if (has_room(ring))
            ring->ids[ring->count++] = packed >> RING_BITS;
        else
            ring->lost = 1;
        /* Under the lock, so that the descriptor can't be closed and its number reused. An eventfd refuses only when
         * its counter is full, and then it is readable anyway. */
        if (was_empty && write(ring->descriptor, &one, sizeof(one)) < 0)
            ring->lost = 1;
    }
    pthread_mutex_unlock(&ring->lock);
    return 1;
}

int gp_wakeup_attach(SSL *ssl, int ring, uint64_t id)
{
    uint64_t packed = id << RING_BITS | (uint64_t)ring;
    return SSL_set_async_callback_arg(ssl, (void *)(uintptr_t)packed) == 1
           && SSL_set_async_callback(ssl, on_async) == 1;
}

int gp_wakeup_attach_context(SSL_CTX *ctx, int on)
{
    return SSL_CTX_set_async_callback(ctx, on ? on_async : NULL);
}

int gp_wakeup_detach(SSL *ssl)
{
    return SSL_set_async_callback(ssl, NULL);
}
