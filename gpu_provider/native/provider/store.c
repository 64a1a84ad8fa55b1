/* Keys of the service by their URI, gpu-provider:NAME, through OSSL_STORE. */
#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <string.h>

#include "provider/provider.h"

typedef struct store_context {
    gp_provider *provider;
    int is_loaded; /* or could not be */
    char name[];
} store_context;

static void *store_open(void *provider, const char *uri)
{
    const char *colon = strchr(uri, ':');
    store_context *context = colon != NULL ? OPENSSL_zalloc(sizeof(*context) + strlen(colon)) : NULL;
    if (context == NULL)
        return NULL;
    context->provider = provider;
    strcpy(context->name, colon + 1);
    return context;
}

/* The whole key, or NULL with an error raised. */
static gp_rsa_key *find(gp_provider *provider, const char *name)
{
    struct gp_public_key public_key;
    if (provider->service.path == NULL) {
        GP_RAISE_ABOUT(provider, GP_R_NO_SERVICE_SET, name);
        return NULL;
    }
    switch (gp_lookup(provider->service.path, name, provider->service.key_timeout_ns, &public_key)) {
    case GP_LOOKUP_FOUND:
        return gp_rsa_key_of_service(provider, name, &public_key);
    case GP_LOOKUP_NO_KEY:
        GP_RAISE_ABOUT(provider, GP_R_NO_SUCH_KEY, name);
        return NULL;
    case GP_LOOKUP_BAD_NAME:
        GP_RAISE_ABOUT(provider, GP_R_BAD_KEY_NAME, name);
        return NULL;
    default:
        gp_raise_not_reached(provider, name);
        return NULL;
    }
}

static int store_load(void *argument, OSSL_CALLBACK *callback, void *callback_argument, OSSL_PASSPHRASE_CALLBACK *ask,
                      void *ask_argument)
{
    store_context *context = argument;
    gp_rsa_key *key;
    (void)ask, (void)ask_argument;
    context->is_loaded = 1;
    key = find(context->provider, context->name);
    return key != NULL && gp_rsa_key_hand_over(key, callback, callback_argument);
}

static int store_eof(void *argument)
{
    const store_context *context = argument;
    return context->is_loaded;
}

static int store_close(void *argument)
{
    OPENSSL_free(argument);
    return 1;
}

const OSSL_DISPATCH gp_store_functions[] = {
    {OSSL_FUNC_STORE_OPEN, (void (*)(void))store_open},
    {OSSL_FUNC_STORE_LOAD, (void (*)(void))store_load},
    {OSSL_FUNC_STORE_EOF, (void (*)(void))store_eof},
    {OSSL_FUNC_STORE_CLOSE, (void (*)(void))store_close},
    {0, NULL},
};
