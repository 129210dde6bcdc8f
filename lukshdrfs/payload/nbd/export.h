/* What a server says of its export, and whether it is still the same export. */
#ifndef LUKSHDRFS_NBD_EXPORT_H
#define LUKSHDRFS_NBD_EXPORT_H

#include <stddef.h>
#include <stdint.h>

#include "payload/nbd/libnbd.h"

struct nbd_export {
    uint64_t size;           /* bytes */
    uint64_t block, largest; /* the server's minimum and maximum of a command, bytes */
    int read_only, can_flush, can_fua;
};

/* Asks a connected handle. Returns 0, or -1 with what is wrong in `words` (at most `room` bytes). */
int nbd_export_ask(struct nbd_export *found, const struct nbd_library *library, struct nbd_handle *handle, char *words,
                   size_t room);

/* Whether what relied on an export as it was can go on with what it is now. Returns 0, or -1 as nbd_export_ask(). */
int nbd_export_compare(const struct nbd_export *before, const struct nbd_export *now, char *words, size_t room);

#endif
