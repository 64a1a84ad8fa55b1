#include "protocols.h"

#include <stdlib.h>
#include <string.h>

struct gp_protocols {
    unsigned int size;
    unsigned char wire[];
};

gp_protocols *gp_protocols_new(const unsigned char *wire, unsigned int size)
{
    gp_protocols *protocols = malloc(sizeof(*protocols) + size);
    if (protocols == NULL)
        return NULL;
    protocols->size = size;
    memcpy(protocols->wire, wire, size);
    return protocols;
}

void gp_protocols_free(gp_protocols *protocols)
{
    free(protocols);
}

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
