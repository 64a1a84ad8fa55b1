#define _GNU_SOURCE
#include "service/attachment.h"

#include <errno.h>
#include <openssl/crypto.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "process.h"
#include "queue/callbacks.h"
#include "queue/descriptors.h"
#include "queue/request.h"
#include "queue/wait.h"

#define FIRST_RETRY_NS 100000000u
#define LAST_RETRY_NS 5000000000u
#define STALL_NS 1000000000u /* a service that was too slow is not asked for so long */
#define REFUSED UINT64_MAX
#define FORGOTTEN (UINT64_MAX - 1) /* freed before the service had answered */
#define OTHER (UINT64_MAX - 2)     /* not the key that its name stands for here */
#define ASK_AGAIN_NS 1000000000u   /* after which a name that the service did not have may be there */
#define FIRST_NAP_NS 250000u
#define LAST_NAP_NS 64000000u
#define LOST_WAIT_NS 250000000u

struct public_numbers {
    uint16_t sizes[GP_PUBLIC_NUMBERS];
    uint8_t numbers[GP_PUBLIC_NUMBERS * GP_MAX_BYTES];
};

/* A key on this connection. */
struct place {
    gp_key_handle handle;            /* 0: not answered yet */
    struct public_numbers *expected; /* of a named key, until it is answered */
    uint64_t answered_ns;
};

struct gp_attachment {
    uint32_t fork_epoch;
    struct gp_service_settings settings;

    pthread_mutex_t lock;
    int socket;          /* -1: none */
    uint32_t epoch;      /* of what follows: changes with each connection */
    uint32_t awaited;    /* answers */
    int memfd, doorbell; /* between WELCOME and the first DESCRIPTORS; -1 */
    gp_client *client;   /* NULL: not attached yet */
    atomic_int is_lost;  /* an operation has waited in vain to be attached */
    int no_more_descriptors;
    struct gp_callbacks *callbacks; /* NULL: the program does not fire any */
    struct place *places;
    uint32_t key_count, key_room;
    int connect_error; /* errno of the last try; 0: none */
    uint64_t retry_ns, tried_ns, next_try_ns, stalled_until_ns, asked_ns;
    struct gp_message message; /* that is read or made: too large for the stack of a job */
};

static _Atomic(gp_attachment *) current;
static pthread_once_t watching = PTHREAD_ONCE_INIT;
static _Atomic uint32_t epochs; /* of this process and those it was forked from */

static gp_attachment *make(const struct gp_service_settings *settings)
{
    gp_attachment *attachment = calloc(1, sizeof(*attachment));

    if (attachment == NULL)
        return NULL;
    attachment->fork_epoch = gp_fork_epoch();
    attachment->settings = *settings;
    attachment->socket = attachment->memfd = attachment->doorbell = -1;
    attachment->retry_ns = FIRST_RETRY_NS;
    pthread_mutex_init(&attachment->lock, NULL);
    return attachment;
}

static void drop(int *descriptor)
{
    if (*descriptor >= 0)
        close(*descriptor);
    *descriptor = -1;
}

/* In a forked child: the connection is the parent's, and the service must see its end when the parent ends. A child
 * that has no operations never comes here otherwise. */
static void hang_up_in_child(void)
{
    gp_attachment *parents = atomic_load(&current);

    if (parents == NULL)
        return;
    drop(&parents->socket);
    drop(&parents->memfd);
    drop(&parents->doorbell);
    if (parents->client != NULL)
        gp_client_hang_up(parents->client);
    if (parents->callbacks != NULL)
        gp_callbacks_abandon(parents->callbacks);
}

static void watch_forks(void)
{
    gp_watch_forks();
    (void)pthread_atfork(NULL, NULL, hang_up_in_child);
}

gp_attachment *gp_attachment_of_process(const struct gp_service_settings *settings)
{
    gp_attachment *found = atomic_load_explicit(&current, memory_order_acquire), *made;

    if (found != NULL && found->fork_epoch == gp_fork_epoch())
        return found;
    (void)pthread_once(&watching, watch_forks);
    made = make(settings);
    if (made == NULL)
        return NULL;
    made->settings.path = found != NULL ? found->settings.path : strdup(settings->path);
    if (made->settings.path != NULL && atomic_compare_exchange_strong(&current, &found, made)) {
        if (found != NULL)
            gp_client_free(found->client); /* the attachment's reference; connections may have others */
        return made;
    }
    if (found == NULL || made->settings.path != found->settings.path)
        free((char *)made->settings.path);
    pthread_mutex_destroy(&made->lock);
    free(made);
    return found; /* another thread was first */
}

/* ---- the connection; with the lock ---- */

/* The service is gone, or not what it should be. Who waits for it is told. */
static void detach(gp_attachment *attachment)
{
    gp_client *client = attachment->client;

    attachment->client = NULL; /* first: a child that is forked meanwhile must not free it as well */
    if (client != NULL)
        gp_client_close(client);
    gp_client_free(client);
    if (attachment->callbacks != NULL && attachment->socket >= 0)
        gp_callbacks_unwatch(attachment->callbacks, attachment->socket);
    drop(&attachment->socket);
    drop(&attachment->memfd);
    drop(&attachment->doorbell);
    for (uint32_t i = 0; i < attachment->key_count; i++)
        free(attachment->places[i].expected);
    attachment->key_count = attachment->awaited = 0;
    attachment->no_more_descriptors = 0;
    attachment->next_try_ns = gp_now_ns() + attachment->retry_ns;
    attachment->retry_ns = attachment->retry_ns < LAST_RETRY_NS / 2 ? attachment->retry_ns * 2 : LAST_RETRY_NS;
}

static void ask(gp_attachment *attachment, const struct gp_message *message, uint32_t answers)
{
    if (gp_message_send(attachment->socket, message, NULL, 0) == 0) {
        attachment->awaited += answers;
        attachment->asked_ns = gp_now_ns();
    } else {
        detach(attachment);
    }
}

static void connect_to_service(gp_attachment *attachment)
{
    static const struct gp_message hello = {.type = GP_HELLO, .version = GP_PROTOCOL_VERSION};

    attachment->epoch = atomic_fetch_add(&epochs, 1) + 1;
    attachment->tried_ns = gp_now_ns();
    attachment->socket = gp_service_connect(attachment->settings.path);
    attachment->connect_error = attachment->socket < 0 ? errno : 0;
    if (attachment->socket < 0
        || (attachment->callbacks != NULL && !gp_callbacks_watch(attachment->callbacks, attachment->socket)))
        detach(attachment);
    else
        ask(attachment, &hello, 2);
}

static void close_all(const int *fds, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        close(fds[i]);
}

/* Owns the descriptors in any case. 0: out of memory, or the queue is not valid. */
static int attach(gp_attachment *attachment, const int *fds, uint32_t count)
{
    struct gp_descriptors *descriptors = gp_descriptors_new();
    int memfd = attachment->memfd, doorbell = attachment->doorbell;

    if (descriptors == NULL) {
        close_all(fds, count);
        return 0;
    }
    if (!gp_descriptors_add(descriptors, fds, count)) {
        gp_descriptors_free(descriptors);
        return 0;
    }
    attachment->memfd = attachment->doorbell = -1;
    attachment->client =
        gp_client_of_service(memfd, doorbell, attachment->socket, descriptors, attachment->settings.timeout_ns);
    attachment->retry_ns = FIRST_RETRY_NS;
    attachment->stalled_until_ns = 0; /* that was another one */
    atomic_store(&attachment->is_lost, 0);
    if (attachment->client != NULL && attachment->callbacks != NULL)
        (void)gp_client_use_callbacks(attachment->client, attachment->callbacks);
    return attachment->client != NULL;
}

static void remove_key(gp_attachment *attachment, gp_key_handle handle)
{
    attachment->message.type = GP_REMOVE_KEY;
    attachment->message.handle = handle;
    ask(attachment, &attachment->message, 0);
}

/* Whether both are the same number, whatever zeros they begin with. */
static int is_same(const uint8_t *left, uint16_t left_size, const uint8_t *right, uint16_t right_size)
{
    for (; left_size > 0 && *left == 0; left_size--)
        left++;
    for (; right_size > 0 && *right == 0; right_size--)
        right++;
    return left_size == right_size && memcmp(left, right, left_size) == 0;
}

static int is_expected(const struct public_numbers *expected, const struct gp_message *found)
{
    return is_same(expected->numbers, expected->sizes[0], found->numbers, found->sizes[0])
           && is_same(expected->numbers + expected->sizes[0], expected->sizes[1], found->numbers + found->sizes[0],
                      found->sizes[1]);
}

/* 0: it is not what the service may say now. */
static int take_key(gp_attachment *attachment, const struct gp_message *message)
{
    const uint32_t number = (uint32_t)message->key_number;
    const gp_key_handle handle = message->handle;
    struct public_numbers *expected;
    struct place *place;
    int is_other;

    if (message->key_number >> 32 != attachment->epoch || number >= attachment->key_count)
        return 0;
    place = &attachment->places[number];
    expected = place->expected;
    if ((place->handle != 0 && place->handle != FORGOTTEN)
        || (expected != NULL && handle != 0) != (message->type == GP_FOUND_KEY))
        return 0;
    attachment->awaited--;
    is_other = message->type == GP_FOUND_KEY && !is_expected(expected, message);
    free(expected);
    place->expected = NULL;
    place->answered_ns = gp_now_ns();
    if (handle != 0 && (is_other || place->handle == FORGOTTEN))
        remove_key(attachment, handle);
    if (place->handle != FORGOTTEN)
        place->handle = handle == 0 ? REFUSED : is_other ? OTHER : handle;
    return 1;
}

/* 0: it is not what the service may say now. Owns the descriptors in any case. */
static int take_answer(gp_attachment *attachment, const struct gp_message *message, const int *fds, uint32_t count)
{
    if (attachment->awaited > 0 && message->type == GP_WELCOME && message->version == GP_PROTOCOL_VERSION && count == 2
        && attachment->memfd < 0) {
        attachment->memfd = fds[0];
        attachment->doorbell = fds[1];
        attachment->awaited--;
        return 1;
    }
    if (attachment->awaited > 0 && message->type == GP_DESCRIPTORS
        && (attachment->client != NULL || (attachment->memfd >= 0 && count > 0))) {
        attachment->awaited--;
        attachment->no_more_descriptors = count == 0;
        if (attachment->client == NULL)
            return attach(attachment, fds, count);
        return count == 0 || gp_descriptors_add(gp_client_descriptors(attachment->client), fds, count);
    }
    if (attachment->awaited > 0 && (message->type == GP_KEY || message->type == GP_FOUND_KEY) && count == 0)
        return take_key(attachment, message);
    close_all(fds, count);
    return 0;
}

/* Reads what the service has said, and looks for it if it is not there: sooner if somebody waits for nothing else. */
static void look(gp_attachment *attachment, int is_awaited)
{
    struct gp_message *message = &attachment->message;
    int fds[GP_DESCRIPTORS_AT_ONCE], error = 0;
    uint32_t count;

    if (attachment->socket < 0
        && (gp_now_ns() >= attachment->next_try_ns
            || (is_awaited && gp_now_ns() - attachment->tried_ns >= FIRST_RETRY_NS)))
        connect_to_service(attachment);
    while (attachment->socket >= 0 && (error = gp_message_receive(attachment->socket, message, 0, fds, &count)) == 0) {
        if (!take_answer(attachment, message, fds, count)) {
            error = EPROTO;
            break;
        }
    }
    if (attachment->socket >= 0 && error != EAGAIN)
        detach(attachment);
}

int gp_attachment_callbacks_descriptor(const struct gp_service_settings *settings)
{
    gp_attachment *attachment = gp_attachment_of_process(settings);
    int descriptor = -1;

    if (attachment == NULL)
        return -1;
    pthread_mutex_lock(&attachment->lock);
    if (attachment->callbacks == NULL && attachment->socket < 0)
        attachment->callbacks = gp_callbacks_new();
    if (attachment->callbacks != NULL)
        descriptor = gp_callbacks_descriptor(attachment->callbacks);
    pthread_mutex_unlock(&attachment->lock);
    return descriptor;
}

void gp_attachment_fire(void)
{
    gp_attachment *attachment = atomic_load_explicit(&current, memory_order_acquire);

    if (attachment == NULL || attachment->fork_epoch != gp_fork_epoch() || attachment->callbacks == NULL)
        return;
    gp_callbacks_drain(attachment->callbacks);
    pthread_mutex_lock(&attachment->lock);
    look(attachment, 0);
    pthread_mutex_unlock(&attachment->lock);
    gp_callbacks_fire(attachment->callbacks);
}

/* ---- keys; with the lock ---- */

/* NULL: out of memory. */
static struct place *new_place(gp_attachment *attachment)
{
    if (attachment->key_count == attachment->key_room) {
        uint32_t room = attachment->key_room * 2 + 16;
        struct place *places = realloc(attachment->places, room * sizeof(*places));

        if (places == NULL)
            return NULL;
        attachment->places = places;
        attachment->key_room = room;
    }
    attachment->places[attachment->key_count] = (struct place){0};
    return &attachment->places[attachment->key_count++];
}

/* Makes of a message with the key's public numbers one that asks for the key. 0: out of memory. */
static int ask_for_name(struct gp_message *message, struct place *place, const char *name)
{
    place->expected = malloc(sizeof(*place->expected));
    if (place->expected == NULL)
        return 0;
    memcpy(place->expected->sizes, message->sizes, sizeof(place->expected->sizes));
    memcpy(place->expected->numbers, message->numbers, sizeof(place->expected->numbers));
    message->type = GP_FIND_KEY;
    message->sizes[0] = (uint16_t)strlen(name);
    memcpy(message->numbers, name, message->sizes[0]);
    return 1;
}

/* Sends the key, or asks for it. `place`: of one that is asked for again, or NULL. */
static void send_key(gp_attachment *attachment, struct gp_attached_key *attached, struct place *place,
                     gp_read_numbers *read_numbers, const void *key)
{
    struct gp_message *message = &attachment->message;

    if (place == NULL && (place = new_place(attachment)) == NULL)
        return;
    place->handle = REFUSED;
    memset(message, 0, sizeof(*message));
    message->type = GP_ADD_KEY;
    message->key_number = (uint64_t)attachment->epoch << 32 | (uint64_t)(place - attachment->places);
    atomic_store(&attached->number, message->key_number);
    if (read_numbers(key, message) && (attached->name == NULL || ask_for_name(message, place, attached->name))) {
        place->handle = 0;
        ask(attachment, message, 1);
    }
    OPENSSL_cleanse(message, sizeof(*message));
}

/* NULL: the key was not sent over this connection. */
static struct place *place_of(const gp_attachment *attachment, const struct gp_attached_key *attached)
{
    uint64_t number = atomic_load(&attached->number);

    return number >> 32 == attachment->epoch && (uint32_t)number < attachment->key_count
               ? &attachment->places[(uint32_t)number]
               : NULL;
}

static int is_handle(gp_key_handle handle)
{
    return handle != 0 && handle < OTHER;
}

void gp_attached_key_forget(struct gp_attached_key *attached)
{
    gp_attachment *attachment = atomic_load_explicit(&current, memory_order_acquire);
    struct place *place;

    if (attachment == NULL || attachment->fork_epoch != gp_fork_epoch())
        return;
    pthread_mutex_lock(&attachment->lock);
    place = place_of(attachment, attached);
    if (place != NULL) {
        gp_key_handle known = place->handle;

        place->handle = FORGOTTEN;
        atomic_store(&attached->number, 0);
        if (is_handle(known))
            remove_key(attachment, known);
    }
    pthread_mutex_unlock(&attachment->lock);
}

/* ---- operations ---- */

/* Asks for more wait descriptors before there are none. With the lock. */
static void keep_descriptors(gp_attachment *attachment)
{
    static const struct gp_message message = {.type = GP_MORE_DESCRIPTORS};
    uint32_t free_count, count = gp_descriptors_count(gp_client_descriptors(attachment->client), &free_count);

    if (free_count < count / 4 && attachment->awaited == 0 && !attachment->no_more_descriptors)
        ask(attachment, &message, 1);
}

/* A reference to the client, and the key's handle; NULL: not now. */
static gp_client *client_for(gp_attachment *attachment, struct gp_attached_key *attached, gp_read_numbers *read_numbers,
                             const void *key, gp_key_handle *handle, enum gp_attached *otherwise)
{
    gp_client *client = NULL;

    pthread_mutex_lock(&attachment->lock);
    look(attachment, 0);
    if (attachment->client != NULL && gp_now_ns() >= attachment->stalled_until_ns) {
        const struct place *place = place_of(attachment, attached);

        if (place == NULL) {
            send_key(attachment, attached, NULL, read_numbers, key);
        } else if (is_handle(place->handle)) {
            *handle = place->handle;
            client = gp_client_up_ref(attachment->client);
        }
    }
    if (attachment->client != NULL)
        keep_descriptors(attachment);
    *otherwise = attachment->awaited > 0 && gp_now_ns() - attachment->asked_ns < STALL_NS ? GP_SOON : GP_NOT_ATTACHED;
    pthread_mutex_unlock(&attachment->lock);
    return client;
}

enum gp_attached gp_attachment_private_op(gp_attachment *attachment, struct gp_attached_key *attached,
                                          gp_read_numbers *read_numbers, const void *key, uint32_t bytes,
                                          const uint8_t *input, uint8_t *output)
{
    gp_key_handle handle = 0;
    enum gp_attached otherwise;
    gp_client *client = client_for(attachment, attached, read_numbers, key, &handle, &otherwise);
    enum gp_served served;
    uint64_t began_ns = gp_now_ns();

    if (client == NULL)
        return otherwise;
    served = gp_request_of_service(client, handle, bytes, input, output, 0);
    if (served == GP_GAVE_UP && !gp_client_is_forked(client)) {
        pthread_mutex_lock(&attachment->lock);
        look(attachment, 0);
        if (gp_now_ns() - began_ns >= attachment->settings.timeout_ns)
            attachment->stalled_until_ns = gp_now_ns() + STALL_NS;
        pthread_mutex_unlock(&attachment->lock);
    }
    gp_client_free(client);
    return served == GP_SERVED ? GP_ATTACHED : GP_NOT_ATTACHED;
}

/* ---- operations with a key that only the service has ---- */

/* The same as client_for(). `otherwise` if it is NULL: NO_SERVICE, as long as it has not answered. `failed`: the handle
 * with which an operation failed. The service may have loaded its keys again, so it is asked once more. */
static gp_client *client_for_name(gp_attachment *attachment, struct gp_attached_key *attached,
                                  gp_read_numbers *read_numbers, const void *key, gp_key_handle failed,
                                  gp_key_handle *handle, enum gp_named *otherwise)
{
    gp_client *client = NULL;
    struct place *place;

    *otherwise = GP_NO_SERVICE;
    pthread_mutex_lock(&attachment->lock);
    look(attachment, 1);
    if (attachment->client != NULL) {
        place = place_of(attachment, attached);
        if (place != NULL && is_handle(place->handle) && place->handle == failed) {
            remove_key(attachment, failed);
            if (attachment->client != NULL)
                send_key(attachment, attached, place, read_numbers, key);
        } else if (place != NULL && is_handle(place->handle)) {
            *handle = place->handle;
            client = gp_client_up_ref(attachment->client);
        } else if (place == NULL || (place->handle != 0 && gp_now_ns() - place->answered_ns >= ASK_AGAIN_NS)) {
            send_key(attachment, attached, place, read_numbers, key);
        } else if (place->handle != 0) {
            *otherwise = place->handle == OTHER ? GP_OTHER_KEY : GP_NO_SUCH_KEY;
        }
    }
    if (attachment->client != NULL)
        keep_descriptors(attachment);
    pthread_mutex_unlock(&attachment->lock);
    return client;
}

/* Until when it may take. A thread that has waited in vain for the service would only hold up what else it has to do,
 * if it waited as long for each operation: until the service is back, the next ones wait shortly. */
static uint64_t wait_until_ns(const gp_attachment *attachment, uint64_t began_ns, uint64_t timeout_ns)
{
    const int is_lost = attachment != NULL && atomic_load(&attachment->is_lost);

    return began_ns + (is_lost && timeout_ns > LOST_WAIT_NS ? LOST_WAIT_NS : timeout_ns);
}

/* Returns why: an errno. */
static int give_up(gp_attachment *attachment)
{
    int error = ENOMEM;

    if (attachment == NULL)
        return error;
    pthread_mutex_lock(&attachment->lock);
    if (attachment->client == NULL)
        atomic_store(&attachment->is_lost, 1);
    error = attachment->connect_error != 0 ? attachment->connect_error : ETIMEDOUT;
    pthread_mutex_unlock(&attachment->lock);
    return error;
}

enum gp_named gp_attachment_named_op(const struct gp_service_settings *settings, struct gp_attached_key *attached,
                                     gp_read_numbers *read_numbers, const void *key, uint32_t bytes,
                                     const uint8_t *input, uint8_t *output)
{
    const uint64_t began_ns = gp_now_ns(), until_ns = began_ns + settings->key_timeout_ns;
    gp_key_handle handle = 0, failed = 0;

    for (uint64_t nap_ns = FIRST_NAP_NS;; nap_ns = nap_ns < LAST_NAP_NS ? nap_ns * 2 : nap_ns) {
        gp_attachment *attachment = gp_attachment_of_process(settings); /* another one if the process was forked */
        enum gp_named otherwise = GP_NO_SERVICE;
        enum gp_served served = GP_NOT_SERVED;
        gp_client *client = NULL;

        if (attachment != NULL)
            client = client_for_name(attachment, attached, read_numbers, key, failed, &handle, &otherwise);
        if (client != NULL) {
            served = gp_request_of_service(client, handle, bytes, input, output, until_ns);
            gp_client_free(client);
        }
        if (served == GP_SERVED)
            return GP_COMPUTED;
        if (served == GP_FAILED && failed != 0)
            return GP_NOT_COMPUTED;
        if (served == GP_FAILED)
            failed = handle;
        if (otherwise != GP_NO_SERVICE)
            return otherwise;
        if (gp_now_ns() >= wait_until_ns(attachment, began_ns, settings->key_timeout_ns)) {
            errno = give_up(attachment);
            return GP_NO_SERVICE;
        }
        gp_wait_nap(until_ns - gp_now_ns() < nap_ns ? until_ns : gp_now_ns() + nap_ns);
    }
}
