/* See native_volume.h, and ARCHITECTURE.md for the order of locks. */
#define _GNU_SOURCE
#include "volume/native_volume.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "cipher/sector_cipher.h"

struct native_volume {
    struct payload *payload;
    struct sector_locks *locks;
    struct extent_map *map;
    int read_only;
};

struct native_volume *native_volume_new(struct payload *payload, struct sector_locks *locks, int read_only,
                                        const struct extent *extents, const uint64_t *ends, size_t count) {
    struct native_volume *volume = calloc(1, sizeof *volume);
    struct extent_map *map = volume ? extent_map_new(extents, ends, count) : NULL;
    if (!map) {
        free(volume);
        return NULL;
    }
    *volume = (struct native_volume){.payload = payload, .locks = locks, .map = map, .read_only = read_only};
    return volume;
}

void native_volume_free(struct native_volume *volume) {
    extent_map_free(volume->map);
    free(volume);
}

uint64_t native_volume_size(const struct native_volume *volume) { return extent_map_end(volume->map); }

void native_volume_set_size(struct native_volume *volume, uint64_t size) {
    extent_map_move_border(volume->map, extent_map_last(volume->map), size);
}

void native_volume_move_border(struct native_volume *volume, size_t number, uint64_t to) {
    extent_map_move_border(volume->map, number, to);
}

int native_volume_is_read_only(const struct native_volume *volume) { return volume->read_only; }

static int wait_as_it_is(void *self) {
    (void)self;
    return 0;
}

static void go_on(void *self, int token) {
    (void)self;
    (void)token;
}

static void tell_nobody(void *self, int trouble, uint64_t payload_offset, int error) {
    (void)self;
    (void)trouble;
    (void)payload_offset;
    (void)error;
}

const struct volume_host *volume_plain_host(void) {
    static const struct volume_host plain = {
        .before_wait = wait_as_it_is, .after_wait = go_on, .report = tell_nobody};
    return &plain;
}

/* Returns how much of a range is before the volume's end. */
static uint64_t clipped(const struct native_volume *volume, uint64_t offset, uint64_t size) {
    uint64_t end = extent_map_end(volume->map);
    if (offset >= end)
        return 0;
    return size < end - offset ? size : end - offset;
}

/* --- ciphertext ------------------------------------------------------------------------------------------------------ */

/* Each function from here to write_range() returns 0 or an errno, which it has reported. */

static int read_waiting(struct native_volume *volume, const struct volume_host *host, uint8_t *data, size_t size,
                        uint64_t at) {
    int token = host->before_wait(host->self);
    int error = volume->payload->operations->read(volume->payload, data, size, at);
    host->after_wait(host->self, token);
    return error;
}

/* Reads ciphertext. What is cached is read before anybody is told that this thread may wait. */
static int read_payload(struct native_volume *volume, const struct volume_host *host, uint8_t *data, size_t size,
                        uint64_t at) {
    const struct payload_operations *operations = volume->payload->operations;
    int error = 0;
    if (volume->payload->never_blocks)
        error = operations->read(volume->payload, data, size, at);
    else {
        ssize_t have = operations->read_now ? operations->read_now(volume->payload, data, size, at) : 0;
        if (have < 0)
            have = 0;
        if ((size_t)have < size)
            error = read_waiting(volume, host, data + have, size - (size_t)have, at + (uint64_t)have);
    }
    if (error)
        host->report(host->self, error == PAYLOAD_ENDS ? VOLUME_CUT_OFF : VOLUME_READING, at,
                     error == PAYLOAD_ENDS ? EIO : error);
    return error == PAYLOAD_ENDS ? EIO : error;
}

static int write_payload(struct native_volume *volume, const struct volume_host *host, const uint8_t *data, size_t size,
                         uint64_t at, int synchronous) {
    int blocks = !volume->payload->never_blocks;
    int token = blocks ? host->before_wait(host->self) : 0;
    int error = volume->payload->operations->write(volume->payload, data, size, at, synchronous);
    if (error)
        host->report(host->self, VOLUME_WRITING, at, error);
    if (blocks)
        host->after_wait(host->self, token);
    return error;
}

/* --- sectors ----------------------------------------------------------------------------------------------------------- */

/* Encrypts or decrypts whole sectors in place, of which the first one is at `offset` of the volume. */
static int crypt_sectors(const struct volume_host *host, const struct extent *extent, int encrypt, uint8_t *sectors,
                         size_t size, uint64_t offset) {
    if (!extent->cipher)
        return 0;
    int status = sector_cipher_crypt(extent->cipher, encrypt, sectors, size, (offset >> 9) + extent->iv_shift);
    if (status == CIPHER_OK)
        return 0;
    int error = status == CIPHER_NO_MEMORY ? ENOMEM : EIO;
    host->report(host->self, VOLUME_CIPHER, offset + extent->payload_shift, error);
    return error;
}

/* Puts the plaintext of a sector of which only a part is written around that part: bytes `from` to `to` of the sector at
 * byte `at` of the piece. */
static int fetch_around(struct native_volume *volume, const struct volume_host *host, const struct piece *piece,
                        uint8_t *sectors, size_t at, size_t from, size_t to) {
    uint8_t sector[VOLUME_ROOM];
    const struct extent *extent = piece->extent;
    size_t size = extent->sector_size;
    uint64_t offset = piece->offset + at;
    int error = read_payload(volume, host, sector, size, offset + extent->payload_shift);
    if (!error)
        error = crypt_sectors(host, extent, 0, sector, size, offset);
    if (!error) {
        memcpy(sectors + at, sector, from);
        memcpy(sectors + at + to, sector + to, size - to);
    }
    explicit_bzero(sector, sizeof sector);
    return error;
}

static int fetch_partial_sectors(struct native_volume *volume, const struct volume_host *host, const struct piece *piece,
                                 uint8_t *sectors) {
    size_t unit = piece->extent->sector_size, end = piece->skip + piece->size, last = piece->covered - unit;
    if (piece->skip || end < unit) { /* the range may begin at a sector's start and end within that sector */
        int error = fetch_around(volume, host, piece, sectors, 0, piece->skip, end < unit ? end : unit);
        if (error || last == 0)
            return error;
    }
    return end < piece->covered ? fetch_around(volume, host, piece, sectors, last, 0, end - last) : 0;
}

/* --- ranges ------------------------------------------------------------------------------------------------------------ */

/* Holds the sectors that a range touches. Which extents they are in is not looked up before: while this thread waits, a
 * border may move. */
static void hold(struct native_volume *volume, const struct volume_host *host, struct sector_range *range,
                 uint64_t offset, uint64_t end, int exclusive) {
    extent_map_widen(volume->map, &offset, &end);
    if (sector_locks_try(volume->locks, range, offset, end, exclusive))
        return;
    int token = host->before_wait(host->self); /* whoever holds them may be waiting for the payload */
    sector_locks_hold(volume->locks, range, offset, end, exclusive);
    host->after_wait(host->self, token);
}

/* The sectors come to lie around `data`, with the plaintext that was asked for at `data` itself. Only the first and the
 * last sector of a range can be partial, so the sectors of one piece never reach into another one's data. */
static int read_range(struct native_volume *volume, const struct volume_host *host, uint8_t *data, uint64_t offset,
                      uint64_t end) {
    int error = 0;
    while (offset < end && !error) {
        struct piece piece = extent_map_piece(volume->map, offset, end);
        uint8_t *sectors = data - piece.skip;
        if (!(error = piece.extent->error))
            error = read_payload(volume, host, sectors, piece.covered, piece.offset + piece.extent->payload_shift);
        if (!error)
            error = crypt_sectors(host, piece.extent, 0, sectors, piece.covered, piece.offset);
        data += piece.size;
        offset += piece.size;
    }
    return error;
}

static int write_range(struct native_volume *volume, const struct volume_host *host, uint8_t *data, uint64_t offset,
                       uint64_t end, int synchronous) {
    int error = 0;
    while (offset < end && !error) {
        struct piece piece = extent_map_piece(volume->map, offset, end);
        uint8_t *sectors = data - piece.skip;
        if (!(error = piece.extent->error))
            error = fetch_partial_sectors(volume, host, &piece, sectors);
        if (!error)
            error = crypt_sectors(host, piece.extent, 1, sectors, piece.covered, piece.offset);
        if (!error)
            error = write_payload(volume, host, sectors, piece.covered, piece.offset + piece.extent->payload_shift,
                                  synchronous);
        data += piece.size;
        offset += piece.size;
    }
    return error;
}

ssize_t native_volume_read(struct native_volume *volume, const struct volume_host *host, uint8_t *data, size_t size,
                           uint64_t offset) {
    size_t count = (size_t)clipped(volume, offset, size);
    if (!count)
        return 0;
    struct sector_range range;
    hold(volume, host, &range, offset, offset + count, 0);
    int error = read_range(volume, host, data, offset, offset + count);
    sector_locks_release(volume->locks, &range);
    return error ? -error : (ssize_t)count;
}

ssize_t native_volume_write(struct native_volume *volume, const struct volume_host *host, uint8_t *data, size_t size,
                            uint64_t offset, int synchronous) {
    size_t count = (size_t)clipped(volume, offset, size);
    if (volume->read_only)
        return -EROFS;
    if (!count)
        return size ? -ENOSPC : 0;
    struct sector_range range;
    hold(volume, host, &range, offset, offset + count, 1);
    int error = write_range(volume, host, data, offset, offset + count, synchronous);
    sector_locks_release(volume->locks, &range);
    return error ? -error : (ssize_t)count;
}

int native_volume_flush(struct native_volume *volume, const struct volume_host *host, int asked) {
    if (volume->read_only)
        return 0;
    int token = host->before_wait(host->self);
    int error = volume->payload->operations->flush(volume->payload, asked);
    host->after_wait(host->self, token);
    if (error)
        host->report(host->self, VOLUME_FLUSHING, 0, error);
    return error;
}

int native_volume_allocate(struct native_volume *volume, const struct volume_host *host, uint64_t offset, uint64_t size,
                           const atomic_int *cancelled) {
    const struct payload_operations *operations = volume->payload->operations;
    uint64_t end = offset + clipped(volume, offset, size);
    if (!operations->allocate)
        return EOPNOTSUPP; /* nothing there promises space */
    if (offset >= end)
        return 0;
    struct sector_range range;
    hold(volume, host, &range, offset, end, 0);
    int error = 0;
    while (offset < end && !error) {
        struct piece piece = extent_map_piece(volume->map, offset, end);
        uint64_t at = piece.offset + piece.extent->payload_shift;
        if ((error = piece.extent->error))
            break;
        do
            error = operations->allocate(volume->payload, at, piece.covered);
        while (error == EINTR && !atomic_load(cancelled));
        if (error && error != EINTR)
            host->report(host->self, VOLUME_ALLOCATING, at, error);
        offset += piece.size;
    }
    sector_locks_release(volume->locks, &range);
    return error;
}

int native_volume_clear(struct native_volume *volume, const struct volume_host *host, uint64_t offset, uint64_t size,
                        uint8_t *room, size_t step, const atomic_int *cancelled, uint64_t *cleared) {
    size = clipped(volume, offset, size);
    for (*cleared = 0; *cleared < size;) {
        /* a step ends where the next one can begin with a whole sector */
        size_t now = step - (size_t)((offset + *cleared) % VOLUME_ROOM);
        if (now > size - *cleared)
            now = (size_t)(size - *cleared);
        if (atomic_load(cancelled))
            return EINTR;
        memset(room, 0, now);
        ssize_t done = native_volume_write(volume, host, room, now, offset + *cleared, 0);
        if (done < 0)
            return (int)-done;
        *cleared += (uint64_t)done;
    }
    return 0;
}

/* --- requests that no thread waits for --------------------------------------------------------------------------------- */

int native_volume_can_start(const struct native_volume *volume) { return volume->payload->operations->start != NULL; }

static void payload_finished(struct payload_request *finished, int error) {
    struct volume_request *request =
        (struct volume_request *)((char *)finished - offsetof(struct volume_request, payload));
    const struct piece *piece = &request->piece;
    const struct volume_host *host = request->host;
    if (error)
        host->report(host->self, request->writing ? VOLUME_WRITING : VOLUME_READING,
                     piece->offset + piece->extent->payload_shift, error);
    else if (!request->writing)
        error = crypt_sectors(host, piece->extent, 0, request->data, piece->covered, piece->offset);
    sector_locks_release(request->volume->locks, &request->range);
    request->finished(request, error);
}

/* Only while the range is held: what lies in one extent now may lie in two when a border has moved. */
static int start_held(struct native_volume *volume, struct volume_request *request) {
    const struct piece piece = extent_map_piece(volume->map, request->offset, request->offset + request->size);
    if (piece.size != request->size || piece.covered != request->size || piece.extent->error)
        return 0;
    if (request->writing &&
        crypt_sectors(request->host, piece.extent, 1, request->data, piece.covered, piece.offset) != 0)
        return 0;
    request->volume = volume;
    request->piece = piece;
    request->payload = (struct payload_request){.writing = request->writing,
                                                .data = request->data,
                                                .size = piece.covered,
                                                .offset = piece.offset + piece.extent->payload_shift,
                                                .finished = payload_finished};
    return volume->payload->operations->start(volume->payload, &request->payload);
}

int native_volume_start(struct native_volume *volume, struct volume_request *request) {
    uint64_t offset = request->offset, end = offset + request->size;
    if (!request->size || clipped(volume, offset, request->size) != request->size ||
        (request->writing && volume->read_only))
        return 0;
    extent_map_widen(volume->map, &offset, &end);
    if (!sector_locks_try(volume->locks, &request->range, offset, end, request->writing))
        return 0;
    if (start_held(volume, request))
        return 1;
    sector_locks_release(volume->locks, &request->range);
    return 0;
}
