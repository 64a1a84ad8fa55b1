#define _GNU_SOURCE
#include "queue/descriptors.h"

#include <pthread.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/timerfd.h>
#include <unistd.h>

struct gp_descriptors {
    pthread_mutex_t lock;
    int *fds;
    uint32_t *free; /* a stack of numbers */
    uint32_t count, free_count;
};

struct gp_descriptors *gp_descriptors_new(void)
{
    struct gp_descriptors *descriptors = calloc(1, sizeof(*descriptors));

    if (descriptors != NULL)
        pthread_mutex_init(&descriptors->lock, NULL);
    return descriptors;
}

void gp_descriptors_free(struct gp_descriptors *descriptors)
{
    if (descriptors == NULL)
        return;
    for (uint32_t i = 0; i < descriptors->count; i++)
        close(descriptors->fds[i]);
    free(descriptors->fds);
    free(descriptors->free);
    free(descriptors);
}

int gp_descriptors_add(struct gp_descriptors *descriptors, const int *fds, uint32_t count)
{
    int *all, added = 0;
    uint32_t *free_numbers;

    pthread_mutex_lock(&descriptors->lock);
    all = realloc(descriptors->fds, (descriptors->count + count) * sizeof(*all));
    if (all != NULL)
        descriptors->fds = all;
    free_numbers = realloc(descriptors->free, (descriptors->count + count) * sizeof(*free_numbers));
    if (free_numbers != NULL)
        descriptors->free = free_numbers;
    if (all != NULL && free_numbers != NULL) {
        for (uint32_t i = 0; i < count; i++) {
            all[descriptors->count] = fds[i];
            free_numbers[descriptors->free_count++] = descriptors->count++;
        }
        added = 1;
    }
    pthread_mutex_unlock(&descriptors->lock);
    for (uint32_t i = 0; i < count && !added; i++)
        close(fds[i]);
    return added;
}

uint32_t gp_descriptors_count(struct gp_descriptors *descriptors, uint32_t *free_count)
{
    uint32_t count;

    pthread_mutex_lock(&descriptors->lock);
    count = descriptors->count;
    *free_count = descriptors->free_count;
    pthread_mutex_unlock(&descriptors->lock);
    return count;
}

int gp_descriptors_take(struct gp_descriptors *descriptors, uint32_t *number)
{
    int fd = -1;

    pthread_mutex_lock(&descriptors->lock);
    if (descriptors->free_count > 0) {
        *number = descriptors->free[--descriptors->free_count];
        fd = descriptors->fds[*number];
    }
    pthread_mutex_unlock(&descriptors->lock);
    return fd;
}

void gp_descriptors_give(struct gp_descriptors *descriptors, uint32_t number)
{
    pthread_mutex_lock(&descriptors->lock);
    gp_descriptor_set(descriptors->fds[number], 0);
    descriptors->free[descriptors->free_count++] = number;
    pthread_mutex_unlock(&descriptors->lock);
}

void gp_descriptors_signal_all(struct gp_descriptors *descriptors)
{
    pthread_mutex_lock(&descriptors->lock);
    for (uint32_t i = 0; i < descriptors->count; i++)
        gp_descriptor_signal(descriptors->fds[i]);
    pthread_mutex_unlock(&descriptors->lock);
}

int gp_descriptor_watch(int fd)
{
    struct epoll_event event = {.events = EPOLLIN};
    int epoll = epoll_create1(EPOLL_CLOEXEC);

    if (epoll >= 0 && epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) != 0) {
        close(epoll);
        epoll = -1;
    }
    return epoll;
}

#ifndef TFD_IOC_SET_TICKS /* in linux/timerfd.h, which does not go together with sys/timerfd.h */
#define TFD_IOC_SET_TICKS _IOW('T', 0, uint64_t)
#endif

/* Through the timer this would cost an interrupt, and on a virtual machine more than all else together. Without
 * CONFIG_CHECKPOINT_RESTORE in the kernel it has to: the time is past. */
void gp_descriptor_signal(int fd)
{
    const uint64_t ticks = 1;

    if (ioctl(fd, TFD_IOC_SET_TICKS, &ticks) != 0)
        gp_descriptor_set(fd, 1);
}

void gp_descriptor_set(int fd, uint64_t time_ns)
{
    const struct itimerspec time = {
        .it_value = {.tv_sec = (time_t)(time_ns / 1000000000u), .tv_nsec = (long)(time_ns % 1000000000u)}};

    (void)timerfd_settime(fd, TFD_TIMER_ABSTIME, &time, NULL);
}
