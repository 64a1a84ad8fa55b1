/* What a client process and the service say to each other over their socket, a message in each packet.
 *
 * Both are on one host, so numbers are as the processor has them. Neither side trusts the other: a message is copied
 * out of the socket before it is looked at, and whatever is not exactly as it should be ends the connection.
 *
 *   client                                     service
 *   HELLO version                          →
 *                                          ←   WELCOME, with the queue's memfd and doorbell
 *                                          ←   DESCRIPTORS, with timerfds; their numbers go on
 *   ADD_KEY number, the RSA key            →
 *                                          ←   KEY number, handle (0: refused)
 *   FIND_KEY number, name                  →
 *                                          ←   FOUND_KEY number, handle, n and e; or KEY number, 0: there is none
 *   REMOVE_KEY handle                      →
 *   MORE_DESCRIPTORS                       →
 *                                          ←   DESCRIPTORS (none: no more are to be had)
 */
#ifndef GP_MESSAGES_H
#define GP_MESSAGES_H

#include <stddef.h>
#include <stdint.h>

#include "types.h"

#define GP_PROTOCOL_VERSION 2u
#define GP_DESCRIPTORS_AT_ONCE 64u /* SCM_RIGHTS takes 253 */

enum gp_message_type {
    GP_HELLO = 1,
    GP_WELCOME,
    GP_DESCRIPTORS,
    GP_ADD_KEY,
    GP_KEY,
    GP_REMOVE_KEY,
    GP_MORE_DESCRIPTORS,
    GP_FIND_KEY,
    GP_FOUND_KEY
};

/* An RSA key's numbers, in this order: n, e, d, p, q, dP, dQ, qInv. Of the first two is its public part. */
#define GP_KEY_NUMBERS 8u
#define GP_PUBLIC_NUMBERS 2u
extern const char *const gp_key_number_names[GP_KEY_NUMBERS]; /* of OpenSSL's parameters */

/* The longest name of a key that the service has. */
#define GP_MAX_NAME 64u

struct gp_message {
    uint32_t type;
    uint32_t version;                               /* HELLO, WELCOME */
    uint64_t key_number;                            /* ADD_KEY, FIND_KEY, KEY, FOUND_KEY: the client's own */
    gp_key_handle handle;                           /* KEY, FOUND_KEY, REMOVE_KEY */
    uint16_t sizes[GP_KEY_NUMBERS];                 /* ADD_KEY, FOUND_KEY, in bytes; FIND_KEY: the first, of the name */
    uint8_t numbers[GP_KEY_NUMBERS * GP_MAX_BYTES]; /* one after the other, most significant byte first; or the name */
};

/* Whether it may be the name of a key: letters, digits, and after the first of those also . _ - */
int gp_key_name_is_valid(const char *name, size_t size);

/* Whether `size` received bytes are a whole message that may come from a client, or from a service. */
int gp_message_is_valid(const struct gp_message *message, size_t size, int from_client);

/* A connection to the service behind this path, not blocking; -1 with errno set. */
int gp_service_connect(const char *path);

/* Both never block. Sends the message with descriptors, which stay the caller's. 0, or an errno. */
int gp_message_send(int socket, const struct gp_message *message, const int *descriptors, uint32_t count);

/* Receives one with up to GP_DESCRIPTORS_AT_ONCE descriptors, which become the caller's. 0, or an errno: EAGAIN, none
 * is there; ECONNRESET, the other side is gone; EPROTO, it is not valid. */
int gp_message_receive(int socket, struct gp_message *message, int from_client, int *descriptors, uint32_t *count);

#endif
