#include "queue/patience.h"

#define WEIGHT (1.0 / 16)
#define LONGEST_GAP 4.0          /* times the mean: a silence says little about how fast requests come once they do */
#define SILENCE_NS 50000000u     /* after it, those that came together before are taken for gone */
#define GROUP 8                  /* a full one */
#define NO_MORE 0.85             /* of it: if there are fewer together, they are all that there are */
#define LEAST_FAITH (1.0 / 1024) /* so that the 99th percentile does not see what is waited for in vain */
#define PAUSE_NS 20000.0         /* what it costs to pause a job */
#define MOST_SAVED (10 * PAUSE_NS)
#define LOOKS 0.002 /* of the time goes into pauses that only look whether others have come */

void gp_pace_submitted(struct gp_pace *pace, uint64_t gap, uint32_t together)
{
    double observed = (double)gap;

    if (pace->gap == 0) {
        pace->gap = observed + 1;
        pace->faith = 1;
    }
    if (gap > SILENCE_NS)
        pace->together = 1;
    if (observed > LONGEST_GAP * pace->gap)
        observed = LONGEST_GAP * pace->gap;
    pace->gap += (observed - pace->gap) * WEIGHT;
    if (together > pace->together)
        pace->together += (together - pace->together) * (pace->faith > LEAST_FAITH ? pace->faith : LEAST_FAITH);
}

static uint32_t together_of(const struct gp_pace *pace)
{
    return (uint32_t)(pace->together + 0.05); /* it approaches a number, and never gets there */
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

/* As many as are there together can be waited for. Those that are not back when the wait is over are taken for gone,
 * and the more waits were in vain, the longer it takes until there seem to be as many again. */
void gp_pace_launched(struct gp_pace *pace, uint32_t count, const struct gp_patience *patience,
                      const struct gp_costs *costs)
{
    double saved = count * costs->single - group_cost(costs);

    pace->saved += ((saved > 0 ? saved : 0) - count * PAUSE_NS - pace->saved) / 8;
    if (pace->saved > MOST_SAVED) /* so that it soon falls when the others are gone */
        pace->saved = MOST_SAVED;
    if (patience->least > 1)
        pace->faith += ((count >= patience->least) - pace->faith) / 8;
    if (count < patience->least)
        pace->together += (count - pace->together) * (pace->faith < 0.5 ? 1 - pace->faith : 0.5);
}

int gp_pace_waits_for_turn(struct gp_pace *pace, const struct gp_costs *costs)
{
    return pace->saved > 0 || pace->lone++ % (1 + (uint32_t)(PAUSE_NS / (LOOKS * costs->single + 1))) == 0;
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
 * no more than a few come together, no more than those wait. The factor was measured with HAProxy and its clients on
 * two processors: twice as much saves hardly more processor time, and raises the 99th percentile. */
#define CONNECTIONS_PER_THREAD 16.0
#define MOST_WAITING 128.0
#define GAPS 4.0 /* a wait lasts so many times as long as those that it is for should take to come */

struct gp_patience gp_patience(const struct gp_pace *pace, const struct gp_costs *costs, const struct gp_demand *demand,
                               uint32_t most, uint64_t max_wait)
{
    const double used = demand->used;
    double waiting = CONNECTIONS_PER_THREAD * used * used * used / (1 - used + 1e-9), wait;
    uint32_t together = together_of(pace);
    struct gp_patience patience;

    if (waiting > MOST_WAITING)
        waiting = MOST_WAITING;
    if (pace->together < NO_MORE * GROUP) {
        double others = (together > demand->threads ? together : demand->threads) - 1;

        if (waiting > others)
            waiting = others;
    }
    patience.least = best_group(pace, costs, waiting, together < most ? together : most);
    wait = GAPS * (patience.least - 1) * pace->gap;
    if (wait > (1 + waiting) * group_cost(costs))
        wait = (1 + waiting) * group_cost(costs);
    if (wait > (double)max_wait)
        wait = (double)max_wait;
    patience.wait = (uint64_t)wait;
    return patience;
}
