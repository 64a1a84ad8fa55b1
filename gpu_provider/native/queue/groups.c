#define _GNU_SOURCE
#include "queue/groups.h"

#include <openssl/async.h>
#include <openssl/crypto.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "keys/cpu.h"
#include "keys/libcrypto.h"
#include "process.h"
#include "queue/consumer.h"
#include "queue/counts.h"
#include "queue/wait.h"

/* Slots: a group in the making for each size class, and one for each of 58 threads that compute. Where there are more,
 * requests are computed by themselves. */
#define DEPTH 512u

/* The others' deadline, after that of the oldest: it computes for them, unless its owner is gone or busy with something
 * else. */
#define GRACE_NS 2000000u

/* So many are computed by themselves at first, so that their cost is known, each of them timed: the least counts, since
 * the first also does what is done once. Later one in LEARN: the clock of processor time is a system call. */
#define FIRST_SAMPLES 4u
#define LEARN 4u

struct size_class {
    struct gp_pace pace;
    struct gp_costs measured;
    struct gp_patience patience;
    uint64_t last_ns;   /* the last request began */
    uint32_t samples;   /* of the cost of a single, so far */
    uint32_t under_way; /* requests that are being computed */
    int turn;           /* somebody waits for the end of one: the others need not */
};

/* The share of the time in which a thread, or the process, has a processor. */
struct usage {
    uint64_t at_ns, used_ns;
    double share;
};

struct gp_groups {
    uint32_t fork_epoch;
    struct gp_group_settings settings;
    double processors; /* that the process may use */

    pthread_mutex_t lock;
    gp_client *client; /* NULL: not made yet */
    gp_consumer *consumer;
    struct size_class classes[GP_CLASSES];
    uint32_t computing;   /* threads, at this moment */
    uint64_t computed_ns; /* when a computation last ended */
    struct usage process;
    uint64_t window;                  /* of WINDOW_NS */
    uint32_t threads, threads_before; /* that had requests in this window, and in the one before */
    uint32_t threads_of_late;         /* the larger of the two */
    double delay;                     /* times as long as a computation takes by itself: threads share processors */
};

static _Atomic(gp_groups *) current;

/* Of a Zen 5, with OpenSSL 3.0, in nanoseconds. */
static const struct gp_costs typical_costs[GP_CLASSES] = {
    {215e3, 487e3}, {0.9e6, 1.1e6}, {1.37e6, 1.68e6}, {2.2e6, 2.7e6}, {3.15e6, 3.95e6},
};

/* ---- forks ---- */

/* Held by whoever computes requests of others. A fork waits for them: otherwise a child could inherit a key of its own
 * whose lock in OpenSSL is held for ever, by a thread that it does not have. Not for long: a signal handler may
 * fork. */
static pthread_rwlock_t for_others = PTHREAD_RWLOCK_WRITER_NONRECURSIVE_INITIALIZER_NP;
static pthread_once_t watching = PTHREAD_ONCE_INIT;
static _Thread_local int is_quiet; /* of the thread that forks */
#define QUIET_SECONDS 1

static void before_fork(void)
{
    struct timespec deadline;

    clock_gettime(CLOCK_REALTIME, &deadline);
    deadline.tv_sec += QUIET_SECONDS;
    is_quiet = pthread_rwlock_timedwrlock(&for_others, &deadline) == 0;
}

static void after_fork_in_parent(void)
{
    if (is_quiet)
        pthread_rwlock_unlock(&for_others);
}

static void after_fork_in_child(void)
{
    for_others = (pthread_rwlock_t)PTHREAD_RWLOCK_WRITER_NONRECURSIVE_INITIALIZER_NP;
}

static void watch_forks(void)
{
    gp_watch_forks();
    (void)pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
}

/* ---- making ---- */

static gp_groups *make(const struct gp_group_settings *settings)
{
    gp_groups *groups = calloc(1, sizeof(*groups));
    cpu_set_t processors;

    if (groups == NULL)
        return NULL;
    groups->fork_epoch = gp_fork_epoch();
    groups->settings = *settings;
    groups->processors = sched_getaffinity(0, sizeof(processors), &processors) == 0 ? CPU_COUNT(&processors)
                                                                                    : sysconf(_SC_NPROCESSORS_ONLN);
    groups->delay = 1;
    for (uint32_t i = 0; i < GP_CLASSES; i++)
        groups->classes[i].patience.least = 1;
    pthread_mutex_init(&groups->lock, NULL);
    return groups;
}

gp_groups *gp_groups_of_process(const struct gp_group_settings *settings)
{
    gp_groups *found = atomic_load_explicit(&current, memory_order_acquire), *made;

    if (found != NULL && found->fork_epoch == gp_fork_epoch())
        return found;
    (void)pthread_once(&watching, watch_forks);
    made = make(settings);
    if (made == NULL || atomic_compare_exchange_strong(&current, &found, made))
        return made;
    free(made); /* another thread was first */
    return found;
}

/* A request was orphaned: its slot and key are let go if nobody computes it. */
static void drop_orphans(gp_client *client)
{
    gp_groups *groups = gp_client_groups(client);

    pthread_mutex_lock(&groups->lock);
    gp_consumer_drain(groups->consumer);
    for (uint32_t i = 0; i < GP_CLASSES; i++)
        gp_consumer_drop_orphans(groups->consumer, i);
    pthread_mutex_unlock(&groups->lock);
}

/* With the lock. */
static void make_client(gp_groups *groups)
{
    gp_client *client = gp_client_new(DEPTH);

    if (client == NULL)
        return;
    groups->consumer = gp_consumer_new(client);
    if (groups->consumer == NULL) {
        gp_client_free(client);
        return;
    }
    gp_cpu_use_kernels(gp_client_cpu(client), groups->settings.kernels, 2);
    gp_client_set_groups(client, groups, drop_orphans);
    groups->client = client;
}

gp_client *gp_groups_client(gp_groups *groups)
{
    gp_client *client;

    pthread_mutex_lock(&groups->lock);
    if (groups->client == NULL)
        make_client(groups);
    client = groups->client;
    pthread_mutex_unlock(&groups->lock);
    return client;
}

/* ---- what processors are spent on; with the lock ---- */

#define LOOK_NS 20000000u
#define MOST_DELAY 16 /* of one computation: whatever held it up so long says little about the next */

static uint64_t clock_ns(clockid_t id)
{
    struct timespec time;

    clock_gettime(id, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static double share(struct usage *usage, clockid_t id, double processors, uint64_t now)
{
    uint64_t used_ns;

    if (now - usage->at_ns < LOOK_NS)
        return usage->share;
    used_ns = clock_ns(id);
    if (usage->at_ns != 0 && used_ns > usage->used_ns) /* a forked child's clock starts again */
        usage->share +=
            ((double)(used_ns - usage->used_ns) / (double)(now - usage->at_ns) / processors - usage->share) / 2;
    usage->at_ns = now;
    usage->used_ns = used_ns;
    return usage->share;
}

/* The share of the time in which this thread, or the process, computes or would if it had the processor. A program
 * whose threads are all busy makes its connections wait, however many processors are idle. */
static double used(gp_groups *groups, uint64_t now)
{
    static _Thread_local struct usage thread;
    double own = share(&thread, CLOCK_THREAD_CPUTIME_ID, 1, now);
    double all = share(&groups->process, CLOCK_PROCESS_CPUTIME_ID, groups->processors, now);
    double most = (own > all ? own : all) * groups->delay;

    return most < 1 ? most : 1;
}

struct stopwatch {
    uint64_t began_ns, cpu_ns; /* the clock, and this thread's processor time */
};

static struct stopwatch start_stopwatch(void)
{
    return (struct stopwatch){gp_now_ns(), clock_ns(CLOCK_THREAD_CPUTIME_ID)};
}

/* A cost is the processor time of a computation that has just ended, for each of its `requests`; how much longer it
 * took tells how many share the processors. */
static void learn(gp_groups *groups, double *cost, const struct stopwatch *stopwatch, uint32_t requests, int is_first)
{
    double took = (double)(gp_now_ns() - stopwatch->began_ns);
    double spent = (double)(clock_ns(CLOCK_THREAD_CPUTIME_ID) - stopwatch->cpu_ns) + 1;
    double delay = took / spent < MOST_DELAY ? took / spent : MOST_DELAY;

    spent /= requests;
    if (!is_first)
        *cost += (spent - *cost) / 16;
    else if (*cost == 0 || spent < *cost)
        *cost = spent;
    groups->delay += (delay - groups->delay) / 16;
}

static const struct gp_costs *costs_of(const gp_groups *groups, const struct size_class *class)
{
    return groups->settings.pretend ? &typical_costs[class - groups->classes] : &class->measured;
}

static void rule_again(gp_groups *groups, struct size_class *class, uint64_t now)
{
    const struct gp_demand demand = {.threads = groups->threads_of_late, .used = used(groups, now)};

    class->patience = gp_patience(&class->pace, costs_of(groups, class), &demand, groups->settings.most,
                                  groups->settings.max_wait_ns);
}

/* ---- how fast requests come; with the lock ---- */

#define WINDOW_NS 100000000u

/* This thread's part in it. */
static _Thread_local struct {
    const gp_groups *groups; /* what the rest is about */
    uint64_t window;         /* in which it was last counted among the threads */
    uint64_t computed_ns;    /* how long it has computed, all in all */
    uint32_t singles;
    struct stopwatch single; /* zero: not this one */
    int cancelable;          /* before: a thread that is canceled would count as computing for ever */
    struct {
        uint64_t began_ns; /* its last request */
        uint64_t computed_ns;
    } last[GP_CLASSES];
} own;

/* How many threads have requests, this one among them. */
static void count_threads(gp_groups *groups, uint64_t now)
{
    uint64_t window = now / WINDOW_NS;
    uint32_t threads;

    if (window > groups->window) { /* another thread may have read the clock later, and be first */
        groups->threads_before = groups->window + 1 == window ? groups->threads : 0;
        groups->threads = 0;
        groups->window = window;
    }
    if (own.window != groups->window) {
        own.window = groups->window;
        groups->threads++;
    }
    threads = groups->threads > groups->threads_before ? groups->threads : groups->threads_before;
    groups->threads_of_late = threads > 0 ? threads : 1;
}

/* The time from one request of the process to the next, as this thread sees it. Its own computing is left out, with all
 * that the processor did meanwhile: threads that compute one by one would not learn otherwise that together they could
 * be faster. */
static uint64_t gap_before(gp_groups *groups, uint32_t class_index, uint64_t now)
{
    uint64_t since = groups->classes[class_index].last_ns, gap;

    if (own.groups != groups) {
        memset(&own, 0, sizeof(own));
        own.groups = groups;
    }
    count_threads(groups, now);
    if (own.last[class_index].began_ns != 0) {
        gap = now - own.last[class_index].began_ns - (own.computed_ns - own.last[class_index].computed_ns);
        gap /= groups->threads_of_late;
    } else { /* its first: as any thread sees it */
        gap = now - (since > groups->computed_ns ? since : groups->computed_ns);
    }
    own.last[class_index].began_ns = now;
    own.last[class_index].computed_ns = own.computed_ns;
    return gap < INT64_MAX ? gap : 0; /* another thread was first since `now` */
}

/* ---- requests by themselves ---- */

/* With the lock. */
static uint32_t count_waiting(gp_groups *groups, uint32_t class_index, uint32_t *first_slot)
{
    if (groups->consumer == NULL)
        return 0;
    gp_consumer_drain(groups->consumer);
    return gp_consumer_waiting(groups->consumer, class_index, first_slot);
}

/* With the lock. */
static int is_busy(const gp_groups *groups)
{
    return groups->computing >= groups->processors;
}

int gp_groups_is_alone(gp_groups *groups, uint32_t bytes, enum gp_waits waits, uint64_t now_ns)
{
    uint32_t class_index = GP_CLASS_OF(bytes), first_slot, waiting;
    struct size_class *class = &groups->classes[class_index];
    int alone, sample;
    uint64_t gap;

    pthread_mutex_lock(&groups->lock);
    gap = gap_before(groups, class_index, now_ns);
    waiting = count_waiting(groups, class_index, &first_slot);
    if (class->last_ns != 0)
        gp_pace_submitted(&class->pace, gap, class->under_way + waiting + 1);
    class->last_ns = now_ns;
    if (waiting > 0)
        alone = 0;
    else if (waits == GP_CANT_WAIT || class->samples < FIRST_SAMPLES)
        alone = 1;
    else if (is_busy(groups) || (class->patience.least > 1 && gap <= class->patience.wait))
        alone = waits == GP_SLEEPS && groups->threads_of_late == 1;
    else
        alone = waits == GP_SLEEPS || !gp_pace_waits_for_turn(&class->pace, costs_of(groups, class));
    sample = alone && (class->samples < FIRST_SAMPLES || own.singles++ % LEARN == 0);
    if (alone) {
        class->under_way++;
        groups->computing++;
    }
    pthread_mutex_unlock(&groups->lock);
    if (alone)
        pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &own.cancelable);
    own.single = sample ? start_stopwatch() : (struct stopwatch){0};
    return alone;
}

/* With the lock: a computation of this thread has ended, which began at that time. */
static void count_end(gp_groups *groups, struct size_class *class, uint32_t requests, uint64_t began_ns)
{
    uint64_t now = gp_now_ns();

    class->under_way -= requests;
    groups->computing--;
    groups->computed_ns = now;
    own.computed_ns += now - began_ns;
    rule_again(groups, class, now);
}

/* Lets the lock go. Whoever waits because no processor was free, the oldest of all, is told that one is. */
static void unlock_and_call_next(gp_groups *groups)
{
    uint32_t oldest = GP_NO_SLOT;
    struct gp_wait *job = NULL;

    for (uint32_t i = 0; i < GP_CLASSES && !is_busy(groups); i++) {
        const uint64_t *submitted_ns;
        uint32_t slot;

        if (count_waiting(groups, i, &slot) == 0)
            continue;
        submitted_ns = gp_client_queue(groups->client)->submitted_ns;
        if (oldest == GP_NO_SLOT || submitted_ns[slot] < submitted_ns[oldest])
            oldest = slot;
    }
    if (oldest != GP_NO_SLOT && gp_client_waiters(groups->client)[oldest].kind == GP_WAITER_JOB)
        job = gp_wait_up_ref(gp_client_waiters(groups->client)[oldest].wait);
    if (oldest != GP_NO_SLOT) /* a job too, if it can't pause */
        gp_client_wake_thread(groups->client, oldest);
    pthread_mutex_unlock(&groups->lock);
    if (job != NULL) {
        gp_wait_notify(job);
        gp_wait_free(job);
    }
}

void gp_groups_computed_alone(gp_groups *groups, uint32_t bytes, uint64_t began_ns)
{
    struct size_class *class = &groups->classes[GP_CLASS_OF(bytes)];

    pthread_mutex_lock(&groups->lock);
    if (own.single.began_ns != 0)
        learn(groups, &class->measured.single, &own.single, 1, class->samples++ < FIRST_SAMPLES);
    count_end(groups, class, 1, began_ns);
    unlock_and_call_next(groups);
    pthread_setcancelstate(own.cancelable, NULL);
}

/* ---- groups ---- */

/* Without the lock. 1 if the kernels computed all of it. */
static int compute(gp_groups *groups, struct gp_group *group, uint32_t smallest, struct stopwatch *stopwatch)
{
    gp_cpu *cpu = gp_client_cpu(groups->client);
    gp_key_table *keys = gp_client_keys(groups->client);
    int prepared = 1;

    if (group->requests < smallest) { /* the keys may have no further requests: they are not prepared */
        *stopwatch = start_stopwatch();
        gp_libcrypto_private(keys, group->requests, group->keys, group->inputs, group->outputs,
                             GP_CLASS_BYTES(group->class_index), group->ok);
        return 0;
    }
    for (uint32_t i = 0; i < group->requests; i++) {
        gp_key *key = gp_key_table_get(keys, group->keys[i]);

        if (key != NULL)
            gp_cpu_prepare(cpu, key);
        prepared &= key != NULL && atomic_load(&key->kernel_key) != NULL;
        gp_key_free(key);
    }
    *stopwatch = start_stopwatch();
    gp_consumer_compute_group(groups->consumer, group);
    return prepared && group->again == 0;
}

struct ending {
    gp_consumer *consumer;
    struct gp_group *group;
};

static void complete(void *argument)
{
    struct ending *ending = argument;

    gp_consumer_complete_group(ending->consumer, ending->group);
}

/* Without the lock. The callbacks of other connections are not for the stack of a job, which is small and has no guard
 * page. */
static void end(gp_groups *groups, struct gp_group *group)
{
    struct ending ending = {groups->consumer, group};

    if (ASYNC_get_current_job() == NULL || !groups->settings.kernels->call_apart(complete, &ending))
        complete(&ending);
}

/* With the lock, which is let go meanwhile. 0: out of memory. */
static int serve_group(gp_groups *groups, uint32_t class_index)
{
    struct size_class *class = &groups->classes[class_index];
    struct gp_group *group = OPENSSL_malloc(sizeof(*group));
    const struct gp_costs *costs = costs_of(groups, class);
    uint32_t least = class->patience.least, smallest = gp_smallest_group(costs);
    struct gp_counts *counts = gp_counts_of(class_index);
    uint64_t began = gp_now_ns();
    struct stopwatch stopwatch;
    int by_kernels;

    if (group == NULL)
        return 0;
    if (smallest > groups->settings.kernels->lanes) /* a full group is theirs in any case */
        smallest = groups->settings.kernels->lanes;
    gp_cpu_set_smallest(gp_client_cpu(groups->client), class_index, smallest);
    gp_consumer_take_group(groups->consumer, class_index, groups->settings.most, group);
    class->turn = 0;
    if (group->requests > 0) {
        gp_count(&counts->groups, 1);
        gp_count(&counts->grouped, group->requests);
        gp_count(&counts->in_vain, group->requests < least);
        gp_pace_launched(&class->pace, group->requests, &class->patience, costs);
        class->under_way += group->requests;
        groups->computing++;
        pthread_mutex_unlock(&groups->lock);
        pthread_rwlock_rdlock(&for_others);
        by_kernels = compute(groups, group, smallest, &stopwatch);
        pthread_rwlock_unlock(&for_others);
        pthread_mutex_lock(&groups->lock);
        if (by_kernels)
            learn(groups, &class->measured.group, &stopwatch, 1, class->measured.group == 0);
        else if (group->requests < smallest)
            learn(groups, &class->measured.single, &stopwatch, group->requests, 0);
        count_end(groups, class, group->requests, began);
        unlock_and_call_next(groups);
        end(groups, group);
        pthread_mutex_lock(&groups->lock);
    }
    OPENSSL_free(group);
    return 1;
}

/* With the lock: until when the owner of a request waits; 0: no longer. `again`: it has waited before. */
static uint64_t deadline(gp_groups *groups, uint32_t class_index, uint32_t own_slot, enum gp_waits waits, int again)
{
    struct size_class *class = &groups->classes[class_index];
    uint32_t first_slot, waiting = count_waiting(groups, class_index, &first_slot);
    uint64_t now = gp_now_ns(), wait = class->patience.wait, most = groups->settings.max_wait_ns, until;

    if (waits == GP_CANT_WAIT || waiting >= groups->settings.most)
        return 0;
    if (again)
        class->turn = 0;
    if (is_busy(groups)) {
        wait = most;
    } else if (class->turn) {
        return now + most;
    } else if (waits == GP_PAUSES && !again && (waiting == 1 || waiting >= class->patience.least)) {
        class->turn = 1;
        return now;
    } else if (waiting >= class->patience.least) {
        return 0;
    } else if (class->under_way > 0) { /* those are not back before it is done */
        wait += (uint64_t)costs_of(groups, class)->group;
    }
    until = gp_client_queue(groups->client)->submitted_ns[first_slot] + (wait < most ? wait : most);
    if (until <= now)
        return 0;
    return first_slot == own_slot ? until : until + GRACE_NS;
}

uint64_t gp_groups_serve(gp_client *client, gp_request_handle handle, enum gp_waits waits)
{
    gp_groups *groups = gp_client_groups(client);
    uint64_t until = GP_NO_DEADLINE;
    uint32_t slot = gp_request_slot(handle), class_index;
    int cancelable;
    struct gp_waiter *waiter = &gp_client_waiters(client)[slot];
    gp_queue *queue = gp_client_queue(client);

    if (groups == NULL)
        return GP_NO_DEADLINE;
    class_index = GP_CLASS_OF(queue->bytes[slot]);
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancelable); /* others wait for what this thread computes */
    pthread_mutex_lock(&groups->lock);
    while (atomic_load_explicit(&queue->word[slot], memory_order_acquire)
           == GP_WORD(gp_request_generation(handle), GP_SUBMITTED)) {
        until = deadline(groups, class_index, slot, waits, waiter->waits);
        if (until != 0) {
            gp_count(&gp_counts_of(class_index)->waits, !waiter->waits);
            waiter->waits = 1;
            break;
        }
        gp_consumer_drain(groups->consumer);
        until = GP_NO_DEADLINE;
        if (!serve_group(groups, class_index)) {
            until = GP_NO_MEMORY;
            break;
        }
    }
    pthread_mutex_unlock(&groups->lock);
    pthread_setcancelstate(cancelable, NULL);
    return until;
}
