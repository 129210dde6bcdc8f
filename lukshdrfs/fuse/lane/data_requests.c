/* READ, WRITE and FSYNC. See parts.h. */
#include "fuse/lane/parts.h"

#include <errno.h>
#include <fcntl.h>

void serve_read(struct worker *worker) {
    const struct request *request = &worker->request;
    const struct fuse_read_in *in = &request->head.read;
    struct lane *lane = worker->lane;
    ssize_t count = -EINVAL;
    if (in->size <= LARGEST_REQUEST) /* else it is more than INIT's answer grants */
        count = native_volume_read(lane->volume, &lane->host, request->data, in->size, in->offset);
    int error = count < 0 ? (int)-count : 0;
    transport_answer(lane->transport, request->head.header.unique, error, request->data, error ? 0 : (size_t)count);
}

void serve_write(struct worker *worker) {
    const struct request *request = &worker->request;
    const struct fuse_write_in *in = &request->head.write;
    struct lane *lane = worker->lane;
    int synchronous = (in->flags & O_DSYNC) != 0; /* O_SYNC contains it; the kernel leaves that to us */
    ssize_t count = native_volume_write(lane->volume, &lane->host, request->data, in->size, in->offset, synchronous);
    int error = count < 0 ? (int)-count : 0;
    if (!error && synchronous)
        flush_errors_note_synced(&lane->flush_errors, request);
    answers_written(&lane->answers, request->head.header.unique, is_direct_write(request), error, in->offset,
                    error ? in->size : (uint64_t)count);
}

/* The answer says that everything answered before is on the storage. */
void serve_fsync(struct worker *worker) {
    struct lane *lane = worker->lane;
    int error = flush_errors_sync(&lane->flush_errors, &worker->request);
    transport_answer(lane->transport, worker->request.head.header.unique, error, NULL, 0);
}
