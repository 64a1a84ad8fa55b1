/* The RSA of OpenSSL's default provider, called through its own function tables.
 *
 * Everything but the private operation is left to it: key management, parameters and their checks, verification,
 * encryption, and whatever is out of the ordinary. Its functions are called directly, not through EVP, so programs see
 * what the default provider does in the version of OpenSSL that is loaded, down to the error codes.
 */
#ifndef GP_DEFAULT_RSA_H
#define GP_DEFAULT_RSA_H

#include <openssl/core_dispatch.h>
#include <openssl/evp.h>

#define GP_KEYMGMT_FUNCTIONS(F)                 \
    F(NEW, new)                                 \
    F(FREE, free)                               \
    F(IMPORT, import)                           \
    F(IMPORT_TYPES, import_types)               \
    F(EXPORT, export)                           \
    F(EXPORT_TYPES, export_types)               \
    F(DUP, dup)                                 \
    F(HAS, has)                                 \
    F(MATCH, match)                             \
    F(VALIDATE, validate)                       \
    F(GET_PARAMS, get_params)                   \
    F(GETTABLE_PARAMS, gettable_params)         \
    F(GEN_INIT, gen_init)                       \
    F(GEN_SET_PARAMS, gen_set_params)           \
    F(GEN_SETTABLE_PARAMS, gen_settable_params) \
    F(GEN, gen)                                 \
    F(GEN_CLEANUP, gen_cleanup)

#define GP_SIGNATURE_FUNCTIONS(F)                     \
    F(NEWCTX, newctx)                                 \
    F(FREECTX, freectx)                               \
    F(DUPCTX, dupctx)                                 \
    F(SIGN_INIT, sign_init)                           \
    F(SIGN, sign)                                     \
    F(VERIFY_INIT, verify_init)                       \
    F(VERIFY, verify)                                 \
    F(VERIFY_RECOVER_INIT, verify_recover_init)       \
    F(VERIFY_RECOVER, verify_recover)                 \
    F(DIGEST_SIGN_INIT, digest_sign_init)             \
    F(DIGEST_SIGN_UPDATE, digest_sign_update)         \
    F(DIGEST_SIGN_FINAL, digest_sign_final)           \
    F(DIGEST_VERIFY_INIT, digest_verify_init)         \
    F(DIGEST_VERIFY_UPDATE, digest_verify_update)     \
    F(DIGEST_VERIFY_FINAL, digest_verify_final)       \
    F(GET_CTX_PARAMS, get_ctx_params)                 \
    F(GETTABLE_CTX_PARAMS, gettable_ctx_params)       \
    F(SET_CTX_PARAMS, set_ctx_params)                 \
    F(SETTABLE_CTX_PARAMS, settable_ctx_params)       \
    F(GET_CTX_MD_PARAMS, get_ctx_md_params)           \
    F(GETTABLE_CTX_MD_PARAMS, gettable_ctx_md_params) \
    F(SET_CTX_MD_PARAMS, set_ctx_md_params)           \
    F(SETTABLE_CTX_MD_PARAMS, settable_ctx_md_params)

#define GP_ASYM_CIPHER_FUNCTIONS(F)             \
    F(NEWCTX, newctx)                           \
    F(FREECTX, freectx)                         \
    F(DUPCTX, dupctx)                           \
    F(ENCRYPT_INIT, encrypt_init)               \
    F(ENCRYPT, encrypt)                         \
    F(DECRYPT_INIT, decrypt_init)               \
    F(DECRYPT, decrypt)                         \
    F(GET_CTX_PARAMS, get_ctx_params)           \
    F(GETTABLE_CTX_PARAMS, gettable_ctx_params) \
    F(SET_CTX_PARAMS, set_ctx_params)           \
    F(SETTABLE_CTX_PARAMS, settable_ctx_params)

typedef struct gp_default_rsa {
    OSSL_LIB_CTX *libctx; /* where it finds digests */
    void *context;        /* the default provider's own, first argument of its constructors */
    EVP_KEYMGMT *holder;  /* keeps that provider in memory */
#define GP_FIELD(id, name) OSSL_FUNC_keymgmt_##name##_fn *name;
    struct {
        GP_KEYMGMT_FUNCTIONS(GP_FIELD)
    } keymgmt;
#undef GP_FIELD
#define GP_FIELD(id, name) OSSL_FUNC_signature_##name##_fn *name;
    struct {
        GP_SIGNATURE_FUNCTIONS(GP_FIELD)
    } signature;
#undef GP_FIELD
#define GP_FIELD(id, name) OSSL_FUNC_asym_cipher_##name##_fn *name;
    struct {
        GP_ASYM_CIPHER_FUNCTIONS(GP_FIELD)
    } cipher;
#undef GP_FIELD
} gp_default_rsa;

/* That of the default provider in this library context. NULL if none is active there; no error is queued. */
gp_default_rsa *gp_default_rsa_new(OSSL_LIB_CTX *libctx);
void gp_default_rsa_free(gp_default_rsa *rsa);

/* That of a library context of our own, never freed. NULL with an error queued: out of memory. */
const gp_default_rsa *gp_default_rsa_of_process(void);

#endif
