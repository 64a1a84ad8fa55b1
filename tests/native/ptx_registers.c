/* What the PTX machine of the tests (support/ptx_machine.py) computes in registers: of many threads, a warp's 32 beside
 * one another. */
#include <fenv.h>
#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "ptx_registers.h"

enum { WARP = 32 };

static double real(uint64_t bits)
{
    double number;

    memcpy(&number, &bits, sizeof number);
    return number;
}

static uint64_t bits_of(double number)
{
    uint64_t bits;

    memcpy(&bits, &number, sizeof bits);
    return bits;
}

static uint64_t ones(int bits)
{
    return UINT64_MAX >> (64 - bits);
}

static int64_t sign_extended(uint64_t a, int bits)
{
    return (int64_t)(a << (64 - bits)) >> (64 - bits);
}

static uint64_t multiply_high(uint64_t a, uint64_t b, int bits)
{
    return (uint64_t)((unsigned __int128)a * b >> bits);
}

/* The lane that a shuffle takes from, by the manual; or, where that is not within, the thread's own. */
static int shuffle_source(enum operation how, int lane, uint64_t b, uint64_t c, bool *within)
{
    const int by = (int)(b & 31), clamp = (int)(c & 31), segment = (int)(c >> 8 & 31);
    const int lowest = lane & segment, bound = lowest | (clamp & ~segment);
    const int source = how == SHUFFLE_UP ? lane - by : how == SHUFFLE_DOWN ? lane + by : lowest | (by & ~segment);

    *within = how == SHUFFLE_UP ? source >= bound : source <= bound;
    return *within ? source : lane;
}

static int sources(enum operation operation)
{
    switch (operation) {
    case MOVE:
    case NOT:
    case NEGATE:
    case LEADING_ZEROS:
    case SIGN_EXTEND:
    case EXCHANGE:
    case BALLOT:
        return 1;
    case MULTIPLY_ADD:
    case SELECT:
    case MULTIPLY_ADD_TOWARD_ZERO:
    case SHUFFLE_UP:
    case SHUFFLE_DOWN:
    case SHUFFLE_TO:
    case WITHIN_UP:
    case WITHIN_DOWN:
    case WITHIN_TO:
        return 3;
    default:
        return 2;
    }
}

static bool all_ones(const uint64_t *members)
{
    for (int i = 0; i < WARP; i++)
        if (members[i] != UINT32_MAX)
            return false;
    return true;
}

/* The result in each thread. */
#define EACH(value)                \
    for (int i = 0; i < WARP; i++) \
        result[i] = (value);       \
    break

static void compute(enum operation operation, int bits, uint64_t *result, const uint64_t *a, const uint64_t *b,
                    const uint64_t *c)
{
    const uint64_t mask = ones(bits);
    bool within;

    switch (operation) {
    case MOVE:
        EACH(a[i] & mask);
    case ADD:
        EACH((a[i] + b[i]) & mask);
    case SUBTRACT:
        EACH((a[i] - b[i]) & mask);
    case AND:
        EACH(a[i] & b[i]);
    case OR:
        EACH(a[i] | b[i]);
    case XOR:
        EACH(a[i] ^ b[i]);
    case NOT:
        EACH(~a[i] & mask);
    case NEGATE:
        EACH(-a[i] & mask);
    case MULTIPLY:
        EACH(a[i] * b[i] & mask);
    case MULTIPLY_HIGH:
        EACH(multiply_high(a[i], b[i], bits));
    case MULTIPLY_ADD:
        EACH((a[i] * b[i] + c[i]) & mask);
    case LEADING_ZEROS:
        EACH(a[i] ? (uint64_t)(__builtin_clzll(a[i]) - (64 - bits)) : (uint64_t)bits);
    case SIGN_EXTEND:
        EACH((uint64_t)sign_extended(a[i], bits));
    case SHIFT_LEFT:
        EACH(b[i] < (uint64_t)bits ? a[i] << b[i] & mask : 0);
    case SHIFT_RIGHT:
        EACH(b[i] < (uint64_t)bits ? a[i] >> b[i] : 0);
    case SHIFT_RIGHT_SIGNED:
        EACH((uint64_t)((int64_t)a[i] >> (b[i] < 63 ? b[i] : 63)));
    case MINIMUM:
        EACH(a[i] < b[i] ? a[i] : b[i]);
    case MAXIMUM:
        EACH(a[i] > b[i] ? a[i] : b[i]);
    case MINIMUM_SIGNED:
        EACH((int64_t)a[i] < (int64_t)b[i] ? a[i] : b[i]);
    case MAXIMUM_SIGNED:
        EACH((int64_t)a[i] > (int64_t)b[i] ? a[i] : b[i]);
    case SELECT:
        EACH(c[i] ? a[i] : b[i]);
    case EQUAL:
        EACH(a[i] == b[i]);
    case NOT_EQUAL:
        EACH(a[i] != b[i]);
    case LESS:
        EACH(a[i] < b[i]);
    case LESS_EQUAL:
        EACH(a[i] <= b[i]);
    case LESS_SIGNED:
        EACH((int64_t)a[i] < (int64_t)b[i]);
    case LESS_EQUAL_SIGNED:
        EACH((int64_t)a[i] <= (int64_t)b[i]);
    case ADD_REAL:
        EACH(bits_of(real(a[i]) + real(b[i])));
    case SUBTRACT_REAL:
        EACH(bits_of(real(a[i]) - real(b[i])));
    case MULTIPLY_ADD_TOWARD_ZERO:
        EACH(bits_of(fma(real(a[i]), real(b[i]), real(c[i]))));
    case SHUFFLE_UP:
    case SHUFFLE_DOWN:
    case SHUFFLE_TO:
        EACH(a[shuffle_source(operation, i, b[i], c[i], &within)]);
    case WITHIN_UP:
    case WITHIN_DOWN:
    case WITHIN_TO:
        EACH((shuffle_source(operation - WITHIN_UP + SHUFFLE_UP, i, b[i], c[i], &within), within));
    case BALLOT: {
        uint64_t votes = 0;
        for (int i = 0; i < WARP; i++)
            votes |= (a[i] & 1) << i;
        EACH(votes);
    }
    case EXCHANGE:
        break;
    }
}

static int compute_warp(int count, const struct instruction *instructions, uint64_t (*registers)[WARP],
                        uint8_t *written, const uint8_t *active, bool whole)
{
    for (int place = 0; place < count; place++) {
        const struct instruction *one = &instructions[place];
        const int32_t operands[] = {one->a, one->b, one->c};
        const bool toward_zero = one->operation == MULTIPLY_ADD_TOWARD_ZERO;
        uint64_t result[WARP];

        for (int i = 0; i < sources(one->operation); i++)
            if (!written[operands[i]])
                return place;
        if (one->operation == EXCHANGE) {
            if (!whole || !all_ones(registers[one->a]))
                return place;
            continue;
        }
        if (toward_zero)
            fesetround(FE_TOWARDZERO);
        compute(one->operation, one->bits, result, registers[one->a], registers[one->b], registers[one->c]);
        if (toward_zero)
            fesetround(FE_TONEAREST);
        for (int i = 0; i < WARP; i++)
            registers[one->target][i] = whole || active[i] ? result[i] : registers[one->target][i];
        written[one->target] = 1;
    }
    return count;
}

int ptx_compute(int count, const struct instruction *instructions, int warps, int rows, uint64_t *registers,
                uint8_t *written, const uint8_t *active)
{
    for (int warp = 0; warp < warps; warp++) {
        const uint8_t *own = active ? active + warp * WARP : NULL;
        int there = WARP, place;

        if (own) {
            there = 0;
            for (int i = 0; i < WARP; i++)
                there += own[i];
        }
        if (!there)
            continue;
        place = compute_warp(count, instructions, (uint64_t (*)[WARP])registers + (ptrdiff_t)warp * rows,
                             written + (ptrdiff_t)warp * rows, own, there == WARP);
        if (place != count)
            return place;
    }
    return count;
}
