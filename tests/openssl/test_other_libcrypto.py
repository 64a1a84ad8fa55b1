"""A program whose libcrypto is another than the module's: one built into a wheel, or an older one beside a newer.

Its jobs, its default provider and its error queue are out of the module's reach. The module must notice, and offer
nothing: then the program works as it would without it.
"""

from __future__ import annotations

import ctypes
from ctypes import CFUNCTYPE, POINTER, byref, c_char_p, c_int, c_void_p
from typing import Final

import pytest
from evp import NATIVE
from evp_outcome import Param, lib

CORE_GET_LIBCTX, CRYPTO_REALLOC = 4, 24
TEARDOWN, GET_PARAMS, QUERY_OPERATION = 1024, 1026, 1027
KEYMGMT, SIGNATURE, ASYM_CIPHER = 10, 12, 13
UTF8_POINTER: Final = 6


class Dispatch(ctypes.Structure):
    _fields_ = (("function_id", c_int), ("function", c_void_p))


def address(function: object) -> int | None:
    return ctypes.cast(function, c_void_p).value  # type: ignore[arg-type]


@CFUNCTYPE(c_void_p, c_void_p)
def get_libctx(handle: int) -> int:
    return handle


@CFUNCTYPE(c_void_p, c_void_p)
def realloc_of_another_library(memory: int) -> int:
    return memory


@pytest.mark.parametrize("same", [True, False], ids=["same", "other"])
def test_module_offers_nothing_to_another_libcrypto(same: bool) -> None:
    module = ctypes.CDLL(str(NATIVE / "gpu_provider.so"))
    realloc = address(lib.CRYPTO_realloc if same else realloc_of_another_library)
    core = (Dispatch * 3)(Dispatch(CORE_GET_LIBCTX, address(get_libctx)), Dispatch(CRYPTO_REALLOC, realloc))
    functions, context = POINTER(Dispatch)(), c_void_p()
    assert module.OSSL_provider_init(c_void_p(1), core, byref(functions), byref(context)) == 1
    offered = {}
    for entry in functions:
        if entry.function_id == 0:
            break
        offered[entry.function_id] = entry.function

    query = CFUNCTYPE(c_void_p, c_void_p, c_int, POINTER(c_int))(offered[QUERY_OPERATION])
    for operation in (KEYMGMT, SIGNATURE, ASYM_CIPHER):
        assert bool(query(context, operation, byref(c_int()))) == same
    text = c_char_p()
    params = (Param * 2)(Param(b"buildinfo", UTF8_POINTER, ctypes.addressof(text), 0, 0))
    assert CFUNCTYPE(c_int, c_void_p, c_void_p)(offered[GET_PARAMS])(context, params) == 1
    assert (b"another libcrypto" in (text.value or b"")) != same
    CFUNCTYPE(None, c_void_p)(offered[TEARDOWN])(context)
