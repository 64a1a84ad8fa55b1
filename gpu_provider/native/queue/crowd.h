/* How many requests are under way at the same time: those that wait and those that are computed. */
#ifndef GP_CROWD_H
#define GP_CROWD_H

#include <stdatomic.h>
#include <stdint.h>

#include "types.h"

/* cffi: */
/* The most requests that were under way at the same time. */
struct gp_crowd {
    uint32_t of_class; /* since a batch of the class was taken */
    uint32_t of_all;   /* since any batch was taken */
};
/* :cffi */

/* Zero to begin with. */
struct gp_crowd_counts {
    _Atomic uint64_t ended[GP_CLASSES]; /* requests that were completed or dropped */
    /* one thread at a time, that of gp_consumer_drain() */
    uint64_t begun[GP_CLASSES];
    uint64_t ended_before[GP_CLASSES]; /* `ended` when it looked last */
    uint32_t most[GP_CLASSES], most_of_all;
};

/* A request of a class was found in the queue. `after`: it was submitted after the last batch was completed. */
void gp_crowd_begins(struct gp_crowd_counts *counts, uint32_t class_index, int after);

/* All that was in the queue was found. */
void gp_crowd_looked(struct gp_crowd_counts *counts);

/* A request is completed or dropped. Any thread; before anybody hears of it. */
void gp_crowd_ends(struct gp_crowd_counts *counts, uint32_t class_index);

struct gp_crowd gp_crowd_of(const struct gp_crowd_counts *counts, uint32_t class_index);

/* A batch of the class is taken. */
void gp_crowd_taken(struct gp_crowd_counts *counts, uint32_t class_index);

#endif
