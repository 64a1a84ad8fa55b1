/* The TLS alert that a connection ended with: for whoever wants to know why. */
#ifndef GP_TLS_ALERTS_H
#define GP_TLS_ALERTS_H

#include <openssl/ssl.h>

/* cffi: */
#define GP_ALERT_SENT 256

/* The number of the SSL's last alert that was not close_notify, plus GP_ALERT_SENT if this end has sent it; 0: none. */
int gp_alerts_last(const SSL *ssl);
/* :cffi */

/* Remembers the SSL's alerts from now on. Returns 1, or 0: out of memory. */
int gp_alerts_watch(SSL *ssl);

#endif
