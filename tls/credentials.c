#include "credentials.h"

#include <limits.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <string.h>
#include <time.h>

/* `count`, or -1 if something else than the end of the file has stopped the reading. The end shows as "no start line";
 * anything else is something broken in the file. */
static int read_to_end(int count)
{
    unsigned long error = ERR_peek_last_error();

    if (count == 0 || ERR_GET_LIB(error) != ERR_LIB_PEM || ERR_GET_REASON(error) != PEM_R_NO_START_LINE)
        return -1;
    ERR_clear_error();
    return count;
}

int gp_credentials_use_certificates(SSL_CTX *ctx, OSSL_LIB_CTX *libctx, const char *pem, size_t size)
{
    int count = 0;
    ERR_clear_error();
    BIO *bio = size <= INT_MAX ? BIO_new_mem_buf(pem, (int)size) : NULL;
    if (bio == NULL)
        return -1;
    for (;;) {
        X509 *certificate = X509_new_ex(libctx, NULL);
        if (certificate == NULL || PEM_read_bio_X509(bio, &certificate, NULL, NULL) == NULL) {
            X509_free(certificate);
            break;
        }
        int added = count == 0 ? SSL_CTX_use_certificate(ctx, certificate) == 1 && SSL_CTX_clear_chain_certs(ctx) == 1
                               : SSL_CTX_add1_chain_cert(ctx, certificate) == 1;
        X509_free(certificate);
        if (!added) {
            BIO_free(bio);
            return -1;
        }
        count++;
    }
    BIO_free(bio);
    return read_to_end(count);
}

static int64_t end_of(const X509_CRL *list)
{
    const ASN1_TIME *next = X509_CRL_get0_nextUpdate(list);
    struct tm utc;

    return next != NULL && ASN1_TIME_to_tm(next, &utc) == 1 ? (int64_t)timegm(&utc) : INT64_MAX;
}

int gp_credentials_add_crls(SSL_CTX *ctx, OSSL_LIB_CTX *libctx, const char *path, int64_t *end)
{
    int count = 0;

    *end = INT64_MAX;
    ERR_clear_error();
    BIO *bio = BIO_new_file(path, "rb");
    if (bio == NULL)
        return -1;
    for (;;) {
        X509_CRL *list = X509_CRL_new_ex(libctx, NULL);
        if (list == NULL || PEM_read_bio_X509_CRL(bio, &list, NULL, NULL) == NULL) {
            X509_CRL_free(list);
            break;
        }
        int added = X509_STORE_add_crl(SSL_CTX_get_cert_store(ctx), list);
        *end = end_of(list) < *end ? end_of(list) : *end;
        X509_CRL_free(list);
        if (!added) {
            BIO_free(bio);
            return -1;
        }
        count++;
    }
    BIO_free(bio);
    return read_to_end(count);
}

struct password {
    const char *text;
    int asked;
};

static int give_password(char *buffer, int size, int writing, void *argument)
{
    struct password *password = argument;
    (void)writing;
    password->asked = 1;
    if (password->text == NULL)
        return -1;
    size_t length = strlen(password->text);
    if (length > (size_t)size)
        return -1;
    memcpy(buffer, password->text, length);
    return (int)length;
}

EVP_PKEY *gp_credentials_load_key(OSSL_LIB_CTX *libctx, const char *path, const void *data, size_t size, int der,
                                  const char *password, int *asked)
{
    struct password given = {password, 0};
    EVP_PKEY *key = NULL;
    ERR_clear_error();
    BIO *bio = path != NULL ? BIO_new_file(path, "rb") : size <= INT_MAX ? BIO_new_mem_buf(data, (int)size) : NULL;
    if (bio != NULL)
        key = der ? d2i_PrivateKey_ex_bio(bio, NULL, libctx, NULL)
                  : PEM_read_bio_PrivateKey_ex(bio, NULL, give_password, &given, libctx, NULL);
    BIO_free(bio);
    *asked = given.asked;
    return key;
}
