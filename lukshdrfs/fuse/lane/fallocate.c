/* FALLOCATE. See parts.h. */
#define _GNU_SOURCE
#include "fuse/lane/parts.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>

/* Returns why a range cannot be served, 0 if it can: an errno. */
static int refusal(const struct lane *lane, const struct fuse_fallocate_in *in) {
    uint64_t size = native_volume_size(lane->volume);
    if (native_volume_is_read_only(lane->volume))
        return EROFS;
    if (in->mode & ~(uint32_t)(FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE))
        return EOPNOTSUPP; /* PUNCH_HOLE promises to free space, and the payload frees none */
    if (!(in->mode & FALLOC_FL_KEEP_SIZE) && (in->offset > size || in->length > size - in->offset))
        return ENOSPC; /* the image would have to grow */
    return 0;
}

/* It may take minutes even if the payload never blocks, so the readers are told here. Returns 0 or an errno, and sets how many bytes are zeros now. */
static int allocate(struct worker *worker, uint64_t *zeroed) {
    const struct fuse_fallocate_in *in = &worker->request.head.fallocate;
    struct lane *lane = worker->lane;
    const atomic_int *cancelled = &worker->interruptible.interrupted;
    interrupts_begin(&lane->interrupts, &worker->interruptible, worker->request.head.header.unique);
    int token = readers_before_wait(&lane->readers), error;
    if (in->mode & FALLOC_FL_ZERO_RANGE)
        error = native_volume_clear(lane->volume, &lane->host, in->offset, in->length, worker->request.data,
                                    LARGEST_REQUEST, cancelled, zeroed);
    else
        error = native_volume_allocate(lane->volume, &lane->host, in->offset, in->length, cancelled);
    readers_after_wait(&lane->readers, token);
    interrupts_end(&lane->interrupts, &worker->interruptible);
    return error;
}

void serve_fallocate(struct worker *worker) {
    const struct request_head *head = &worker->request.head;
    uint64_t zeroed = 0;
    int error = refusal(worker->lane, &head->fallocate);
    if (!error)
        error = allocate(worker, &zeroed);
    answers_allocated(&worker->lane->answers, head->header.unique, head->header.nodeid, error, head->fallocate.offset,
                      zeroed);
}
