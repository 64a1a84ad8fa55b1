"""OpenSSL's EVP interface for tests, by ctypes on the very libcrypto that the provider is linked to.

Options of an operation are given as the ``openssl`` program's ``-pkeyopt`` takes them: ``{"rsa_padding_mode": "pss"}``.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from ctypes import POINTER, byref, c_char_p, c_int, c_size_t, c_uint, c_ulong, c_void_p
from pathlib import Path
from typing import TYPE_CHECKING, Final

import gpu_provider.native
from gpu_provider.native import _core

if TYPE_CHECKING:
    from types import TracebackType

NATIVE: Final = Path(gpu_provider.native.__file__).parent
NAME: Final = "gpu_provider"
PREFERENCE: Final = f"?{NAME}.batched=yes"
PUBLIC_KEY: Final = 0x86
KEY_PAIR: Final = 0x87
TLS_PADDING: Final = 7
Options = Mapping[str, str]
_RAISED: Final = re.findall(r'\{GP_R_\w+, "(.*)"\}', (NATIVE / "provider" / "provider.c").read_text())
_REASONS: Final = {str(number): text for number, text in enumerate(_RAISED, 1)}


# Through the C core: a process may have more than one libcrypto, and Python's own ssl another than this.
_lib: Final = ctypes.CDLL(_core.__file__)

_SIGNATURES: Final[dict[str, tuple[object, list[object]]]] = {
    "OSSL_LIB_CTX_new": (c_void_p, []),
    "OSSL_LIB_CTX_free": (None, [c_void_p]),
    "OSSL_LIB_CTX_load_config": (c_int, [c_void_p, c_char_p]),
    "OSSL_PROVIDER_set_default_search_path": (c_int, [c_void_p, c_char_p]),
    "OSSL_PROVIDER_load": (c_void_p, [c_void_p, c_char_p]),
    "OSSL_PROVIDER_unload": (c_int, [c_void_p]),
    "OSSL_PROVIDER_get0_name": (c_char_p, [c_void_p]),
    "EVP_set_default_properties": (c_int, [c_void_p, c_char_p]),
    "EVP_PKEY_get0_provider": (c_void_p, [c_void_p]),
    "EVP_PKEY_free": (None, [c_void_p]),
    "EVP_PKEY_dup": (c_void_p, [c_void_p]),
    "EVP_PKEY_eq": (c_int, [c_void_p, c_void_p]),
    "EVP_PKEY_get_bits": (c_int, [c_void_p]),
    "EVP_PKEY_get_size": (c_int, [c_void_p]),
    "EVP_PKEY_get_security_bits": (c_int, [c_void_p]),
    "EVP_PKEY_get_bn_param": (c_int, [c_void_p, c_char_p, c_void_p]),
    "EVP_PKEY_CTX_new_from_pkey": (c_void_p, [c_void_p, c_void_p, c_char_p]),
    "EVP_PKEY_CTX_new_from_name": (c_void_p, [c_void_p, c_char_p, c_char_p]),
    "EVP_PKEY_CTX_get0_provider": (c_void_p, [c_void_p]),
    "EVP_PKEY_CTX_dup": (c_void_p, [c_void_p]),
    "EVP_PKEY_CTX_free": (None, [c_void_p]),
    "EVP_PKEY_CTX_ctrl_str": (c_int, [c_void_p, c_char_p, c_char_p]),
    "EVP_PKEY_CTX_set_params": (c_int, [c_void_p, c_void_p]),
    "EVP_PKEY_CTX_set_rsa_padding": (c_int, [c_void_p, c_int]),
    "EVP_PKEY_fromdata_init": (c_int, [c_void_p]),
    "EVP_PKEY_fromdata": (c_int, [c_void_p, c_void_p, c_int, c_void_p]),
    "EVP_PKEY_keygen_init": (c_int, [c_void_p]),
    "EVP_PKEY_generate": (c_int, [c_void_p, c_void_p]),
    "EVP_PKEY_sign_init": (c_int, [c_void_p]),
    "EVP_PKEY_sign": (c_int, [c_void_p, c_void_p, POINTER(c_size_t), c_char_p, c_size_t]),
    "EVP_PKEY_verify_init": (c_int, [c_void_p]),
    "EVP_PKEY_verify": (c_int, [c_void_p, c_char_p, c_size_t, c_char_p, c_size_t]),
    "EVP_PKEY_verify_recover_init": (c_int, [c_void_p]),
    "EVP_PKEY_verify_recover": (c_int, [c_void_p, c_void_p, POINTER(c_size_t), c_char_p, c_size_t]),
    "EVP_PKEY_encrypt_init": (c_int, [c_void_p]),
    "EVP_PKEY_encrypt": (c_int, [c_void_p, c_void_p, POINTER(c_size_t), c_char_p, c_size_t]),
    "EVP_PKEY_decrypt_init": (c_int, [c_void_p]),
    "EVP_PKEY_decrypt": (c_int, [c_void_p, c_void_p, POINTER(c_size_t), c_char_p, c_size_t]),
    "EVP_PKEY_pairwise_check": (c_int, [c_void_p]),
    "EVP_PKEY_private_check": (c_int, [c_void_p]),
    "EVP_PKEY_public_check": (c_int, [c_void_p]),
    "EVP_MD_CTX_new": (c_void_p, []),
    "EVP_MD_CTX_free": (None, [c_void_p]),
    "EVP_MD_CTX_copy_ex": (c_int, [c_void_p, c_void_p]),
    "EVP_DigestSignInit_ex": (c_int, [c_void_p, c_void_p, c_char_p, c_void_p, c_char_p, c_void_p, c_void_p]),
    "EVP_DigestSign": (c_int, [c_void_p, c_void_p, POINTER(c_size_t), c_char_p, c_size_t]),
    "EVP_DigestSignUpdate": (c_int, [c_void_p, c_char_p, c_size_t]),
    "EVP_DigestSignFinal": (c_int, [c_void_p, c_void_p, POINTER(c_size_t)]),
    "EVP_DigestVerifyInit_ex": (c_int, [c_void_p, c_void_p, c_char_p, c_void_p, c_char_p, c_void_p, c_void_p]),
    "EVP_DigestVerify": (c_int, [c_void_p, c_char_p, c_size_t, c_char_p, c_size_t]),
    "EVP_DigestVerifyUpdate": (c_int, [c_void_p, c_char_p, c_size_t]),
    "EVP_DigestVerifyFinal": (c_int, [c_void_p, c_char_p, c_size_t]),
    "OSSL_DECODER_CTX_new_for_pkey": (
        c_void_p,
        [c_void_p, c_char_p, c_char_p, c_char_p, c_int, c_void_p, c_char_p],
    ),
    "OSSL_DECODER_from_data": (c_int, [c_void_p, c_void_p, POINTER(c_size_t)]),
    "OSSL_DECODER_CTX_free": (None, [c_void_p]),
    "OSSL_PARAM_BLD_new": (c_void_p, []),
    "OSSL_PARAM_BLD_free": (None, [c_void_p]),
    "OSSL_PARAM_BLD_push_BN": (c_int, [c_void_p, c_char_p, c_void_p]),
    "OSSL_PARAM_BLD_push_uint": (c_int, [c_void_p, c_char_p, c_uint]),
    "OSSL_PARAM_BLD_to_param": (c_void_p, [c_void_p]),
    "OSSL_PARAM_free": (None, [c_void_p]),
    "BN_bin2bn": (c_void_p, [c_char_p, c_int, c_void_p]),
    "BN_bn2binpad": (c_int, [c_void_p, c_void_p, c_int]),
    "BN_free": (None, [c_void_p]),
    "ERR_get_error": (c_ulong, []),
    "ERR_get_next_error_library": (c_int, []),
    "ERR_error_string_n": (None, [c_ulong, c_void_p, c_size_t]),
    "ERR_clear_error": (None, []),
}
for _name, (_result, _arguments) in _SIGNATURES.items():
    _function = getattr(_lib, _name)
    _function.restype = _result
    _function.argtypes = _arguments


class EvpError(Exception):
    """An EVP call failed; the message is OpenSSL's error queue."""


def _errors() -> str:
    lines = []
    while code := _lib.ERR_get_error():
        lines.append(error_text(code))
    return "; ".join(lines) or "no error queued"


def _check(result: int | None) -> int:
    if result is None or result <= 0:
        raise EvpError(_errors())
    return result


@contextmanager
def _params(numbers: Mapping[str, int], uints: Mapping[str, int]) -> Iterator[int]:
    """An OSSL_PARAM array of big numbers and unsigned ints."""
    builder = _lib.OSSL_PARAM_BLD_new()
    big_numbers = []
    names = {name: name.encode() for name in (*numbers, *uints)}  # OpenSSL keeps their addresses
    for name, value in numbers.items():
        data = value.to_bytes((value.bit_length() + 7) // 8, "big")
        big_numbers.append(_lib.BN_bin2bn(data, len(data), None))
        _check(_lib.OSSL_PARAM_BLD_push_BN(builder, names[name], big_numbers[-1]))
    for name, value in uints.items():
        _check(_lib.OSSL_PARAM_BLD_push_uint(builder, names[name], value))
    params = _lib.OSSL_PARAM_BLD_to_param(builder)
    try:
        yield params
    finally:
        _lib.OSSL_PARAM_free(params)
        _lib.OSSL_PARAM_BLD_free(builder)
        for number in big_numbers:
            _lib.BN_free(number)


def error_text(code: int) -> str:
    """As OpenSSL has it. It forgets ours where two contexts have had the same number, and one is gone."""
    text = ctypes.create_string_buffer(256)
    _lib.ERR_error_string_n(code, text, len(text))
    return re.sub(r"reason\((\d+)\)$", lambda found: _REASONS.get(found[1], found[0]), text.value.decode())


def _new_library_context() -> int:
    """Errors pack their library's number in eight bits, and each provider that is loaded takes the next number. After
    128 loads in one process they reach 0 to 127, OpenSSL's own libraries, whose texts are not ours.
    """
    while not 128 <= _lib.ERR_get_next_error_library() & 0xFF < 240:
        pass
    return _check(_lib.OSSL_LIB_CTX_new())


class LibraryContext:
    """A library context of which RSA is computed by the provider module loaded from its file.

    ``base=True`` loads OpenSSL's base provider (key files, no algorithms) instead of the default one: RSA can then be
    nobody's but ours. ``provider=False`` leaves ours out. ``preference`` is the query that is added to a program's own.
    ``more`` are other providers, by name or path.
    """

    def __init__(
        self, *, base: bool = False, provider: bool = True, preference: str = PREFERENCE, more: Iterable[str] = ()
    ) -> None:
        self.pointer: int = _new_library_context()
        _check(_lib.OSSL_PROVIDER_set_default_search_path(self.pointer, str(NATIVE).encode()))
        names = [b"base" if base else b"default", *([NAME.encode()] if provider else []), *map(str.encode, more)]
        self._providers = [_check(_lib.OSSL_PROVIDER_load(self.pointer, name)) for name in names]
        _check(_lib.EVP_set_default_properties(self.pointer, preference.encode()))

    @classmethod
    def configured(cls, path: Path, settings: str) -> LibraryContext:
        """By an openssl.cnf, written to ``path``, with these lines in our section."""
        path.write_text(
            "openssl_conf = start\n[start]\nproviders = providers\nalg_section = algorithms\n"
            f"[providers]\ndefault = theirs\n{NAME} = ours\n[theirs]\nactivate = 1\n"
            f"[ours]\nmodule = {NATIVE / NAME}.so\nactivate = 1\n{settings}\n"
            f"[algorithms]\ndefault_properties = {PREFERENCE}\n"
        )
        context = cls.__new__(cls)
        context.pointer, context._providers = _new_library_context(), []
        try:
            _check(_lib.OSSL_LIB_CTX_load_config(context.pointer, str(path).encode()))
        except EvpError:
            context.close()
            raise
        return context

    def close(self) -> None:
        for provider in self._providers:
            _lib.OSSL_PROVIDER_unload(provider)
        _lib.OSSL_LIB_CTX_free(self.pointer)

    def __enter__(self) -> LibraryContext:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Key:
    """An EVP_PKEY in a library context (its address)."""

    def __init__(self, libctx: int, pointer: int) -> None:
        self.libctx = libctx
        self.pointer = pointer

    def __del__(self) -> None:
        _lib.EVP_PKEY_free(self.pointer)

    @classmethod
    def load(cls, libctx: int, data: bytes) -> Key:
        """Reads PEM or DER, private or public. The key stays with the default provider until it is used."""
        pointer, address, size = c_void_p(), c_char_p(data), c_size_t(len(data))
        decoder = _lib.OSSL_DECODER_CTX_new_for_pkey(byref(pointer), None, None, None, 0, libctx, None)
        try:
            _check(_lib.OSSL_DECODER_from_data(decoder, byref(address), byref(size)))
        finally:
            _lib.OSSL_DECODER_CTX_free(decoder)
        return cls(libctx, _check(pointer.value))

    @classmethod
    def from_numbers(cls, libctx: int, **numbers: int) -> Key:
        """From n, e and d: a key that has no CRT parameters, or a public one without d."""
        pointer = c_void_p()
        context = _check(_lib.EVP_PKEY_CTX_new_from_name(libctx, b"RSA", None))
        try:
            _check(_lib.EVP_PKEY_fromdata_init(context))
            with _params(numbers, {}) as params:
                selection = KEY_PAIR if "d" in numbers else PUBLIC_KEY
                _check(_lib.EVP_PKEY_fromdata(context, byref(pointer), selection, params))
        finally:
            _lib.EVP_PKEY_CTX_free(context)
        return cls(libctx, _check(pointer.value))

    @classmethod
    def generate(cls, libctx: int, **options: str) -> Key:
        pointer = c_void_p()
        context = _check(_lib.EVP_PKEY_CTX_new_from_name(libctx, b"RSA", None))
        try:
            _check(_lib.EVP_PKEY_keygen_init(context))
            _set_options(context, options)
            _check(_lib.EVP_PKEY_generate(context, byref(pointer)))
        finally:
            _lib.EVP_PKEY_CTX_free(context)
        return cls(libctx, _check(pointer.value))

    @property
    def provider(self) -> str:
        return str(_lib.OSSL_PROVIDER_get0_name(_lib.EVP_PKEY_get0_provider(self.pointer)).decode())

    @property
    def bits(self) -> int:
        return int(_lib.EVP_PKEY_get_bits(self.pointer))

    @property
    def size(self) -> int:
        return int(_lib.EVP_PKEY_get_size(self.pointer))

    @property
    def security_bits(self) -> int:
        return int(_lib.EVP_PKEY_get_security_bits(self.pointer))

    def number(self, name: str) -> int:
        number = c_void_p()
        _check(_lib.EVP_PKEY_get_bn_param(self.pointer, name.encode(), byref(number)))
        buffer = ctypes.create_string_buffer(4096)
        _lib.BN_bn2binpad(number, buffer, len(buffer))
        _lib.BN_free(number)
        return int.from_bytes(buffer.raw, "big")

    def copy(self) -> Key:
        return Key(self.libctx, _check(_lib.EVP_PKEY_dup(self.pointer)))

    def equals(self, other: Key) -> bool:
        result = _lib.EVP_PKEY_eq(self.pointer, other.pointer) == 1
        _lib.ERR_clear_error()
        return bool(result)

    @contextmanager
    def operation(
        self, name: str, options: Options | None = None, *, dup: bool = False, query: str | None = None
    ) -> Iterator[int]:
        """A context for sign, verify, encrypt … ``query`` is the program's own property query."""
        asked = query.encode() if query is not None else None
        context = _check(_lib.EVP_PKEY_CTX_new_from_pkey(self.libctx, self.pointer, asked))
        try:
            _check(getattr(_lib, f"EVP_PKEY_{name}_init")(context))
            _set_options(context, options or {})
            if dup:
                original, context = context, _check(_lib.EVP_PKEY_CTX_dup(context))
                _lib.EVP_PKEY_CTX_free(original)
            yield context
        finally:
            _lib.EVP_PKEY_CTX_free(context)

    def valid(self, what: str) -> bool:
        """what: pairwise, private or public."""
        context = _check(_lib.EVP_PKEY_CTX_new_from_pkey(self.libctx, self.pointer, None))
        result = getattr(_lib, f"EVP_PKEY_{what}_check")(context)
        _lib.EVP_PKEY_CTX_free(context)
        _lib.ERR_clear_error()
        return bool(result == 1)

    def _apply(self, name: str, data: bytes, options: Options, *, dup: bool = False) -> bytes:
        with self.operation(name, options, dup=dup) as context:
            return _output(getattr(_lib, f"EVP_PKEY_{name}"), context, data, len(data))

    def who_signs(self, query: str | None = None) -> str:
        """The provider that a program with this property query gets."""
        with self.operation("sign", query=query) as context:
            return str(_lib.OSSL_PROVIDER_get0_name(_lib.EVP_PKEY_CTX_get0_provider(context)).decode())

    def sign(self, data: bytes, options: Options) -> bytes:
        """Signs a digest's value, or data as it is when the options name no digest."""
        return self._apply("sign", data, options)

    def verify(self, signature: bytes, data: bytes, options: Options) -> bool:
        with self.operation("verify", options) as context:
            result = _lib.EVP_PKEY_verify(context, signature, len(signature), data, len(data))
        _lib.ERR_clear_error()
        return bool(result == 1)

    def verify_recover(self, signature: bytes, options: Options) -> bytes:
        return self._apply("verify_recover", signature, options)

    def encrypt(self, data: bytes, options: Options) -> bytes:
        return self._apply("encrypt", data, options)

    def decrypt(self, data: bytes, options: Options, *, dup: bool = False) -> bytes:
        """dup: through a copy of the context that has the options."""
        return self._apply("decrypt", data, options, dup=dup)

    def decrypt_premaster(self, data: bytes, client_version: int, negotiated_version: int = 0) -> bytes:
        """As libssl does with a TLS 1.2 client's key exchange."""
        versions = {"tls-client-version": client_version, "tls-negotiated-version": negotiated_version}
        with self.operation("decrypt", {}) as context:
            _check(_lib.EVP_PKEY_CTX_set_rsa_padding(context, TLS_PADDING))
            with _params({}, versions) as params:
                _check(_lib.EVP_PKEY_CTX_set_params(context, params))
            return _output(_lib.EVP_PKEY_decrypt, context, data, len(data))

    @contextmanager
    def _digest_operation(self, name: str, digest: str, options: Options, query: str | None = None) -> Iterator[int]:
        context, key_context = _lib.EVP_MD_CTX_new(), c_void_p()
        try:
            init = getattr(_lib, f"EVP_Digest{name}Init_ex")
            asked = query.encode() if query is not None else None
            _check(init(context, byref(key_context), digest.encode(), self.libctx, asked, self.pointer, None))
            _set_options(_check(key_context.value), options)
            yield context
        finally:
            _lib.EVP_MD_CTX_free(context)

    def digest_sign(self, digest: str, message: bytes, options: Options, query: str | None = None) -> bytes:
        with self._digest_operation("Sign", digest, options, query) as context:
            return _output(_lib.EVP_DigestSign, context, message, len(message))

    def digest_sign_pieces(self, digest: str, pieces: Iterable[bytes], options: Options) -> bytes:
        with self._digest_operation("Sign", digest, options) as context:
            for piece in pieces:
                _check(_lib.EVP_DigestSignUpdate(context, piece, len(piece)))
            return _output(_lib.EVP_DigestSignFinal, context)

    def digest_sign_branches(self, digest: str, stem: bytes, branches: list[bytes], options: Options) -> list[bytes]:
        """Signatures of stem + branch, each finished on a copy of the context that has read the stem."""
        signatures = []
        with self._digest_operation("Sign", digest, options) as context:
            _check(_lib.EVP_DigestSignUpdate(context, stem, len(stem)))
            for branch in branches:
                copy = _lib.EVP_MD_CTX_new()
                try:
                    _check(_lib.EVP_MD_CTX_copy_ex(copy, context))
                    _check(_lib.EVP_DigestSignUpdate(copy, branch, len(branch)))
                    signatures.append(_output(_lib.EVP_DigestSignFinal, copy))
                finally:
                    _lib.EVP_MD_CTX_free(copy)
        return signatures

    def digest_verify(self, digest: str, signature: bytes, message: bytes, options: Options) -> bool:
        with self._digest_operation("Verify", digest, options) as context:
            result = _lib.EVP_DigestVerify(context, signature, len(signature), message, len(message))
        _lib.ERR_clear_error()
        return bool(result == 1)

    def digest_verify_pieces(self, digest: str, signature: bytes, pieces: Iterable[bytes], options: Options) -> bool:
        with self._digest_operation("Verify", digest, options) as context:
            for piece in pieces:
                _check(_lib.EVP_DigestVerifyUpdate(context, piece, len(piece)))
            result = _lib.EVP_DigestVerifyFinal(context, signature, len(signature))
        _lib.ERR_clear_error()
        return bool(result == 1)


def _set_options(context: int, options: Options) -> None:
    for name, value in options.items():
        _check(_lib.EVP_PKEY_CTX_ctrl_str(context, name.encode(), value.encode()))


def _output(function: ctypes._NamedFuncPointer, context: int, *data: bytes | int) -> bytes:
    """Asks for the size, then for the output, as every application does."""
    size = c_size_t()
    _check(function(context, None, byref(size), *data))
    buffer = ctypes.create_string_buffer(size.value)
    _check(function(context, buffer, byref(size), *data))
    return buffer.raw[: size.value]


def pss(salt_length: str | int = "digest", mgf1_digest: str | None = None) -> dict[str, str]:
    options = {"rsa_padding_mode": "pss", "rsa_pss_saltlen": str(salt_length)}
    return options if mgf1_digest is None else options | {"rsa_mgf1_md": mgf1_digest}


def oaep(digest: str = "sha1", mgf1_digest: str | None = None, label: bytes = b"") -> dict[str, str]:
    options = {"rsa_padding_mode": "oaep", "rsa_oaep_md": digest, "rsa_mgf1_md": mgf1_digest or digest}
    return options | {"rsa_oaep_label": label.hex()} if label else options
