/* Computes a power modulo a power of two with base and exponent marked undefined, so that valgrind reports every branch
 * and every address that depends on them.
 * usage: valgrind modexp_secrets [leak]; exit status 3 if the result is wrong. */
#include <stdio.h>
#include <string.h>
#include <valgrind/memcheck.h>

#include "keys/modexp.c"

#define WORDS 4

int main(int argc, char **argv)
{
    uint64_t base[WORDS] = {3}, result[WORDS];
    uint8_t exponent[3] = {1, 0, 1};
    const uint64_t expected = UINT64_C(0xcba2490badc0003); /* 3^65537 mod 2^64 */

    VALGRIND_MAKE_MEM_UNDEFINED(base, sizeof(base));
    VALGRIND_MAKE_MEM_UNDEFINED(exponent, sizeof(exponent));
    power(result, base, exponent, sizeof(exponent), WORDS);
    if (argc > 1 && strcmp(argv[1], "leak") == 0 && result[1] == 17) /* shows that the check sees something */
        puts("a branch on a secret");
    VALGRIND_MAKE_MEM_DEFINED(result, sizeof(result));
    return result[0] == expected ? 0 : 3;
}
