#define _GNU_SOURCE
#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <openssl/crypto.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "queue/descriptors.h"
#include "service/messages.h"
#include "service/remote.h"

#define AT_ONCE 8u       /* requests of one process, before it is another's turn */
#define MOST_TURNS 1000u /* before something is computed */

struct named_key {
    char name[GP_MAX_NAME + 1];
    gp_key_handle handle;
    struct named_key *next;
};

struct gp_remotes {
    gp_client *client;
    struct named_key *named; /* the socket's thread */
    int epoll;               /* the doorbells of all processes */
    _Atomic uint32_t room, in_flight;
    atomic_int starved;      /* requests were left for lack of room: the consumer is to be woken when there is some */
    pthread_mutex_t lock;    /* before the client's */
    gp_remote *first, *last; /* that are active */
};

gp_client *gp_remotes_client(const gp_remotes *remotes)
{
    return remotes->client;
}

/* ---- counted, since completions come from any thread ---- */

static gp_remote *up_ref(gp_remote *remote)
{
    atomic_fetch_add_explicit(&remote->references, 1, memory_order_relaxed);
    return remote;
}

static void release(gp_remote *remote)
{
    if (atomic_fetch_sub_explicit(&remote->references, 1, memory_order_acq_rel) != 1)
        return;
    for (uint32_t i = 0; i < atomic_load(&remote->descriptor_count); i++)
        close(remote->descriptors[i]);
    gp_queue_unmap(&remote->queue);
    pthread_mutex_destroy(&remote->lock);
    free(remote->descriptors);
    free(remote->keys);
    free(remote);
}

/* ---- results ---- */

static void tell(gp_remote *remote, uint32_t slot)
{
    uint32_t wake = atomic_exchange(&remote->queue.wake[slot], GP_WAKE_NOBODY);

    if (wake == GP_WAKE_THREAD)
        syscall(SYS_futex, &remote->queue.wake[slot], FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
    else if (wake >= GP_WAKE_DESCRIPTORS && wake - GP_WAKE_DESCRIPTORS < atomic_load(&remote->descriptor_count))
        gp_descriptor_signal(remote->descriptors[wake - GP_WAKE_DESCRIPTORS]);
}

/* Changes a slot's word if it is as it should be; if the request was given up, its slot is free again. */
static int change_state(gp_remote *remote, uint32_t slot, uint32_t generation, uint32_t from, uint32_t to)
{
    uint32_t expected = GP_WORD(generation, from), orphaned = GP_WORD(generation, GP_ORPHANED);

    if (atomic_compare_exchange_strong(&remote->queue.word[slot], &expected, GP_WORD(generation, to)))
        return 1;
    (void)atomic_compare_exchange_strong(&remote->queue.word[slot], &orphaned, GP_WORD(generation, GP_FREE));
    return 0;
}

static void publish(gp_remote *remote, uint32_t slot, uint32_t generation, const uint8_t *output, uint32_t bytes,
                    int ok)
{
    uint8_t *result = remote->queue.output + (size_t)slot * GP_MAX_BYTES;

    if (!change_state(remote, slot, generation, GP_RUNNING, GP_FINISHING))
        return;
    if (ok)
        memcpy(result, output, bytes);
    else
        atomic_fetch_add_explicit(&remote->failed, 1, memory_order_relaxed);
    if (change_state(remote, slot, generation, GP_FINISHING, ok ? GP_DONE_OK : GP_DONE_ERR))
        tell(remote, slot);
    else
        OPENSSL_cleanse(result, GP_MAX_BYTES);
}

/* struct gp_source */
static void finish(void *argument, uint64_t tag, const uint8_t *output, uint32_t bytes, int ok)
{
    gp_remote *remote = argument;
    gp_remotes *remotes = remote->remotes;

    publish(remote, gp_request_slot(tag), gp_request_generation(tag), output, bytes, ok);
    atomic_fetch_sub(&remotes->in_flight, 1);
    if (atomic_exchange(&remotes->starved, 0))
        gp_client_wake_consumer(remotes->client);
    release(remote);
}

/* ---- requests; with gp_remotes.lock ---- */

/* Our client's handle of a key of the process; 0: it has no such key. */
static gp_key_handle own_handle(gp_remote *remote, gp_key_handle handle)
{
    uint32_t place = handle & 0xffff;
    gp_key_handle own = 0;

    pthread_mutex_lock(&remote->lock);
    if (handle != 0 && place < remote->limits.keys && remote->keys[place].handle == handle)
        own = remote->keys[place].own;
    pthread_mutex_unlock(&remote->lock);
    return own;
}

/* Copies the request of one slot into one of our client's: what the process does to its memory later no longer matters.
 * 0: it is not valid. */
static int copy_request(gp_remote *remote, uint32_t slot, uint32_t generation, uint32_t own_slot)
{
    gp_client *client = remote->remotes->client;
    struct gp_waiter waiter = {.kind = GP_WAITER_REMOTE,
                               .remote = remote,
                               .tag = gp_request_handle_of(slot, generation),
                               .key = own_handle(remote, *(volatile gp_key_handle *)&remote->queue.key[slot])};
    uint8_t input[GP_MAX_BYTES], big_endian[GP_MAX_BYTES];
    uint32_t bytes = 0;
    gp_key *key;
    int valid;

    if (waiter.key == 0 || !gp_key_table_pin(gp_client_keys(client), waiter.key, &bytes))
        return 0;
    key = gp_key_table_get(gp_client_keys(client), waiter.key);
    memcpy(input, remote->queue.input + (size_t)slot * GP_MAX_BYTES, bytes);
    for (uint32_t i = 0; i < bytes; i++)
        big_endian[i] = input[bytes - 1 - i];
    valid = key != NULL && gp_key_in_range(key, big_endian);
    gp_key_free(key);
    if (valid) {
        up_ref(remote);
        atomic_fetch_add(&remote->remotes->in_flight, 1);
        valid = gp_client_put(client, own_slot, &waiter, bytes, input, 0) != 0;
        if (valid)
            return 1;
        atomic_fetch_sub(&remote->remotes->in_flight, 1);
        release(remote);
    }
    gp_client_unpin_key(client, waiter.key, 1);
    return 0;
}

enum taken { NONE_LEFT, MORE, NO_ROOM, MALFORMED };

/* Takes a few requests. */
static enum taken take_some(gp_remote *remote)
{
    gp_remotes *remotes = remote->remotes;

    for (uint32_t i = 0; i < AT_ONCE; i++) {
        uint32_t slot, word, own_slot;
        int popped;

        if (atomic_load(&remotes->in_flight) >= atomic_load(&remotes->room))
            return NO_ROOM;
        own_slot = gp_client_claim(remotes->client, NULL);
        if (own_slot == GP_NO_SLOT || own_slot == GP_CLOSED_SLOT)
            return NO_ROOM;
        popped = gp_queue_pop(&remote->queue, &slot);
        word = popped > 0 ? atomic_load(&remote->queue.word[slot]) : 0;
        if (popped > 0 && change_state(remote, slot, GP_GENERATION(word), GP_SUBMITTED, GP_RUNNING)) {
            atomic_fetch_add_explicit(&remote->requests, 1, memory_order_relaxed);
            if (copy_request(remote, slot, GP_GENERATION(word), own_slot))
                continue;
            publish(remote, slot, GP_GENERATION(word), NULL, 0, 0);
        } else if (popped < 0 || (popped > 0 && GP_STATE(word) != GP_ORPHANED && GP_STATE(word) != GP_SUBMITTED)) {
            gp_client_release(remotes->client, own_slot);
            return MALFORMED;
        }
        gp_client_release(remotes->client, own_slot);
        if (popped == 0)
            return NONE_LEFT;
    }
    return MORE;
}

static void activate(gp_remotes *remotes, gp_remote *remote)
{
    if (remote->active || remote->closed)
        return;
    remote->active = 1;
    remote->next = NULL;
    if (remotes->last != NULL)
        remotes->last->next = remote;
    else
        remotes->first = remote;
    remotes->last = remote;
}

static gp_remote *take_first(gp_remotes *remotes)
{
    gp_remote *remote = remotes->first;

    remotes->first = remote->next;
    if (remotes->first == NULL)
        remotes->last = NULL;
    remote->active = 0;
    return remote;
}

/* struct gp_source. The doorbells are edge-triggered, and never read: a process can do with its own what it likes. */
static void submit(void *context, gp_client *client)
{
    struct epoll_event events[64];
    gp_remotes *remotes = context;
    int count;

    pthread_mutex_lock(&remotes->lock);
    do {
        count = epoll_wait(remotes->epoll, events, 64, 0);
        for (int i = 0; i < count; i++)
            activate(remotes, events[i].data.ptr);
    } while (count == 64);
    atomic_store(&remotes->starved, 1); /* first: whatever ends from now on wakes us again */
    for (uint32_t turns = 0; remotes->first != NULL && turns < MOST_TURNS; turns++) {
        gp_remote *remote = take_first(remotes);
        enum taken taken = take_some(remote);

        if (taken == MALFORMED) {
            atomic_store(&remote->malformed, 1);
            (void)shutdown(remote->socket, SHUT_RDWR); /* wakes its socket's thread */
        } else if (taken != NONE_LEFT || !gp_queue_watch(&remote->queue))
            activate(remotes, remote);
        if (taken == NO_ROOM)
            break;
    }
    if (remotes->first == NULL)
        atomic_store(&remotes->starved, 0);
    else if (atomic_load(&remotes->in_flight) == 0) /* nothing will end */
        gp_client_wake_consumer(client);
    pthread_mutex_unlock(&remotes->lock);
}

gp_remotes *gp_remotes_new(gp_client *client, uint32_t room)
{
    gp_remotes *remotes = calloc(1, sizeof(*remotes));
    struct gp_source source = {.submit = submit, .finish = finish, .context = remotes};

    if (remotes == NULL)
        return NULL;
    remotes->epoll = source.descriptor = epoll_create1(EPOLL_CLOEXEC);
    if (remotes->epoll < 0) {
        free(remotes);
        return NULL;
    }
    remotes->client = gp_client_up_ref(client);
    atomic_init(&remotes->room, room);
    pthread_mutex_init(&remotes->lock, NULL);
    gp_client_set_source(client, &source);
    gp_client_wake_consumer(client);
    return remotes;
}

void gp_remotes_set_room(gp_remotes *remotes, uint32_t room)
{
    if (atomic_exchange(&remotes->room, room) < room) /* there may be requests for which there was none */
        gp_client_wake_consumer(remotes->client);
}

/* ---- keys that the service has; the socket's thread ---- */

gp_key_handle gp_remotes_find_key(const gp_remotes *remotes, const char *name, size_t size)
{
    for (const struct named_key *key = remotes->named; key != NULL; key = key->next)
        if (strlen(key->name) == size && memcmp(key->name, name, size) == 0)
            return key->handle;
    return 0;
}

int gp_remotes_name_key(gp_remotes *remotes, const char *name, gp_key_handle handle)
{
    struct named_key *key = remotes->named;

    while (key != NULL && strcmp(key->name, name) != 0)
        key = key->next;
    if (key == NULL) {
        key = gp_key_name_is_valid(name, strlen(name)) ? calloc(1, sizeof(*key)) : NULL;
        if (key == NULL)
            return 0;
        strcpy(key->name, name);
        key->next = remotes->named;
        remotes->named = key;
    }
    key->handle = handle;
    return 1;
}

/* ---- one process ---- */

gp_remote *gp_remote_new(gp_remotes *remotes, int socket, const struct gp_remote_limits *limits)
{
    gp_remote *remote = calloc(1, sizeof(*remote));
    struct epoll_event event = {.events = EPOLLIN | EPOLLET, .data.ptr = remote};
    int error = ENOMEM;

    if (remote == NULL)
        goto failed;
    remote->keys = calloc(limits->keys, sizeof(*remote->keys));
    remote->descriptors = calloc(limits->descriptors, sizeof(*remote->descriptors));
    if (remote->keys == NULL || remote->descriptors == NULL)
        goto failed;
    error = gp_queue_create(&remote->queue, limits->requests);
    if (error != 0)
        goto failed;
    atomic_init(&remote->references, 1);
    remote->remotes = remotes;
    remote->socket = socket;
    remote->limits = *limits;
    pthread_mutex_init(&remote->lock, NULL);
    (void)gp_queue_watch(&remote->queue);
    pthread_mutex_lock(&remotes->lock);
    if (epoll_ctl(remotes->epoll, EPOLL_CTL_ADD, remote->queue.doorbell, &event) != 0)
        error = errno;
    pthread_mutex_unlock(&remotes->lock);
    if (error == 0)
        return remote;
    pthread_mutex_destroy(&remote->lock);
    gp_queue_unmap(&remote->queue);
failed:
    if (remote != NULL) {
        free(remote->keys);
        free(remote->descriptors);
    }
    free(remote);
    close(socket);
    errno = error;
    return NULL;
}

void gp_remote_close(gp_remote *remote)
{
    gp_remotes *remotes = remote->remotes;

    pthread_mutex_lock(&remotes->lock);
    remote->closed = 1;
    (void)epoll_ctl(remotes->epoll, EPOLL_CTL_DEL, remote->queue.doorbell, NULL);
    if (remote->active) {
        gp_remote **link = &remotes->first, *last = NULL;

        while (*link != remote) {
            last = *link;
            link = &last->next;
        }
        *link = remote->next;
        if (remotes->last == remote)
            remotes->last = last;
        remote->active = 0;
    }
    pthread_mutex_unlock(&remotes->lock);
    gp_remote_remove_keys(remote);
    close(remote->socket);
    release(remote);
}

void gp_remote_get_stats(gp_remote *remote, struct gp_remote_stats *stats)
{
    *stats = (struct gp_remote_stats){
        .requests = atomic_load(&remote->requests),
        .failed = atomic_load(&remote->failed),
        .descriptors = atomic_load(&remote->descriptor_count),
    };
    pthread_mutex_lock(&remote->lock);
    stats->keys = remote->key_count;
    pthread_mutex_unlock(&remote->lock);
}
