#include "provider/default_rsa.h"

#include <openssl/crypto.h>
#include <openssl/err.h>
#include <openssl/provider.h>
#include <pthread.h>
#include <string.h>

#include "keys/key.h"

/* A program's own query for another provider, or for a validated one, must not reach this choice. */
#define QUERY "provider=default,-fips"

/* Each returns 1 if nothing that we call is missing. */
#define READER(name, FUNCTIONS)                                          \
    static int name(gp_default_rsa *rsa, const OSSL_DISPATCH *functions) \
    {                                                                    \
        for (; functions->function_id != 0; functions++)                 \
            switch (functions->function_id) {                            \
                FUNCTIONS(CASE)                                          \
            }                                                            \
        return 1 FUNCTIONS(PRESENT);                                     \
    }
#define CASE(KIND, kind, ID, name)                             \
    case OSSL_FUNC_##KIND##_##ID:                              \
        rsa->kind.name = OSSL_FUNC_##kind##_##name(functions); \
        break;
#define PRESENT(KIND, kind, ID, name) &&rsa->kind.name != NULL
READER(read_keymgmt, GP_KEYMGMT_FUNCTIONS)
READER(read_signature, GP_SIGNATURE_FUNCTIONS)
READER(read_asym_cipher, GP_ASYM_CIPHER_FUNCTIONS)

typedef int read_fn(gp_default_rsa *rsa, const OSSL_DISPATCH *functions);

static int read_operation(gp_default_rsa *rsa, const OSSL_PROVIDER *provider, int operation, read_fn *read)
{
    int no_cache, complete = 0;
    const OSSL_ALGORITHM *all = OSSL_PROVIDER_query_operation(provider, operation, &no_cache);
    for (const OSSL_ALGORITHM *one = all; one != NULL && one->algorithm_names != NULL; one++) {
        if (strncmp(one->algorithm_names, "RSA:", 4) == 0) {
            complete = read(rsa, one->implementation);
            break;
        }
    }
    OSSL_PROVIDER_unquery_operation(provider, operation, all);
    return complete;
}

gp_default_rsa *gp_default_rsa_new(OSSL_LIB_CTX *libctx)
{
    gp_default_rsa *rsa = OPENSSL_zalloc(sizeof(*rsa));
    int complete = 0;
    ERR_set_mark();
    if (rsa != NULL && (rsa->holder = EVP_KEYMGMT_fetch(libctx, "RSA", QUERY)) != NULL) {
        const OSSL_PROVIDER *provider = EVP_KEYMGMT_get0_provider(rsa->holder);
        rsa->libctx = libctx;
        rsa->context = OSSL_PROVIDER_get0_provider_ctx(provider);
        complete = read_operation(rsa, provider, OSSL_OP_KEYMGMT, read_keymgmt)
                   && read_operation(rsa, provider, OSSL_OP_SIGNATURE, read_signature)
                   && read_operation(rsa, provider, OSSL_OP_ASYM_CIPHER, read_asym_cipher);
    }
    if (!complete) {
        gp_default_rsa_free(rsa);
        rsa = NULL;
    }
    ERR_pop_to_mark();
    return rsa;
}

void gp_default_rsa_free(gp_default_rsa *rsa)
{
    if (rsa != NULL) {
        EVP_KEYMGMT_free(rsa->holder);
        OPENSSL_free(rsa);
    }
}

static gp_default_rsa *process_rsa;
static pthread_once_t process_once = PTHREAD_ONCE_INIT;

static void make_process_rsa(void)
{
    OSSL_LIB_CTX *libctx = gp_inner_libctx();
    if (libctx != NULL)
        process_rsa = gp_default_rsa_new(libctx);
}

const gp_default_rsa *gp_default_rsa_of_process(void)
{
    pthread_once(&process_once, make_process_rsa);
    return process_rsa;
}
