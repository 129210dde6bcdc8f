/* See blocks.h. */
#include "payload/nbd/blocks.h"

int nbd_blocks_are(size_t size, uint64_t offset, uint64_t block) { return (size | offset) % block == 0; }

struct nbd_blocks nbd_blocks_around(size_t size, uint64_t offset, uint64_t block, uint64_t end) {
    uint64_t start = offset - offset % block, last = offset + size + block - 1;
    last -= last % block;
    if (last > end) /* but if the export has shrunk below what is asked for, the server says so */
        last = end > offset + size ? end : offset + size;
    return (struct nbd_blocks){.offset = start, .size = (size_t)(last - start), .skip = (size_t)(offset - start)};
}
