"""cffi builder of ``gpu_provider.native._core``: the queue, the key table and the built-in provider.

The declarations are read from ``client.h`` by hand, once, here; the C compiler checks them against the headers.
"""

from pathlib import Path

from cffi import FFI

NATIVE = "gpu_provider/native"

CDEF = """
#define GP_CLASSES 5
#define GP_MAX_BYTES 512
#define GP_MAX_DEPTH 65536
#define GP_QUEUE_VERSION 1

typedef struct gp_client gp_client;

struct gp_client_stats {
    uint64_t submitted;
    uint64_t completed;
    uint64_t failed;
    uint64_t retries;
    uint64_t orphaned;
    uint64_t direct;
    uint32_t in_use;
    uint32_t in_line;
    uint32_t keys;
    uint32_t kernel_keys;
    uint32_t locked_keys;
};

gp_client *gp_client_new(uint32_t depth);
void gp_client_free(gp_client *client);
void gp_client_close(gp_client *client);
void gp_client_get_stats(gp_client *client, struct gp_client_stats *stats);

#define GP_TIME_BOUNDS 13
extern const uint64_t gp_time_bounds_ns[13];
#define GP_SMALL_BATCH 8
struct gp_small_stats {
    uint64_t requests;
    uint64_t failed;
    uint64_t again;
    uint64_t sizes[8];
    uint64_t waited[14];
    uint64_t waited_ns;
    uint64_t executed[14];
    uint64_t executed_ns;
};
void gp_client_get_small_stats(gp_client *client, struct gp_small_stats *stats);
void gp_client_remove_key(gp_client *client, uint64_t handle);

enum gp_submit { GP_SUBMIT_FAILED, GP_SUBMIT_OK, GP_SUBMIT_FULL, GP_SUBMIT_CLOSED, ... };
enum gp_submit gp_client_submit(gp_client *client, uint64_t handle, const uint8_t *input, uint64_t tag,
                                int wait_for_room);

uint64_t gp_consumer_wait(gp_client *client, int64_t timeout_ns, int watch_submissions, const uint32_t *small,
                          uint32_t *waiting, uint64_t *oldest_ns);
void gp_consumer_wake(gp_client *client);
uint32_t gp_consumer_take(gp_client *client, uint32_t class_index, uint32_t count, uint64_t *handles, uint64_t *keys,
                          uint8_t *inputs, uint64_t *submitted_ns);
void gp_consumer_complete(gp_client *client, uint32_t count, const uint64_t *handles, const uint8_t *outputs,
                          uint32_t stride, const uint8_t *ok);
enum gp_finished { GP_FINISHED_ERR, GP_FINISHED_OK, GP_FINISHED_CLOSED, ... };
uint32_t gp_consumer_take_finished(gp_client *client, uint32_t count, uint64_t *tags, uint8_t *ok, uint8_t *outputs);

void gp_client_use_kernels(gp_client *client, const void *kernels, uint32_t smallest);
uint32_t gp_cpu_private(gp_client *client, uint32_t count, const uint64_t *keys, const uint8_t *inputs,
                        uint8_t *outputs, uint32_t stride, uint8_t *ok);
#define GP_NO_RECORD 0xffffffff
#define GP_PAIR_USES 512
#define GP_PAIR_WORN 384
struct gp_record {
    uint32_t number;
    uint32_t prime_bits;
    uint64_t e;
};
typedef struct gp_records gp_records;
gp_records *gp_records_new(void);
void gp_records_free(gp_records *records);
void gp_records_set(gp_records *records, uint64_t handle, const struct gp_record *record);
void gp_records_remove(gp_records *records, uint64_t handle);
struct gp_pairs {
    uint32_t records;
    uint64_t *owner;
    uint32_t *first;
    uint32_t *count;
    uint32_t *wanted;
    uint64_t *e;
    uint32_t *prime_bits;
    uint16_t *uses;
    uint32_t worn;
};
struct gp_staging {
    uint8_t *upload;
    uint8_t *download;
    uint8_t *fresh;
    uint32_t *row;
    uint32_t *fresh_record, *fresh_pair;
    uint64_t *lacking;
    uint32_t *lacking_record, *lacking_pairs;
    uint32_t room;
    uint32_t rows, count, fresh_count, lacking_count;
    uint32_t prime_bits, fresh_prime_bits;
    uint64_t any_e, fresh_any_e;
};
enum gp_staged { GP_STAGED, GP_LACKS_RECORDS, GP_LACKS_ROOM, GP_LACKS_PAIRS, ... };
enum gp_staged gp_stage(struct gp_staging *staging, const gp_records *records, struct gp_pairs *pairs,
                        uint32_t rows, const uint64_t *keys, const uint8_t *inputs, uint32_t stride,
                        uint32_t width);
uint32_t gp_stage_worn(struct gp_staging *staging, struct gp_pairs *pairs);
int gp_stage_fresh(struct gp_staging *staging, const struct gp_pairs *pairs, uint32_t width);
uint32_t gp_unstage(struct gp_staging *staging, const struct gp_pairs *pairs, uint8_t *outputs, uint8_t *ok,
                    uint32_t stride, uint32_t width);
enum gpk_status { GPK_OK, GPK_UNSUPPORTED, GPK_INVALID, ... };
struct gpk_number {
    const uint8_t *bytes;
    size_t size;
};
typedef enum gpk_status gp_fill_record(int radix_bits, int class_bytes, void *record, struct gpk_number n,
                                       struct gpk_number e, struct gpk_number p, struct gpk_number q,
                                       struct gpk_number dp, struct gpk_number dq, struct gpk_number qinv);
enum gpk_status gp_client_fill_record(gp_client *client, uint64_t handle, gp_fill_record *fill, int radix_bits,
                                      int class_bytes, void *memory, struct gp_record *record);
uint32_t gp_client_find_removed(gp_client *client, uint32_t count, const uint64_t *handles, uint8_t *gone);
void gp_libcrypto_private(gp_client *client, uint32_t count, const uint64_t *keys, const uint8_t *inputs,
                          uint8_t *outputs, uint32_t stride, uint8_t *ok);
uint32_t gp_libcrypto_verify(gp_client *client, uint32_t count, const uint64_t *keys, const uint8_t *inputs,
                             const uint8_t *outputs, uint32_t stride, uint8_t *ok);
int gp_libcrypto_modexp(uint32_t count, const uint8_t *bases, const uint8_t *exponents, uint32_t exponent_stride,
                        const uint8_t *moduli, uint8_t *outputs, uint32_t stride);

typedef struct gp_key gp_key;
gp_key *gp_client_get_key(gp_client *client, uint64_t handle);
int gp_client_pin_key(gp_client *client, uint64_t handle, uint32_t *bytes);
void gp_client_unpin_key(gp_client *client, uint64_t handle, uint32_t pins);
void gp_key_free(gp_key *key);
int gp_client_private_op(gp_client *client, gp_key *key, uint64_t handle, const uint8_t *input, uint8_t *output);

typedef struct gp_key_info {
    uint64_t handle;
    uint32_t bits;
    uint32_t bytes;
    uint32_t exponent_bytes;
    uint8_t modulus[512];
    uint8_t exponent[512];
} gp_key_info;
enum gp_load {
    GP_LOAD_OK, GP_LOAD_UNREADABLE, GP_LOAD_NOT_RSA, GP_LOAD_NOT_PRIVATE, GP_LOAD_SIZE, GP_LOAD_INVALID, GP_LOAD_MEMORY,
    ...
};
enum gp_load gp_client_load_key(gp_client *client, const uint8_t *der_or_pem, size_t size, gp_key_info *info);

typedef struct ossl_lib_ctx_st OSSL_LIB_CTX;
OSSL_LIB_CTX *gp_application_libctx_new(gp_client *client);
void gp_application_libctx_free(OSSL_LIB_CTX *libctx);

unsigned long ERR_get_error(void);
void ERR_error_string_n(unsigned long e, char *buf, size_t len);
void ERR_clear_error(void);
const char *OpenSSL_version(int what);

typedef struct conf_st CONF;
typedef struct conf_method_st CONF_METHOD;
typedef struct { char *section; char *name; char *value; } CONF_VALUE;
#define OPENSSL_INFO_CONFIG_DIR ...
const char *OPENSSL_info(int type);
CONF *NCONF_new(CONF_METHOD *method);
void NCONF_free(CONF *conf);
int NCONF_load(CONF *conf, const char *file, long *line);
char *NCONF_get_string(const CONF *conf, const char *section, const char *name);
struct stack_st_CONF_VALUE *NCONF_get_section(const CONF *conf, const char *section);
int OPENSSL_sk_num(const void *stack);
void *OPENSSL_sk_value(const void *stack, int index);

typedef struct evp_pkey_st EVP_PKEY;
typedef struct evp_pkey_ctx_st EVP_PKEY_CTX;
typedef struct evp_md_ctx_st EVP_MD_CTX;
typedef struct evp_signature_st EVP_SIGNATURE;
typedef struct ossl_provider_st OSSL_PROVIDER;
EVP_PKEY *EVP_PKEY_Q_keygen(OSSL_LIB_CTX *libctx, const char *query, const char *type, ...);
void EVP_PKEY_free(EVP_PKEY *key);
EVP_MD_CTX *EVP_MD_CTX_new(void);
void EVP_MD_CTX_free(EVP_MD_CTX *context);
int EVP_DigestSignInit_ex(EVP_MD_CTX *context, EVP_PKEY_CTX **operation, const char *digest, OSSL_LIB_CTX *libctx,
                          const char *query, EVP_PKEY *key, const void *params);
int EVP_DigestSign(EVP_MD_CTX *context, unsigned char *signature, size_t *signature_size, const unsigned char *data,
                   size_t size);
const OSSL_PROVIDER *EVP_PKEY_CTX_get0_provider(const EVP_PKEY_CTX *context);
EVP_SIGNATURE *EVP_SIGNATURE_fetch(OSSL_LIB_CTX *libctx, const char *algorithm, const char *query);
void EVP_SIGNATURE_free(EVP_SIGNATURE *signature);
const OSSL_PROVIDER *EVP_SIGNATURE_get0_provider(const EVP_SIGNATURE *signature);
const char *OSSL_PROVIDER_get0_name(const OSSL_PROVIDER *provider);
int OSSL_PROVIDER_available(OSSL_LIB_CTX *libctx, const char *name);
OSSL_PROVIDER *OSSL_PROVIDER_load(OSSL_LIB_CTX *libctx, const char *name);
"""

ffi = FFI()
ffi.cdef(CDEF)
ffi.set_source(
    "gpu_provider.native._core",
    "#include <openssl/conf.h>\n#include <openssl/err.h>\n#include <openssl/provider.h>\n"
    '#include "provider/provider.h"\n#include "queue/client.h"\n#include "staging.h"\n',
    sources=sorted(str(path) for path in Path(NATIVE).rglob("*.c") if path.name not in {"_core.c", "module.c"}),
    include_dirs=[NATIVE, "kernels"],
    depends=sorted(str(path) for path in (*Path(NATIVE).rglob("*.h"), Path("kernels/kernels.h"))),
    libraries=["crypto"],
)
