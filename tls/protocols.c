#include "protocols.h"

static int select_protocol(SSL *ssl, const unsigned char **out, unsigned char *out_length, const unsigned char *in,
                           unsigned int in_length, void *argument)
{
    gp_protocols *protocols = argument;
    unsigned char *chosen;
    (void)ssl;
    if (SSL_select_next_proto(&chosen, out_length, protocols->wire, protocols->size, in, in_length)
        != OPENSSL_NPN_NEGOTIATED)
        return SSL_TLSEXT_ERR_ALERT_FATAL;
    *out = chosen;
    return SSL_TLSEXT_ERR_OK;
}

void gp_protocols_install(SSL_CTX *ctx, gp_protocols *protocols)
{
    SSL_CTX_set_alpn_select_cb(ctx, select_protocol, protocols);
}
