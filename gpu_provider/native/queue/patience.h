/* How long a request waits for company where no batching thread decides it. A rule alone: no clock, no thread.
 *
 * Times are in nanoseconds. Each size class has a pace and costs of its own.
 */
#ifndef GP_PATIENCE_H
#define GP_PATIENCE_H

#include <stdint.h>

/* How fast requests come, and how many come together. */
struct gp_pace {
    double gap;      /* the mean from one request to the next, silences and what is computed left out; 0: unknown */
    double together; /* how many there can be at the same time */
    double faith;    /* the share of waits of late that were not in vain */
    double saved;    /* processor time by each turn that was waited for */
    uint32_t lone;   /* requests that might have waited for a turn */
};

struct gp_patience;
struct gp_costs;

/* A request begins, `gap` after the last one. `together`: how many have begun and are not done, this one included. */
void gp_pace_submitted(struct gp_pace *pace, uint64_t gap, uint32_t together);

/* `count` requests were taken, which waited by this rule, or for the end of a turn. */
void gp_pace_launched(struct gp_pace *pace, uint32_t count, const struct gp_patience *patience,
                      const struct gp_costs *costs);

/* Whether a job that is alone lets its program first do what it has to do already: as many as come by then are computed
 * together, and no processor is idle meanwhile. It costs a pause. To be asked once for each such request. */
int gp_pace_waits_for_turn(struct gp_pace *pace, const struct gp_costs *costs);

/* What a processor spends. */
struct gp_costs {
    double single; /* for one request by itself, by OpenSSL */
    double group;  /* for a group, however many requests are in it; 0: not known yet */
};

/* The smallest group for which the kernels win. */
uint32_t gp_smallest_group(const struct gp_costs *costs);

/* Who wants a process's processors. */
struct gp_demand {
    uint32_t threads; /* that have requests */
    double used;      /* the share of the time in which the one that computes is busy, or wanted by others */
};

struct gp_patience {
    uint32_t least; /* so many are computed at once, … */
    uint64_t wait;  /* … and fewer when the oldest has waited so long */
};

/* most: in a group. */
struct gp_patience gp_patience(const struct gp_pace *pace, const struct gp_costs *costs, const struct gp_demand *demand,
                               uint32_t most, uint64_t max_wait);

#endif
