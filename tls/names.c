#include "names.h"

#include <stdlib.h>
#include <string.h>

#define MAX_NAME 255u

static int compare(const void *left, const void *right)
{
    return strcmp(((const struct gp_name *)left)->name, ((const struct gp_name *)right)->name);
}

static const struct gp_name *find(const gp_names *names, const char *name)
{
    struct gp_name wanted = {name, NULL};
    return bsearch(&wanted, names->entries, names->count, sizeof(wanted), compare);
}

static int select_name(SSL *ssl, int *alert, void *argument)
{
    const gp_names *names = SSL_get_app_data(ssl);
    const char *given = SSL_get_servername(ssl, TLSEXT_NAMETYPE_host_name);
    char name[MAX_NAME + 1];
    size_t length = given == NULL ? 0 : strlen(given);
    (void)alert, (void)argument;
    if (names == NULL)
        return SSL_TLSEXT_ERR_NOACK;
    if (length > 0 && given[length - 1] == '.')
        length--;
    if (length == 0 || length > MAX_NAME)
        return SSL_TLSEXT_ERR_NOACK;
    for (size_t i = 0; i < length; i++)
        name[i] = (char)(given[i] >= 'A' && given[i] <= 'Z' ? given[i] | 0x20 : given[i]);
    name[length] = '\0';

    const struct gp_name *entry = find(names, name);
    if (entry == NULL) {
        /* "*.example" stands for exactly one label, and a name that begins with '*' is not a host name. */
        char *dot = strchr(name, '.');
        if (dot == NULL || dot == name)
            return SSL_TLSEXT_ERR_NOACK;
        *--dot = '*';
        entry = find(names, dot);
    }
    if (entry == NULL || SSL_set_SSL_CTX(ssl, entry->ctx) == NULL)
        return SSL_TLSEXT_ERR_NOACK;
    return SSL_TLSEXT_ERR_OK;
}

void gp_names_enable(SSL_CTX *ctx)
{
    SSL_CTX_set_tlsext_servername_callback(ctx, select_name);
}

int gp_names_use(SSL *ssl, gp_names *names)
{
    return SSL_set_app_data(ssl, names);
}
