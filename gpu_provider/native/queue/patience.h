/* How long a request waits for company where no batching thread decides it. A rule alone: no clock, no thread.
 *
 * Times are in nanoseconds. Each size class has a pace and costs of its own.
 */
#ifndef GP_PATIENCE_H
#define GP_PATIENCE_H

#include <stdint.h>

/* How fast requests come, and how many come together. */
struct gp_pace {
    double gap;        /* the mean from one request to the next, silences and what is computed left out; 0: unknown */
    double reach;      /* how many come together if those that are there wait */
    double faith;      /* the share of waits of late that were not in vain */
    double hope;       /* by how much each group raises the reach */
    uint64_t hoped_at; /* when that was */
};

void gp_pace_submitted(struct gp_pace *pace, uint64_t gap);

struct gp_patience;

/* `count` requests were taken, which waited by this rule. */
void gp_pace_launched(struct gp_pace *pace, uint32_t count, const struct gp_patience *patience, uint64_t now);

/* What a processor spends. */
struct gp_costs {
    double single; /* for one request by itself, by OpenSSL */
    double group;  /* for a group, however many requests are in it; 0: not known yet */
};

/* The smallest group for which the kernels win. */
uint32_t gp_smallest_group(const struct gp_costs *costs);

/* The processors of a process. */
struct gp_processors {
    double count;
    uint32_t threads; /* that have requests */
    double used;      /* the share of the time in which the one that computes is busy, or wanted by others */
};

struct gp_patience {
    uint32_t least; /* so many are computed at once, … */
    uint64_t wait;  /* … and fewer when the oldest has waited so long */
    int wanted;     /* more would be waited for if they came together */
};

/* most: in a group. */
struct gp_patience gp_patience(const struct gp_pace *pace, const struct gp_costs *costs,
                               const struct gp_processors *processors, uint32_t most, uint64_t max_wait);

#endif
