/* See export.h. */
#include "payload/nbd/export.h"

#include <stdio.h>

#define LARGEST_COMMAND ((uint64_t)32 << 20) /* bytes of data; servers need not take more (proto.md, "Block size constraints") */
#define LARGEST_BLOCK ((uint64_t)64 << 10)   /* bytes; a server's minimum block is no larger (ibid.) */

/* Returns how many bytes of data a command may have, whole blocks. */
static uint64_t largest_command(int64_t said, uint64_t block) {
    int is_usable = said >= (int64_t)LARGEST_BLOCK && (uint64_t)said < LARGEST_COMMAND;
    uint64_t largest = is_usable ? (uint64_t)said : LARGEST_COMMAND;
    return largest - largest % block;
}

int nbd_export_ask(struct nbd_export *found, const struct nbd_library *library, struct nbd_handle *handle, char *words,
                   size_t room) {
    int64_t size = library->get_size(handle);
    int64_t block = library->get_block_size(handle, NBD_SIZE_MINIMUM);
    int64_t largest = library->get_block_size(handle, NBD_SIZE_MAXIMUM);
    if (size < 0) {
        snprintf(words, room, "the server does not say how large the export is");
        return -1;
    }
    if (block > (int64_t)LARGEST_BLOCK || (block > 0 && block & (block - 1))) {
        snprintf(words, room, "the server wants blocks of %lld bytes, which the protocol does not have", (long long)block);
        return -1;
    }
    *found = (struct nbd_export){.size = (uint64_t)size,
                                 .block = block > 0 ? (uint64_t)block : 1,
                                 .read_only = library->is_read_only(handle) != 0,
                                 .can_flush = library->can_flush(handle) > 0,
                                 .can_fua = library->can_fua(handle) > 0};
    found->largest = largest_command(largest, found->block);
    return 0;
}

int nbd_export_compare(const struct nbd_export *before, const struct nbd_export *now, char *words, size_t room) {
    if (now->size < before->size) {
        snprintf(words, room, "the export has %llu bytes now; it had %llu", (unsigned long long)now->size,
                 (unsigned long long)before->size);
        return -1;
    }
    if (now->block > before->block || now->largest < before->largest || now->can_flush < before->can_flush ||
        now->can_fua < before->can_fua) {
        snprintf(words, room, "the server can do less than before");
        return -1;
    }
    return 0;
}
