/* The unlocked volume in C: plaintext at any offset. It does what volume.py's Volume does, with the same ciphers and the
 * same locks, and the two are used side by side. */
#ifndef LUKSHDRFS_NATIVE_VOLUME_H
#define LUKSHDRFS_NATIVE_VOLUME_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "payload/payload.h"
#include "volume/extent_map.h"
#include "volume/sector_locks.h"

/* Bytes that must be free to write before and behind the data of a read or write: there the sectors come to lie that the
 * range touches only in part, so that everything is done in place. */
#define VOLUME_ROOM 4096

enum volume_trouble {
    VOLUME_READING = 1,
    VOLUME_WRITING,
    VOLUME_FLUSHING,
    VOLUME_ALLOCATING,
    VOLUME_CUT_OFF, /* the payload is shorter than it was */
    VOLUME_CIPHER,  /* the crypto library failed */
};

/* Who calls the volume: it is told before a thread may wait, and of failures. */
struct volume_host {
    void *self;
    /* Called before and after whatever may wait for the payload; what the one returns, the other is given. */
    int (*before_wait)(void *self);
    void (*after_wait)(void *self, int token);
    /* Told of each failure (enum volume_trouble), with its place on the payload and its errno, for the log. */
    void (*report)(void *self, int trouble, uint64_t payload_offset, int error);
};

/* Returns a host whose functions do nothing. */
const struct volume_host *volume_plain_host(void);

struct native_volume;

/* The payload, the locks and the extents' ciphers stay the caller's, who keeps them as long as the volume. Returns NULL
 * where there is no memory. */
struct native_volume *native_volume_new(struct payload *payload, struct sector_locks *locks, int read_only,
                                        const struct extent *extents, const uint64_t *ends, size_t count);
void native_volume_free(struct native_volume *volume);

/* Returns the volume's size, in bytes. */
uint64_t native_volume_size(const struct native_volume *volume);

int native_volume_is_read_only(const struct native_volume *volume);

/* Says where the volume ends now. The payload must reach that far. */
void native_volume_set_size(struct native_volume *volume, uint64_t size);

/* Moves the border behind extent `number`, while all between its old place and the new one is held alone. */
void native_volume_move_border(struct native_volume *volume, size_t number, uint64_t to);

/* Each returns how many bytes it did, fewer at the volume's end, or an errno, negated. A write that begins at the end is
 * refused with ENOSPC, as by a block device; one that reaches past the end is cut off there. */
ssize_t native_volume_read(struct native_volume *volume, const struct volume_host *host, uint8_t *data, size_t size,
                           uint64_t offset);
/* Changes `data`. With `synchronous`, they are on the storage on return, and an error is of this write alone. */
ssize_t native_volume_write(struct native_volume *volume, const struct volume_host *host, uint8_t *data, size_t size,
                            uint64_t offset, int synchronous);

/* Returns 0 when everything written is on the storage, or an errno. `asked` as in payload.h. */
int native_volume_flush(struct native_volume *volume, const struct volume_host *host, int asked);

/* Sets space aside for a range, and changes no byte. Returns 0 or an errno: EINTR where `cancelled` was set. */
int native_volume_allocate(struct native_volume *volume, const struct volume_host *host, uint64_t offset, uint64_t size,
                           const atomic_int *cancelled);

/* Writes zeros, by steps of at most `step` bytes, for which there is `room`, with VOLUME_ROOM before and behind it. Returns
 * 0 or an errno, EINTR where `cancelled` was set; `*cleared` is how many bytes are zero now. */
int native_volume_clear(struct native_volume *volume, const struct volume_host *host, uint64_t offset, uint64_t size,
                        uint8_t *room, size_t step, const atomic_int *cancelled, uint64_t *cleared);

/* A read or write that no thread waits for. What is set by whoever asks: */
struct volume_request {
    int writing;
    uint8_t *data;
    size_t size;     /* bytes */
    uint64_t offset; /* bytes on the volume */
    const struct volume_host *host;
    /* Called once, by a thread of the payload's, with 0 or an errno. What is called must not wait. */
    void (*finished)(struct volume_request *request, int error);

    /* of native_volume.c: */
    struct native_volume *volume;
    struct payload_request payload;
    struct piece piece;
    struct sector_range range;
};

/* Whether there is a payload that serves requests for which no thread waits. */
int native_volume_can_start(const struct native_volume *volume);

/* Begins a request and waits for nothing. Returns 0 if that cannot be, and then it is to be done by the functions above:
 * the range is no whole sectors of one extent, or is in use, or the payload cannot. Changes `data` in any case. */
int native_volume_start(struct native_volume *volume, struct volume_request *request);

#endif
