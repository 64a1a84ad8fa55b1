/* The rule by which requests wait for company, without clock or thread. */
#include "queue/patience.h"

#include "check.h"

#define MICROSECOND 1e3
#define MAX_WAIT 5000000u /* 5 ms */
#define SECOND 1000000000u

/* Of RSA-2048 and RSA-4096 where eight cost as much as 2.3 and 1.25 of them. */
static const struct gp_costs small = {.single = 215 * MICROSECOND, .group = 487 * MICROSECOND};
static const struct gp_costs large = {.single = 3150 * MICROSECOND, .group = 3950 * MICROSECOND};

static struct gp_pace pace(double gap_us, double reach)
{
    return (struct gp_pace){.gap = gap_us * MICROSECOND, .reach = reach, .hope = 1.0 / 16};
}

static struct gp_patience rule(double gap_us, double reach, const struct gp_costs *costs, double used)
{
    const struct gp_pace now = pace(gap_us, reach);

    const struct gp_processors processors = {.count = 2, .threads = 1, .used = used};

    return gp_patience(&now, costs, &processors, 8, MAX_WAIT);
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
 * themselves, unless a group costs hardly more than one. */
static void check_few(void)
{
    CHECK(rule(300, 4, &small, 1).least == 1 && rule(300, 4, &small, 1).wanted);
    CHECK(rule(300, 2, &large, 1).least == 1 && rule(300, 4, &large, 1).least == 4);
}

/* A group that costs more than its requests by themselves is never waited for. */
static void check_slow_kernels(void)
{
    const struct gp_costs slow = {.single = 200 * MICROSECOND, .group = 2000 * MICROSECOND};

    CHECK(rule(1, 8, &slow, 1).least == 1);
    CHECK(gp_smallest_group(&slow) > 8);
    CHECK(gp_smallest_group(&small) == 3 && gp_smallest_group(&large) == 2);
}

static const struct gp_processors busy = {.count = 2, .threads = 1, .used = 1};

/* A closed loop of one client looks like a steady stream; only that nobody ever comes tells. */
static void check_lone_client(void)
{
    struct gp_pace lone = {0};
    uint64_t now = 0;
    int in_vain = 0, requests = 20000;

    for (int i = 0; i < requests; i++) {
        struct gp_patience patience;

        now += 1000000; /* 1,000 requests a second */
        gp_pace_submitted(&lone, 300000);
        patience = gp_patience(&lone, &large, &busy, 8, MAX_WAIT);
        gp_pace_launched(&lone, 1, &patience, now);
        in_vain += patience.least > 1;
    }
    CHECK(in_vain > 0);              /* company that begins to come would be found, … */
    CHECK(in_vain < requests / 130); /* … and the 99th percentile does not see it */
}

/* Once company is there, it is found soon, and when it is gone, it is not waited for any longer. */
static void check_changes(void)
{
    struct gp_patience patience = {.least = 1};
    struct gp_pace changing = {0};
    uint64_t now = 0;
    int turns = 0;

    for (int i = 0; i < 5000; i++) {
        gp_pace_submitted(&changing, 300000);
        patience = gp_patience(&changing, &large, &busy, 8, MAX_WAIT);
        gp_pace_launched(&changing, 1, &patience, now += 1000000);
    }
    for (; patience.least < 8; turns++) {
        CHECK(turns < 5000);
        gp_pace_submitted(&changing, 20000);
        patience = gp_patience(&changing, &large, &busy, 8, MAX_WAIT);
        gp_pace_launched(&changing, patience.least > 1 ? 8 : 1, &patience, now += 1000000);
    }
    for (turns = 0; patience.least > 1; turns++) {
        CHECK(turns < 50);
        gp_pace_submitted(&changing, 300000);
        patience = gp_patience(&changing, &large, &busy, 8, MAX_WAIT);
        gp_pace_launched(&changing, 1, &patience, now += 1000000);
    }
}

/* One silence says little about how fast requests come once they do. */
static void check_silence(void)
{
    struct gp_pace steady = {0};

    for (int i = 0; i < 1000; i++)
        gp_pace_submitted(&steady, 100000);
    gp_pace_submitted(&steady, 3600ull * SECOND);
    CHECK(steady.gap < 150000);
}

int main(void)
{
    check_idle();
    check_busy();
    check_few();
    check_slow_kernels();
    check_lone_client();
    check_changes();
    check_silence();
    return 0;
}
