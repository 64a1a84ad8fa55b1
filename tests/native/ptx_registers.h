/* What ptx_machine.py leaves to ptx_registers.c. It reads this file as it is: no preprocessor here. */

enum operation {
    /* Of 64 bits, the result cut to `bits`. */
    MOVE,
    ADD,
    SUBTRACT,
    AND,
    OR,
    XOR,
    NOT,
    NEGATE,
    MULTIPLY,
    MULTIPLY_HIGH,
    MULTIPLY_ADD,
    LEADING_ZEROS,
    SIGN_EXTEND,
    SHIFT_LEFT,
    SHIFT_RIGHT,
    SHIFT_RIGHT_SIGNED,
    MINIMUM,
    MAXIMUM,
    MINIMUM_SIGNED,
    MAXIMUM_SIGNED,
    SELECT,
    /* Predicates, 0 or 1. */
    EQUAL,
    NOT_EQUAL,
    LESS,
    LESS_EQUAL,
    LESS_SIGNED,
    LESS_EQUAL_SIGNED,
    /* Doubles, as their bits. */
    ADD_REAL,
    SUBTRACT_REAL,
    MULTIPLY_ADD_TOWARD_ZERO,
    /* Among the threads of a warp: all of them must be there, and `a` must name all. */
    EXCHANGE,
    /* Of `a`, by `b` lanes, within what `c` says; and whether the lane it is taken from is within. */
    SHUFFLE_UP,
    SHUFFLE_DOWN,
    SHUFFLE_TO,
    WITHIN_UP,
    WITHIN_DOWN,
    WITHIN_TO,
    BALLOT
};

struct instruction {
    int32_t operation, bits, target, a, b, c; /* the last four: rows of registers */
};

/* Runs `count` instructions on registers[warps][rows][32], in the threads in which `active` (or in all, where it is
 * null). written[warps][rows] says which rows were ever written. Returns `count`; or the place of an instruction that
 * reads a row that was not, or of an EXCHANGE among too few. */
int ptx_compute(int count, const struct instruction *instructions, int warps, int rows, uint64_t *registers,
                uint8_t *written, const uint8_t *active);
