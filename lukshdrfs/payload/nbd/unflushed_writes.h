/* Writes that a server has acknowledged, and not flushed to its storage yet.
 *
 * A server that crashes may forget them; so they are kept until a flush has succeeded, and written again to the server
 * that comes back. What is kept is ciphertext, in a ring that is mapped twice, so that all of a record lies in one piece. */
#ifndef LUKSHDRFS_UNFLUSHED_WRITES_H
#define LUKSHDRFS_UNFLUSHED_WRITES_H

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>

struct unflushed_write {
    uint64_t offset, size; /* bytes */
    uint8_t data[];
};

struct unflushed_writes {
    pthread_mutex_t mutex;
    int memory;
    uint8_t *ring;
    size_t capacity;
    uint64_t start, end; /* positions, which go on from turn to turn */
    size_t reserved;     /* bytes, of writes that are under way */
};

/* `capacity` is in bytes, a multiple of a page. Returns 0 or an errno. */
int unflushed_writes_init(struct unflushed_writes *writes, size_t capacity);
void unflushed_writes_destroy(struct unflushed_writes *writes);

/* Makes room for a write, before it is sent. Returns whether there is any; if not, a flush is needed first. */
int unflushed_writes_reserve(struct unflushed_writes *writes, size_t size);
/* Gives it up. */
void unflushed_writes_cancel(struct unflushed_writes *writes, size_t size);

/* Keeps a write that is acknowledged, in the room that was made for it. Whoever wrote it must still keep others from its
 * place: the order of two writes to one place is the order in which they are kept. */
void unflushed_writes_keep(struct unflushed_writes *writes, const uint8_t *data, size_t size, uint64_t offset);

/* What is kept now, and to forget that once a flush that began later is done. */
uint64_t unflushed_writes_mark(struct unflushed_writes *writes);
void unflushed_writes_forget(struct unflushed_writes *writes, uint64_t mark);

/* The write that is kept at a position, which then is the next one's; NULL at the end. Begin with `start`; nobody may keep
 * or forget anything meanwhile. */
struct unflushed_write *unflushed_writes_next(struct unflushed_writes *writes, uint64_t *position);

/* Bytes that are kept. */
size_t unflushed_writes_size(struct unflushed_writes *writes);

#endif
