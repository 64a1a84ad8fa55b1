"""cffi builder of ``gpu_provider.native._core``: the queue, the key table and the built-in provider.

What Python sees of the core is declared in its headers, between ``/* cffi: */`` and ``/* :cffi */``. What the core
needs of the kernels, with which it is not linked, is marked ``core`` in theirs.
"""

import re
from pathlib import Path

from cffi import FFI

NATIVE = "gpu_provider/native"
KERNELS = Path("kernels/kernels.h")
HEADERS = (
    "types.h",
    "keys/key.h",
    "keys/check.h",
    "keys/key_table.h",
    "keys/cpu.h",
    "keys/libcrypto.h",
    "keys/modexp.h",
    "keys/key_record.h",
    "staging.h",
    "queue/queue.h",
    "queue/client.h",
    "queue/request.h",
    "queue/crowd.h",
    "queue/consumer.h",
    "service/service.h",
    "service/lookup.h",
    "provider/embedded.h",
    "provider/rows.h",
)

OTHERS = """
struct gpk_functions;

typedef struct ossl_lib_ctx_st OSSL_LIB_CTX;
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

OSSL_LIB_CTX *OSSL_LIB_CTX_new(void);
EVP_PKEY_CTX *EVP_PKEY_CTX_new_from_pkey(OSSL_LIB_CTX *libctx, EVP_PKEY *key, const char *query);
void EVP_PKEY_CTX_free(EVP_PKEY_CTX *context);
int EVP_PKEY_sign_init(EVP_PKEY_CTX *context);
int EVP_PKEY_sign(EVP_PKEY_CTX *context, unsigned char *signature, size_t *signature_size, const unsigned char *digest,
                  size_t size);
typedef struct { ...; } OSSL_PARAM;
OSSL_PARAM OSSL_PARAM_construct_uint64(const char *key, uint64_t *value);
OSSL_PARAM OSSL_PARAM_construct_end(void);
int OSSL_PROVIDER_get_params(const OSSL_PROVIDER *provider, OSSL_PARAM params[]);
"""


def declarations(header: Path, mark: str = "cffi") -> str:
    return "\n".join(re.findall(rf"/\* {mark}: \*/\n(.*?)/\* :{mark} \*/", header.read_text(), re.DOTALL))


ffi = FFI()
ffi.cdef(declarations(KERNELS, "core") + OTHERS + "".join(declarations(Path(NATIVE, header)) for header in HEADERS))
ffi.set_source(
    "gpu_provider.native._core",
    "\n".join(f"#include <openssl/{name}.h>" for name in ("conf", "err", "evp", "params", "provider"))
    + "\n".join(("", *(f'#include "{header}"' for header in HEADERS))),
    include_dirs=[NATIVE, "kernels"],
    depends=sorted(str(path) for path in (*Path(NATIVE).rglob("*.[ch]"), KERNELS)),
    libraries=["core", "crypto"],  # setup.py's, which the provider module shares
)
