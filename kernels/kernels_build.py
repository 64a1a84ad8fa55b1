"""cffi builder of ``gpu_provider.kernels._kernels``: the arithmetic over batches.

The declarations are read from ``kernels.h``, ``threads.h`` and ``launch.h`` by hand, once, here; the C++ compiler
checks them against the headers.
"""

from pathlib import Path

from cffi import FFI

CDEF = """
#define GPK_MIN_BITS 1024
#define GPK_MAX_BITS 4096

enum gpk_isa { GPK_ISA_BEST, GPK_ISA_PORTABLE, GPK_ISA_IFMA };
enum gpk_isa gpk_resolve_isa(enum gpk_isa isa);
uint32_t gpk_isa_width(enum gpk_isa isa);

typedef struct gpk_key gpk_key;
enum gpk_status { GPK_OK, GPK_UNSUPPORTED, GPK_INVALID, GPK_NO_MEMORY, GPK_NO_ISA };
struct gpk_number {
    const uint8_t *bytes;
    size_t size;
};
enum gpk_status gpk_key_new(gpk_key **key, struct gpk_number n, struct gpk_number e, struct gpk_number p,
                            struct gpk_number q, struct gpk_number dp, struct gpk_number dq, struct gpk_number qinv);
void gpk_key_free(gpk_key *key);
int gpk_key_is_locked(const gpk_key *key);

struct gpk_functions;
const struct gpk_functions *gpk_functions_of(enum gpk_isa isa);

enum gpk_status gpk_private(enum gpk_isa isa, uint32_t count, gpk_key *const *keys, const uint8_t *inputs,
                            uint8_t *outputs, uint32_t stride, uint8_t *ok);
enum gpk_status gpk_modexp(enum gpk_isa isa, uint32_t count, const uint8_t *bases, const uint8_t *exponents,
                           uint32_t exponent_stride, uint32_t exponent_bits, const uint8_t *moduli, uint8_t *outputs,
                           uint32_t stride, uint8_t *ok);

struct gpk_private_launch {
    uint32_t count, exponent_bits;
    uint64_t any_e;
    const uint32_t *record_of_row, *pair_of_row;
    const void *records;
    void *pairs;
    const uint8_t *inputs;
    uint8_t *outputs, *ok;
};
struct gpk_modexp_launch {
    uint32_t count, exponent_bits, exponent_stride, unused;
    const uint32_t *modulus_of_row;
    const void *moduli;
    const uint8_t *bases, *exponents;
    uint8_t *outputs;
};
enum gpk_operation { GPK_PRIVATE_OPERATION, GPK_MAKE_PAIRS, GPK_MODEXP };
struct gpk_thread_kernel {
    const char *name;
    enum gpk_operation operation;
    int radix_bits, class_bytes, threads, window, rows, table_bytes, record_bytes, pair_bytes;
};
const struct gpk_thread_kernel *gpk_thread_kernel_at(int index);
enum gpk_status gpk_thread_run(int index, const void *launch);
enum gpk_status gpk_thread_record(int radix_bits, int class_bytes, void *record, struct gpk_number n,
                                  struct gpk_number e, struct gpk_number p, struct gpk_number q, struct gpk_number dp,
                                  struct gpk_number dq, struct gpk_number qinv);
enum gpk_status gpk_thread_modulus(int radix_bits, int class_bytes, void *record, struct gpk_number modulus);
"""

CPP_FILES = list(Path("kernels").rglob("*.cpp"))
LIBRARIES = ["batch_ifma", "batch_portable", "threads32", "threads52"]  # setup.py's, each of the file of that name

ffi = FFI()
ffi.cdef(CDEF)
ffi.set_source(
    "gpu_provider.kernels._kernels",
    '#include "host/threads.h"\n',
    source_extension=".cpp",
    sources=sorted(str(path) for path in CPP_FILES if path.stem not in {"_kernels", *LIBRARIES}),
    include_dirs=["kernels"],
    depends=sorted(str(path) for path in (*CPP_FILES, *Path("kernels").rglob("*.h"))),
    libraries=LIBRARIES,
    language="c++",
)
