/* Ranges that are no whole blocks of the server's. Most servers have blocks of one byte. */
#ifndef LUKSHDRFS_NBD_BLOCKS_H
#define LUKSHDRFS_NBD_BLOCKS_H

#include <stddef.h>
#include <stdint.h>

/* The whole blocks that a range touches. */
struct nbd_blocks {
    uint64_t offset; /* bytes on the export */
    size_t size;     /* bytes */
    size_t skip;     /* bytes before the range */
};

/* Whether a range is whole blocks of `block` bytes, a power of two. */
int nbd_blocks_are(size_t size, uint64_t offset, uint64_t block);

/* Returns the blocks around a range. The export has `end` bytes, and need not end with a whole block. */
struct nbd_blocks nbd_blocks_around(size_t size, uint64_t offset, uint64_t block, uint64_t end);

#endif
