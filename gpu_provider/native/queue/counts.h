/* What the module has computed, for whoever asks: in memory, or in a file that others can read while it runs.
 *
 * Any thread. A forked child goes on counting where its parent was, in the same file if there is one: the counts are
 * those of all processes that come of the one that loaded the module.
 */
#ifndef GP_COUNTS_H
#define GP_COUNTS_H

#include <stdatomic.h>
#include <stdint.h>

#include "types.h"

/* Of one size class. */
struct gp_counts {
    _Atomic uint64_t singles; /* requests computed by themselves, by OpenSSL */
    _Atomic uint64_t groups;  /* computed together */
    _Atomic uint64_t grouped; /* requests in those */
    _Atomic uint64_t waits;   /* requests that waited for company */
    _Atomic uint64_t in_vain; /* groups that were smaller than was hoped for when their time came */
    _Atomic uint64_t served;  /* requests that a service computed */
};

struct gp_counts *gp_counts_of(uint32_t class_index);

static inline void gp_count(_Atomic uint64_t *count, uint64_t more)
{
    atomic_fetch_add_explicit(count, more, memory_order_relaxed);
}

/* From now on they are in a file of this directory as well, from which another process can read them
 * (commands/counts.py knows how). To be called before anything is counted; only the first call in a process has an
 * effect. Files of processes that have ended are removed. What fails is not told: a program must run without it. */
void gp_counts_publish(const char *directory);

#endif
