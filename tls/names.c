#include "names.h"

#include <stdlib.h>
#include <string.h>

#define MAX_NAME 255u

struct entry {
    char *name;
    SSL_CTX *ctx;
};

struct gp_names {
    size_t count;
    struct entry entries[];
};

static int compare(const void *left, const void *right)
{
    return strcmp(((const struct entry *)left)->name, ((const struct entry *)right)->name);
}

gp_names *gp_names_new(const char *const *names, SSL_CTX *const *contexts, size_t count)
{
    gp_names *table = calloc(1, sizeof(*table) + count * sizeof(table->entries[0]));
    if (table == NULL)
        return NULL;
    for (size_t i = 0; i < count; i++) {
        char *name = strdup(names[i]);
        if (name == NULL) {
            gp_names_free(table);
            return NULL;
        }
        table->entries[i] = (struct entry){name, contexts[i]};
        table->count++;
    }
    qsort(table->entries, table->count, sizeof(table->entries[0]), compare);
    return table;
}

void gp_names_free(gp_names *names)
{
    if (names == NULL)
        return;
    for (size_t i = 0; i < names->count; i++)
        free(names->entries[i].name);
    free(names);
}

static const struct entry *find(const gp_names *names, const char *name)
{
    struct entry wanted = {(char *)name, NULL};
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

    const struct entry *entry = find(names, name);
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
