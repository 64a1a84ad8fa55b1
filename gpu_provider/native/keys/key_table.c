/* The key table: which gp_key a handle in the queue means. A handle is serial << 16 | index; the serial never repeats. */
#include <stdlib.h>

#include "queue/client_internal.h"
#include "staging.h"

static struct gp_key_entry *find(gp_client *client, uint64_t handle)
{
    uint32_t index = (uint32_t)(handle & (GP_MAX_KEYS - 1));

    if (handle == 0 || index >= client->key_count || client->keys[index].handle != handle)
        return NULL;
    return &client->keys[index];
}

/* With keys_lock: an entry that nobody needs any more; returns the key for freeing outside the lock. */
static gp_key *clear_if_unused(gp_client *client, struct gp_key_entry *entry)
{
    gp_key *key = entry->key;

    if (!entry->removed || entry->pins > 0)
        return NULL;
    entry->key = NULL;
    entry->handle = 0;
    atomic_fetch_add(&client->removed_keys, 1);
    return key;
}

/* The last step of a key's removal, without a lock. */
static void let_go(gp_client *client, gp_key *unused)
{
    if (unused == NULL)
        return;
    gp_key_free(unused);
    gp_consumer_wake(client); /* a device may have a copy of it */
}

static int grow(gp_client *client)
{
    uint32_t count = client->key_count == 0 ? 8 : client->key_count * 2;
    struct gp_key_entry *keys;

    if (count > GP_MAX_KEYS)
        return 0;
    keys = realloc(client->keys, count * sizeof(*keys));
    if (keys == NULL)
        return 0;
    for (uint32_t i = client->key_count; i < count; i++)
        keys[i] = (struct gp_key_entry){0};
    client->keys = keys;
    client->key_count = count;
    return 1;
}

uint64_t gp_client_add_key(gp_client *client, gp_key *key)
{
    uint64_t handle = 0;
    uint32_t index = 0;

    if (client->fork_epoch != gp_fork_epoch())
        return 0;
    pthread_mutex_lock(&client->keys_lock);
    while (index < client->key_count && client->keys[index].handle != 0)
        index++;
    if (index < client->key_count || grow(client)) {
        handle = ++client->key_serial << 16 | index;
        client->keys[index] = (struct gp_key_entry){.key = gp_key_up_ref(key), .handle = handle};
    }
    pthread_mutex_unlock(&client->keys_lock);
    if (handle != 0)
        gp_cpu_prepare(client, key); /* after it is in the table, or gp_client_prepare_keys() might miss it as well */
    return handle;
}

void gp_client_count_keys(gp_client *client, struct gp_client_stats *stats)
{
    pthread_mutex_lock(&client->keys_lock);
    for (uint32_t i = 0; i < client->key_count; i++) {
        const gp_key *key = client->keys[i].key;
        const struct gpk_key *kernel_key = key != NULL ? atomic_load(&key->kernel_key) : NULL;

        stats->keys += key != NULL;
        stats->kernel_keys += kernel_key != NULL;
        stats->locked_keys += kernel_key != NULL && key->kernels->key_is_locked(kernel_key);
    }
    pthread_mutex_unlock(&client->keys_lock);
}

void gp_client_prepare_keys(gp_client *client)
{
    uint32_t index = 0, count;

    do {
        gp_key *key = NULL;

        pthread_mutex_lock(&client->keys_lock);
        count = client->key_count;
        if (index < count && client->keys[index].handle != 0)
            key = gp_key_up_ref(client->keys[index].key);
        pthread_mutex_unlock(&client->keys_lock);
        if (key != NULL)
            gp_cpu_prepare(client, key);
        gp_key_free(key);
    } while (++index < count);
}

void gp_client_remove_key(gp_client *client, uint64_t handle)
{
    struct gp_key_entry *entry;
    gp_key *unused = NULL;

    if (client->fork_epoch != gp_fork_epoch())
        return;
    pthread_mutex_lock(&client->keys_lock);
    entry = find(client, handle);
    if (entry != NULL) {
        entry->removed = 1;
        unused = clear_if_unused(client, entry);
    }
    pthread_mutex_unlock(&client->keys_lock);
    let_go(client, unused);
}

gp_key *gp_client_get_key(gp_client *client, uint64_t handle)
{
    struct gp_key_entry *entry;
    gp_key *key = NULL;

    pthread_mutex_lock(&client->keys_lock);
    entry = find(client, handle);
    if (entry != NULL)
        key = gp_key_up_ref(entry->key);
    pthread_mutex_unlock(&client->keys_lock);
    return key;
}

int gp_client_pin_key(gp_client *client, uint64_t handle, uint32_t *bytes)
{
    struct gp_key_entry *entry;
    int found;

    pthread_mutex_lock(&client->keys_lock);
    entry = find(client, handle);
    found = entry != NULL && !entry->removed;
    if (found) {
        entry->pins++;
        *bytes = entry->key->bytes;
    }
    pthread_mutex_unlock(&client->keys_lock);
    return found;
}

void gp_client_unpin_key(gp_client *client, uint64_t handle, uint32_t pins)
{
    struct gp_key_entry *entry;
    gp_key *unused = NULL;

    pthread_mutex_lock(&client->keys_lock);
    entry = find(client, handle);
    if (entry != NULL) {
        entry->pins -= pins;
        unused = clear_if_unused(client, entry);
    }
    pthread_mutex_unlock(&client->keys_lock);
    let_go(client, unused);
}

uint32_t gp_client_find_removed(gp_client *client, uint32_t count, const uint64_t *handles, uint8_t *gone)
{
    uint32_t found = 0;

    pthread_mutex_lock(&client->keys_lock);
    for (uint32_t i = 0; i < count; i++) {
        gone[i] = find(client, handles[i]) == NULL;
        found += gone[i];
    }
    pthread_mutex_unlock(&client->keys_lock);
    return found;
}
