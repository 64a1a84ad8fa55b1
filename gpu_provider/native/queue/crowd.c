#include "queue/crowd.h"

/* A request that was submitted before a batch was completed was under way together with it, although the thread that
 * finds it in the queue may look only after both. */
void gp_crowd_begins(struct gp_crowd_counts *counts, uint32_t class_index, int after)
{
    uint64_t of_all = 0;

    counts->begun[class_index]++;
    for (uint32_t i = 0; i < GP_CLASSES; i++) {
        uint64_t ended = atomic_load_explicit(&counts->ended[i], memory_order_relaxed);
        uint64_t under_way = counts->begun[i] - (after ? ended : counts->ended_before[i]);

        of_all += under_way;
        if (i == class_index && under_way > counts->most[i])
            counts->most[i] = (uint32_t)under_way;
    }
    if (of_all > counts->most_of_all)
        counts->most_of_all = (uint32_t)of_all;
}

void gp_crowd_looked(struct gp_crowd_counts *counts)
{
    for (uint32_t i = 0; i < GP_CLASSES; i++)
        counts->ended_before[i] = atomic_load_explicit(&counts->ended[i], memory_order_relaxed);
}

void gp_crowd_ends(struct gp_crowd_counts *counts, uint32_t class_index)
{
    atomic_fetch_add_explicit(&counts->ended[class_index], 1, memory_order_relaxed);
}

struct gp_crowd gp_crowd_of(const struct gp_crowd_counts *counts, uint32_t class_index)
{
    return (struct gp_crowd){.of_class = counts->most[class_index], .of_all = counts->most_of_all};
}

void gp_crowd_taken(struct gp_crowd_counts *counts, uint32_t class_index)
{
    counts->most[class_index] = counts->most_of_all = 0;
}
