/* Threads that share keys of every size class, a wrong one among them, until blinding pairs have been replaced; and a
 * child forked in the middle of it. */
#include <string.h>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>
#include <vector>

#include <openssl/core_names.h>
#include <openssl/evp.h>

#include "check.h"
#include "cpu/key.h"
#include "kernels.h"

namespace {

constexpr int THREADS = 4, STRIDE = 512;

struct Key {
    BIGNUM *numbers[7]; /* n e p q dp dq qinv */
    gpk_key *loaded;

    /* wrong: flips one bit of dP. */
    explicit Key(unsigned bits, bool wrong = false)
    {
        static const char *const names[] = {OSSL_PKEY_PARAM_RSA_N,           OSSL_PKEY_PARAM_RSA_E,
                                            OSSL_PKEY_PARAM_RSA_FACTOR1,     OSSL_PKEY_PARAM_RSA_FACTOR2,
                                            OSSL_PKEY_PARAM_RSA_EXPONENT1,   OSSL_PKEY_PARAM_RSA_EXPONENT2,
                                            OSSL_PKEY_PARAM_RSA_COEFFICIENT1};
        uint8_t bytes[7][STRIDE];
        gpk_number given[7];
        EVP_PKEY *made = EVP_PKEY_Q_keygen(NULL, NULL, "RSA", (size_t)bits);

        CHECK(made != NULL);
        for (int i = 0; i < 7; i++) {
            numbers[i] = NULL;
            CHECK(EVP_PKEY_get_bn_param(made, names[i], &numbers[i]));
            const int size = BN_bn2lebinpad(numbers[i], bytes[i], STRIDE);
            CHECK(size > 0);
            given[i] = {bytes[i], (size_t)size};
        }
        bytes[4][0] ^= wrong;
        CHECK(gpk_key_new(&loaded, given[0], given[1], given[2], given[3], given[4], given[5], given[6]) == GPK_OK);
        EVP_PKEY_free(made);
    }

    Key(const Key &) = delete;

    ~Key()
    {
        for (BIGNUM *number : numbers)
            BN_clear_free(number);
        gpk_key_free(loaded);
    }
};

bool is_root(const Key &key, const uint8_t *root, uint64_t of)
{
    BN_CTX *context = BN_CTX_new();
    BIGNUM *number = BN_lebin2bn(root, STRIDE, NULL);

    CHECK(context != NULL && number != NULL && BN_mod_exp(number, number, key.numbers[1], key.numbers[0], context));
    const bool same = BN_is_word(number, of);
    BN_free(number);
    BN_CTX_free(context);
    return same;
}

/* Rows of all keys in turn, each checked by the public operation; those of the last key fail, and alone. */
void batches(const std::vector<Key *> &keys, enum gpk_isa isa, int first, int count)
{
    std::vector<gpk_key *> rows;
    std::vector<uint8_t> inputs((size_t)count * STRIDE), outputs(inputs.size()), ok((size_t)count);

    for (int i = 0; i < count; i++) {
        rows.push_back(keys[(size_t)(first + i) % keys.size()]->loaded);
        inputs[(size_t)i * STRIDE] = (uint8_t)(i + 2);
    }
    CHECK(gpk_private(isa, (uint32_t)count, rows.data(), inputs.data(), outputs.data(), STRIDE, ok.data()) == GPK_OK);
    for (int i = 0; i < count; i++) {
        const Key *key = keys[(size_t)(first + i) % keys.size()];
        CHECK(ok[(size_t)i] == (key != keys.back()));
        CHECK(!ok[(size_t)i] || is_root(*key, &outputs[(size_t)i * STRIDE], (uint64_t)(i + 2)));
    }
}

/* 3^5 modulo 2^(8 size) - 1: in a row of each size class. */
void powers(enum gpk_isa isa, uint32_t count)
{
    for (uint32_t stride : {32U, 64U, 128U, 256U, 384U, 512U, 768U, 1024U}) {
        const std::vector<uint8_t> exponents(count, 5);
        std::vector<uint8_t> bases(count * (size_t)stride), moduli(bases.size(), 0xff), outputs(bases.size());
        std::vector<uint8_t> ok(count);

        for (uint32_t i = 0; i < count; i++)
            bases[i * (size_t)stride] = 3;
        CHECK(gpk_modexp(isa, count, bases.data(), exponents.data(), 1, 8, moduli.data(), outputs.data(), stride,
                         ok.data(), 0)
              == GPK_OK);
        for (uint32_t i = 0; i < count; i++)
            CHECK(ok[i] && outputs[i * (size_t)stride] == 243 && outputs[i * (size_t)stride + 1] == 0);
    }
}

template <class Work> void on_threads(Work work)
{
    std::vector<std::thread> threads;

    for (int i = 0; i < THREADS; i++)
        threads.emplace_back(work, i);
    for (std::thread &thread : threads)
        thread.join();
}

/* The child has the locks as they were, but not the threads that would release them: it may free the keys that it was
 * forked with, and use none of them. Everything else works there. */
void free_in_a_child(const std::vector<Key *> &keys)
{
    const pid_t child = fork();

    CHECK(child >= 0);
    if (child == 0) {
        alarm(60);
        for (Key *key : keys)
            gpk_key_free(key->loaded);
        powers(GPK_ISA_BEST, 3);
        _exit(0);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

} // namespace

int main(void)
{
    Key small(1024), k2048(2048), k2560(2560), k3072(3072), k3584(3584), k4096(4096), wrong(2048, true);
    const std::vector<Key *> all = {&small, &k2048, &k2560, &k3072, &k3584, &k4096, &wrong}, two = {&small, &wrong};
    const enum gpk_isa best = gpk_resolve_isa(GPK_ISA_BEST);

    on_threads([&](int thread) {
        for (int round = 0; round < 3; round++) {
            batches(all, best, thread, 15 + thread);
            batches(all, GPK_ISA_PORTABLE, thread + round, 2);
            powers(best, 1 + (uint32_t)thread * 6);
        }
        powers(GPK_ISA_PORTABLE, 2);
    });

    /* More operations than the key's pairs have uses. */
    on_threads([&](int thread) {
        for (int round = 0; round < 64; round++) {
            if (thread == 0 && round % 8 == 0)
                free_in_a_child(all);
            batches({&small, &small, &small, &small, &small, &small, &wrong}, best, thread, 70);
        }
    });

    /* The worst moment, held still. */
    CHECK(pthread_mutex_lock(&small.loaded->mutex) == 0);
    free_in_a_child(all);
    CHECK(pthread_mutex_unlock(&small.loaded->mutex) == 0);
    batches(two, best, 0, 9);
    return 0;
}
