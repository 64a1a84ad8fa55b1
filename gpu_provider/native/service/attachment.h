/* A program's way to the service: one attachment in each process, without a thread.
 *
 * It is made at the first operation, and never waited for: until the service has answered, and has the key, operations
 * are computed as if there were no service; likewise when it is gone, or too slow. Then it is looked for again, less
 * and less often. A forked child has an attachment of its own. Any thread.
 */
#ifndef GP_ATTACHMENT_H
#define GP_ATTACHMENT_H

#include <stdint.h>

#include "queue/client.h"
#include "service/messages.h"

#define GP_SERVICE_KEY_TIMEOUT_MS 5000u /* by default */

struct gp_service_settings {
    const char *path;        /* of its socket; NULL: there is no service */
    uint64_t timeout_ns;     /* of each request */
    uint64_t key_timeout_ns; /* of each with a key that only the service has, its restart included */
};

typedef struct gp_attachment gp_attachment;

/* The process's, made at the first call with the settings of whoever calls first. Never freed. NULL: out of memory. */
gp_attachment *gp_attachment_of_process(const struct gp_service_settings *settings);

/* For a program whose connections have async callbacks, before its first operation: it watches this descriptor, and
 * when that is readable calls gp_attachment_fire(), which fires those that are due. -1: no memory or descriptor. */
int gp_attachment_callbacks_descriptor(const struct gp_service_settings *settings);
void gp_attachment_fire(void);

/* What is known of a key by an attachment. Zero at first, but for the name. */
struct gp_attached_key {
    _Atomic uint64_t number; /* epoch << 32 | place */
    const char *name;        /* of a key that only the service has; NULL: it is sent there */
};

/* Puts the key's numbers into a message; of one that only the service has, at least the public ones. 0: it has not all
 * of them. */
typedef int gp_read_numbers(const void *key, struct gp_message *message);

/* output = input^d mod n by the service, both `bytes` long, most significant byte first, input < n; verify it. SOON: it
 * is to be computed here, but without a pause, since the connection keeps its first wait descriptor for good. */
enum gp_attached { GP_NOT_ATTACHED, GP_ATTACHED, GP_SOON };
enum gp_attached gp_attachment_private_op(gp_attachment *attachment, struct gp_attached_key *attached,
                                          gp_read_numbers *read_numbers, const void *key, uint32_t bytes,
                                          const uint8_t *input, uint8_t *output);

/* The same with a key that only the service has. Waits for the service, if it is not there: the job pauses, or the
 * thread sleeps. */
enum gp_named {
    GP_COMPUTED,    /* verify it */
    GP_NO_SERVICE,  /* it was not there, or did not answer, all the time; errno says why */
    GP_NO_SUCH_KEY, /* the service has none of this name */
    GP_OTHER_KEY,   /* the service has another one of this name */
    GP_NOT_COMPUTED /* the service says that it could not */
};
enum gp_named gp_attachment_named_op(const struct gp_service_settings *settings, struct gp_attached_key *attached,
                                     gp_read_numbers *read_numbers, const void *key, uint32_t bytes,
                                     const uint8_t *input, uint8_t *output);

/* The key is freed. */
void gp_attached_key_forget(struct gp_attached_key *attached);

#endif
