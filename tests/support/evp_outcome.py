"""What one call of OpenSSL's EVP interface comes to, so that two providers can be compared.

An outcome is the value returned, the output, and every error that was queued. Calls go through with whatever arguments
a test gives, sensible or not.
"""

from __future__ import annotations

import ctypes
from contextlib import contextmanager
from ctypes import POINTER, byref, c_char_p, c_int, c_size_t, c_uint, c_void_p
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import evp
import pytest
import rsa_keys

from gpu_provider import BatchingProvider

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

INTEGER: Final = 1
UNSIGNED: Final = 2
UTF8_STRING: Final = 4
OCTET_STRING: Final = 5
OCTET_POINTER: Final = 7
PKCS1, NONE, OAEP, X931, PSS, TLS, NO_REJECTION = 1, 3, 4, 5, 6, 7, 8
BUFFER_BYTES: Final = 8192
FILL: Final = b"\xa5"
UNMODIFIED: Final = c_size_t(-1).value
LIBRARY_AND_REASON: Final = 0x7FFFFFFF

Value = int | bytes | str
Setting = tuple[str, int, Value]
"""A parameter's name, its type, its value."""


class Param(ctypes.Structure):
    _fields_ = (
        ("key", c_char_p),
        ("data_type", c_uint),
        ("data", c_void_p),
        ("data_size", c_size_t),
        ("return_size", c_size_t),
    )


lib: Final = evp._lib  # one libcrypto, and its functions declared in one place

_SIGNATURES: Final[dict[str, tuple[object, list[object]]]] = {
    "EVP_PKEY_CTX_get_params": (c_int, [c_void_p, c_void_p]),
    "EVP_PKEY_CTX_gettable_params": (c_void_p, [c_void_p]),
    "EVP_PKEY_CTX_settable_params": (c_void_p, [c_void_p]),
    "EVP_PKEY_get_params": (c_int, [c_void_p, c_void_p]),
    "EVP_PKEY_gettable_params": (c_void_p, [c_void_p]),
    "EVP_PKEY_fromdata_settable": (c_void_p, [c_void_p, c_int]),
    "EVP_PKEY_check": (c_int, [c_void_p]),
    "EVP_PKEY_param_check": (c_int, [c_void_p]),
    "EVP_PKEY_public_check_quick": (c_int, [c_void_p]),
    "EVP_PKEY_encapsulate_init": (c_int, [c_void_p, c_void_p]),
    "EVP_PKEY_encapsulate": (c_int, [c_void_p, c_void_p, POINTER(c_size_t), c_void_p, POINTER(c_size_t)]),
    "EVP_PKEY_decapsulate_init": (c_int, [c_void_p, c_void_p]),
    "EVP_PKEY_decapsulate": (c_int, [c_void_p, c_void_p, POINTER(c_size_t), c_char_p, c_size_t]),
    "EVP_PKEY_CTX_set_kem_op": (c_int, [c_void_p, c_char_p]),
    "EVP_MD_CTX_get_pkey_ctx": (c_void_p, [c_void_p]),
}
for _name, (_result, _arguments) in _SIGNATURES.items():
    getattr(lib, _name).restype = _result
    getattr(lib, _name).argtypes = _arguments


@dataclass(frozen=True)
class Outcome:
    result: int
    output: bytes | None
    errors: tuple[int, ...]

    @property
    def written(self) -> bytes:
        """What an operation wrote, without the size that it reported."""
        return (self.output or b"")[8:]

    @property
    def without_output(self) -> Outcome:
        """For what is random: the size alone."""
        return Outcome(self.result, (self.output or b"")[:8], self.errors)


def errors() -> tuple[int, ...]:
    """Library and reason of everything queued, the oldest first."""
    codes = []
    while code := lib.ERR_get_error():
        codes.append(code & LIBRARY_AND_REASON)
    return tuple(codes)


def describe(codes: Sequence[int]) -> str:
    return "; ".join(map(evp.error_text, codes))


def outcome(result: int, output: bytes | None = None) -> Outcome:
    return Outcome(result, output, errors())


def call(function: str, context: int, *data: bytes | int, capacity: int | None) -> Outcome:
    """An operation with an output buffer of ``capacity`` bytes; None asks for the size."""
    size = c_size_t(capacity or 0)
    buffer = None if capacity is None else ctypes.create_string_buffer(FILL * BUFFER_BYTES, BUFFER_BYTES)
    lib.ERR_clear_error()
    result = getattr(lib, function)(context, buffer, byref(size), *data)
    written = b"" if buffer is None else buffer.raw.rstrip(FILL)
    return outcome(result, size.value.to_bytes(8, "big") + written)


@contextmanager
def params(settings: Sequence[Setting]) -> Iterator[ctypes.Array[Param]]:
    array = (Param * (len(settings) + 1))()
    kept = []
    for i, (name, data_type, value) in enumerate(settings):
        if isinstance(value, int):
            data = value.to_bytes(4, "little", signed=value < 0)
        else:
            data = value.encode() if isinstance(value, str) else value
        buffer = ctypes.create_string_buffer(data, len(data) + 1)
        kept.append(buffer)
        array[i] = Param(name.encode(), data_type, ctypes.addressof(buffer), len(data), 0)
    yield array


def listed(pointer: int | None) -> list[tuple[str, int]]:
    """Names and types of a list that OpenSSL ends with an empty name."""
    found: list[tuple[str, int]] = []
    if pointer:
        array = ctypes.cast(pointer, POINTER(Param))
        while (key := array[len(found)].key) is not None:
            found.append((key.decode(), array[len(found)].data_type))
    return found


def got(function: str, subject: int, name: str, data_type: int) -> Outcome:
    """One parameter's value, or why there is none."""
    buffer = ctypes.create_string_buffer(FILL * BUFFER_BYTES, BUFFER_BYTES)
    pointer = c_void_p()
    data = ctypes.addressof(pointer if data_type == OCTET_POINTER else buffer)
    size = {INTEGER: 4, OCTET_POINTER: 0}.get(data_type, BUFFER_BYTES)
    array = (Param * 2)(Param(name.encode(), data_type, data, size, UNMODIFIED))
    lib.ERR_clear_error()
    result = getattr(lib, function)(subject, array)
    returned = array[0].return_size
    if data_type == OCTET_POINTER:
        known = pointer.value is not None and returned != UNMODIFIED
        return outcome(result, ctypes.string_at(pointer.value, returned) if known else None)
    return outcome(result, returned.to_bytes(8, "big") + buffer.raw.rstrip(FILL))


# ---- the same done by two keys ----


@contextmanager
def our_library_context(kind: str) -> Iterator[int]:
    """One where our provider computes: from its file (``module``), or in a batching provider (``batched``)."""
    if kind == "module":
        with evp.LibraryContext() as context:
            yield context.pointer
    else:
        with BatchingProvider() as provider:
            yield provider.library_context.pointer


@contextmanager
def library_contexts(kind: str) -> Iterator[tuple[int, int]]:
    """One where the default provider computes, and one where ours does."""
    with evp.LibraryContext(provider=False) as default, our_library_context(kind) as ours:
        yield default.pointer, ours


def keys_of(libctxs: tuple[int, int], bits: int, *, private: bool = True) -> list[evp.Key]:
    """Made from numbers: a key that is read from a file stays with the default provider until it is used."""
    numbers = rsa_keys.private_key(bits).private_numbers()
    parts = {"n": numbers.public_numbers.n, "e": numbers.public_numbers.e}
    if private:
        parts |= {"d": numbers.d, "rsa-factor1": numbers.p, "rsa-factor2": numbers.q}
        parts |= {"rsa-exponent1": numbers.dmp1, "rsa-exponent2": numbers.dmq1, "rsa-coefficient1": numbers.iqmp}
    keys = [evp.Key.from_numbers(libctx, **parts) for libctx in libctxs]
    assert [key.provider for key in keys] == ["default", evp.NAME]
    return keys


def assert_alike(
    keys: Sequence[evp.Key], case: Callable[..., Outcome | list[Outcome]], *arguments: object
) -> list[Outcome]:
    """What both make of ``case(key, *arguments)``."""
    results = [case(key, *arguments) for key in keys]
    theirs, ours = ([result] if isinstance(result, Outcome) else result for result in results)
    if theirs != ours:
        different = [two for two in zip(theirs, ours, strict=True) if two[0] != two[1]]
        lines = [f"{one}; {describe(one.errors)}" for two in different for one in two]
        pytest.fail(f"{case.__name__} {arguments}:\n" + "\n".join(lines))
    return theirs


def padding(mode: int) -> Setting:
    return ("pad-mode", INTEGER, mode)


def digest(name: str) -> Setting:
    return ("digest", UTF8_STRING, name)


@contextmanager
def operation(key: evp.Key, name: str, settings: Sequence[Setting] = (), *, dup: bool = False) -> Iterator[int]:
    """Settings that are refused are passed over, as by a program that does not look."""
    with key.operation(name, dup=False) as context:
        for setting in settings:
            with params([setting]) as array:
                lib.EVP_PKEY_CTX_set_params(context, array)
        lib.ERR_clear_error()
        if not dup:
            yield context
            return
        copy = lib.EVP_PKEY_CTX_dup(context)
        try:
            yield copy
        finally:
            lib.EVP_PKEY_CTX_free(copy)


def done(key: evp.Key, name: str, settings: list[Setting], data: bytes, capacity: int | None) -> Outcome:
    """Every other length by a copy of the context that has the settings."""
    with operation(key, name, settings, dup=len(data) % 2 == 0) as context:
        return call(f"EVP_PKEY_{name}", context, data, len(data), capacity=capacity)
