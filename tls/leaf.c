#include "leaf.h"

#include <openssl/err.h>
#include <openssl/x509v3.h>
#include <string.h>
#include <time.h>

struct names {
    char *text;
    size_t size, capacity;
};

static int append(struct names *names, const unsigned char *name, int length)
{
    if (length < 0)
        return 0;
    if (memchr(name, 0, (size_t)length) != NULL)
        return 1;
    if ((size_t)length + 1 > names->capacity - names->size)
        return 0;
    memcpy(names->text + names->size, name, (size_t)length);
    names->size += (size_t)length;
    names->text[names->size++] = '\0';
    return 1;
}

static int append_dns_names(struct names *names, const GENERAL_NAMES *all)
{
    for (int i = 0; i < sk_GENERAL_NAME_num(all); i++) {
        const GENERAL_NAME *name = sk_GENERAL_NAME_value(all, i);
        int type;
        const ASN1_STRING *value = GENERAL_NAME_get0_value(name, &type);

        if (type == GEN_DNS && !append(names, ASN1_STRING_get0_data(value), ASN1_STRING_length(value)))
            return 0;
    }
    return 1;
}

static int append_common_names(struct names *names, const X509_NAME *subject)
{
    int at = -1;

    while ((at = X509_NAME_get_index_by_NID(subject, NID_commonName, at)) >= 0) {
        unsigned char *utf8 = NULL;
        int length = ASN1_STRING_to_UTF8(&utf8, X509_NAME_ENTRY_get_data(X509_NAME_get_entry(subject, at)));
        int ok = append(names, utf8, length);

        OPENSSL_free(utf8);
        if (!ok)
            return 0;
    }
    return 1;
}

int64_t gp_leaf_names(const X509 *certificate, char *text, size_t capacity)
{
    struct names names = {.text = text, .capacity = capacity};
    int critical = 0, ok = 0;
    GENERAL_NAMES *alternative = X509_get_ext_d2i(certificate, NID_subject_alt_name, &critical, NULL);

    if (alternative != NULL)
        ok = append_dns_names(&names, alternative);
    else if (critical == -1) /* there is no such extension; otherwise it is there twice, or damaged */
        ok = append_common_names(&names, X509_get_subject_name(certificate));
    GENERAL_NAMES_free(alternative);
    ERR_clear_error();
    return ok ? (int64_t)names.size : -1;
}

int64_t gp_leaf_subject(const X509 *certificate, char *text, size_t capacity)
{
    BIO *bio = BIO_new(BIO_s_mem());
    int64_t size = -1;

    if (bio != NULL && X509_NAME_print_ex(bio, X509_get_subject_name(certificate), 0, XN_FLAG_RFC2253) >= 0
        && BIO_ctrl_pending(bio) <= capacity)
        size = BIO_ctrl_pending(bio) == 0 ? 0 : BIO_read(bio, text, (int)BIO_ctrl_pending(bio));
    BIO_free(bio);
    ERR_clear_error();
    return size;
}

int64_t gp_leaf_common_name(const X509 *certificate, char *text, size_t capacity)
{
    const X509_NAME *subject = X509_get_subject_name(certificate);
    int at = X509_NAME_get_index_by_NID(subject, NID_commonName, -1);
    unsigned char *utf8 = NULL;
    int64_t size = -1;

    if (at >= 0)
        size = ASN1_STRING_to_UTF8(&utf8, X509_NAME_ENTRY_get_data(X509_NAME_get_entry(subject, at)));
    if (size > (int64_t)capacity)
        size = -1;
    if (size > 0)
        memcpy(text, utf8, (size_t)size);
    OPENSSL_free(utf8);
    ERR_clear_error();
    return size;
}

int gp_leaf_public_key(const X509 *certificate, unsigned char digest[32])
{
    int ok = X509_pubkey_digest(certificate, EVP_sha256(), digest, NULL);

    ERR_clear_error();
    return ok;
}

int gp_leaf_fingerprint(const X509 *certificate, unsigned char digest[32])
{
    int ok = X509_digest(certificate, EVP_sha256(), digest, NULL);

    ERR_clear_error();
    return ok;
}

int64_t gp_leaf_not_after(const X509 *certificate)
{
    struct tm utc;

    return ASN1_TIME_to_tm(X509_get0_notAfter(certificate), &utc) == 1 ? (int64_t)timegm(&utc) : INT64_MIN;
}
