/* The RSA private operation on several rows at once, each with its own key: blinding, CRT, Garner, verification.
 *
 *   c' = c A mod n                          base blinding with A = r^-e; Kocher 1996
 *   x  = c' mod p, c' mod q                 c' R = c'_lo R + c'_hi R R = MM(c'_lo, R^2) + MM(c'_hi, R^3)
 *   sp = x^dP mod p, sq = x^dQ mod q        one exponentiation for both
 *   h  = (sp - sq) qinv mod p               Garner 1959; RFC 8017, 5.1.2
 *   s' = sq + q h,  s = s' r mod n
 *   s^e mod n = c                           or the row fails: Boneh, DeMillo, Lipton, "On the importance of checking
 *                                           cryptographic protocols for faults", 1997
 *
 * Rows knows where a row's numbers are. VectorRows (cpu/rows.h) keeps a number in one lane of its vectors, mod p and
 * mod q in a pair of vectors; ThreadRows (gpu/rows.h) spreads it over threads, mod p over the lower half of them and
 * mod q over the upper. Rows provides
 *   Half, Full, WINDOW                      the arithmetic mod (p, q) and mod n; the window of the exponentiation
 *   load(Half &), load(Full &)              their moduli
 *   load(to, HalfNumber), load(to, FullNumber)
 *   load_input, load_blinding, load_unblinding, store_blinding, store_unblinding, settle: the rows' own numbers
 *   exponent(HalfExponent), digits(), table()
 *   any_e(), e_has(position)                the public exponents' bits: of any row, of each row
 *   halves, second, join                    exchanges between the rings
 *
 * Unit of cost: a product modulo a prime (one modulo n is 4 units). For 1024-bit primes and e = 65537: exponentiations
 * 2 x 1,290 products, reduction of the input 4, Garner 8, blinding 8, its refresh 8, check 76, of which squarings cost
 * three quarters on a CPU.
 * Constant time, except in sizes, e and the rows' verdicts.
 */
#ifndef GPK_ARITHMETIC_RSA_H
#define GPK_ARITHMETIC_RSA_H

#include "arithmetic/exponentiation.h"

namespace gpk {

/* Constants of a key: those of each prime m, with R, and those of n, with R_n = R^2. */
enum class HalfNumber {
    modulus,
    one, /* R mod m */
    r2,
    r3,
    qinv,   /* (1 / q mod p, 1) */
    qinv_r, /* (R / q mod p, 0) */
};
enum class FullNumber {
    modulus,
    one,
    r2,
    q_r, /* q R_n mod n */
};
enum class HalfExponent {
    private_exponent, /* dP, dQ */
    inverting,        /* p - 2, q - 2: Fermat's inverse, in constant time */
};

template <class Rows> class RsaPrivate {
  public:
    Rows rows;

    template <class... Arguments> explicit GPK_FUNCTION RsaPrivate(const Arguments &...arguments) : rows(arguments...)
    {
    }

    /* Computes the rows' outputs and verdicts. Inputs are below R_n; a row whose input is not below n fails. Squares
     * each row's blinding pair. */
    GPK_FUNCTION void private_operation()
    {
        rows.load(full);
        rows.load_input(number);
        rows.load_blinding(constant);
        full.multiply(number, number, constant);
        crt(HalfExponent::private_exponent);
        rows.load_unblinding(constant);
        full.multiply(number, number, constant);
        full.reduce(number, number);

        rows.load(constant, FullNumber::r2);
        full.multiply(base, number, constant);
        raise_to_e(number); /* a factor out of Montgomery form takes the result out of it */
        full.reduce(power, power);
        rows.settle(number, power);

        rows.load_blinding(number);
        full.square(number, number);
        rows.store_blinding(number);
        rows.load_unblinding(number);
        full.square(number, number);
        rows.store_unblinding(number);
    }

    /* Makes each row's pair, (r^-e, r) in Montgomery form, from a random input r below R_n. */
    GPK_FUNCTION void make_pair()
    {
        rows.load(full);
        rows.load_input(number);
        rows.load(constant, FullNumber::r2);
        full.multiply(base, number, constant);
        rows.store_unblinding(base);

        crt(HalfExponent::inverting);
        rows.load(constant, FullNumber::r2);
        full.multiply(base, number, constant);
        raise_to_e(base);
        rows.store_blinding(power);
    }

  private:
    using Half = typename Rows::Half;
    using Full = typename Rows::Full;
    using Two = typename Half::Vector; /* (mod p, mod q) */
    using V = typename Full::Vector;

    Half half;
    Full full;
    Two x[Half::limbs], y[Half::limbs], factor[Half::limbs];
    V number[Full::limbs], constant[Full::limbs], base[Full::limbs], power[Full::limbs], chosen[Full::limbs];

    /* number = number^d mod n, where d is the exponent that these are the halves of. number is below R_n, and the
     * result an operand. */
    GPK_FUNCTION void crt(HalfExponent exponents)
    {
        rows.load(half);
        Rows::halves(x, y, number);
        rows.load(factor, HalfNumber::r2);
        half.multiply(x, x, factor);
        rows.load(factor, HalfNumber::r3);
        half.multiply(y, y, factor);
        half.add(x, x, y);

        rows.load(y, HalfNumber::one);
        mont_exp<Rows::WINDOW>(half, x, x, y, rows.exponent(exponents), rows.digits(), rows.table());

        /* (sp qinv mod p, sq): a factor outside of Montgomery form takes the product out of it */
        rows.load(factor, HalfNumber::qinv);
        half.multiply(x, x, factor);
        half.reduce(x, x);
        /* (sq qinv mod p, unused) */
        Rows::second(y, x);
        rows.load(factor, HalfNumber::qinv_r);
        half.multiply(y, y, factor);
        half.reduce(y, y);
        half.subtract(y, x, y);

        rows.load(full);
        Rows::join(number, base, y, x); /* h, sq */
        rows.load(constant, FullNumber::q_r);
        full.multiply(number, number, constant);
        full.add(number, number, base);
    }

    /* power = base^(e - 1) last, a product, by squaring and multiplying; e is public. */
    GPK_FUNCTION void raise_to_e(const V *last)
    {
        const uint64_t any = rows.any_e();
        int position = 63 - leading_zeros(any);

        choose(power, position);
        GPK_LOOP
        while (position-- > 0) {
            full.square(power, power);
            if (position == 0) {
                full.multiply(power, power, last); /* every e is odd */
            } else if (any >> position & 1) {
                choose(chosen, position);
                full.multiply(power, power, chosen);
            }
        }
    }

    /* r = base where the row's e has the bit, one elsewhere */
    GPK_FUNCTION void choose(V *r, int position)
    {
        const auto bit = rows.e_has(position);

        rows.load(constant, FullNumber::one);
        GPK_UNROLL
        for (int i = 0; i < Full::limbs; i++)
            r[i] = blend(bit, constant[i], base[i]);
    }
};

} // namespace gpk

#endif
