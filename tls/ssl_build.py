"""cffi builder of ``gpu_provider.tls._ssl``: the part of libssl that the TLS API uses, and our own C.

OpenSSL's declarations are listed here. Ours are read from our headers, between ``/* cffi: */`` and ``/* :cffi */``.
"""

import re
from pathlib import Path

from cffi import FFI

CRYPTO = """
typedef struct ossl_lib_ctx_st OSSL_LIB_CTX;
typedef struct ossl_provider_st OSSL_PROVIDER;
typedef struct evp_pkey_st EVP_PKEY;
typedef struct x509_st X509;
typedef struct x509_store_st X509_STORE;
typedef struct X509_VERIFY_PARAM_st X509_VERIFY_PARAM;
typedef struct bio_st BIO;
#define ERR_LIB_SSL ...
#define SSL_R_UNEXPECTED_EOF_WHILE_READING ...
#define X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS ...

OSSL_LIB_CTX *OSSL_LIB_CTX_new(void);
OSSL_PROVIDER *OSSL_PROVIDER_load(OSSL_LIB_CTX *libctx, const char *name);
unsigned long ERR_get_error(void);
unsigned long ERR_peek_last_error(void);
void ERR_clear_error(void);
const char *ERR_reason_error_string(unsigned long error);
int ERR_GET_LIB(unsigned long error);
int ERR_GET_REASON(unsigned long error);
int ASYNC_init_thread(size_t max_size, size_t init_size);

int BIO_write(BIO *bio, const void *data, int size);
int BIO_read(BIO *bio, void *data, int size);
size_t BIO_ctrl_pending(BIO *bio);
uint64_t BIO_number_read(BIO *bio);
long BIO_set_mem_eof_return(BIO *bio, long value);

int OBJ_txt2nid(const char *text);
const char *OBJ_nid2ln(int nid);
void EVP_PKEY_free(EVP_PKEY *key);
int EVP_PKEY_is_a(const EVP_PKEY *key, const char *name);
const char *EVP_PKEY_get0_type_name(const EVP_PKEY *key);
int EVP_PKEY_get_bits(const EVP_PKEY *key);
int EVP_PKEY_get_group_name(const EVP_PKEY *key, char *name, size_t size, size_t *length);
EVP_PKEY *X509_get0_pubkey(const X509 *certificate);
void X509_free(X509 *certificate);
int i2d_X509(const X509 *certificate, unsigned char **out);
const char *X509_verify_cert_error_string(long error);
void X509_VERIFY_PARAM_set_hostflags(X509_VERIFY_PARAM *parameters, unsigned int flags);
int X509_VERIFY_PARAM_set1_host(X509_VERIFY_PARAM *parameters, const char *name, size_t size);
int X509_VERIFY_PARAM_set1_ip_asc(X509_VERIFY_PARAM *parameters, const char *address);
"""

CONSTANTS = """
SSL_MODE_ASYNC SSL_MODE_ENABLE_PARTIAL_WRITE SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER SSL_MODE_RELEASE_BUFFERS
SSL_OP_ALL SSL_OP_NO_COMPRESSION SSL_OP_NO_RENEGOTIATION SSL_OP_CIPHER_SERVER_PREFERENCE SSL_OP_NO_TICKET
SSL_OP_IGNORE_UNEXPECTED_EOF SSL_OP_NO_TLSv1_2 SSL_OP_NO_TLSv1_3 SSL_OP_PRIORITIZE_CHACHA
SSL_VERIFY_NONE SSL_VERIFY_PEER SSL_VERIFY_FAIL_IF_NO_PEER_CERT SSL_VERIFY_CLIENT_ONCE
SSL_FILETYPE_PEM SSL_FILETYPE_ASN1 SSL_SENT_SHUTDOWN SSL_RECEIVED_SHUTDOWN
SSL_SESS_CACHE_OFF SSL_SESS_CACHE_CLIENT SSL_SESS_CACHE_SERVER SSL_SESS_CACHE_BOTH
TLS1_2_VERSION TLS1_3_VERSION
SSL_ERROR_SSL SSL_ERROR_WANT_READ SSL_ERROR_WANT_WRITE SSL_ERROR_SYSCALL SSL_ERROR_ZERO_RETURN
SSL_ERROR_WANT_ASYNC SSL_ERROR_WANT_ASYNC_JOB
"""

SSL = """
typedef struct ssl_st SSL;
typedef struct ssl_ctx_st SSL_CTX;
typedef struct ssl_method_st SSL_METHOD;
typedef struct ssl_session_st SSL_SESSION;
typedef struct ssl_cipher_st SSL_CIPHER;

const SSL_METHOD *TLS_method(void);
const SSL_METHOD *TLS_server_method(void);
const SSL_METHOD *TLS_client_method(void);

SSL_CTX *SSL_CTX_new_ex(OSSL_LIB_CTX *libctx, const char *propq, const SSL_METHOD *method);
void SSL_CTX_free(SSL_CTX *ctx);
int SSL_CTX_set_min_proto_version(SSL_CTX *ctx, int version);
int SSL_CTX_set_max_proto_version(SSL_CTX *ctx, int version);
int SSL_CTX_set_cipher_list(SSL_CTX *ctx, const char *list);
int SSL_CTX_set_ciphersuites(SSL_CTX *ctx, const char *list);
int SSL_CTX_set1_groups_list(SSL_CTX *ctx, const char *list);
int SSL_CTX_set1_sigalgs_list(SSL_CTX *ctx, const char *list);
int SSL_CTX_use_PrivateKey(SSL_CTX *ctx, EVP_PKEY *key);
int SSL_CTX_check_private_key(const SSL_CTX *ctx);
X509 *SSL_CTX_get0_certificate(const SSL_CTX *ctx);
int SSL_CTX_load_verify_locations(SSL_CTX *ctx, const char *file, const char *directory);
int SSL_CTX_set_default_verify_paths(SSL_CTX *ctx);
void SSL_CTX_set_verify(SSL_CTX *ctx, int mode, void *callback);
int SSL_CTX_get_verify_mode(const SSL_CTX *ctx);
void SSL_CTX_set_verify_depth(SSL_CTX *ctx, int depth);
X509_VERIFY_PARAM *SSL_CTX_get0_param(SSL_CTX *ctx);
int X509_VERIFY_PARAM_set_flags(X509_VERIFY_PARAM *parameters, unsigned long flags);
int X509_VERIFY_PARAM_clear_flags(X509_VERIFY_PARAM *parameters, unsigned long flags);
unsigned long X509_VERIFY_PARAM_get_flags(const X509_VERIFY_PARAM *parameters);
struct stack_st_X509_NAME *SSL_load_client_CA_file(const char *file);
void SSL_CTX_set_client_CA_list(SSL_CTX *ctx, struct stack_st_X509_NAME *list);
struct stack_st_X509_NAME *SSL_CTX_get_client_CA_list(const SSL_CTX *ctx);
struct stack_st_X509_NAME *SSL_dup_CA_list(const struct stack_st_X509_NAME *list);
X509_STORE *SSL_CTX_get_cert_store(const SSL_CTX *ctx);
void SSL_CTX_set1_cert_store(SSL_CTX *ctx, X509_STORE *store);
int SSL_CTX_set_alpn_protos(SSL_CTX *ctx, const unsigned char *protocols, unsigned int size);
long SSL_CTX_set_mode(SSL_CTX *ctx, long mode);
uint64_t SSL_CTX_set_options(SSL_CTX *ctx, uint64_t options);
uint64_t SSL_CTX_clear_options(SSL_CTX *ctx, uint64_t options);
long SSL_CTX_set_session_cache_mode(SSL_CTX *ctx, long mode);
int SSL_CTX_set_session_id_context(SSL_CTX *ctx, const unsigned char *id, unsigned int size);
int SSL_CTX_set_num_tickets(SSL_CTX *ctx, size_t count);
void SSL_CTX_set_read_ahead(SSL_CTX *ctx, int on);
void SSL_CTX_set_default_read_buffer_len(SSL_CTX *ctx, size_t size);

void SSL_free(SSL *ssl);
long SSL_set_mode(SSL *ssl, long mode);
long SSL_clear_mode(SSL *ssl, long mode);
void SSL_set_accept_state(SSL *ssl);
void SSL_set_connect_state(SSL *ssl);
int SSL_is_server(const SSL *ssl);
int SSL_is_init_finished(const SSL *ssl);
long SSL_set_tlsext_host_name(SSL *ssl, const char *name);
int SSL_set_alpn_protos(SSL *ssl, const unsigned char *protocols, unsigned int size);
X509_VERIFY_PARAM *SSL_get0_param(SSL *ssl);
int SSL_get_verify_mode(const SSL *ssl);
void SSL_set_verify(SSL *ssl, int mode, void *callback);
BIO *SSL_get_rbio(const SSL *ssl);
BIO *SSL_get_wbio(const SSL *ssl);
int SSL_pending(const SSL *ssl);
int SSL_has_pending(const SSL *ssl);
int SSL_get_shutdown(const SSL *ssl);
void SSL_get0_alpn_selected(const SSL *ssl, const unsigned char **name, unsigned int *size);
const char *SSL_get_servername(const SSL *ssl, const int type);
const SSL_CIPHER *SSL_get_current_cipher(const SSL *ssl);
const char *SSL_CIPHER_get_name(const SSL_CIPHER *cipher);
const char *SSL_CIPHER_get_version(const SSL_CIPHER *cipher);
int SSL_CIPHER_get_bits(const SSL_CIPHER *cipher, int *algorithm_bits);
const char *SSL_get_version(const SSL *ssl);
X509 *SSL_get0_peer_certificate(const SSL *ssl);
const char *SSL_alert_desc_string_long(int value);
int SSL_get_negotiated_group(SSL *ssl);
const char *SSL_group_to_name(SSL *ssl, int id);
int SSL_get_signature_type_nid(const SSL *ssl, int *type);
X509 *SSL_get_certificate(const SSL *ssl);
X509 *SSL_get1_peer_certificate(const SSL *ssl);
long SSL_get_verify_result(const SSL *ssl);
SSL_SESSION *SSL_get1_session(SSL *ssl);
int SSL_set_session(SSL *ssl, SSL_SESSION *session);
int SSL_session_reused(const SSL *ssl);
void SSL_SESSION_free(SSL_SESSION *session);
const char *SSL_state_string_long(const SSL *ssl);

int SSL_waiting_for_async(SSL *ssl);
int SSL_get_all_async_fds(SSL *ssl, int *descriptors, size_t *count);
int SSL_get_changed_async_fds(SSL *ssl, int *added, size_t *added_count, int *removed, size_t *removed_count);
int SSL_get_async_status(SSL *ssl, int *status);
"""

TLS = Path("tls")
HEADERS = sorted(TLS.glob("*.h"))


def declarations(header: Path) -> str:
    return "\n".join(re.findall(r"/\* cffi: \*/\n(.*?)/\* :cffi \*/", header.read_text(), re.DOTALL))


ffi = FFI()
ffi.cdef(CRYPTO)
ffi.cdef("".join(f"#define {name} ...\n" for name in CONSTANTS.split()))
ffi.cdef(SSL)
ffi.cdef("".join(map(declarations, HEADERS)))
ffi.set_source(
    "gpu_provider.tls._ssl",
    "#include <openssl/err.h>\n#include <openssl/provider.h>\n#include <openssl/ssl.h>\n#include <openssl/x509v3.h>\n"
    + "".join(f'#include "{header.name}"\n' for header in HEADERS),
    sources=sorted(map(str, TLS.glob("*.c"))),
    include_dirs=["tls"],
    depends=list(map(str, HEADERS)),
    define_macros=[("_GNU_SOURCE", None)],
    libraries=["ssl", "crypto"],
)
