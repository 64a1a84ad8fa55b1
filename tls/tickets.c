#include "tickets.h"

#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/params.h>
#include <openssl/rand.h>
#include <pthread.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#define NAME_SIZE 16
#define IV_SIZE 16

struct key {
    unsigned char name[NAME_SIZE];
    unsigned char cipher[32];
    unsigned char mac[32];
    uint64_t created; /* 0: there is none yet */
};

struct gp_tickets {
    pthread_mutex_t lock; /* held for a copy, or while a new key is made, never longer */
    OSSL_LIB_CTX *libctx;
    EVP_CIPHER *cipher;
    uint64_t interval;
    struct key keys[GP_TICKETS_KEYS]; /* the newest first */
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
        new.created = now();
        memmove(tickets->keys + 1, tickets->keys, (GP_TICKETS_KEYS - 1) * sizeof(tickets->keys[0]));
        tickets->keys[0] = new;
    }
    OPENSSL_cleanse(&new, sizeof(new));
    return made;
}

gp_tickets *gp_tickets_new(OSSL_LIB_CTX *libctx, uint64_t interval)
{
    /* Its own pages, to keep them out of swap space, if the limit allows that, and out of core dumps. */
    gp_tickets *tickets = mmap(NULL, sizeof(*tickets), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (tickets == MAP_FAILED)
        return NULL;
    (void)mlock(tickets, sizeof(*tickets));
    (void)madvise(tickets, sizeof(*tickets), MADV_DONTDUMP);
    tickets->libctx = libctx;
    tickets->interval = interval;
    tickets->cipher = EVP_CIPHER_fetch(libctx, "AES-256-CBC", NULL);
    if (pthread_mutex_init(&tickets->lock, NULL) != 0 || tickets->cipher == NULL || !rotate(tickets)) {
        gp_tickets_free(tickets);
        return NULL;
    }
    return tickets;
}

void gp_tickets_free(gp_tickets *tickets)
{
    EVP_CIPHER_free(tickets->cipher);
    pthread_mutex_destroy(&tickets->lock);
    OPENSSL_cleanse(tickets, sizeof(*tickets));
    munmap(tickets, sizeof(*tickets));
}

int gp_tickets_rotate(gp_tickets *tickets)
{
    pthread_mutex_lock(&tickets->lock);
    int made = rotate(tickets);
    pthread_mutex_unlock(&tickets->lock);
    return made;
}

void gp_tickets_after_fork(gp_tickets *tickets)
{
    pthread_mutex_init(&tickets->lock, NULL);
}

/* The key to encrypt with: a new one if the last is too old. Returns 1, or 0. */
static int newest(gp_tickets *tickets, struct key *key)
{
    pthread_mutex_lock(&tickets->lock);
    int there = now() - tickets->keys[0].created < tickets->interval || rotate(tickets);
    if (there)
        *key = tickets->keys[0];
    pthread_mutex_unlock(&tickets->lock);
    return there;
}

/* The key of this name. Returns 1; 2: the client should get a newer ticket; 0: unknown, or too old. */
static int find(gp_tickets *tickets, const unsigned char *name, struct key *key)
{
    int found = 0;

    pthread_mutex_lock(&tickets->lock);
    for (int i = 0; i < GP_TICKETS_KEYS && found == 0; i++) {
        const struct key *one = &tickets->keys[i];
        if (one->created != 0 && memcmp(one->name, name, NAME_SIZE) == 0
            && now() - one->created < GP_TICKETS_KEYS * tickets->interval) {
            *key = *one;
            found = i == 0 ? 1 : 2;
        }
    }
    pthread_mutex_unlock(&tickets->lock);
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
        OSSL_PARAM_construct_octet_string(OSSL_MAC_PARAM_KEY, key.mac, sizeof(key.mac)),
        OSSL_PARAM_construct_utf8_string(OSSL_MAC_PARAM_DIGEST, "SHA256", 0),
        OSSL_PARAM_construct_end(),
    };
    if (result < 0 || !EVP_CipherInit_ex2(cipher, tickets->cipher, key.cipher, iv, encrypt, NULL)
        || !EVP_MAC_CTX_set_params(mac, parameters))
        result = -1;
    OPENSSL_cleanse(&key, sizeof(key));
    return result;
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
