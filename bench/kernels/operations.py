"""The operations that ``speed.py`` compares: OpenSSL's, one at a time, and batches of ours.

OpenSSL's private operation is EVP's without padding, which blinds and verifies as the kernels do. ``cryptography``
offers none without padding, so there it is a signature.
"""

import secrets
from collections.abc import Callable
from typing import Any

import numpy as np
from cffi import FFI
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from numpy.typing import NDArray

from gpu_provider import kernels
from gpu_provider.native import _core

from ..recipes.psi import group_ffdhe2048

RSA_NO_PADDING = 3
EXPONENT_BITS = 225  # of a key exchange in ffdhe2048: RFC 7919, appendix A.1

openssl = FFI()
openssl.cdef("""
typedef struct evp_pkey_st EVP_PKEY; typedef struct evp_pkey_ctx_st EVP_PKEY_CTX;
EVP_PKEY *d2i_AutoPrivateKey(EVP_PKEY **a, const unsigned char **pp, long length);
EVP_PKEY_CTX *EVP_PKEY_CTX_new(EVP_PKEY *pkey, void *e);
int EVP_PKEY_decrypt_init(EVP_PKEY_CTX *ctx);
int EVP_PKEY_CTX_set_rsa_padding(EVP_PKEY_CTX *ctx, int pad);
int EVP_PKEY_decrypt(EVP_PKEY_CTX *ctx, unsigned char *out, size_t *outlen, const unsigned char *in, size_t inlen);
EVP_PKEY_CTX *EVP_PKEY_CTX_new_from_name(void *context, const char *name, const char *propquery);
int EVP_PKEY_keygen_init(EVP_PKEY_CTX *ctx);
int EVP_PKEY_CTX_set_group_name(EVP_PKEY_CTX *ctx, const char *name);
int EVP_PKEY_generate(EVP_PKEY_CTX *ctx, EVP_PKEY **made);
int EVP_PKEY_derive_init(EVP_PKEY_CTX *ctx);
int EVP_PKEY_derive_set_peer(EVP_PKEY_CTX *ctx, EVP_PKEY *peer);
int EVP_PKEY_derive(EVP_PKEY_CTX *ctx, unsigned char *key, size_t *keylen);
""")


def succeed(result: Any) -> None:
    if result != 1:
        raise RuntimeError("an operation under measurement failed")


def linked_openssl() -> Any:
    """The libcrypto that gpu-provider is linked to: a symbol is also looked up in what the library depends on."""
    return openssl.dlopen(_core.__file__)


def openssl_private(library: Any, key: rsa.RSAPrivateKey) -> Callable[[], Any]:
    der = key.private_bytes(Encoding.DER, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    encoded = openssl.new("unsigned char[]", der)
    pkey = library.d2i_AutoPrivateKey(openssl.NULL, openssl.new("const unsigned char **", encoded), len(der))
    succeed(pkey != openssl.NULL)
    context = library.EVP_PKEY_CTX_new(pkey, openssl.NULL)
    size = key.key_size // 8
    succeed(library.EVP_PKEY_decrypt_init(context))
    succeed(library.EVP_PKEY_CTX_set_rsa_padding(context, RSA_NO_PADDING))
    output, length = openssl.new("unsigned char[]", size), openssl.new("size_t *", size)
    number = secrets.randbelow(key.public_key().public_numbers().n)
    data = openssl.new("unsigned char[]", number.to_bytes(size, "big"))

    def operation() -> None:
        length[0] = size
        succeed(library.EVP_PKEY_decrypt(context, output, length, data, size))

    return operation


def cryptography_private(key: rsa.RSAPrivateKey) -> Callable[[], Any]:
    """A signature of a digest by PKCS#1 v1.5, whose padding costs least."""
    digest, scheme, algorithm = secrets.token_bytes(32), padding.PKCS1v15(), Prehashed(SHA256())
    return lambda: key.sign(digest, scheme, algorithm)


def private_key(key: rsa.RSAPrivateKey) -> kernels.PrivateKey:
    numbers = key.private_numbers()
    public = numbers.public_numbers
    parts = {"p": numbers.p, "q": numbers.q, "dp": numbers.dmp1, "dq": numbers.dmq1, "qinv": numbers.iqmp}
    return kernels.PrivateKey(n=public.n, e=public.e, **parts)


def random_rows(count: int, size: int) -> NDArray[np.uint8]:
    """[count, size], each below any modulus of so many bytes."""
    rows = np.frombuffer(secrets.token_bytes(count * size), np.uint8).reshape(count, size).copy()
    rows[:, -1] &= 0x7F
    return rows


def ours_private(keys: list[rsa.RSAPrivateKey], count: int) -> Callable[[], Any]:
    handles = [private_key(key) for key in keys]
    rows = [handles[i % len(handles)] for i in range(count)]
    inputs = random_rows(count, keys[0].key_size // 8)
    outputs, ok = np.zeros_like(inputs), np.zeros(count, np.uint8)

    def operation() -> None:
        kernels.private_op(rows, inputs, outputs, ok)
        succeed(ok.all())

    return operation


def openssl_derive(library: Any) -> Callable[[], Any]:
    generator = library.EVP_PKEY_CTX_new_from_name(openssl.NULL, b"DH", openssl.NULL)
    succeed(library.EVP_PKEY_keygen_init(generator))
    succeed(library.EVP_PKEY_CTX_set_group_name(generator, b"ffdhe2048"))
    pkeys = []
    for _ in range(2):
        made = openssl.new("EVP_PKEY **")
        succeed(library.EVP_PKEY_generate(generator, made))
        pkeys.append(made[0])
    context = library.EVP_PKEY_CTX_new(pkeys[0], openssl.NULL)
    succeed(library.EVP_PKEY_derive_init(context))
    succeed(library.EVP_PKEY_derive_set_peer(context, pkeys[1]))
    output, length = openssl.new("unsigned char[]", 256), openssl.new("size_t *", 256)

    def operation() -> None:
        length[0] = 256
        succeed(library.EVP_PKEY_derive(context, output, length))

    return operation


def ours_derive(count: int) -> Callable[[], Any]:
    modulus = np.frombuffer(group_ffdhe2048().to_bytes(256, "little"), np.uint8)
    moduli = np.tile(modulus, (count, 1))
    bases, exponents = random_rows(count, 256), random_rows(count, 29)
    outputs, ok = np.zeros_like(bases), np.zeros(count, np.uint8)

    def operation() -> None:
        kernels.modexp(bases, exponents, moduli, outputs, ok, exponent_bits=EXPONENT_BITS)
        succeed(ok.all())

    return operation
