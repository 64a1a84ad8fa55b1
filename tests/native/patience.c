/* The rule by which requests wait for company, without clock or thread. */
#include "queue/patience.h"

#include "check.h"

#define MICROSECOND 1e3
#define MAX_WAIT 5000000u /* 5 ms */
#define SECOND 1000000000u

/* Of RSA-2048 and RSA-4096 where eight cost as much as 2.3 and 1.25 of them. */
static const struct gp_costs small = {.single = 215 * MICROSECOND, .group = 487 * MICROSECOND};
static const struct gp_costs large = {.single = 3150 * MICROSECOND, .group = 3950 * MICROSECOND};

static struct gp_patience rule(double gap_us, double together, const struct gp_costs *costs, double used)
{
    const struct gp_pace now = {.gap = gap_us * MICROSECOND, .together = together, .faith = 1};
    const struct gp_demand demand = {.threads = 1, .used = used};

    return gp_patience(&now, costs, &demand, 8, MAX_WAIT);
}

/* Where a processor is idle, a wait only costs. */
static void check_idle(void)
{
    CHECK(rule(300, 8, &small, 0.1).least == 1 && rule(300, 8, &small, 0.1).wait == 0);
    CHECK(rule(5000, 8, &large, 0.1).least == 1);
    CHECK(rule(10, 8, &large, 0).least == 1); /* and alone, each is done sooner than together */
}

/* Where none is, a full group is worth as much as it saves to all who wait. */
static void check_busy(void)
{
    CHECK(rule(100, 8, &small, 1).least == 8 && rule(300, 8, &large, 1).least == 8);
    CHECK(rule(100, 8, &small, 1).wait > 700 * MICROSECOND); /* seven more should have come by then */
    CHECK(rule(100, 8, &small, 1).wait <= 4000 * MICROSECOND);
    CHECK(rule(100000, 8, &small, 1).wait <= MAX_WAIT); /* whatever the gap */
    CHECK(rule(100, 1, &small, 1).least == 1 && rule(100, 1, &small, 1).wait == 0);
}

/* Where no more than a few come together, nobody else waits for the processors: four that share two are done as soon by
 * themselves, unless a group costs hardly more than one. Then two are waited for, as they save each other's time. */
static void check_few(void)
{
    CHECK(rule(300, 4, &small, 1).least == 1);
    CHECK(rule(300, 2, &large, 1).least == 2 && rule(300, 4, &large, 1).least == 4);
}

/* A group that costs more than its requests by themselves is never waited for. */
static void check_slow_kernels(void)
{
    const struct gp_costs slow = {.single = 200 * MICROSECOND, .group = 2000 * MICROSECOND};

    CHECK(rule(1, 8, &slow, 1).least == 1);
    CHECK(gp_smallest_group(&slow) > 8);
    CHECK(gp_smallest_group(&small) == 3 && gp_smallest_group(&large) == 2);
}

static const struct gp_demand busy = {.threads = 1, .used = 1};

/* Requests that come when so many are there already, and are then computed in groups of `count`: what the rule says in
 * the end. */
static struct gp_patience after(struct gp_pace *pace, int requests, uint32_t together, uint32_t count, int *in_vain)
{
    struct gp_patience patience = {.least = 1};

    for (int i = 0; i < requests; i++) {
        gp_pace_submitted(pace, 300000, together);
        patience = gp_patience(pace, &large, &busy, 8, MAX_WAIT);
        gp_pace_launched(pace, count, &patience, &large);
        *in_vain += patience.least > count;
    }
    return patience;
}

/* A closed loop of one client looks like a steady stream; only that nobody ever is there with it tells. */
static void check_lone_client(void)
{
    struct gp_pace lone = {0};
    int in_vain = 0, turns = 0;

    for (int i = 0; i < 10000; i++) {
        (void)after(&lone, 1, 1, 1, &in_vain);
        turns += gp_pace_waits_for_turn(&lone, &small);
    }
    CHECK(in_vain == 0);
    CHECK(turns > 0);                                               /* company that begins to come would be found, … */
    CHECK(turns * 20 * MICROSECOND < 0.003 * 10000 * small.single); /* … at hardly any cost */
}

/* Some are there together, but never come when they are waited for: so seldom that the 99th percentile does not see
 * it. */
static void check_false_promise(void)
{
    struct gp_pace pace = {0};
    int in_vain = 0;

    (void)after(&pace, 1000, 8, 1, &in_vain);
    in_vain = 0;
    (void)after(&pace, 10000, 8, 1, &in_vain);
    CHECK(in_vain < 10000 / 100);
}

/* Company that is seen is waited for at once, and when it is gone, soon no longer. */
static void check_changes(void)
{
    struct gp_pace changing = {0};
    int in_vain = 0;

    CHECK(after(&changing, 5000, 1, 1, &in_vain).least == 1);
    CHECK(after(&changing, 10, 8, 8, &in_vain).least == 8);
    CHECK(after(&changing, 1000, 8, 8, &in_vain).least == 8 && in_vain == 0);
    CHECK(after(&changing, 10, 1, 1, &in_vain).least == 1);
}

/* The one client that comes after a crowd waits for none of it. */
static void check_crowd_before_silence(void)
{
    struct gp_pace pace = {0};
    int in_vain = 0;

    CHECK(after(&pace, 1000, 8, 8, &in_vain).least == 8);
    gp_pace_submitted(&pace, 200000000, 1);
    CHECK(after(&pace, 1000, 1, 1, &in_vain).least == 1 && in_vain == 0);
    CHECK(after(&pace, 10, 8, 8, &in_vain).least == 8); /* the crowd is back */
}

/* A turn is worth waiting for as long as groups save more than pauses cost. */
static void check_turns(void)
{
    const struct gp_patience no_wait = {.least = 1};
    struct gp_pace pace = {0};

    gp_pace_submitted(&pace, 300000, 1);
    CHECK(gp_pace_waits_for_turn(&pace, &small)); /* the first looks */
    CHECK(!gp_pace_waits_for_turn(&pace, &small));
    gp_pace_launched(&pace, 8, &no_wait, &small);
    for (int i = 0; i < 1000; i++) {
        CHECK(gp_pace_waits_for_turn(&pace, &small));
        gp_pace_launched(&pace, 4, &no_wait, &small);
    }
    for (int i = 0; i < 50; i++) /* two are computed one after the other */
        gp_pace_launched(&pace, 2, &no_wait, &small);
    CHECK(!gp_pace_waits_for_turn(&pace, &small));
}

/* One silence says little about how fast requests come once they do. */
static void check_silence(void)
{
    struct gp_pace steady = {0};

    for (int i = 0; i < 1000; i++)
        gp_pace_submitted(&steady, 100000, 1);
    gp_pace_submitted(&steady, 3600ull * SECOND, 1);
    CHECK(steady.gap < 150000);
}

int main(void)
{
    check_idle();
    check_busy();
    check_few();
    check_slow_kernels();
    check_lone_client();
    check_false_promise();
    check_changes();
    check_crowd_before_silence();
    check_turns();
    check_silence();
    return 0;
}
