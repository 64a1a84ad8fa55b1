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

#define GP_KEYMGMT_FUNCTIONS(F)                                   \
    F(KEYMGMT, keymgmt, NEW, new)                                 \
    F(KEYMGMT, keymgmt, FREE, free)                               \
    F(KEYMGMT, keymgmt, IMPORT, import)                           \
    F(KEYMGMT, keymgmt, IMPORT_TYPES, import_types)               \
    F(KEYMGMT, keymgmt, EXPORT, export)                           \
    F(KEYMGMT, keymgmt, EXPORT_TYPES, export_types)               \
    F(KEYMGMT, keymgmt, DUP, dup)                                 \
    F(KEYMGMT, keymgmt, HAS, has)                                 \
    F(KEYMGMT, keymgmt, MATCH, match)                             \
    F(KEYMGMT, keymgmt, VALIDATE, validate)                       \
    F(KEYMGMT, keymgmt, GET_PARAMS, get_params)                   \
    F(KEYMGMT, keymgmt, GETTABLE_PARAMS, gettable_params)         \
    F(KEYMGMT, keymgmt, GEN_INIT, gen_init)                       \
    F(KEYMGMT, keymgmt, GEN_SET_PARAMS, gen_set_params)           \
    F(KEYMGMT, keymgmt, GEN_SETTABLE_PARAMS, gen_settable_params) \
    F(KEYMGMT, keymgmt, GEN, gen)                                 \
    F(KEYMGMT, keymgmt, GEN_CLEANUP, gen_cleanup)

#define GP_SIGNATURE_FUNCTIONS(F)                                           \
    F(SIGNATURE, signature, NEWCTX, newctx)                                 \
    F(SIGNATURE, signature, FREECTX, freectx)                               \
    F(SIGNATURE, signature, DUPCTX, dupctx)                                 \
    F(SIGNATURE, signature, SIGN_INIT, sign_init)                           \
    F(SIGNATURE, signature, SIGN, sign)                                     \
    F(SIGNATURE, signature, VERIFY_INIT, verify_init)                       \
    F(SIGNATURE, signature, VERIFY, verify)                                 \
    F(SIGNATURE, signature, VERIFY_RECOVER_INIT, verify_recover_init)       \
    F(SIGNATURE, signature, VERIFY_RECOVER, verify_recover)                 \
    F(SIGNATURE, signature, DIGEST_SIGN_INIT, digest_sign_init)             \
    F(SIGNATURE, signature, DIGEST_SIGN_UPDATE, digest_sign_update)         \
    F(SIGNATURE, signature, DIGEST_SIGN_FINAL, digest_sign_final)           \
    F(SIGNATURE, signature, DIGEST_VERIFY_INIT, digest_verify_init)         \
    F(SIGNATURE, signature, DIGEST_VERIFY_UPDATE, digest_verify_update)     \
    F(SIGNATURE, signature, DIGEST_VERIFY_FINAL, digest_verify_final)       \
    F(SIGNATURE, signature, GET_CTX_PARAMS, get_ctx_params)                 \
    F(SIGNATURE, signature, GETTABLE_CTX_PARAMS, gettable_ctx_params)       \
    F(SIGNATURE, signature, SET_CTX_PARAMS, set_ctx_params)                 \
    F(SIGNATURE, signature, SETTABLE_CTX_PARAMS, settable_ctx_params)       \
    F(SIGNATURE, signature, GET_CTX_MD_PARAMS, get_ctx_md_params)           \
    F(SIGNATURE, signature, GETTABLE_CTX_MD_PARAMS, gettable_ctx_md_params) \
    F(SIGNATURE, signature, SET_CTX_MD_PARAMS, set_ctx_md_params)           \
    F(SIGNATURE, signature, SETTABLE_CTX_MD_PARAMS, settable_ctx_md_params)

#define GP_ASYM_CIPHER_FUNCTIONS(F)                                       \
    F(ASYM_CIPHER, asym_cipher, NEWCTX, newctx)                           \
    F(ASYM_CIPHER, asym_cipher, FREECTX, freectx)                         \
    F(ASYM_CIPHER, asym_cipher, DUPCTX, dupctx)                           \
    F(ASYM_CIPHER, asym_cipher, ENCRYPT_INIT, encrypt_init)               \
    F(ASYM_CIPHER, asym_cipher, ENCRYPT, encrypt)                         \
    F(ASYM_CIPHER, asym_cipher, DECRYPT_INIT, decrypt_init)               \
    F(ASYM_CIPHER, asym_cipher, DECRYPT, decrypt)                         \
    F(ASYM_CIPHER, asym_cipher, GET_CTX_PARAMS, get_ctx_params)           \
    F(ASYM_CIPHER, asym_cipher, GETTABLE_CTX_PARAMS, gettable_ctx_params) \
    F(ASYM_CIPHER, asym_cipher, SET_CTX_PARAMS, set_ctx_params)           \
    F(ASYM_CIPHER, asym_cipher, SETTABLE_CTX_PARAMS, settable_ctx_params)

typedef struct gp_default_rsa {
    OSSL_LIB_CTX *libctx; /* where it finds digests */
    void *context;        /* the default provider's own, first argument of its constructors */
    EVP_KEYMGMT *holder;  /* keeps that provider in memory */
#define GP_FIELD(KIND, kind, ID, name) OSSL_FUNC_##kind##_##name##_fn *name;
    struct {
        GP_KEYMGMT_FUNCTIONS(GP_FIELD)
    } keymgmt;
    struct {
        GP_SIGNATURE_FUNCTIONS(GP_FIELD)
    } signature;
    struct {
        GP_ASYM_CIPHER_FUNCTIONS(GP_FIELD)
    } asym_cipher;
#undef GP_FIELD
} gp_default_rsa;

/* That of the default provider in this library context. NULL if none is active there; no error is queued. */
gp_default_rsa *gp_default_rsa_new(OSSL_LIB_CTX *libctx);
void gp_default_rsa_free(gp_default_rsa *rsa);

/* That of a library context of our own, never freed. NULL with an error queued: out of memory. */
const gp_default_rsa *gp_default_rsa_of_process(void);

#endif
