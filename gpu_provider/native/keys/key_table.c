#include "keys/key_table.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "process.h"

struct entry {
    gp_key *key;
    gp_key_handle handle; /* 0: free */
    uint32_t pins;        /* requests that use it */
    uint32_t removed;
};

struct gp_key_table {
    uint32_t fork_epoch;
    pthread_mutex_t lock;
    struct entry *entries;
    uint32_t count;
    uint64_t serial;
    _Atomic uint64_t removed; /* that have left the table for good */
};

gp_key_table *gp_key_table_new(void)
{
    gp_key_table *table = gp_inner_libctx() != NULL ? calloc(1, sizeof(*table)) : NULL;

    if (table == NULL)
        return NULL;
    gp_watch_forks();
    table->fork_epoch = gp_fork_epoch();
    pthread_mutex_init(&table->lock, NULL);
    return table;
}

void gp_key_table_free(gp_key_table *table)
{
    if (table == NULL)
        return;
    if (table->fork_epoch == gp_fork_epoch())
        pthread_mutex_destroy(&table->lock);
    for (uint32_t i = 0; i < table->count; i++)
        gp_key_free(table->entries[i].key);
    free(table->entries);
    free(table);
}

static struct entry *find(gp_key_table *table, gp_key_handle handle)
{
    uint32_t index = (uint32_t)(handle & (GP_MAX_KEYS - 1));

    if (handle == 0 || index >= table->count || table->entries[index].handle != handle)
        return NULL;
    return &table->entries[index];
}

static int grow(gp_key_table *table)
{
    uint32_t count = table->count == 0 ? 8 : table->count * 2;
    struct entry *entries;

    if (count > GP_MAX_KEYS)
        return 0;
    entries = realloc(table->entries, count * sizeof(*entries));
    if (entries == NULL)
        return 0;
    for (uint32_t i = table->count; i < count; i++)
        entries[i] = (struct entry){0};
    table->entries = entries;
    table->count = count;
    return 1;
}

gp_key_handle gp_key_table_add(gp_key_table *table, gp_key *key)
{
    gp_key_handle handle = 0;
    uint32_t index = 0;

    if (table->fork_epoch != gp_fork_epoch())
        return 0;
    pthread_mutex_lock(&table->lock);
    while (index < table->count && table->entries[index].handle != 0)
        index++;
    if (index < table->count || grow(table)) {
        handle = ++table->serial << 16 | index;
        table->entries[index] = (struct entry){.key = gp_key_up_ref(key), .handle = handle};
    }
    pthread_mutex_unlock(&table->lock);
    return handle;
}

/* Takes pins off a key, and removes it if `remove`. 1 if the key has left the table for good. */
static int let_go(gp_key_table *table, gp_key_handle handle, uint32_t pins, uint32_t remove)
{
    struct entry *entry;
    gp_key *unused = NULL; /* is freed without the lock */

    pthread_mutex_lock(&table->lock);
    entry = find(table, handle);
    if (entry != NULL) {
        entry->pins -= pins;
        entry->removed |= remove;
        if (entry->removed && entry->pins == 0) {
            unused = entry->key;
            *entry = (struct entry){0};
            atomic_fetch_add(&table->removed, 1);
        }
    }
    pthread_mutex_unlock(&table->lock);
    gp_key_free(unused);
    return unused != NULL;
}

int gp_key_table_remove(gp_key_table *table, gp_key_handle handle)
{
    return table->fork_epoch == gp_fork_epoch() && let_go(table, handle, 0, 1);
}

int gp_key_table_unpin(gp_key_table *table, gp_key_handle handle, uint32_t pins)
{
    return let_go(table, handle, pins, 0);
}

int gp_key_table_pin(gp_key_table *table, gp_key_handle handle, uint32_t *bytes)
{
    struct entry *entry;
    int found;

    pthread_mutex_lock(&table->lock);
    entry = find(table, handle);
    found = entry != NULL && !entry->removed;
    if (found) {
        entry->pins++;
        *bytes = entry->key->bytes;
    }
    pthread_mutex_unlock(&table->lock);
    return found;
}

gp_key *gp_key_table_get(gp_key_table *table, gp_key_handle handle)
{
    struct entry *entry;
    gp_key *key = NULL;

    pthread_mutex_lock(&table->lock);
    entry = find(table, handle);
    if (entry != NULL)
        key = gp_key_up_ref(entry->key);
    pthread_mutex_unlock(&table->lock);
    return key;
}

uint64_t gp_key_table_removed(const gp_key_table *table)
{
    return atomic_load(&table->removed);
}

void gp_key_table_count(gp_key_table *table, struct gp_key_counts *counts)
{
    *counts = (struct gp_key_counts){0};
    pthread_mutex_lock(&table->lock);
    for (uint32_t i = 0; i < table->count; i++) {
        const gp_key *key = table->entries[i].key;
        const struct gpk_key *kernel_key = key != NULL ? atomic_load(&key->kernel_key) : NULL;

        counts->keys += key != NULL;
        counts->kernel_keys += kernel_key != NULL;
        counts->locked_keys += kernel_key != NULL && key->kernels->key_is_locked(kernel_key);
    }
    pthread_mutex_unlock(&table->lock);
}

uint32_t gp_key_table_find_removed(gp_key_table *table, uint32_t count, const gp_key_handle *handles, uint8_t *gone)
{
    uint32_t found = 0;

    pthread_mutex_lock(&table->lock);
    for (uint32_t i = 0; i < count; i++) {
        gone[i] = find(table, handles[i]) == NULL;
        found += gone[i];
    }
    pthread_mutex_unlock(&table->lock);
    return found;
}
