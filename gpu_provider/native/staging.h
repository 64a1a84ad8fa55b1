/* What the CUDA backend does for each row of a batch: which record of the device's key table it uses, which blinding
 * pair, and its way into and out of the memory that the device copies. And what it needs of the keys.
 *
 * Python owns all memory here but gp_records. Nothing here knows the device.
 */
#ifndef GP_STAGING_H
#define GP_STAGING_H

#include <stdint.h>

#include "keys/key_record.h"
#include "types.h"

/* cffi: */
/* A blinding pair serves so many operations at most. Then fresh randomness replaces it, as in the kernels on the
 * processor. */
#define GP_PAIR_USES 512u
/* When a pair has reached GP_PAIR_USES, all those with at least so many uses are renewed together. A batch uses each
 * pair once at most, so a worker's next renewal is 128 batches away. */
#define GP_PAIR_WORN 384u

/* Which record has the key with a handle. One thread at a time may change it, while any number read it: a handle is
 * only changed or removed while no request uses it. */
typedef struct gp_records gp_records;
gp_records *gp_records_new(void); /* NULL: no memory */
void gp_records_free(gp_records *records);
void gp_records_set(gp_records *records, gp_key_handle handle, const struct gp_key_record *record);
void gp_records_remove(gp_records *records, gp_key_handle handle);

/* The blinding pairs of one worker and size class: each record has a block of them. One thread at a time. */
struct gp_pairs {
    uint32_t records;     /* as many have an element in what follows */
    gp_key_handle *owner; /* by record: the key that the pairs of its block are for */
    uint32_t *first;      /* by record: its block's first pair */
    uint32_t *count;      /* by record: its block's pairs */
    uint32_t *wanted;     /* by record: zero between calls */
    uint64_t *e;          /* by record: the owner's, as gp_key_record has it */
    uint32_t *prime_bits; /* likewise */
    uint16_t *uses;       /* by pair; GP_PAIR_USES: to be made before it is used */
    uint32_t worn;        /* not zero: gp_stage_worn() has something to look for */
};

/* A batch on its way. One thread at a time. Arrays have room for as many rows; those in `upload` and `fresh` begin at
 * multiples of 16 bytes. Numbers are `width` bytes wide, a multiple of 16: what the kernel takes. */
struct gp_staging {
    uint8_t *upload;   /* `rows` inputs, as many records, as many pairs; of each, `count` are used */
    uint8_t *download; /* `count` outputs, as many verdicts: 1 for a right result */
    uint8_t *fresh;    /* pairs to be made: `fresh_count` random rows, as many records, as many pairs */
    uint32_t *row;     /* of the batch, by place in the upload */
    uint32_t *fresh_record, *fresh_pair;
    gp_key_handle *lacking;
    uint32_t *lacking_record, *lacking_pairs; /* GP_LACKS_PAIRS: how many pairs are wanted */
    uint32_t room;                            /* rows that the arrays hold */
    uint32_t rows, count, fresh_count, lacking_count;
    uint32_t prime_bits, fresh_prime_bits; /* of the longest prime */
    uint64_t any_e, fresh_any_e;           /* all public exponents, OR-ed */
};

enum gp_staged {
    GP_STAGED,
    GP_LACKS_RECORDS, /* keys that were never seen: give them records. A key may be named more than once */
    GP_LACKS_ROOM,    /* there are more records than gp_pairs has elements for */
    GP_LACKS_PAIRS,   /* records whose block is too small, or another key's; each once */
};

/* Fills the upload from a batch of rows of `stride` bytes, at most `width`. Rows whose key has GP_NO_RECORD are left
 * out. Lists as fresh the pairs that must be made before the batch can use them. inputs NULL: they are on the device
 * already. */
enum gp_staged gp_stage(struct gp_staging *staging, const gp_records *records, struct gp_pairs *pairs, uint32_t rows,
                        const gp_key_handle *keys, const uint8_t *inputs, uint32_t stride, uint32_t width);

/* After gp_stage(): lists as fresh, in place of what it listed, the pairs to be made behind this batch so that later
 * ones need not wait for them. Those are the worn ones of all keys, and those of new blocks that no row has used yet.
 * Returns how many. None if the batch itself waits for pairs: their randomness may still be in `fresh`. */
uint32_t gp_stage_worn(struct gp_staging *staging, struct gp_pairs *pairs);

/* Fills `fresh` for the pairs that are listed. 0 if the system gives no randomness. */
int gp_stage_fresh(struct gp_staging *staging, const struct gp_pairs *pairs, uint32_t width);

/* Takes the results out of the download, and zeroes it. The caller wipes the rest of the staging, as soon as the device
 * has it. Returns how many rows failed the device's check; their pairs will be replaced before they are used again.
 * outputs NULL: only the verdicts were downloaded. */
uint32_t gp_unstage(struct gp_staging *staging, const struct gp_pairs *pairs, uint8_t *outputs, uint8_t *ok,
                    uint32_t stride, uint32_t width);
/* :cffi */

#endif
