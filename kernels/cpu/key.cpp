/* A key's constants and its pool of blinding pairs. */
#include "cpu/key.h"

#include <string.h>

#include "arithmetic/limbs.h"
#include "arithmetic/number.h"
#include "cpu/memory.h"

using namespace gpk;

/* The size classes, by the limbs of a prime. A key's numbers must stay below R / 16 and R_n / 16. */
static const int classes[] = {20, 25, 30, 35, 40};

static int class_of(int modulus_bits, int prime_bits)
{
    for (int limbs : classes)
        if (prime_bits <= 52 * limbs - 4 && modulus_bits <= 104 * limbs - 4)
            return limbs;
    return 0;
}

static void pack_exponent(uint64_t *to, const uint64_t *exponent, int limbs, int bits)
{
    uint8_t bytes[MAX_BYTES + 16] = {0};

    limbs_to_bytes(bytes, MAX_BYTES, exponent, limbs);
    Digits<PRIVATE_WINDOW>::pack(to, bytes, bits);
    wipe(bytes, sizeof(bytes));
}

static void set_prime(PrimeConstants *prime, gpk_number modulus, gpk_number exponent, int limbs, int digit_bits)
{
    uint64_t number[MAX_LIMBS];

    load(prime->modulus, limbs, modulus);
    prime->k0 = limbs_k0(prime->modulus[0]);
    limbs_one(prime->one, prime->modulus, limbs, bits_of(modulus));
    memcpy(prime->r2, prime->one, (size_t)limbs * sizeof(uint64_t));
    for (int i = 0; i < 52 * limbs; i++)
        limbs_double(prime->r2, prime->modulus, limbs);
    memcpy(prime->r3, prime->r2, (size_t)limbs * sizeof(uint64_t));
    for (int i = 0; i < 52 * limbs; i++)
        limbs_double(prime->r3, prime->modulus, limbs);

    load(number, limbs, exponent);
    pack_exponent(prime->exponent, number, limbs, digit_bits);
    memcpy(number, prime->modulus, sizeof(uint64_t) * (size_t)limbs);
    uint64_t borrow = 2;
    for (int i = 0; i < limbs; i++) {
        const uint64_t d = number[i] - borrow;
        borrow = d >> 63;
        number[i] = d & LIMB_MASK;
    }
    pack_exponent(prime->inverting, number, limbs, digit_bits);
    wipe(number, sizeof(number));
}

/* One mapping holds the structure and, after it, its numbers. */
static gpk_key *allocate(int limbs, int words)
{
    const size_t numbers = (size_t)(2 * (4 * limbs + 2 * words) + 2 * limbs + 4 * 2 * limbs);
    const size_t size = sizeof(gpk_key) + numbers * sizeof(uint64_t);
    int locked;
    gpk_key *key = static_cast<gpk_key *>(secret_alloc(size, &locked));

    if (key == NULL)
        return NULL;
    key->size = size;
    key->locked = locked;
    key->limbs = limbs;
    uint64_t *at = reinterpret_cast<uint64_t *>(key + 1);
    const auto take = [&at](int count) {
        uint64_t *taken = at;
        at += count;
        return taken;
    };
    for (PrimeConstants &prime : key->prime) {
        prime.modulus = take(limbs);
        prime.one = take(limbs);
        prime.r2 = take(limbs);
        prime.r3 = take(limbs);
        prime.exponent = take(words);
        prime.inverting = take(words);
    }
    key->qinv = take(limbs);
    key->qinv_r = take(limbs);
    key->n = take(2 * limbs);
    key->n_one = take(2 * limbs);
    key->n_r2 = take(2 * limbs);
    key->q_r = take(2 * limbs);
    return key;
}

static enum gpk_status make_key(gpk_key **result, gpk_number n, gpk_number e, gpk_number p, gpk_number q, gpk_number dp,
                                gpk_number dq, gpk_number qinv)
{
    const int p_bits = bits_of(p), q_bits = bits_of(q), n_bits = bits_of(n);
    const int prime_bits = p_bits > q_bits ? p_bits : q_bits;
    const int limbs = class_of(n_bits, prime_bits);

    if (!is_odd(n) || !is_odd(p) || !is_odd(q) || p_bits < 3 || q_bits < 3 || !is_odd(e) || bits_of(e) < 2)
        return GPK_INVALID;
    if (n_bits < GPK_MIN_BITS || n_bits > GPK_MAX_BITS || limbs <= 0 || bits_of(e) > 64 || bits_of(dp) > prime_bits
        || bits_of(dq) > prime_bits)
        return GPK_UNSUPPORTED;
    if (bits_of(qinv) > p_bits || q_bits >= n_bits)
        return GPK_INVALID;

    gpk_key *key = allocate(limbs, Digits<PRIVATE_WINDOW>::words(prime_bits));
    if (key == NULL)
        return GPK_NO_MEMORY;
    key->bytes = (n_bits + 7) / 8;
    key->prime_bits = prime_bits;
    key->e = small_number(e);
    pthread_mutex_init(&key->mutex, NULL);

    set_prime(&key->prime[0], p, dp, limbs, prime_bits);
    set_prime(&key->prime[1], q, dq, limbs, prime_bits);
    load(key->qinv, limbs, qinv);
    uint64_t fits = limbs_less(key->qinv, key->prime[0].modulus, limbs);
    GPK_PUBLIC(fits);
    if (!fits) {
        gpk_key_free(key);
        return GPK_INVALID;
    }
    memcpy(key->qinv_r, key->qinv, (size_t)limbs * sizeof(uint64_t));
    for (int i = 0; i < 52 * limbs; i++)
        limbs_double(key->qinv_r, key->prime[0].modulus, limbs);

    load(key->n, 2 * limbs, n);
    key->n_k0 = limbs_k0(key->n[0]);
    limbs_one(key->n_one, key->n, 2 * limbs, n_bits);
    memcpy(key->n_r2, key->n_one, 2 * (size_t)limbs * sizeof(uint64_t));
    for (int i = 0; i < 104 * limbs; i++)
        limbs_double(key->n_r2, key->n, 2 * limbs);
    memcpy(key->q_r, key->prime[1].modulus, (size_t)limbs * sizeof(uint64_t)); /* q < n */
    for (int i = 0; i < 104 * limbs; i++)
        limbs_double(key->q_r, key->n, 2 * limbs);
    *result = key;
    return GPK_OK;
}

enum gpk_status gpk_key_new(gpk_key **result, gpk_number n, gpk_number e, gpk_number p, gpk_number q, gpk_number dp,
                            gpk_number dq, gpk_number qinv)
{
    enum gpk_status status = GPK_NO_MEMORY;

    *result = NULL;
    in_workspace([&](void *) { status = make_key(result, n, e, p, q, dp, dq, qinv); });
    return status;
}

void gpk_key_free(gpk_key *key)
{
    if (key == NULL)
        return;
    while (key->blocks != NULL) {
        PairBlock *block = key->blocks;
        key->blocks = block->next;
        secret_free(block, block->size);
    }
    /* The mutex is not destroyed: a child may have been forked while it was held, and it owns no resources. */
    secret_free(key, key->size);
}

int gpk_key_is_locked(const gpk_key *key) { return key->locked; }

namespace gpk {

BlindingPair *take_pair(gpk_key *key)
{
    pthread_mutex_lock(&key->mutex);
    BlindingPair *pair = key->ready;
    if (pair != NULL)
        key->ready = pair->next;
    pthread_mutex_unlock(&key->mutex);
    return pair;
}

void return_pair(gpk_key *key, BlindingPair *pair, int spoiled)
{
    pthread_mutex_lock(&key->mutex);
    BlindingPair **list = spoiled || ++pair->uses >= PAIR_USES ? &key->vacant : &key->ready;
    pair->next = *list;
    *list = pair;
    pthread_mutex_unlock(&key->mutex);
}

static int add_block(gpk_key *key)
{
    const size_t limbs = 2 * (size_t)key->limbs, size = sizeof(PairBlock) + PAIRS * 2 * limbs * sizeof(uint64_t);
    int locked;
    PairBlock *block = static_cast<PairBlock *>(secret_alloc(size, &locked));

    if (block == NULL)
        return 0;
    block->size = size;
    block->next = key->blocks;
    __atomic_store_n(&key->blocks, block, __ATOMIC_RELEASE); /* so that a child forked here can free the list */
    uint64_t *at = reinterpret_cast<uint64_t *>(block + 1);
    for (BlindingPair &pair : block->pairs) {
        pair.blinding = at;
        pair.unblinding = at + limbs;
        at += 2 * limbs;
        pair.next = key->vacant;
        key->vacant = &pair;
    }
    return 1;
}

int take_vacant(gpk_key *key, BlindingPair **pairs)
{
    int count = 0;

    pthread_mutex_lock(&key->mutex);
    if (key->vacant != NULL || add_block(key)) {
        while (count < PAIRS && key->vacant != NULL) {
            pairs[count++] = key->vacant;
            key->vacant = key->vacant->next;
        }
    }
    pthread_mutex_unlock(&key->mutex);
    return count;
}

void add_ready(gpk_key *key, BlindingPair *const *pairs, int count)
{
    pthread_mutex_lock(&key->mutex);
    for (int i = 0; i < count; i++) {
        pairs[i]->uses = 0;
        pairs[i]->next = key->ready;
        key->ready = pairs[i];
    }
    pthread_mutex_unlock(&key->mutex);
}

} // namespace gpk
