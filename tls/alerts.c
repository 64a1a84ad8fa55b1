#include "alerts.h"

#include <pthread.h>
#include <stdint.h>

static pthread_once_t once = PTHREAD_ONCE_INIT;
static int ex_index = -1;

static void register_index(void)
{
    ex_index = SSL_get_ex_new_index(0, NULL, NULL, NULL, NULL);
}

/* libssl calls this at each step, maybe on a job's stack. Without memory to remember an alert, it stays unknown. */
static void remember(const SSL *ssl, int where, int value)
{
    int number = value & 0xff;

    if (!(where & SSL_CB_ALERT) || number == SSL_AD_CLOSE_NOTIFY)
        return;
    intptr_t alert = number + (where & SSL_CB_WRITE ? GP_ALERT_SENT : 0);
    SSL_set_ex_data((SSL *)ssl, ex_index, (void *)alert);
}

int gp_alerts_watch(SSL *ssl)
{
    pthread_once(&once, register_index);
    SSL_set_info_callback(ssl, remember);
    return ex_index >= 0;
}

int gp_alerts_last(const SSL *ssl)
{
    return (int)(intptr_t)SSL_get_ex_data(ssl, ex_index);
}
