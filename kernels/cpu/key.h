/* What the kernels keep of an RSA key, for every ISA: constants, computed once, and the pool of blinding pairs.
 *
 * Numbers are limbs of 52 bits (limbs.h). N is the limbs of a prime's class, 2 N those of the modulus; R = 2^(52 N)
 * and R_n = 2^(104 N).
 */
#ifndef GPK_CPU_KEY_H
#define GPK_CPU_KEY_H

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>

#include "arithmetic/exponentiation.h"
#include "kernels.h"

namespace gpk {

/* The window of the private exponents. Four costs more products than five, but its table half as many loads:
 * bench/kernels/ATTEMPTS.md has the measurements. */
constexpr int PRIVATE_WINDOW = 4;

struct PrimeConstants {
    uint64_t *modulus;   /* [N] */
    uint64_t *one;       /* [N] R mod modulus */
    uint64_t *r2, *r3;   /* [N] R^2, R^3 mod modulus */
    uint64_t *exponent;  /* digits of dP or dQ */
    uint64_t *inverting; /* digits of modulus - 2: the exponent that inverts */
    uint64_t k0;
};

/* Factors mod n, in Montgomery form. A pair is used by one operation at a time and squared after each use, as OpenSSL
 * does (Kocher, "Timing attacks on implementations of Diffie-Hellman, RSA, DSS, and other systems", 1996). */
struct BlindingPair {
    BlindingPair *next;
    uint32_t uses;
    uint64_t *blinding;   /* [2 N] r^-e, for the input */
    uint64_t *unblinding; /* [2 N] r, for the result */
};

/* A pair is replaced after this many uses. Making one costs a private operation: 0.2 % of the work. */
constexpr uint32_t PAIR_USES = 512;
/* How many pairs are made at a time. */
constexpr int PAIRS = 8;

struct PairBlock {
    PairBlock *next;
    size_t size;
    BlindingPair pairs[PAIRS];
};

} // namespace gpk

struct gpk_key {
    size_t size; /* of the mapping that this structure begins */
    int locked;
    int limbs;      /* N */
    int bytes;      /* of n */
    int prime_bits; /* of the longer prime */
    uint64_t e;
    gpk::PrimeConstants prime[2]; /* p, q */
    uint64_t *qinv;               /* [N] 1 / q mod p */
    uint64_t *qinv_r;             /* [N] R / q mod p */
    uint64_t *n;                  /* [2 N] */
    uint64_t *n_one;              /* [2 N] R_n mod n */
    uint64_t *n_r2;               /* [2 N] R_n^2 mod n */
    uint64_t *q_r;                /* [2 N] q R_n mod n */
    uint64_t n_k0;

    pthread_mutex_t mutex; /* of what follows */
    gpk::PairBlock *blocks;
    gpk::BlindingPair *ready;  /* a stack of the pairs that can be used */
    gpk::BlindingPair *vacant; /* those whose numbers have yet to be made */
};

namespace gpk {

/* Takes a pair for one operation; NULL if new ones must be made first. */
BlindingPair *take_pair(gpk_key *key);
/* Returns it after use; `spoiled` if the operation failed its check, since the pair itself may be wrong. */
void return_pair(gpk_key *key, BlindingPair *pair, int spoiled);
/* Takes up to PAIRS vacant pairs, for the caller to make their numbers. Returns how many, 0 if there is no memory. */
int take_vacant(gpk_key *key, BlindingPair **pairs);
/* Hands over pairs whose numbers have been made. */
void add_ready(gpk_key *key, BlindingPair *const *pairs, int count);

} // namespace gpk

#endif
