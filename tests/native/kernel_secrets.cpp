/* Runs a private operation and an exponentiation with everything secret marked undefined, so that valgrind reports
 * every branch and every address that depends on it. Uses the portable vector; the source above it is the same for all.
 * usage: valgrind kernel_secrets [leak]: numbers of the key on stdin (hex: n e p q dp dq qinv); exit status 3 if a
 * result is wrong.
 */
#include <initializer_list>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <valgrind/memcheck.h>

#include "cpu/vector_portable.h"

#include "cpu/batch.h"
#include "key_on_stdin.h"

using namespace gpk;

int main(int argc, char **argv)
{
    uint8_t input[2][256] = {{3}, {5, 7}}, output[2][256], ok[2], exponent[29];
    gpk_key *key, *keys[2];
    int locked;
    void *workspace = secret_alloc(WORKSPACE_SIZE, &locked);
    const bool leak = argc > 1 && strcmp(argv[1], "leak") == 0;

    if (workspace == NULL)
        return 2;
    read_key();
    /* The size of each secret number is public; its top byte, which gives it, stays defined. */
    for (int i : {P, Q, DP, DQ, QINV})
        VALGRIND_MAKE_MEM_UNDEFINED(bytes[i], numbers[i].size - 1);
    VALGRIND_MAKE_MEM_DEFINED(bytes[P], 1); /* odd */
    VALGRIND_MAKE_MEM_DEFINED(bytes[Q], 1);
    if (gpk_key_new(&key, numbers[N], numbers[E], numbers[P], numbers[Q], numbers[DP], numbers[DQ], numbers[QINV])
        != GPK_OK)
        return 2;
    if (leak) { /* shows that the check sees something */
        if (bytes[DP][5] == 17)
            puts("a branch on a secret");
        return 0;
    }
    keys[0] = keys[1] = key;
    VALGRIND_MAKE_MEM_UNDEFINED(input, sizeof(input));
    private_class<20, Word>(workspace, PrivateBatch{2, 256, keys, input[0], output[0], ok});
    if (!ok[0] || !ok[1])
        return 3;
    gpk_key_free(key);

    for (uint8_t &byte : exponent)
        byte = 0xc5;
    VALGRIND_MAKE_MEM_UNDEFINED(exponent, sizeof(exponent));
    modexp_class<40, Word>(workspace,
                           ModexpBatch{1, 256, sizeof(exponent), 225, input[0], exponent, bytes[N], output[0], ok, 0});
    /* the class whose numbers are one block; n's low bytes are an odd modulus too */
    modexp_class<5, Word>(workspace, ModexpBatch{1, 32, sizeof(exponent), 225, input[0], exponent, bytes[N], output[0],
                                                 ok + 1, 0});
    /* a public exponent */
    static const uint8_t public_exponent[] = {1, 0, 1};
    modexp_class<5, Word>(workspace,
                          ModexpBatch{1, 32, 3, 17, input[0], public_exponent, bytes[N], output[0], ok + 1, 1});
    secret_free(workspace, WORKSPACE_SIZE);
    return ok[0] && ok[1] ? 0 : 3;
}
