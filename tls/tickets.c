#include "tickets.h"

#include <errno.h>
#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/params.h>
#include <openssl/rand.h>
#include <pthread.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define NAME_SIZE 16
#define IV_SIZE 16
#define MOST_SECRET 32
#define MOST_BASE64 108

struct key {
    unsigned char name[NAME_SIZE];
    unsigned char cipher[MOST_SECRET];
    unsigned char mac[MOST_SECRET];
    size_t secret;    /* bytes of `cipher`, and of `mac`: 16 or 32 */
    uint64_t created; /* 0: there is none yet */
};

/* In pages of its own, which processes may share. */
struct key_ring {
    pthread_mutex_t lock;             /* held for a copy, or while a new key is made, never longer */
    struct key keys[GP_TICKETS_KEYS]; /* the newest first */
};

struct gp_tickets {
    OSSL_LIB_CTX *libctx;
    EVP_CIPHER *aes128, *aes256;
    uint64_t interval;
    int is_shared;
    struct key_ring *ring;
};

static pthread_once_t once = PTHREAD_ONCE_INIT;
static int ssl_index = -1;

static void make_index(void)
{
    ssl_index = SSL_get_ex_new_index(0, NULL, NULL, NULL, NULL);
}

static uint64_t now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static int rotate(gp_tickets *tickets)
{
    struct key new;
    int made = RAND_bytes_ex(tickets->libctx, new.name, sizeof(new.name), 0) > 0
               && RAND_priv_bytes_ex(tickets->libctx, new.cipher, sizeof(new.cipher), 0) > 0
               && RAND_priv_bytes_ex(tickets->libctx, new.mac, sizeof(new.mac), 0) > 0;

    if (made) {
        new.secret = MOST_SECRET;
        new.created = now();
        memmove(tickets->ring->keys + 1, tickets->ring->keys, (GP_TICKETS_KEYS - 1) * sizeof(new));
        tickets->ring->keys[0] = new;
    }
    OPENSSL_cleanse(&new, sizeof(new));
    return made;
}

/* A process that ended while it held the lock may have copied half a key: no session of before is resumed then. */
static void lock_ring(struct key_ring *ring)
{
    if (pthread_mutex_lock(&ring->lock) == EOWNERDEAD) {
        OPENSSL_cleanse(ring->keys, sizeof(ring->keys));
        (void)pthread_mutex_consistent(&ring->lock);
    }
}

static int make_lock(struct key_ring *ring, int is_shared)
{
    pthread_mutexattr_t attributes;
    int made = pthread_mutexattr_init(&attributes) == 0;

    if (made && is_shared)
        made = pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED) == 0
               && pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST) == 0;
    return made && pthread_mutex_init(&ring->lock, &attributes) == 0;
}

/* Keeps it out of swap space, if the limit allows that, and out of core dumps. *is_new: it has no keys yet. */
static struct key_ring *map_ring(int memfd, int *is_new)
{
    struct key_ring *ring;
    struct stat status;

    *is_new = memfd < 0 || (fstat(memfd, &status) == 0 && status.st_size == 0);
    if (memfd >= 0 && *is_new && ftruncate(memfd, sizeof(*ring)) != 0)
        return NULL;
    ring = mmap(NULL, sizeof(*ring), PROT_READ | PROT_WRITE, memfd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED,
                memfd, 0);
    if (ring == MAP_FAILED)
        return NULL;
    (void)mlock(ring, sizeof(*ring));
    (void)madvise(ring, sizeof(*ring), MADV_DONTDUMP);
    return ring;
}

gp_tickets *gp_tickets_new(OSSL_LIB_CTX *libctx, uint64_t interval, int memfd)
{
    gp_tickets *tickets = OPENSSL_zalloc(sizeof(*tickets));
    int is_new;

    if (tickets == NULL)
        return NULL;
    tickets->libctx = libctx;
    tickets->interval = interval;
    tickets->is_shared = memfd >= 0;
    tickets->aes128 = EVP_CIPHER_fetch(libctx, "AES-128-CBC", NULL);
    tickets->aes256 = EVP_CIPHER_fetch(libctx, "AES-256-CBC", NULL);
    tickets->ring = map_ring(memfd, &is_new);
    if (tickets->ring == NULL || tickets->aes128 == NULL || tickets->aes256 == NULL
        || (is_new && (!make_lock(tickets->ring, tickets->is_shared) || !rotate(tickets)))) {
        gp_tickets_free(tickets);
        return NULL;
    }
    return tickets;
}

void gp_tickets_free(gp_tickets *tickets)
{
    if (tickets->ring != NULL && !tickets->is_shared)
        OPENSSL_cleanse(tickets->ring, sizeof(*tickets->ring));
    if (tickets->ring != NULL)
        munmap(tickets->ring, sizeof(*tickets->ring));
    EVP_CIPHER_free(tickets->aes128);
    EVP_CIPHER_free(tickets->aes256);
    OPENSSL_free(tickets);
}

int gp_tickets_rotate(gp_tickets *tickets)
{
    lock_ring(tickets->ring);
    int made = rotate(tickets);
    pthread_mutex_unlock(&tickets->ring->lock);
    return made;
}

/* Returns how many bytes the base64 stands for, or 0. */
static size_t decode(unsigned char *bytes, const char *base64, size_t size)
{
    size_t padding = (base64[size - 1] == '=') + (base64[size - 2] == '=');
    int decoded = EVP_DecodeBlock(bytes, (const unsigned char *)base64, (int)size);

    return decoded < 0 ? 0 : (size_t)decoded - padding;
}

int gp_tickets_give(gp_tickets *tickets, size_t index, const char *data, size_t size)
{
    unsigned char bytes[MOST_BASE64];
    struct key key = {.created = now()};

    if (size == 64 || size == MOST_BASE64)
        size = decode(bytes, data, size);
    else if (size == 48 || size == 80)
        memcpy(bytes, data, size);
    int given = (size == 48 || size == 80) && index < GP_TICKETS_KEYS;
    if (given) {
        key.secret = (size - NAME_SIZE) / 2;
        memcpy(key.name, bytes, NAME_SIZE);
        memcpy(key.cipher, bytes + NAME_SIZE, key.secret);
        memcpy(key.mac, bytes + NAME_SIZE + key.secret, key.secret);
        lock_ring(tickets->ring);
        tickets->ring->keys[index] = key;
        pthread_mutex_unlock(&tickets->ring->lock);
    }
    OPENSSL_cleanse(bytes, sizeof(bytes));
    OPENSSL_cleanse(&key, sizeof(key));
    return given;
}

void gp_tickets_after_fork(gp_tickets *tickets)
{
    if (!tickets->is_shared)
        (void)make_lock(tickets->ring, 0);
}

/* The key to encrypt with: a new one if the last is too old. Returns 1, or 0. */
static int newest(gp_tickets *tickets, struct key *key)
{
    lock_ring(tickets->ring);
    const struct key *last = &tickets->ring->keys[0];
    int there = (last->created != 0 && now() - last->created < tickets->interval) || rotate(tickets);
    if (there)
        *key = tickets->ring->keys[0];
    pthread_mutex_unlock(&tickets->ring->lock);
    return there;
}

/* The key of this name. Returns 1; 2: the client should get a newer ticket; 0: unknown, or too old. */
static int find(gp_tickets *tickets, const unsigned char *name, struct key *key)
{
    int found = 0;

    lock_ring(tickets->ring);
    for (int i = 0; i < GP_TICKETS_KEYS && found == 0; i++) {
        const struct key *one = &tickets->ring->keys[i];
        if (one->created != 0 && memcmp(one->name, name, NAME_SIZE) == 0
            && now() - one->created < GP_TICKETS_KEYS * tickets->interval) {
            *key = *one;
            found = i == 0 ? 1 : 2;
        }
    }
    pthread_mutex_unlock(&tickets->ring->lock);
    return found;
}

static int on_ticket(SSL *ssl, unsigned char *name, unsigned char *iv, EVP_CIPHER_CTX *cipher, EVP_MAC_CTX *mac,
                     int encrypt)
{
    gp_tickets *tickets = SSL_get_ex_data(ssl, ssl_index);
    struct key key;
    int result;

    if (tickets == NULL)
        return 0;
    if (encrypt) {
        if (!newest(tickets, &key))
            return -1;
        memcpy(name, key.name, NAME_SIZE);
        result = RAND_bytes_ex(tickets->libctx, iv, IV_SIZE, 0) > 0 ? 1 : -1;
    } else {
        result = find(tickets, name, &key);
        if (result == 0)
            return 0; /* a full handshake */
    }
    OSSL_PARAM parameters[] = {
        OSSL_PARAM_construct_octet_string(OSSL_MAC_PARAM_KEY, key.mac, key.secret),
        OSSL_PARAM_construct_utf8_string(OSSL_MAC_PARAM_DIGEST, "SHA256", 0),
        OSSL_PARAM_construct_end(),
    };
    const EVP_CIPHER *aes = key.secret == MOST_SECRET ? tickets->aes256 : tickets->aes128;
    if (result < 0 || !EVP_CipherInit_ex2(cipher, aes, key.cipher, iv, encrypt, NULL)
        || !EVP_MAC_CTX_set_params(mac, parameters))
        result = -1;
    OPENSSL_cleanse(&key, sizeof(key));
    return result;
}

static SSL_TICKET_RETURN on_session(SSL *ssl, SSL_SESSION *session, const unsigned char *name, size_t size,
                                    SSL_TICKET_STATUS status, void *argument)
{
    X509 *client = session == NULL ? NULL : SSL_SESSION_get0_peer(session);
    (void)ssl, (void)name, (void)size, (void)argument;

    if (status != SSL_TICKET_SUCCESS && status != SSL_TICKET_SUCCESS_RENEW)
        return SSL_TICKET_RETURN_IGNORE_RENEW;
    if (client != NULL && X509_cmp_current_time(X509_get0_notAfter(client)) <= 0)
        return SSL_TICKET_RETURN_IGNORE_RENEW;
    return status == SSL_TICKET_SUCCESS ? SSL_TICKET_RETURN_USE : SSL_TICKET_RETURN_USE_RENEW;
}

void gp_tickets_end_with_certificate(SSL_CTX *ctx)
{
    (void)SSL_CTX_set_session_ticket_cb(ctx, NULL, on_session, NULL);
}

int gp_tickets_install(SSL_CTX *ctx, gp_tickets *tickets)
{
    return SSL_CTX_set_app_data(ctx, tickets) && SSL_CTX_set_tlsext_ticket_key_evp_cb(ctx, on_ticket);
}

int gp_tickets_inherit(SSL *ssl)
{
    gp_tickets *tickets = SSL_CTX_get_app_data(SSL_get_SSL_CTX(ssl));

    if (tickets == NULL)
        return 1;
    pthread_once(&once, make_index);
    return ssl_index >= 0 && SSL_set_ex_data(ssl, ssl_index, tickets);
}
