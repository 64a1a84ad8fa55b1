/* What belongs to the process: its clock, and whether it was forked. */
#ifndef GP_PROCESS_H
#define GP_PROCESS_H

#include <stdint.h>

/* CLOCK_MONOTONIC. */
uint64_t gp_now_ns(void);

/* The process's fork epoch: changes in every forked child. What was made in another epoch belongs to the parent: its
 * threads don't exist here and its locks may be held for ever, so nothing of it is touched. */
uint32_t gp_fork_epoch(void);

/* Forks count from the first call on: to be called before an epoch is remembered. */
void gp_watch_forks(void);

#endif
