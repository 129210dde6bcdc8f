/* Who has heard of which flush that failed.
 *
 * A failure is told to every handle that is open, once, as the kernel does with a file's (errseq_t). The payload tells
 * each failure once, and we are one: of two flushes at the same time only one may hear of what both should. So nobody says
 * that all is well while another flush is not done that began before. handles.py does the same for the handles that
 * Python serves. */
#ifndef LUKSHDRFS_FLUSH_ERRORS_H
#define LUKSHDRFS_FLUSH_ERRORS_H

#include <pthread.h>
#include <stdint.h>

#include "fuse/lane/request.h"
#include "volume/native_volume.h"

#define REMEMBERED_SYNCS 64

/* An open image, as pyfuse3 has numbered it. */
struct handle {
    struct handle *next;
    uint64_t number;
    unsigned heard; /* how many of `failures` it has been told */
    int cached;     /* it goes through the page cache */
};

struct flush_errors {
    struct native_volume *volume;
    const struct volume_host *host;

    pthread_mutex_t mutex; /* for all that follows */
    struct handle *handles;
    unsigned failures; /* flushes that have failed so far */
    int failure;       /* the last one's errno */
    struct flush *flushes; /* those under way, or whose outcome nobody has taken down yet */
    uint64_t begun;    /* flushes, so far */
    pthread_cond_t flushed;
    /* Successful synchronous writes after which the kernel sends an FSYNC on its own: it does so where the page cache is
     * used. At the place that the caller's number gives; a caller of 0 is none. */
    struct {
        uint64_t handle;
        uint32_t caller;
    } synced[REMEMBERED_SYNCS];
};

void flush_errors_init(struct flush_errors *errors, struct native_volume *volume, const struct volume_host *host);
void flush_errors_destroy(struct flush_errors *errors);

/* Takes over `handle`: from now on it hears of failures. */
void flush_errors_add(struct flush_errors *errors, struct handle *handle, uint64_t number, int cached);
void flush_errors_forget(struct flush_errors *errors, uint64_t number);

/* To be called before a synchronous write is answered that has succeeded. */
void flush_errors_note_synced(struct flush_errors *errors, const struct request *request);

/* Serves an FSYNC: returns 0 when everything that was answered before is on the storage, or the errno that the handle is
 * to hear. */
int flush_errors_sync(struct flush_errors *errors, const struct request *request);

#endif
