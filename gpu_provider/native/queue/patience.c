#include "queue/patience.h"

#define WEIGHT (1.0 / 16)
#define LONGEST_GAP 4.0 /* times the mean: a silence says little about how fast requests come once they do */
#define FIRST_REACH 2.0
#define DISAPPOINTMENT (1.0 / 8)
#define MOST_HOPE (1.0 / 16)
#define LEAST_HOPE (1.0 / 65536)
#define ENCOURAGEMENT 0.005
#define HOPE_AGAIN 500e6 /* nanoseconds in which hope doubles at most */

void gp_pace_submitted(struct gp_pace *pace, uint64_t gap)
{
    double observed = (double)gap;

    if (pace->gap == 0) {
        *pace =
            (struct gp_pace){.gap = observed + 1, .reach = FIRST_REACH, .hope = MOST_HOPE, .hoped_at = pace->hoped_at};
        return;
    }
    if (observed > LONGEST_GAP * pace->gap)
        observed = LONGEST_GAP * pace->gap;
    pace->gap += (observed - pace->gap) * WEIGHT;
}

/* The reach keeps a closed loop of a few clients from waiting for company that can't come because all of it is here. It
 * falls with each wait in vain, which also halves the hope; so about one in 139 requests waits in vain, and two in a
 * second at most. The 99th percentile of the latency does not see it, and company that begins to come is found in half
 * a second. */
void gp_pace_launched(struct gp_pace *pace, uint32_t count, uint32_t least, uint64_t now)
{
    double passed = (double)(now - pace->hoped_at) / HOPE_AGAIN;
    double hope = pace->hope * (1 + (passed < ENCOURAGEMENT ? passed : ENCOURAGEMENT));

    if (count < least) {
        pace->reach += (count - pace->reach) * DISAPPOINTMENT;
        hope /= 2;
    } else if (count > (uint32_t)(pace->reach + 0.05)) {
        pace->reach += (count - pace->reach) / 2;
    } else if (least >= (uint32_t)(pace->reach + 0.05)) {
        pace->reach *= 1 + hope;
    }
    pace->hope = hope < LEAST_HOPE ? LEAST_HOPE : hope > MOST_HOPE ? MOST_HOPE : hope;
    pace->hoped_at = now;
}

/* Until it is known: the first group is to be worth a try. */
static double group_cost(const struct gp_costs *costs)
{
    return costs->group > 0 ? costs->group : 1.5 * costs->single;
}

uint32_t gp_smallest_group(const struct gp_costs *costs)
{
    return (uint32_t)(group_cost(costs) / (costs->single + 1)) + 1;
}

/* A request that is computed in a group of n has waited for (n - 1) / 2 others on average, and then for the group.
 * Where w others wait for the same processor, each second of it that is saved is worth w seconds: the threshold of Deb
 * and Serfozo, "Optimal control of batch service queues", Advances in Applied Probability 5, 1973.
 *
 * How many wait is estimated as the batching thread does (patience() in engine/scheduler.py): about u^3 / (1 - u) where
 * a processor is busy for a share u of the time, and behind the thread of an event loop all its connections. */
#define CONNECTIONS_PER_THREAD 8.0
#define MOST_WAITING 128.0
#define GAPS 2.0 /* a wait lasts so many times as long as those that it is for should take to come */

struct gp_patience gp_patience(const struct gp_pace *pace, const struct gp_costs *costs, double used, uint32_t most,
                               uint64_t max_wait)
{
    double waiting = CONNECTIONS_PER_THREAD * used * used * used / (1 - used + 1e-9), best_cost = 0, wait;
    uint32_t best = 1, reach = (uint32_t)(pace->reach + 0.05);

    if (waiting > MOST_WAITING)
        waiting = MOST_WAITING;
    for (uint32_t n = 1; n <= most; n *= 2) {
        double together = n * costs->single < group_cost(costs) ? n * costs->single : group_cost(costs);
        double cost = (n - 1) / 2.0 * pace->gap + (1 + waiting / n) * together;

        if (n == 1 || cost < best_cost) {
            best = n;
            best_cost = cost;
        }
    }
    if (best > reach)
        best = reach > 1 ? reach : 1;
    wait = (1 + waiting) * group_cost(costs);
    if (wait > GAPS * (best - 1) * pace->gap)
        wait = GAPS * (best - 1) * pace->gap;
    if (wait > (double)max_wait)
        wait = (double)max_wait;
    return (struct gp_patience){.least = best, .wait = (uint64_t)wait};
}
