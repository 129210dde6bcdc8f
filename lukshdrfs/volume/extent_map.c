/* See extent_map.h. */
#include "volume/extent_map.h"

#include <stdatomic.h>
#include <stdlib.h>

struct placed {
    struct extent extent;
    uint32_t phase; /* the extent's start modulo its sector size: where its sectors begin */
    _Atomic uint64_t end;
};

struct extent_map {
    uint64_t widest; /* the largest sector size, in bytes */
    int is_uneven;   /* some sectors do not begin at multiples of their size */
    size_t count;
    struct placed extents[];
};

struct extent_map *extent_map_new(const struct extent *extents, const uint64_t *ends, size_t count) {
    struct extent_map *map = calloc(1, sizeof *map + count * sizeof map->extents[0]);
    if (!map)
        return NULL;
    uint64_t start = 0;
    map->count = count;
    for (size_t i = 0; i < count; i++) {
        struct placed *placed = &map->extents[i];
        placed->extent = extents[i];
        placed->phase = (uint32_t)(start % extents[i].sector_size);
        atomic_store(&placed->end, ends[i]);
        map->is_uneven |= placed->phase != 0;
        if (extents[i].sector_size > map->widest)
            map->widest = extents[i].sector_size;
        start = ends[i];
    }
    return map;
}

void extent_map_free(struct extent_map *map) { free(map); }

uint64_t extent_map_end(const struct extent_map *map) { return atomic_load(&map->extents[map->count - 1].end); }

size_t extent_map_last(const struct extent_map *map) { return map->count - 1; }

void extent_map_widen(const struct extent_map *map, uint64_t *start, uint64_t *end) {
    uint64_t unit = map->widest, beyond = map->is_uneven ? unit : 0;
    *start -= *start % unit;
    *start -= *start < beyond ? *start : beyond;
    *end += (unit - *end % unit) % unit + beyond;
}

struct piece extent_map_piece(const struct extent_map *map, uint64_t offset, uint64_t end) {
    size_t number = 0;
    uint64_t border;
    while (border = atomic_load_explicit(&map->extents[number].end, memory_order_acquire),
           number + 1 < map->count && offset >= border)
        number++;
    const struct placed *placed = &map->extents[number];
    uint64_t unit = placed->extent.sector_size;
    if (number + 1 < map->count && end > border)
        end = border;
    size_t skip = (size_t)((offset - placed->phase) % unit), size = (size_t)(end - offset), covered = skip + size;
    covered += (unit - covered % unit) % unit;
    return (struct piece){
        .extent = &placed->extent, .offset = offset - skip, .skip = skip, .size = size, .covered = covered};
}

void extent_map_move_border(struct extent_map *map, size_t number, uint64_t to) {
    atomic_store_explicit(&map->extents[number].end, to, memory_order_release);
}
