"""The kernels against OpenSSL's arithmetic and against the limit of the multiply-add unit: ``python -m bench.kernels``.

One pinned core, interleaved, medians of ratios: each round measures the limit, OpenSSL and the kernels, one after the
other. OpenSSL is the raw private operation of EVP (no padding), which blinds and verifies as the kernels do.

The limit counts only the mad52 instructions that a batch of eight must issue: squarings at half cost, reductions at
full cost, a fixed window of five, and what blinding, CRT and verification add.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from cffi import FFI
from cryptography.hazmat.primitives.asymmetric import dh, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from bench.environment import describe
from gpu_provider import kernels

if TYPE_CHECKING:
    from collections.abc import Callable

LIMBS = {2048: 20, 2560: 25, 3072: 30, 3584: 35, 4096: 40}
RSA_NO_PADDING = 3

openssl = FFI()
openssl.cdef("""
typedef struct evp_pkey_st EVP_PKEY; typedef struct evp_pkey_ctx_st EVP_PKEY_CTX;
EVP_PKEY *d2i_AutoPrivateKey(EVP_PKEY **a, const unsigned char **pp, long length);
EVP_PKEY_CTX *EVP_PKEY_CTX_new(EVP_PKEY *pkey, void *e);
int EVP_PKEY_decrypt_init(EVP_PKEY_CTX *ctx);
int EVP_PKEY_CTX_set_rsa_padding(EVP_PKEY_CTX *ctx, int pad);
int EVP_PKEY_decrypt(EVP_PKEY_CTX *ctx, unsigned char *out, size_t *outlen, const unsigned char *in, size_t inlen);
int EVP_PKEY_derive_init(EVP_PKEY_CTX *ctx);
int EVP_PKEY_derive_set_peer(EVP_PKEY_CTX *ctx, EVP_PKEY *peer);
int EVP_PKEY_derive(EVP_PKEY_CTX *ctx, unsigned char *key, size_t *keylen);
const char *OpenSSL_version(int type);
""")


def multiply(limbs: int) -> int:
    """mad52 instructions of one Montgomery product."""
    return 4 * limbs * limbs + limbs


def square(limbs: int) -> int:
    return 3 * limbs * limbs + 2 * limbs


def exponentiation(limbs: int, bits: int, window: int) -> int:
    digits = -(-bits // window)
    table = (1 << window) - 2
    return (table + digits - 1) * multiply(limbs) + (digits - 1) * window * square(limbs)


def private_operation(bits: int) -> int:
    """mad52 instructions of one private operation of the whole lane, e = 65537."""
    limbs = LIMBS[bits]
    halves = 2 * (exponentiation(limbs, bits // 2, 5) + 4 * multiply(limbs))
    blinding = 2 * multiply(2 * limbs) + 2 * square(2 * limbs)
    check = 16 * square(2 * limbs) + 2 * multiply(2 * limbs)
    return halves + multiply(2 * limbs) + blinding + check


class Limit:
    """The rate of independent mad52 instructions, compiled on the spot."""

    def __init__(self) -> None:
        with tempfile.TemporaryDirectory() as directory:
            library = Path(directory) / "limit.so"
            source = Path(__file__).with_name("kernels_limit.c")
            subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-mavx512f", source, "-o", library], check=True)
            ffi = FFI()
            ffi.cdef("double mad52_rate(uint64_t rounds);")
            self.rate: Callable[[int], float] = ffi.dlopen(str(library)).mad52_rate  # type: ignore[attr-defined]

    def __call__(self) -> float:
        return self.rate(200_000)


def rate(operation: Callable[[], Any], per_call: int, seconds: float) -> float:
    """Operations per second of CPU time, so that what else runs on the machine does not count."""
    calls, start = 0, time.thread_time()
    while (spent := time.thread_time() - start) < seconds:
        operation()
        calls += 1
    return calls * per_call / spent


def succeed(result: Any) -> None:
    if result != 1:
        raise RuntimeError("an operation under measurement failed")


def openssl_private(lib: Any, key: rsa.RSAPrivateKey) -> Callable[[], Any]:
    der = key.private_bytes(Encoding.DER, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    pkey = load(lib, der)
    context = lib.EVP_PKEY_CTX_new(pkey, openssl.NULL)
    size = key.key_size // 8
    succeed(lib.EVP_PKEY_decrypt_init(context))
    succeed(lib.EVP_PKEY_CTX_set_rsa_padding(context, RSA_NO_PADDING))
    output, length = openssl.new("unsigned char[]", size), openssl.new("size_t *", size)
    data = openssl.new(
        "unsigned char[]", (secrets.randbelow(key.private_numbers().public_numbers.n)).to_bytes(size, "big")
    )

    def operation() -> None:
        length[0] = size
        succeed(lib.EVP_PKEY_decrypt(context, output, length, data, size))

    return operation


def load(lib: Any, der: bytes) -> Any:
    data = openssl.new("unsigned char[]", der)
    at = openssl.new("const unsigned char **", data)
    pkey = lib.d2i_AutoPrivateKey(openssl.NULL, at, len(der))
    succeed(pkey != openssl.NULL)
    return pkey


def ours_private(keys: list[rsa.RSAPrivateKey], count: int) -> Callable[[], Any]:
    handles = []
    for key in keys:
        numbers = key.private_numbers()
        public = numbers.public_numbers
        handles.append(
            kernels.PrivateKey(
                n=public.n, e=public.e, p=numbers.p, q=numbers.q, dp=numbers.dmp1, dq=numbers.dmq1, qinv=numbers.iqmp
            )
        )
    rows = [handles[i % len(handles)] for i in range(count)]
    size = keys[0].key_size // 8
    inputs = np.frombuffer(secrets.token_bytes(count * size), np.uint8).reshape(count, size).copy()
    inputs[:, -1] &= 0x7F
    outputs, ok = np.zeros_like(inputs), np.zeros(count, np.uint8)

    def operation() -> None:
        kernels.private_op(rows, inputs, outputs, ok)
        succeed(ok.all())

    return operation


def group_ffdhe2048() -> int:
    """RFC 7919, appendix A.1: p = 2^2048 - 2^1984 + (floor(2^1918 e) + 560316) 2^64 - 1."""
    terms, scale = 0, 1 << 2100
    term, k = scale, 0
    while term:
        terms += term
        k += 1
        term //= k
    return 2**2048 - 2**1984 + ((terms >> (2100 - 1918)) + 560316) * 2**64 - 1


def openssl_derive(lib: Any) -> Callable[[], Any]:
    parameters = dh.DHParameterNumbers(group_ffdhe2048(), 2).parameters()
    ours, peer = parameters.generate_private_key(), parameters.generate_private_key()
    der = [key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()) for key in (ours, peer)]
    pkeys = [load(lib, item) for item in der]
    context = lib.EVP_PKEY_CTX_new(pkeys[0], openssl.NULL)
    succeed(lib.EVP_PKEY_derive_init(context))
    succeed(lib.EVP_PKEY_derive_set_peer(context, pkeys[1]))
    output, length = openssl.new("unsigned char[]", 256), openssl.new("size_t *", 256)

    def operation() -> None:
        length[0] = 256
        succeed(lib.EVP_PKEY_derive(context, output, length))

    return operation


def ours_derive(count: int) -> Callable[[], Any]:
    modulus = np.frombuffer(group_ffdhe2048().to_bytes(256, "little"), np.uint8)
    moduli = np.tile(modulus, (count, 1))
    bases = np.frombuffer(secrets.token_bytes(count * 256), np.uint8).reshape(count, 256).copy()
    bases[:, -1] &= 0x7F
    exponents = np.frombuffer(secrets.token_bytes(count * 29), np.uint8).reshape(count, 29).copy()
    outputs, ok = np.zeros_like(bases), np.zeros(count, np.uint8)

    def operation() -> None:
        kernels.modexp(bases, exponents, moduli, outputs, ok, exponent_bits=225)
        succeed(ok.all())

    return operation


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=0.1, help="of each measurement")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {arguments.core})
    lib = openssl.dlopen("libcrypto.so.3")
    limit = Limit()
    width = kernels.lane_width()

    results = {}
    for bits in (2048, 3072, 4096, 0):
        if bits:
            name = f"RSA-{bits}"
            keys = [rsa.generate_private_key(65537, bits) for _ in range(width)]
            theirs, ours = openssl_private(lib, keys[0]), ours_private(keys, arguments.batch)
            instructions = private_operation(bits)
        else:
            name = "FFDHE-2048, 225 bits"
            theirs, ours = openssl_derive(lib), ours_derive(arguments.batch)
            instructions = exponentiation(40, 225, 4) + 2 * multiply(40)
        ours()
        samples = []
        for _ in range(arguments.rounds):
            rates = [limit()]
            them, us = rate(theirs, 1, arguments.seconds), rate(ours, arguments.batch, arguments.seconds)
            rates.append(limit())
            samples.append((statistics.mean(rates), them, us))
        most = [r / instructions * width for r, _, _ in samples]
        results[name] = {
            "openssl_per_s": statistics.median(them for _, them, _ in samples),
            "kernels_per_s": statistics.median(us for _, _, us in samples),
            "ratio": statistics.median(us / them for _, them, us in samples),
            "limit_per_s": statistics.median(most),
            "share_of_limit": statistics.median(us / top for (_, _, us), top in zip(samples, most, strict=True)),
            "mad52_per_s": statistics.median(r for r, _, _ in samples),
        }
        row = results[name]
        print(
            f"{name:22} OpenSSL {row['openssl_per_s']:7.0f}/s  kernels {row['kernels_per_s']:7.0f}/s  "
            f"ratio {row['ratio']:5.2f}  limit {row['limit_per_s']:7.0f}/s  share {row['share_of_limit']:4.0%}"
        )
    sizes = batch_sizes(lib, arguments.rounds, arguments.seconds / 4)
    if arguments.json:
        document = {**describe(), "batch": arguments.batch, "results": results, "batch_sizes": sizes}
        arguments.json.write_text(json.dumps(document, indent=2) + "\n")


def batch_sizes(lib: Any, rounds: int, seconds: float) -> dict[str, dict[str, float]]:
    """Operations per second over the size of the batch, as a multiple of OpenSSL's: what padding costs."""
    table: dict[str, dict[str, float]] = {}
    for bits in (2048, 4096):
        keys = [rsa.generate_private_key(65537, bits) for _ in range(8)]
        theirs = openssl_private(lib, keys[0])
        row = table[f"RSA-{bits}"] = {}
        for count in (1, 2, 3, 4, 8, 9, 16, 64):
            ours = ours_private(keys, count)
            ours()
            row[str(count)] = statistics.median(
                rate(ours, count, seconds) / rate(theirs, 1, seconds) for _ in range(rounds)
            )
        print(f"RSA-{bits} by batch size: " + "  ".join(f"{count}: {ratio:.2f}" for count, ratio in row.items()))
    return table


if __name__ == "__main__":
    main()
