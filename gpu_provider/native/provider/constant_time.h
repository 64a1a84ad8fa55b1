/* Arithmetic with masks, for code whose branches and addresses must not depend on secrets: all ones for true, 0 for
 * false. */
#ifndef GP_CONSTANT_TIME_H
#define GP_CONSTANT_TIME_H

#include <stddef.h>
#include <stdint.h>

/* Hides a value's origin from the compiler, which would otherwise be free to turn masks back into branches. */
static inline uint32_t ct_hide(uint32_t value)
{
    __asm__("" : "+r"(value));
    return value;
}

static inline uint32_t ct_is_zero(uint32_t value)
{
    return 0u - (ct_hide(~value & (value - 1u)) >> 31);
}

static inline uint32_t ct_equal(uint32_t a, uint32_t b)
{
    return ct_is_zero(a ^ b);
}

/* a < b, both below 2^31 */
static inline uint32_t ct_less(uint32_t a, uint32_t b)
{
    return 0u - (ct_hide(a - b) >> 31);
}

static inline uint32_t ct_select(uint32_t mask, uint32_t if_true, uint32_t if_false)
{
    return (ct_hide(mask) & if_true) | (ct_hide(~mask) & if_false);
}

static inline uint8_t ct_select_byte(uint32_t mask, uint8_t if_true, uint8_t if_false)
{
    return (uint8_t)ct_select(mask, if_true, if_false);
}

static inline size_t ct_select_size(uint32_t mask, size_t if_true, size_t if_false)
{
    size_t wide = (size_t)0 - (ct_hide(mask) & 1u);
    return (wide & if_true) | (~wide & if_false);
}

/* Moves data[distance …] to data[0 …]; what is left at the end is not defined. distance ≤ size. Takes log2(size) passes
 * over everything instead of an access that depends on the distance. */
static inline void ct_shift_left(uint8_t *data, size_t size, uint32_t distance)
{
    for (uint32_t step = 1; step <= size; step <<= 1) {
        uint32_t move = ~ct_is_zero(distance & step);
        for (size_t i = 0; i + step < size; i++)
            data[i] = ct_select_byte(move, data[i + step], data[i]);
    }
}

#endif
