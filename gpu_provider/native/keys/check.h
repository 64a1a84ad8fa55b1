/* Whether a private key's numbers belong together. */
#ifndef GP_KEY_CHECK_H
#define GP_KEY_CHECK_H

#include "keys/key.h"

/* cffi: */
enum gp_key_checks {
    GP_CHECK_NOTHING,
    GP_CHECK_NUMBERS, /* in the time of about one operation */
    GP_CHECK_PRIMES   /* and that the factors are primes, which takes 40 to 70 times as long */
};
/* :cffi */

/* 1 if a private key passes. Those with three or more factors always get OpenSSL's check, which is that of
 * GP_CHECK_PRIMES. If not, an OpenSSL error may be queued. */
int gp_key_check(const gp_key *key, enum gp_key_checks checks);

/* Whether p q = n, e d = e dP = 1 mod p - 1, e d = e dQ = 1 mod q - 1 and q qInv = 1 mod p. If p and q are primes,
 * whatever computes with these numbers is right then. 0, and an OpenSSL error queued, for a key without factors. */
int gp_key_numbers_fit(const gp_key *key);

#endif
