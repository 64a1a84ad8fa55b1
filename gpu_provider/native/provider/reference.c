/* Decoders of references to keys that only the service has: from PEM to DER, and from DER to a key object. OpenSSL's
 * own decoder of PEM knows a fixed list of labels.
 *
 *   KeyReference ::= SEQUENCE {
 *       format    UTF8String,    -- GP_REFERENCE_STRUCTURE
 *       name      UTF8String,
 *       modulus   INTEGER,
 *       exponent  INTEGER }
 *
 * commands/key_reference.py writes them. */
#include <openssl/asn1.h>
#include <openssl/core_names.h>
#include <openssl/core_object.h>
#include <openssl/crypto.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <string.h>

#include "provider/provider.h"

#define LABEL "GPU PROVIDER KEY REFERENCE"
#define MOST_BYTES 4096u /* of DER */
#define MOST_TEXT (2 * MOST_BYTES)
#define BEGIN "-----BEGIN "
#define END "-----END "

/* A decoder needs no state of its own. */
static void *context_new(void *provider)
{
    return provider;
}

static void context_free(void *provider)
{
    (void)provider;
}

static int does_selection(void *provider, int selection)
{
    (void)provider;
    return selection == 0 || (selection & OSSL_KEYMGMT_SELECT_PRIVATE_KEY) != 0;
}

/* ---- PEM ---- */

static int begins_with(const char *line, const char *words)
{
    return strncmp(line, words, strlen(words)) == 0;
}

/* The text of the first block, if it has our label. What follows it stays unread: other decoders come to it later. */
static BIO *read_block(const gp_provider *provider, OSSL_CORE_BIO *in)
{
    BIO *text = BIO_new(BIO_s_mem());
    int length, written = 0, inside = 0, ended = 0;
    char line[256];
    while (text != NULL && !ended && (length = provider->bio_gets(in, line, sizeof(line))) > 0) {
        if (!inside && begins_with(line, BEGIN))
            inside = begins_with(line, BEGIN LABEL "-----") ? 1 : -1;
        ended = inside != 0 && begins_with(line, END);
        if (inside > 0 && written <= (int)MOST_TEXT)
            written += BIO_write(text, line, length);
    }
    if (ended && inside > 0 && written <= (int)MOST_TEXT)
        return text;
    BIO_free(text);
    return NULL;
}

static int decode_pem(void *context, OSSL_CORE_BIO *in, int selection, OSSL_CALLBACK *callback, void *argument,
                      OSSL_PASSPHRASE_CALLBACK *ask, void *ask_argument)
{
    static char type[] = "RSA", structure[] = GP_REFERENCE_STRUCTURE;
    int object = OSSL_OBJECT_PKEY, ok = 1;
    BIO *text = read_block(context, in);
    char *label = NULL, *header = NULL;
    unsigned char *data = NULL;
    long size = 0;
    (void)selection, (void)ask, (void)ask_argument;
    if (text == NULL)
        return 1; /* it may be for another decoder */
    if (PEM_read_bio(text, &label, &header, &data, &size)) {
        const OSSL_PARAM params[] = {
            OSSL_PARAM_construct_int(OSSL_OBJECT_PARAM_TYPE, &object),
            OSSL_PARAM_construct_utf8_string(OSSL_OBJECT_PARAM_DATA_TYPE, type, 0),
            OSSL_PARAM_construct_utf8_string(OSSL_OBJECT_PARAM_DATA_STRUCTURE, structure, 0),
            OSSL_PARAM_construct_octet_string(OSSL_OBJECT_PARAM_DATA, data, (size_t)size),
            OSSL_PARAM_construct_end(),
        };
        ok = callback(params, argument);
    } else {
        GP_RAISE((gp_provider *)context, GP_R_BAD_REFERENCE);
        ok = 0;
    }
    OPENSSL_free(label);
    OPENSSL_free(header);
    OPENSSL_free(data);
    BIO_free(text);
    return ok;
}

/* ---- DER ---- */

/* The content of the next element of this type; *next moves past it. 0: there is another one, or none. */
static int read_element(const uint8_t **next, const uint8_t *end, int expected, const uint8_t **content, size_t *size)
{
    const int form = expected == V_ASN1_SEQUENCE ? V_ASN1_CONSTRUCTED : 0;
    long length;
    int tag, class;
    if (ASN1_get_object(next, &length, &tag, &class, end - *next) != form || tag != expected
        || class != V_ASN1_UNIVERSAL || length <= 0)
        return 0;
    *content = *next;
    *size = (size_t)length;
    if (form == 0)
        *next += length;
    return 1;
}

static int read_number(const uint8_t **next, const uint8_t *end, uint8_t *number, uint16_t *size)
{
    const uint8_t *content;
    size_t content_size;
    if (!read_element(next, end, V_ASN1_INTEGER, &content, &content_size) || (content[0] & 0x80) != 0)
        return 0;
    if (content[0] == 0) {
        content++;
        content_size--;
    }
    if (content_size > GP_MAX_BYTES)
        return 0;
    memcpy(number, content, content_size);
    *size = (uint16_t)content_size;
    return 1;
}

/* 1: it is one, whatever it refers to; -1: it is one, and damaged; 0: it is something else. */
static int read_reference(const uint8_t *der, size_t der_size, char *name, struct gp_public_key *key)
{
    const uint8_t *next = der, *end = der + der_size, *content;
    size_t size;
    if (!read_element(&next, end, V_ASN1_SEQUENCE, &content, &size) || size != (size_t)(end - next)
        || !read_element(&next, end, V_ASN1_UTF8STRING, &content, &size) || size != strlen(GP_REFERENCE_STRUCTURE)
        || memcmp(content, GP_REFERENCE_STRUCTURE, size) != 0)
        return 0;
    if (!read_element(&next, end, V_ASN1_UTF8STRING, &content, &size)
        || !gp_key_name_is_valid((const char *)content, size))
        return -1;
    memcpy(name, content, size);
    name[size] = '\0';
    return read_number(&next, end, key->modulus, &key->modulus_size)
                   && read_number(&next, end, key->exponent, &key->exponent_size) && next == end
               ? 1
               : -1;
}

static int decode_der(void *context, OSSL_CORE_BIO *in, int selection, OSSL_CALLBACK *callback, void *argument,
                      OSSL_PASSPHRASE_CALLBACK *ask, void *ask_argument)
{
    gp_provider *provider = context;
    char name[GP_MAX_NAME + 1] = "";
    struct gp_public_key public_key;
    uint8_t der[MOST_BYTES];
    size_t size = 0, more;
    gp_rsa_key *key;
    int found;
    (void)selection, (void)ask, (void)ask_argument;
    while (size < sizeof(der) && provider->bio_read_ex(in, der + size, sizeof(der) - size, &more) && more > 0)
        size += more;
    ERR_set_mark();
    found = read_reference(der, size, name, &public_key);
    ERR_pop_to_mark();
    if (found < 0)
        GP_RAISE(provider, GP_R_BAD_REFERENCE);
    if (found <= 0)
        return found == 0; /* it may be for another decoder */
    key = gp_rsa_key_of_service(provider, name, &public_key);
    return key != NULL && gp_rsa_key_hand_over(key, callback, argument);
}

const OSSL_DISPATCH gp_reference_pem_functions[] = {
    {OSSL_FUNC_DECODER_NEWCTX, (void (*)(void))context_new},
    {OSSL_FUNC_DECODER_FREECTX, (void (*)(void))context_free},
    {OSSL_FUNC_DECODER_DECODE, (void (*)(void))decode_pem},
    {0, NULL},
};

const OSSL_DISPATCH gp_reference_der_functions[] = {
    {OSSL_FUNC_DECODER_NEWCTX, (void (*)(void))context_new},
    {OSSL_FUNC_DECODER_FREECTX, (void (*)(void))context_free},
    {OSSL_FUNC_DECODER_DOES_SELECTION, (void (*)(void))does_selection},
    {OSSL_FUNC_DECODER_DECODE, (void (*)(void))decode_der},
    {0, NULL},
};
