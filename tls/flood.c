#include "flood.h"

#include <pthread.h>
#include <stdlib.h>

static pthread_once_t once = PTHREAD_ONCE_INIT;
static int ex_index = -1;

static void release(void *parent, void *flood, CRYPTO_EX_DATA *data, int index, long argument, void *pointer)
{
    (void)parent, (void)data, (void)index, (void)argument, (void)pointer;
    free(flood);
}

static void register_index(void)
{
    ex_index = SSL_get_ex_new_index(0, NULL, NULL, NULL, release);
}

static time_t seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
    return now.tv_sec;
}

static void establish(struct gp_flood *flood)
{
    flood->established = 1;
    flood->allowance = GP_FLOOD_FIRST;
    flood->refilled = seconds();
}

static unsigned earned_by_time(struct gp_flood *flood)
{
    time_t now = seconds(), passed = now - flood->refilled;
    flood->refilled = now;
    return passed < GP_FLOOD_FIRST / GP_FLOOD_PER_SECOND ? (unsigned)passed * GP_FLOOD_PER_SECOND : GP_FLOOD_FIRST;
}

/* libssl calls this for each record and message it reads or writes, maybe on a job's stack. */
static void count(int writing, int version, int type, const void *bytes, size_t size, SSL *ssl, void *argument)
{
    struct gp_flood *flood = argument;

    (void)version, (void)bytes, (void)size;
    if (writing || (type != SSL3_RT_HEADER && type != SSL3_RT_HANDSHAKE))
        return;
    if (!flood->established && type == SSL3_RT_HEADER && SSL_is_init_finished(ssl))
        establish(flood);
    flood->spent++;
    if (flood->allowance == 0 && flood->established)
        flood->allowance = earned_by_time(flood);
    if (flood->allowance > 0) {
        flood->allowance--;
        return;
    }
    flood->exceeded = 1;
    /* No call stops libssl, but it reads nothing more from a peer that has closed. */
    SSL_set_shutdown(ssl, SSL_get_shutdown(ssl) | SSL_RECEIVED_SHUTDOWN);
}

int gp_flood_watch(SSL *ssl)
{
    pthread_once(&once, register_index);
    struct gp_flood *flood = calloc(1, sizeof(*flood));
    if (flood == NULL || ex_index < 0 || SSL_set_ex_data(ssl, ex_index, flood) != 1) {
        free(flood);
        return 0;
    }
    flood->allowance = GP_FLOOD_HANDSHAKE;
    SSL_set_msg_callback(ssl, count);
    SSL_set_msg_callback_arg(ssl, flood);
    return 1;
}

struct gp_flood *gp_flood_of(SSL *ssl)
{
    return SSL_get_ex_data(ssl, ex_index);
}

void gp_flood_earn(struct gp_flood *flood)
{
    if (!flood->established)
        establish(flood);
    flood->allowance += GP_FLOOD_EARNED;
    if (flood->allowance > GP_FLOOD_MOST)
        flood->allowance = GP_FLOOD_MOST;
}
