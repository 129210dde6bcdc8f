/* Where the plaintext of a volume is on its payload.
 *
 * Extents follow one another from byte 0 on. Where two meet is a border, and the last border is the volume's end. What an
 * extent says does not depend on where its borders are, so that they can be moved: position on the payload = offset on the
 * volume + payload_shift, number of the IV = offset / 512 + iv_shift, both modulo 2^64. */
#ifndef LUKSHDRFS_EXTENT_MAP_H
#define LUKSHDRFS_EXTENT_MAP_H

#include <stddef.h>
#include <stdint.h>

struct sector_cipher;

struct extent {
    uint64_t payload_shift; /* bytes */
    uint64_t iv_shift;      /* 512-byte sectors */
    uint32_t sector_size;   /* bytes, at most 4096 */
    struct sector_cipher *cipher; /* NULL: stored as it is */
    int error;                    /* what requests for it fail with: an errno, or 0 */
};

/* The part of a range of plaintext that is in one extent, and the whole sectors around it. */
struct piece {
    const struct extent *extent;
    uint64_t offset; /* of the first whole sector, bytes on the volume */
    size_t skip;     /* bytes of it before the range */
    size_t size;     /* bytes of the range */
    size_t covered;  /* bytes of the whole sectors */
};

struct extent_map;

/* `ends` are the borders, in bytes of the volume; both arrays are copied. Returns NULL where there is no memory. */
struct extent_map *extent_map_new(const struct extent *extents, const uint64_t *ends, size_t count);
void extent_map_free(struct extent_map *map);

/* Returns where the volume ends, in bytes. */
uint64_t extent_map_end(const struct extent_map *map);

/* Returns the number of the last extent, at whose end the volume ends. */
size_t extent_map_last(const struct extent_map *map);

/* Widens a range to whole sectors, whichever extents it is in now or comes to be in: it is what is to be locked. */
void extent_map_widen(const struct extent_map *map, uint64_t *start, uint64_t *end);

/* Returns the part of a range, which is not empty, that begins at `offset` and is in one extent. The volume's end does not
 * count: the last extent reaches as far as one asks. Only while the range is held does it stay true. */
struct piece extent_map_piece(const struct extent_map *map, uint64_t offset, uint64_t end);

/* Moves the border behind extent `number`. Only while all between the old place and the new one is held alone, or, for the
 * last one, while nobody relies on what is there. */
void extent_map_move_border(struct extent_map *map, size_t number, uint64_t to);

#endif
