# What core_build.py builds, for the type checker.
# ruff: noqa: N802
from _cffi_backend import FFI

ffi: FFI

class _Lib:
    GP_CLASSES: int
    GP_MAX_BYTES: int
    GP_MAX_DEPTH: int
    GP_QUEUE_VERSION: int
    GP_SMALL_BATCH: int
    GP_SMALL_BATCHES: int
    GP_NO_RECORD: int
    GP_PAIR_USES: int
    GP_PAIR_WORN: int
    GP_STAGED: int
    GP_LACKS_RECORDS: int
    GP_LACKS_ROOM: int
    GP_LACKS_PAIRS: int
    GPK_OK: int
    GPK_UNSUPPORTED: int
    GPK_INVALID: int
    GP_SUBMIT_FAILED: int
    GP_SUBMIT_OK: int
    GP_SUBMIT_FULL: int
    GP_SUBMIT_CLOSED: int
    GP_FINISHED_ERR: int
    GP_FINISHED_OK: int
    GP_FINISHED_CLOSED: int
    GP_LOAD_OK: int
    GP_LOAD_UNREADABLE: int
    GP_LOAD_NOT_RSA: int
    GP_LOAD_NOT_PRIVATE: int
    GP_LOAD_SIZE: int
    GP_LOAD_INVALID: int
    GP_LOAD_MEMORY: int

    def gp_client_new(self, depth: int, /) -> FFI.CData: ...
    def gp_client_free(self, client: FFI.CData, /) -> None: ...
    def gp_client_close(self, client: FFI.CData, /) -> None: ...
    def gp_client_get_stats(self, client: FFI.CData, stats: FFI.CData, /) -> None: ...
    def gp_client_keys(self, client: FFI.CData, /) -> FFI.CData: ...
    def gp_client_cpu(self, client: FFI.CData, /) -> FFI.CData: ...
    def gp_client_wake_consumer(self, client: FFI.CData, /) -> None: ...
    def gp_client_remove_key(self, client: FFI.CData, handle: int, /) -> None: ...
    def gp_client_submit(self, client: FFI.CData, handle: int, row: bytes, tag: int, wait_for_room: int, /) -> int: ...
    def gp_client_take_finished(
        self, client: FFI.CData, count: int, tags: FFI.CData, ok: FFI.CData, outputs: FFI.CData, /
    ) -> int: ...
    def gp_turn_begin(self) -> None: ...
    def gp_turn_suspend(self) -> int: ...
    def gp_turn_end(self) -> None: ...
    def gp_consumer_new(self, client: FFI.CData, /) -> FFI.CData: ...
    def gp_consumer_free(self, consumer: FFI.CData, /) -> None: ...
    def gp_consumer_get_stats(self, consumer: FFI.CData, stats: FFI.CData, /) -> None: ...
    def gp_consumer_small_batches(self, consumer: FFI.CData, batches: FFI.CData, take: bool, /) -> int: ...
    def gp_consumer_wait(
        self,
        consumer: FFI.CData,
        timeout_ns: int,
        watch_submissions: int,
        rules: FFI.CData,
        waiting: FFI.CData,
        oldest_ns: FFI.CData,
        /,
    ) -> int: ...
    def gp_consumer_take(
        self,
        consumer: FFI.CData,
        class_index: int,
        count: int,
        handles: FFI.CData,
        keys: FFI.CData,
        inputs: FFI.CData,
        submitted_ns: FFI.CData,
        /,
    ) -> int: ...
    def gp_consumer_complete(
        self,
        consumer: FFI.CData,
        count: int,
        handles: FFI.CData,
        outputs: FFI.CData,
        stride: int,
        ok: FFI.CData,
        /,
    ) -> None: ...
    def gp_cpu_use_kernels(self, cpu: FFI.CData, kernels: FFI.CData, smallest: int, /) -> None: ...
    def gp_cpu_private(
        self,
        cpu: FFI.CData,
        count: int,
        keys: FFI.CData,
        inputs: FFI.CData,
        outputs: FFI.CData,
        stride: int,
        ok: FFI.CData,
        /,
    ) -> int: ...
    def gp_records_new(self) -> FFI.CData: ...
    def gp_records_free(self, records: FFI.CData, /) -> None: ...
    def gp_records_set(self, records: FFI.CData, handle: int, record: FFI.CData, /) -> None: ...
    def gp_records_remove(self, records: FFI.CData, handle: int, /) -> None: ...
    def gp_stage(
        self,
        staging: FFI.CData,
        records: FFI.CData,
        pairs: FFI.CData,
        rows: int,
        keys: FFI.CData,
        inputs: FFI.CData,
        stride: int,
        width: int,
        /,
    ) -> int: ...
    def gp_stage_worn(self, staging: FFI.CData, pairs: FFI.CData, /) -> int: ...
    def gp_stage_fresh(self, staging: FFI.CData, pairs: FFI.CData, width: int, /) -> int: ...
    def gp_unstage(
        self,
        staging: FFI.CData,
        pairs: FFI.CData,
        outputs: FFI.CData,
        ok: FFI.CData,
        stride: int,
        width: int,
        /,
    ) -> int: ...
    def gp_key_record_fill(
        self,
        keys: FFI.CData,
        handle: int,
        write: FFI.CData,
        radix_bits: int,
        class_bytes: int,
        memory: FFI.CData,
        record: FFI.CData,
        /,
    ) -> int: ...
    def gp_key_table_pin(self, keys: FFI.CData, handle: int, size: FFI.CData, /) -> int: ...
    def gp_client_unpin_key(self, client: FFI.CData, handle: int, pins: int, /) -> None: ...
    def gp_key_table_find_removed(self, keys: FFI.CData, count: int, handles: FFI.CData, gone: FFI.CData, /) -> int: ...
    def gp_libcrypto_private(
        self,
        keys: FFI.CData,
        count: int,
        handles: FFI.CData,
        inputs: FFI.CData,
        outputs: FFI.CData,
        stride: int,
        ok: FFI.CData,
        /,
    ) -> None: ...
    def gp_libcrypto_verify(
        self,
        keys: FFI.CData,
        count: int,
        handles: FFI.CData,
        inputs: FFI.CData,
        outputs: FFI.CData,
        stride: int,
        ok: FFI.CData,
        /,
    ) -> int: ...
    def gp_libcrypto_modexp(
        self,
        count: int,
        bases: FFI.CData,
        exponents: FFI.CData,
        exponent_stride: int,
        moduli: FFI.CData,
        outputs: FFI.CData,
        stride: int,
        /,
    ) -> int: ...
    def gp_embedded_libctx_new(self, client: FFI.CData, /) -> FFI.CData: ...
    def gp_embedded_libctx_free(self, libctx: FFI.CData, /) -> None: ...
    def gp_embedded_load_key(self, client: FFI.CData, data: bytes, size: int, info: FFI.CData, /) -> int: ...
    def ERR_get_error(self) -> int: ...
    def ERR_error_string_n(self, code: int, buf: FFI.CData, size: int, /) -> None: ...
    def ERR_clear_error(self) -> None: ...
    def OpenSSL_version(self, what: int, /) -> FFI.CData: ...
    OPENSSL_INFO_CONFIG_DIR: int
    def OPENSSL_info(self, what: int, /) -> FFI.CData: ...
    def NCONF_new(self, method: FFI.CData, /) -> FFI.CData: ...
    def NCONF_free(self, conf: FFI.CData, /) -> None: ...
    def NCONF_load(self, conf: FFI.CData, file: bytes, line: FFI.CData, /) -> int: ...
    def NCONF_get_string(self, conf: FFI.CData, section: bytes, name: bytes, /) -> FFI.CData: ...
    def NCONF_get_section(self, conf: FFI.CData, section: bytes, /) -> FFI.CData: ...
    def OPENSSL_sk_num(self, stack: FFI.CData, /) -> int: ...
    def OPENSSL_sk_value(self, stack: FFI.CData, index: int, /) -> FFI.CData: ...
    def EVP_PKEY_Q_keygen(self, libctx: FFI.CData, query: FFI.CData, name: bytes, /, *rest: FFI.CData) -> FFI.CData: ...
    def EVP_PKEY_free(self, key: FFI.CData, /) -> None: ...
    def EVP_MD_CTX_new(self) -> FFI.CData: ...
    def EVP_MD_CTX_free(self, context: FFI.CData, /) -> None: ...
    def EVP_DigestSignInit_ex(
        self,
        context: FFI.CData,
        operation: FFI.CData,
        digest: bytes,
        libctx: FFI.CData,
        query: FFI.CData,
        key: FFI.CData,
        params: FFI.CData,
        /,
    ) -> int: ...
    def EVP_DigestSign(
        self, context: FFI.CData, signature: FFI.CData, signature_size: FFI.CData, data: bytes, size: int, /
    ) -> int: ...
    def EVP_PKEY_CTX_get0_provider(self, context: FFI.CData, /) -> FFI.CData: ...
    def EVP_SIGNATURE_fetch(self, libctx: FFI.CData, algorithm: bytes, query: bytes, /) -> FFI.CData: ...
    def EVP_SIGNATURE_free(self, signature: FFI.CData, /) -> None: ...
    def EVP_SIGNATURE_get0_provider(self, signature: FFI.CData, /) -> FFI.CData: ...
    def OSSL_PROVIDER_get0_name(self, provider: FFI.CData, /) -> FFI.CData: ...
    def OSSL_PROVIDER_available(self, libctx: FFI.CData, name: bytes, /) -> int: ...
    def OSSL_PROVIDER_load(self, libctx: FFI.CData, name: bytes, /) -> FFI.CData: ...

lib: _Lib
