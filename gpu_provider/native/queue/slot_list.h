/* A first in, first out list of slots, outside the shared memory; holds every slot at most once. */
#ifndef GP_SLOT_LIST_H
#define GP_SLOT_LIST_H

#include <stdint.h>

struct gp_slot_list {
    uint32_t *slots; /* [depth] */
    uint32_t first, count;
};

static inline void gp_slot_list_push(struct gp_slot_list *list, uint32_t depth, uint32_t slot)
{
    list->slots[(list->first + list->count++) % depth] = slot;
}

static inline uint32_t gp_slot_list_pop(struct gp_slot_list *list, uint32_t depth)
{
    uint32_t slot = list->slots[list->first];

    list->first = (list->first + 1) % depth;
    list->count--;
    return slot;
}

#endif
