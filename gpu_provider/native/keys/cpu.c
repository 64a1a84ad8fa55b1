#include "keys/cpu.h"

#include <openssl/crypto.h>
#include <openssl/err.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "keys/key.h"
#include "keys/libcrypto.h"
#include "process.h"

/* Rows at a time: as many keys are held meanwhile, on the stack. A multiple of every kernel's width. */
#define CHUNK 64u
#define MEASUREMENTS 3

struct gp_cpu {
    gp_key_table *keys;
    _Atomic(const struct gpk_functions *) kernels; /* NULL: OpenSSL computes everything */
    _Atomic uint32_t smallest[GP_CLASSES];         /* rest for which the kernels win; 0: not measured yet */
};

enum { UNTRIED, BEING_PREPARED, TRIED };

gp_cpu *gp_cpu_new(gp_key_table *keys)
{
    gp_cpu *cpu = calloc(1, sizeof(*cpu));

    if (cpu != NULL)
        cpu->keys = keys;
    return cpu;
}

void gp_cpu_free(gp_cpu *cpu)
{
    free(cpu);
}

static struct gpk_key *new_kernel_key(const struct gpk_functions *kernels, const gp_key *key)
{
    struct gp_key_numbers numbers;
    struct gpk_key *kernel_key = NULL;

    ERR_set_mark(); /* a key without factors is no error: OpenSSL computes with it */
    if (gp_key_read_numbers(key, &numbers)
        && kernels->key_new(&kernel_key, numbers.number[0], numbers.number[1], numbers.number[2], numbers.number[3],
                            numbers.number[4], numbers.number[5], numbers.number[6])
               != GPK_OK)
        kernel_key = NULL;
    ERR_pop_to_mark();
    OPENSSL_cleanse(&numbers, sizeof(numbers));
    return kernel_key;
}

static uint64_t faster(uint64_t best, uint64_t start)
{
    uint64_t took = gp_now_ns() - start;

    return took < best ? took : best;
}

/* The smallest rest for which the kernels win: a group of theirs costs the same however many of its rows are used.
 * Measured with the key at hand, which has made its blinding pairs by then; more than the width if never. */
static uint32_t measure_smallest(const struct gpk_functions *kernels, const gp_key *key, struct gpk_key *kernel_key)
{
    uint8_t input[GP_MAX_BYTES] = {[GP_MIN_BITS / 16] = 1}, output[GP_MAX_BYTES], ok; /* small in either byte order */
    uint64_t group = UINT64_MAX, single = UINT64_MAX, start;

    for (int i = 0; i < MEASUREMENTS; i++) {
        start = gp_now_ns();
        kernels->private_op(kernels->isa, 1, &kernel_key, input, output, key->bytes, &ok);
        group = faster(group, start);
        start = gp_now_ns();
        gp_key_private(key, input, output);
        single = faster(single, start);
    }
    OPENSSL_cleanse(output, sizeof(output));
    return (uint32_t)(group / (single + 1)) + 1;
}

void gp_cpu_prepare(gp_cpu *cpu, gp_key *key)
{
    const struct gpk_functions *kernels = atomic_load(&cpu->kernels);
    _Atomic uint32_t *smallest = &cpu->smallest[GP_CLASS_OF(key->bytes)];
    uint8_t input[GP_MAX_BYTES] = {2}, output[GP_MAX_BYTES], ok = 0;
    struct gpk_key *kernel_key;
    int untried = UNTRIED;

    if (kernels == NULL || atomic_load(&key->preparation) != UNTRIED
        || !atomic_compare_exchange_strong(&key->preparation, &untried, BEING_PREPARED))
        return;
    kernel_key = *smallest <= kernels->lanes ? new_kernel_key(kernels, key) : NULL;
    /* The first operation also makes the blinding pairs, and tells whether the numbers belong together. */
    if (kernel_key != NULL
        && kernels->private_op(kernels->isa, 1, &kernel_key, input, output, key->bytes, &ok) == GPK_OK && ok
        && *smallest == 0)
        *smallest = measure_smallest(kernels, key, kernel_key);
    if (kernel_key != NULL && (!ok || *smallest > kernels->lanes)) {
        kernels->key_free(kernel_key);
        kernel_key = NULL;
    }
    OPENSSL_cleanse(output, sizeof(output));
    key->kernels = kernels;
    atomic_store(&key->kernel_key, kernel_key);
    atomic_store(&key->preparation, TRIED);
}

void gp_cpu_use_kernels(gp_cpu *cpu, const struct gpk_functions *kernels, uint32_t smallest)
{
    for (uint32_t i = 0; i < GP_CLASSES; i++)
        atomic_store(&cpu->smallest[i], smallest);
    atomic_store(&cpu->kernels, kernels);
}

int gp_cpu_may_win(const gp_key *key)
{
    return atomic_load(&key->kernel_key) != NULL || atomic_load(&key->preparation) != TRIED;
}

void gp_cpu_set_smallest(gp_cpu *cpu, uint32_t class_index, uint32_t smallest)
{
    atomic_store(&cpu->smallest[class_index], smallest);
}

/* How many of `count` rows go to the kernels: whole groups, and the rest if a group costs less than OpenSSL's rows. */
static uint32_t kernel_rows(const gp_cpu *cpu, uint32_t class_index, uint32_t width, uint32_t count)
{
    uint32_t rest = count % width;

    return rest >= cpu->smallest[class_index] ? count : count - rest;
}

/* The leading rows whose keys are (or are not) prepared alike. */
static uint32_t run_length(struct gpk_key *const *kernel_keys, uint32_t count)
{
    uint32_t length = 1;

    while (length < count && (kernel_keys[length] == NULL) == (kernel_keys[0] == NULL))
        length++;
    return length;
}

/* Returns how many rows the kernels failed. */
static uint32_t compute_chunk(gp_cpu *cpu, uint32_t count, const gp_key_handle *keys,
                              struct gpk_key *const *kernel_keys, const uint8_t *inputs, uint8_t *outputs,
                              uint32_t stride, uint8_t *ok)
{
    const struct gpk_functions *kernels = atomic_load(&cpu->kernels);
    uint32_t failed = 0;

    for (uint32_t row = 0, length, ours; row < count; row += length) {
        length = run_length(kernel_keys + row, count - row);
        ours = kernel_keys[row] != NULL ? kernel_rows(cpu, GP_CLASS_OF(stride), kernels->lanes, length) : 0;
        if (ours > 0)
            kernels->private_op(kernels->isa, ours, kernel_keys + row, inputs + (size_t)row * stride,
                                outputs + (size_t)row * stride, stride, ok + row);
        for (uint32_t i = row; i < row + ours; i++)
            failed += !ok[i];
        if (ours < length)
            gp_libcrypto_private(cpu->keys, length - ours, keys + row + ours, inputs + (size_t)(row + ours) * stride,
                                 outputs + (size_t)(row + ours) * stride, stride, ok + row + ours);
    }
    return failed;
}

uint32_t gp_cpu_private(gp_cpu *cpu, uint32_t count, const gp_key_handle *keys, const uint8_t *inputs, uint8_t *outputs,
                        uint32_t stride, uint8_t *ok)
{
    uint32_t failed = 0;

    if (atomic_load(&cpu->kernels) == NULL) {
        gp_libcrypto_private(cpu->keys, count, keys, inputs, outputs, stride, ok);
        return 0;
    }
    memset(ok, 0, count);
    for (uint32_t first = 0; first < count; first += CHUNK) {
        const uint32_t rows = count - first < CHUNK ? count - first : CHUNK;
        gp_key *held[CHUNK]; /* a reference for each run of one key: requests pin it, but not if a watchdog ends them */
        struct gpk_key *kernel_keys[CHUNK];
        uint32_t held_count = 0, may_prepare = rows >= cpu->smallest[GP_CLASS_OF(stride)];

        for (uint32_t i = 0; i < rows; i++) {
            if (i > 0 && keys[first + i] == keys[first + i - 1]) {
                kernel_keys[i] = kernel_keys[i - 1];
                continue;
            }
            gp_key *key = gp_key_table_get(cpu->keys, keys[first + i]);
            kernel_keys[i] = NULL;
            if (key == NULL)
                continue;
            held[held_count++] = key;
            /* One: preparing them all could take longer than a watchdog waits. OpenSSL computes the others. */
            if (may_prepare && atomic_load(&key->preparation) == UNTRIED) {
                gp_cpu_prepare(cpu, key);
                may_prepare = 0;
            }
            if (key->bytes <= stride)
                kernel_keys[i] = atomic_load(&key->kernel_key);
        }
        failed += compute_chunk(cpu, rows, keys + first, kernel_keys, inputs + (size_t)first * stride,
                                outputs + (size_t)first * stride, stride, ok + first);
        while (held_count > 0)
            gp_key_free(held[--held_count]);
    }
    return failed;
}
