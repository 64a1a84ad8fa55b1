#include "provider/private_op.h"

#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/err.h>
#include <openssl/rsa.h>

#include "keys/cpu.h"
#include "process.h"
#include "queue/counts.h"
#include "queue/request.h"
#include "queue/wait.h"

/* By the default provider, raw. */
static int apply(const gp_rsa_key *key, OSSL_FUNC_asym_cipher_decrypt_init_fn *init,
                 OSSL_FUNC_asym_cipher_decrypt_fn *crypt, const uint8_t *input, uint8_t *output)
{
    void *context = key->rsa->asym_cipher.newctx(key->rsa->context);
    size_t size = 0;
    int padding = RSA_NO_PADDING;
    const OSSL_PARAM params[] = {
        OSSL_PARAM_construct_int(OSSL_ASYM_CIPHER_PARAM_PAD_MODE, &padding),
        OSSL_PARAM_construct_end(),
    };
    int ok = context != NULL && init(context, key->inner, params) > 0
             && crypt(context, output, &size, key->bytes, input, key->bytes) > 0 && size == key->bytes;
    if (context != NULL)
        key->rsa->asym_cipher.freectx(context);
    return ok;
}

/* Whether output^e = input mod n. A wrong result can give the factors away. */
static int verify(const gp_rsa_key *key, const uint8_t *input, const uint8_t *output)
{
    uint8_t *power = OPENSSL_malloc(key->bytes);
    int ok = 0;
    if (power == NULL)
        GP_RAISE(key->provider, GP_R_OUT_OF_MEMORY);
    else if (!apply(key, key->rsa->asym_cipher.encrypt_init, key->rsa->asym_cipher.encrypt, output, power))
        GP_RAISE(key->provider, GP_R_OPERATION_FAILED);
    else if (CRYPTO_memcmp(power, input, key->bytes) != 0)
        GP_RAISE(key->provider, GP_R_INCONSISTENT_KEY);
    else
        ok = 1;
    OPENSSL_free(power);
    return ok;
}

/* OpenSSL verifies what it computes with the factors, but neither what it computes with d alone nor what it computes
 * again when a result was wrong. */
static int compute(const gp_rsa_key *key, const uint8_t *input, uint8_t *output)
{
    int ok = apply(key, key->rsa->asym_cipher.decrypt_init, key->rsa->asym_cipher.decrypt, input, output);
    if (!ok)
        GP_RAISE(key->provider, GP_R_OPERATION_FAILED);
    ok = ok && verify(key, input, output);
    if (!ok)
        OPENSSL_cleanse(output, key->bytes);
    return ok;
}

/* What the service says is verified: it is another process, which writes into memory that we share. */
static enum gp_attached compute_by_service(gp_rsa_key *key, const uint8_t *input, uint8_t *output)
{
    gp_attachment *attachment = gp_attachment_of_process(&key->provider->service);
    enum gp_attached attached = GP_NOT_ATTACHED;
    if (attachment != NULL)
        attached = gp_attachment_private_op(attachment, &key->attached, gp_rsa_key_read_numbers, key, key->bytes, input,
                                            output);
    if (attached == GP_ATTACHED) {
        ERR_set_mark();
        if (!verify(key, input, output))
            attached = GP_NOT_ATTACHED;
        ERR_pop_to_mark();
    }
    return attached;
}

static int compute_by_name(gp_rsa_key *key, const uint8_t *input, uint8_t *output)
{
    switch (gp_attachment_named_op(&key->provider->service, &key->attached, gp_rsa_key_read_numbers, key, key->bytes,
                                   input, output)) {
    case GP_COMPUTED:
        gp_count(&gp_counts_of(GP_CLASS_OF(key->bytes))->served, 1);
        if (verify(key, input, output))
            return 1;
        OPENSSL_cleanse(output, key->bytes);
        return 0;
    case GP_NO_SUCH_KEY:
        GP_RAISE_ABOUT(key->provider, GP_R_NO_SUCH_KEY, key->name);
        return 0;
    case GP_OTHER_KEY:
        GP_RAISE_ABOUT(key->provider, GP_R_OTHER_KEY, key->name);
        return 0;
    case GP_NO_SERVICE:
        gp_raise_not_reached(key->provider, key->name);
        return 0;
    default:
        GP_RAISE_ABOUT(key->provider, GP_R_OPERATION_FAILED, key->name);
        return 0;
    }
}

static int compute_batched(const gp_rsa_key *key, const gp_batched_key *batched, const uint8_t *input, uint8_t *output)
{
    if (gp_request_private_op(batched->client, batched->key, batched->handle, input, output))
        return 1;
    GP_RAISE(key->provider, GP_R_OPERATION_FAILED);
    return 0;
}

static enum gp_waits way_of_waiting(void)
{
    int has_callback;
    return !gp_wait_in_job(&has_callback) ? GP_SLEEPS : has_callback ? GP_CANT_WAIT : GP_PAUSES;
}

int gp_private_op(gp_rsa_key *key, const uint8_t *input, uint8_t *output)
{
    const gp_batched_key *batched = atomic_load(&key->batched);
    enum gp_attached attached = GP_NOT_ATTACHED;
    gp_groups *groups = NULL;
    gp_client *client;
    uint64_t began_ns;
    int ok;
    if (gp_rsa_key_is_of_service(key))
        return compute_by_name(key, input, output);
    if (!gp_rsa_key_is_batchable(key))
        return compute(key, input, output);
    if (key->provider->service.path != NULL)
        attached = compute_by_service(key, input, output);
    if (attached == GP_ATTACHED) {
        gp_count(&gp_counts_of(GP_CLASS_OF(key->bytes))->served, 1);
        return 1;
    }
    if (key->provider->groups.kernels == NULL && batched != NULL) /* a batching provider has it, closed or not */
        return compute_batched(key, batched, input, output);
    if (attached != GP_SOON && key->provider->groups.kernels != NULL
        && (batched == NULL || gp_cpu_may_win(batched->key)))
        groups = gp_groups_of_process(&key->provider->groups);
    if (groups == NULL) {
        gp_count(&gp_counts_of(GP_CLASS_OF(key->bytes))->singles, 1);
        return compute(key, input, output);
    }
    began_ns = gp_now_ns();
    if (!gp_groups_is_alone(groups, key->bytes, way_of_waiting(), began_ns)) {
        client = gp_groups_client(groups);
        batched = client != NULL ? gp_rsa_key_batched(key, client) : NULL;
        if (batched != NULL)
            return compute_batched(key, batched, input, output);
        began_ns = gp_now_ns();
    }
    gp_count(&gp_counts_of(GP_CLASS_OF(key->bytes))->singles, 1);
    ok = compute(key, input, output);
    gp_groups_computed_alone(groups, key->bytes, began_ns);
    return ok;
}
