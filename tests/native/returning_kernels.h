/* Kernels that return their input, so that every result can be told from OpenSSL's. */
#ifndef RETURNING_KERNELS_H
#define RETURNING_KERNELS_H

#include <string.h>
#include <time.h>

#include "check.h"
#include "keys/key.h"
#include "process.h"

static enum gpk_status key_new(struct gpk_key **key, struct gpk_number n, struct gpk_number e, struct gpk_number p,
                               struct gpk_number q, struct gpk_number dp, struct gpk_number dq, struct gpk_number qinv)
{
    (void)n, (void)e, (void)p, (void)q, (void)dp, (void)dq, (void)qinv;
    *key = malloc(1);
    return *key != NULL ? GPK_OK : GPK_NO_MEMORY;
}

static void key_free(struct gpk_key *key)
{
    free(key);
}

static int key_is_locked(const struct gpk_key *key)
{
    (void)key;
    return 0;
}

/* As long as a group takes: what else waits meanwhile is what is to be tried. */
static enum gpk_status private_op(enum gpk_isa isa, uint32_t count, struct gpk_key *const *keys, const uint8_t *inputs,
                                  uint8_t *outputs, uint32_t stride, uint8_t *ok)
{
    const uint64_t until = gp_now_ns() + 300000;

    (void)isa, (void)keys;
    memcpy(outputs, inputs, (size_t)count * stride);
    memset(ok, 1, count);
    while (gp_now_ns() < until)
        ;
    return GPK_OK;
}

static int call_apart(void (*function)(void *argument), void *argument)
{
    function(argument);
    return 1;
}

static const struct gpk_functions returning_kernels = {GPK_ISA_PORTABLE, 8,          key_new,   key_free,
                                                       key_is_locked,    private_op, call_apart};

/* output is the input again, or its private operation. */
static int is_result(const gp_key *key, const uint8_t *input, const uint8_t *output)
{
    uint8_t power[GP_MAX_BYTES];

    return memcmp(input, output, key->bytes) == 0
           || (gp_key_public(key, output, power) && memcmp(input, power, key->bytes) == 0);
}

static gp_key *make_key(size_t bits)
{
    EVP_PKEY *pkey = EVP_PKEY_Q_keygen(gp_inner_libctx(), NULL, "RSA", bits);
    gp_key *key;

    CHECK(pkey != NULL);
    key = gp_key_new(pkey);
    CHECK(key != NULL);
    EVP_PKEY_free(pkey);
    return key;
}

#endif
