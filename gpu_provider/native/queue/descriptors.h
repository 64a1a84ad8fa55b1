/* Wait descriptors that two processes have: timerfds that the service made, and signals when a request is done.
 *
 * A connection has one for as long as it lives, and the service need not be told of each. Thread-safe.
 */
#ifndef GP_DESCRIPTORS_H
#define GP_DESCRIPTORS_H

#include <stdint.h>

struct gp_descriptors;

/* NULL: out of memory. */
struct gp_descriptors *gp_descriptors_new(void);
void gp_descriptors_free(struct gp_descriptors *descriptors); /* and closes them */

/* Owns them in any case. They are numbered in the order in which they come. 0: out of memory. */
int gp_descriptors_add(struct gp_descriptors *descriptors, const int *fds, uint32_t count);

/* How many there are, and how many of them are free. */
uint32_t gp_descriptors_count(struct gp_descriptors *descriptors, uint32_t *free_count);

/* One that is free, which is not to be closed, and its number; -1: there is none. */
int gp_descriptors_take(struct gp_descriptors *descriptors, uint32_t *number);
void gp_descriptors_give(struct gp_descriptors *descriptors, uint32_t number);

/* What a program may watch instead, and close; -1: out of descriptors or memory. The other process keeps a descriptor's
 * file open, so whoever relies on close() to end its epoll's interest, as HAProxy does, would go on hearing of it. */
int gp_descriptor_watch(int fd);

void gp_descriptors_signal_all(struct gp_descriptors *descriptors);

/* Makes a timerfd readable now. Never blocks. */
void gp_descriptor_signal(int fd);

/* Makes it readable at that time (CLOCK_MONOTONIC); 0: never, and forgets what was signalled. */
void gp_descriptor_set(int fd, uint64_t time_ns);

#endif
