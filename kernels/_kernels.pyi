# What the extension has, for the type checker.
from _cffi_backend import FFI

ffi: FFI

class _Unit:
    radix_bits: int
    class_bytes: int
    limbs: int
    threads: int
    window: int
    key_bytes: int
    pair_bytes: int
    modulus_bytes: int

class _Lib:
    GPK_MIN_BITS: int
    GPK_MAX_BITS: int
    GPK_ISA_BEST: int
    GPK_ISA_PORTABLE: int
    GPK_ISA_IFMA: int
    GPK_OK: int
    GPK_UNSUPPORTED: int
    GPK_INVALID: int
    GPK_NO_MEMORY: int
    GPK_NO_ISA: int
    GPK_PRIVATE_OPERATION: int
    GPK_MAKE_PAIRS: int
    GPK_MODEXP: int

    def gpk_resolve_isa(self, isa: int, /) -> int: ...
    def gpk_lanes(self, isa: int, /) -> int: ...
    def gpk_functions_of(self, isa: int, /) -> FFI.CData: ...
    def gpk_key_new(self, key: FFI.CData, /, *numbers: dict[str, object]) -> int: ...
    def gpk_key_free(self, key: FFI.CData, /) -> None: ...
    def gpk_key_is_locked(self, key: FFI.CData, /) -> int: ...
    def gpk_private(
        self,
        isa: int,
        count: int,
        keys: FFI.CData,
        inputs: FFI.CData,
        outputs: FFI.CData,
        stride: int,
        ok: FFI.CData,
        /,
    ) -> int: ...
    def gpk_modexp(
        self,
        isa: int,
        count: int,
        bases: FFI.CData,
        exponents: FFI.CData,
        exponent_stride: int,
        exponent_bits: int,
        moduli: FFI.CData,
        outputs: FFI.CData,
        stride: int,
        ok: FFI.CData,
        /,
    ) -> int: ...
    # Null, and so false, after the last.
    def gpk_unit_at(self, index: int, /) -> _Unit: ...
    def gpk_thread_record(
        self, radix_bits: int, class_bytes: int, record: FFI.CData, /, *numbers: dict[str, object]
    ) -> int: ...
    def gpk_thread_modulus(
        self, radix_bits: int, class_bytes: int, record: FFI.CData, modulus: dict[str, object], /
    ) -> int: ...

lib: _Lib
