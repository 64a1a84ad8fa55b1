"""cffi builder of ``gpu_provider.tls._ssl``: the part of libssl that the TLS API uses."""

from cffi import FFI

ffi = FFI()
ffi.cdef("const char *OpenSSL_version(int type);")
ffi.set_source(
    "gpu_provider.tls._ssl",
    "#include <openssl/ssl.h>\n",
    libraries=["ssl", "crypto"],
)
