/* Bounds the work that a peer can make libssl do without sending the application anything.
 *
 * libssl reads on as long as there is input that is not application data: key updates, session tickets, requests to
 * renegotiate, empty records, alerts. Its own limits count some of these in a row (32 empty records, 5 warnings), but
 * none counts key updates, so a peer that sends faster than libssl works keeps one call busy without end.
 *
 * Here every record and every handshake message that is read costs one unit of an allowance. Application data, read or
 * written, earns units, and so does time. A connection whose allowance is used up is over: the call that is reading
 * stops at that record and fails. Since the allowance is small, so is the work of one call: the most expensive message
 * is a key update, at about 15 microseconds.
 *
 * Honest peers stay far within it:
 * - a rekeying after every record, sent or received, even with the last 250 of these in flight;
 * - session tickets, the ChangeCipherSpec of TLS 1.3's compatibility mode, single empty records;
 * - a client's handshake in fragments of one byte;
 * - one-byte writes of an interactive client, for they are application data. */
#ifndef GP_TLS_FLOOD_H
#define GP_TLS_FLOOD_H

#include <openssl/ssl.h>
#include <time.h>

enum {
    GP_FLOOD_HANDSHAKE = 4096, /* units for the whole handshake */
    GP_FLOOD_FIRST = 64,       /* units when it is done */
    GP_FLOOD_EARNED = 4, /* by each record of application data: one for itself, two for a key update, and one more */
    GP_FLOOD_MOST = 512, /* units that can be saved up */
    GP_FLOOD_PER_SECOND = 4, /* earned by time, and at most GP_FLOOD_FIRST at once */
};

struct gp_flood {
    unsigned allowance;
    unsigned spent; /* units, since the caller set it to 0 */
    int established;
    int exceeded;
    time_t refilled;
};

/* Counts the SSL's input from now on. Returns 1, or 0: out of memory. */
int gp_flood_watch(SSL *ssl);

struct gp_flood *gp_flood_of(SSL *ssl);

/* Call it when a record of application data was read or written. */
void gp_flood_earn(struct gp_flood *flood);

#endif
