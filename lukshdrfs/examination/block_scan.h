/* What a run of a payload's bytes shows of itself: counts of bytes, and blocks that random data do not have. */
#ifndef LUKSHDRFS_BLOCK_SCAN_H
#define LUKSHDRFS_BLOCK_SCAN_H

#include <stddef.h>
#include <stdint.h>

/* Marks of a block of 512 bytes. */
enum {
    SCAN_ZERO = 1,     /* all zeros */
    SCAN_FEW = 2,      /* fewer than 179 different byte values: see block_scan.py */
    SCAN_REPEATS = 4,  /* 16 bytes of it, at a multiple of 16, were in the same region before */
    SCAN_COPY = 8,     /* all of it was somewhere before */
};

struct byte_counts {
    uint64_t bytes[256]; /* how often each byte value is there */
    uint64_t steps[256]; /* and each exclusive or of a byte with the one before it (a region's first: with 0) */
};

struct region_scan {
    uint64_t bytes_squares, steps_squares; /* sums of the squared counts */
    uint64_t prints[128];                  /* a fingerprint of each whole block */
    uint8_t marks[128];                    /* and its marks */
};

/* Looks at up to 65536 bytes, and adds to `total`. A part of a block at the end is counted, and neither marked nor
 * fingerprinted. */
void region_scan(struct region_scan *found, struct byte_counts *total, const uint8_t *data, size_t size);

/* Fingerprints of blocks, in bounded memory. */
struct known_blocks;

/* `slots` is a power of two; 16 bytes each. NULL: no memory. */
struct known_blocks *known_blocks_new(size_t slots);
void known_blocks_free(struct known_blocks *known);

/* Fingerprints are kept of one block in 2^this, chosen by its content: all of equal blocks or none. */
unsigned known_blocks_thinned(const struct known_blocks *known);

/* Marks those of `count` blocks that were there before, `earlier` says where, and remembers the others.
 * Blocks have numbers; these have `first` and the following. 0: no memory for thinning out. */
int known_blocks_add(struct known_blocks *known, const uint64_t *prints, uint8_t *marks, uint64_t *earlier,
                     size_t count, uint64_t first);

#endif
