#define _GNU_SOURCE
#include "queue/queue.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)
#define CACHE_LINE 64u

struct layout {
    size_t ring, word, wake, key, submitted_ns, bytes, input, output, size;
};

static size_t place(size_t *end, size_t size)
{
    size_t offset = (*end + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE;

    *end = offset + size;
    return offset;
}

static uint32_t ring_size_for(uint32_t depth)
{
    uint32_t size = 2; /* with one cell "written" and "free again" would be the same sequence */

    while (size < depth)
        size *= 2;
    return size;
}

static struct layout layout_for(uint32_t depth)
{
    struct layout layout;
    size_t end = sizeof(struct gp_queue_header);
    size_t n = depth;

    layout.ring = place(&end, ring_size_for(depth) * sizeof(struct gp_ring_cell));
    layout.word = place(&end, n * sizeof(uint32_t));
    layout.wake = place(&end, n * sizeof(uint32_t));
    layout.key = place(&end, n * sizeof(gp_key_handle));
    layout.submitted_ns = place(&end, n * sizeof(uint64_t));
    layout.bytes = place(&end, n * sizeof(uint32_t));
    layout.input = place(&end, n * GP_MAX_BYTES);
    layout.output = place(&end, n * GP_MAX_BYTES);
    layout.size = end;
    return layout;
}

/* The memory is new and zero: every slot is FREE in generation 0. */
static void write_header(uint8_t *base, uint32_t depth, const struct layout *layout)
{
    struct gp_queue_header *header = (struct gp_queue_header *)base;
    struct gp_ring_cell *ring = (struct gp_ring_cell *)(base + layout->ring);

    header->magic = GP_QUEUE_MAGIC;
    header->version = GP_QUEUE_VERSION;
    header->depth = depth;
    header->ring_size = ring_size_for(depth);
    header->max_bytes = GP_MAX_BYTES;
    header->total_size = layout->size;
    for (uint32_t i = 0; i < header->ring_size; i++)
        atomic_init(&ring[i].sequence, i);
}

int gp_queue_create(gp_queue *queue, uint32_t depth)
{
    struct layout layout;
    uint8_t *base;
    int memfd, doorbell, error;

    if (depth < 1 || depth > GP_MAX_DEPTH)
        return EINVAL;
    layout = layout_for(depth);
    memfd = memfd_create("gpu-provider-queue", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (memfd < 0)
        return errno;
    doorbell = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (doorbell < 0 || ftruncate(memfd, (off_t)layout.size) != 0 || fcntl(memfd, F_ADD_SEALS, SEALS) != 0)
        goto failed;
    base = mmap(NULL, layout.size, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);
    if (base == MAP_FAILED)
        goto failed;
    write_header(base, depth, &layout);
    munmap(base, layout.size);
    error = gp_queue_map(queue, memfd, doorbell);
    if (error == 0)
        return 0;
    errno = error;
failed:
    error = errno;
    close(memfd);
    if (doorbell >= 0)
        close(doorbell);
    return error;
}

int gp_queue_map(gp_queue *queue, int memfd, int doorbell)
{
    const struct gp_queue_header *header;
    struct layout layout;
    struct stat status;
    uint8_t *base;
    uint32_t depth;
    int seals = fcntl(memfd, F_GET_SEALS);

    /* Without the seals the other side could shrink the file under us: SIGBUS. */
    if (seals < 0 || (seals & SEALS) != SEALS || fstat(memfd, &status) != 0
        || status.st_size < (off_t)sizeof(struct gp_queue_header))
        return EINVAL;
    base = mmap(NULL, (size_t)status.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);
    if (base == MAP_FAILED)
        return errno;
    header = (const struct gp_queue_header *)base;
    depth = *(volatile const uint32_t *)&header->depth; /* once: the other side may change it after the check */
    if (header->magic != GP_QUEUE_MAGIC || header->version != GP_QUEUE_VERSION) {
        munmap(base, (size_t)status.st_size);
        return EPROTO;
    }
    if (depth >= 1 && depth <= GP_MAX_DEPTH)
        layout = layout_for(depth);
    if (depth < 1 || depth > GP_MAX_DEPTH || layout.size != (size_t)status.st_size || header->total_size != layout.size
        || header->max_bytes != GP_MAX_BYTES || header->ring_size != ring_size_for(depth)) {
        munmap(base, (size_t)status.st_size);
        return EINVAL;
    }

    /* Results can be decrypted secrets: not in swap if the limits allow it, never in a core dump. */
    (void)mlock(base, layout.size);
    (void)madvise(base, layout.size, MADV_DONTDUMP);

    memset(queue, 0, sizeof(*queue));
    queue->header = (struct gp_queue_header *)base;
    queue->ring = (struct gp_ring_cell *)(base + layout.ring);
    queue->word = (_Atomic uint32_t *)(base + layout.word);
    queue->wake = (_Atomic uint32_t *)(base + layout.wake);
    queue->key = (gp_key_handle *)(base + layout.key);
    queue->submitted_ns = (uint64_t *)(base + layout.submitted_ns);
    queue->bytes = (uint32_t *)(base + layout.bytes);
    queue->input = base + layout.input;
    queue->output = base + layout.output;
    queue->depth = depth;
    queue->ring_mask = ring_size_for(depth) - 1;
    queue->size = layout.size;
    queue->memfd = memfd;
    queue->doorbell = doorbell;
    return 0;
}

void gp_queue_unmap(gp_queue *queue)
{
    munmap(queue->header, queue->size);
    close(queue->memfd);
    close(queue->doorbell);
}

/* The submission ring is D. Vyukov's bounded queue (1024cores.net, "Bounded MPMC queue") with one consumer: a cell
 * whose sequence equals the position is free to write, position + 1 says it is written. It never fills: there are as
 * many cells as slots, and a slot is in the ring once at most. */
void gp_queue_push(gp_queue *queue, uint32_t slot)
{
    uint32_t position = atomic_load_explicit(&queue->header->tail, memory_order_relaxed);
    struct gp_ring_cell *cell;

    for (;;) {
        cell = &queue->ring[position & queue->ring_mask];
        if (atomic_load_explicit(&cell->sequence, memory_order_acquire) == position) {
            if (atomic_compare_exchange_weak_explicit(&queue->header->tail, &position, position + 1,
                                                      memory_order_relaxed, memory_order_relaxed))
                break;
        } else {
            position = atomic_load_explicit(&queue->header->tail, memory_order_relaxed);
        }
    }
    cell->slot = slot;
    atomic_store_explicit(&cell->sequence, position + 1, memory_order_release);
}

static int can_pop(const gp_queue *queue)
{
    return atomic_load_explicit(&queue->ring[queue->head & queue->ring_mask].sequence, memory_order_acquire)
           == queue->head + 1;
}

int gp_queue_pop(gp_queue *queue, uint32_t *slot)
{
    struct gp_ring_cell *cell = &queue->ring[queue->head & queue->ring_mask];

    if (!can_pop(queue))
        return 0;
    *slot = *(volatile uint32_t *)&cell->slot;
    atomic_store_explicit(&cell->sequence, queue->head + queue->ring_mask + 1, memory_order_release);
    queue->head++;
    return *slot < queue->depth ? 1 : -1;
}

/* No wake-up is lost. Producer: push, then exchange(sleeping, 0). Consumer: exchange(sleeping, 1), then look at the
 * ring. Both exchanges are read-modify-writes of one word, so one comes first: if the producer's, the consumer's
 * acquires the push and sees it; if the consumer's, the producer reads 1 and rings. */
void gp_queue_wake_consumer(gp_queue *queue)
{
    if (atomic_exchange_explicit(&queue->header->sleeping, 0, memory_order_acq_rel) != 0)
        gp_queue_ring_doorbell(queue);
}

void gp_queue_ring_doorbell(gp_queue *queue)
{
    const uint64_t one = 1;

    /* EAGAIN would mean 2^64 - 2 rings unanswered: it rings already. */
    if (write(queue->doorbell, &one, sizeof(one)) < 0)
        return;
}

int gp_queue_watch(gp_queue *queue)
{
    atomic_exchange_explicit(&queue->header->sleeping, 1, memory_order_acq_rel);
    if (!can_pop(queue))
        return 1;
    atomic_exchange_explicit(&queue->header->sleeping, 0, memory_order_acq_rel);
    return 0;
}

void gp_queue_sleep(gp_queue *queue, int64_t timeout_ns, int watch_submissions, int other)
{
    struct pollfd descriptors[] = {{.fd = queue->doorbell, .events = POLLIN}, {.fd = other, .events = POLLIN}};
    struct timespec timeout = {.tv_sec = timeout_ns / 1000000000, .tv_nsec = timeout_ns % 1000000000};
    uint64_t rings;

    if (watch_submissions && !gp_queue_watch(queue))
        return;
    if (ppoll(descriptors, watch_submissions && other >= 0 ? 2 : 1, timeout_ns < 0 ? NULL : &timeout, NULL) > 0
        && (descriptors[0].revents & POLLIN) != 0 && read(queue->doorbell, &rings, sizeof(rings)) < 0)
        return;
    if (watch_submissions)
        atomic_exchange_explicit(&queue->header->sleeping, 0, memory_order_acq_rel);
}
