/* What the whole C core agrees on: the sizes of numbers, and the two kinds of handle. */
#ifndef GP_TYPES_H
#define GP_TYPES_H

#include <stdint.h>

#define GP_MIN_BITS 2048u
#define GP_MAX_BITS 4096u

/* Size classes, by whole multiples of 512 bits: 2048, 2560, 3072, 3584 and 4096. */
#define GP_CLASS_OF(bytes) (((bytes) - 1u) / 64u - 3u)
#define GP_CLASS_BYTES(class_index) (((class_index) + 4u) * 64u)

/* cffi: */
#define GP_MAX_BYTES 512u /* of one number: GP_MAX_BITS / 8 */
#define GP_CLASSES 5u

typedef uint64_t gp_key_handle;     /* a key in a gp_key_table; 0: none */
typedef uint64_t gp_request_handle; /* a request in a gp_queue: its slot and the slot's generation; 0: none */
/* :cffi */

#endif
