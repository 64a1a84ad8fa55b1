#include "queue/patience.h"

#define WEIGHT (1.0 / 16)
#define LONGEST_GAP 4.0 /* times the mean: a silence says little about how fast requests come once they do */
#define FIRST_REACH 2.0
#define GROUP 8      /* a full one */
#define NO_MORE 0.85 /* of it: if fewer come together, they are all that there are */
#define MOST_HOPE (1.0 / 16)
#define LEAST_HOPE (1.0 / 2048)
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

static uint32_t reach_of(const struct gp_pace *pace)
{
    return pace->reach > 1 ? (uint32_t)(pace->reach + 0.05) : 1; /* it approaches a number, and never gets there */
}

/* The reach keeps a closed loop of a few clients from waiting for company that can't come because all of it is here. It
 * falls with each wait in vain, the further the more of them are, and each halves the hope, which returns slowly. So
 * the 99th percentile of the latency does not see waits in vain, and company that begins to come is found within a
 * second. */
void gp_pace_launched(struct gp_pace *pace, uint32_t count, const struct gp_patience *patience, uint64_t now)
{
    double passed = (double)(now - pace->hoped_at) / HOPE_AGAIN;
    double hope = pace->hope * (1 + (passed < ENCOURAGEMENT ? passed : ENCOURAGEMENT));

    if (patience->least > 1)
        pace->faith += ((count >= patience->least) - pace->faith) / 8;
    if (count < patience->least) {
        double loss = 1 - pace->faith;

        if (loss < 0.5 && patience->least < NO_MORE * GROUP)
            loss = 0.5;
        pace->reach += (count - pace->reach) * loss;
        hope /= 2;
    } else if (count > reach_of(pace)) {
        pace->reach += (count - pace->reach) / 2;
    } else if (patience->wanted && pace->reach <= GROUP) {
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
 * and Serfozo, "Optimal control of batch service queues", Advances in Applied Probability 5, 1973. */
static uint32_t best_group(const struct gp_pace *pace, const struct gp_costs *costs, double waiting, uint32_t most)
{
    double best_cost = 0;
    uint32_t best = 1;

    for (uint32_t n = 1; n <= most; n++) {
        double together = n * costs->single < group_cost(costs) ? n * costs->single : group_cost(costs);
        double cost = (n - 1) / 2.0 * pace->gap + (1 + waiting / n) * together;

        if (n == 1 || cost < best_cost) {
            best = n;
            best_cost = cost;
        }
    }
    return best;
}

/* How many wait is estimated as the batching thread does (patience() in engine/scheduler.py): about u^3 / (1 - u) where
 * a processor is busy for a share u of the time, and behind the thread of an event loop all its connections. But where
 * no more than a few come together, no more than those share the processors. */
#define CONNECTIONS_PER_THREAD 8.0
#define MOST_WAITING 128.0
#define GAPS 4.0 /* a wait lasts so many times as long as those that it is for should take to come */

struct gp_patience gp_patience(const struct gp_pace *pace, const struct gp_costs *costs,
                               const struct gp_processors *processors, uint32_t most, uint64_t max_wait)
{
    const double used = processors->used;
    double waiting = CONNECTIONS_PER_THREAD * used * used * used / (1 - used + 1e-9), wait;
    uint32_t reach = reach_of(pace);
    struct gp_patience patience;

    if (waiting > MOST_WAITING)
        waiting = MOST_WAITING;
    patience.least = best_group(pace, costs, waiting, most);
    patience.wanted = patience.least > 1;
    if (pace->reach < NO_MORE * GROUP) {
        double others = (reach > processors->threads ? reach : processors->threads) - 1;

        if (waiting > others / processors->count)
            waiting = others / processors->count;
        patience.least = best_group(pace, costs, waiting, reach);
    } else if (patience.least > reach) {
        patience.least = reach;
    }
    wait = GAPS * (patience.least - 1) * pace->gap;
    if (wait > (1 + waiting) * group_cost(costs))
        wait = (1 + waiting) * group_cost(costs);
    if (wait > (double)max_wait)
        wait = (double)max_wait;
    patience.wait = (uint64_t)wait;
    return patience;
}
