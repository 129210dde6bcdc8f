/* See file_writes.h. */
#define _GNU_SOURCE
#include "payload/file_writes.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#include "payload/errno_of_disk.h"
#include "threads/fair_lock.h"

/* Bytes written by one call that is not synchronous. The page cache keeps what one call writes in folios of up to that
 * size, and ext4 goes through all blocks of a folio at each small write to it: after writes of 1 MiB, random ones took
 * three times as long. Sequential writes lose a tenth. */
#define LARGEST_WRITE ((size_t)1 << 16)

/* How often a write is tried alone. Others, which are not synchronous, may fail meanwhile by the kernel's own writing. */
#define ATTEMPTS 3

struct file_writes {
    int descriptor;
    int through;
    size_t piece;            /* bytes written by one call */
    pthread_rwlock_t others; /* held alone by a synchronous write that no flush and no other one may come between */
    atomic_int lost;         /* the errno of a synchronous write that nobody has been told of by a flush */
    pthread_mutex_t mutex;   /* for all that follows */
    pthread_cond_t given_back;
    size_t count, left; /* descriptors, and how many of them nobody has: the first ones */
    int descriptors[];
};

struct file_writes *file_writes_new(int descriptor, const int *others, size_t count, int through,
                                    int in_memory) {
    struct file_writes *writes = calloc(1, sizeof *writes + count * sizeof writes->descriptors[0]);
    if (!writes)
        return NULL;
    *writes = (struct file_writes){.descriptor = descriptor, .through = through, .count = count, .left = count,
                                   .piece = in_memory ? SIZE_MAX : LARGEST_WRITE};
    for (size_t i = 0; i < count; i++)
        writes->descriptors[i] = others[i];
    fair_lock_init(&writes->others);
    pthread_mutex_init(&writes->mutex, NULL);
    pthread_cond_init(&writes->given_back, NULL);
    return writes;
}

void file_writes_free(struct file_writes *writes) {
    for (size_t i = 0; i < writes->count; i++)
        close(writes->descriptors[i]);
    pthread_rwlock_destroy(&writes->others);
    pthread_mutex_destroy(&writes->mutex);
    pthread_cond_destroy(&writes->given_back);
    free(writes);
}

static int sync_all(int descriptor) { return fdatasync(descriptor) == 0 ? 0 : errno_of_disk(); }

/* Writes all of it, by calls of at most `piece` bytes. Returns 0 or an errno. */
static int put(int descriptor, const uint8_t *data, size_t size, uint64_t offset, size_t piece, int flags) {
    while (size) {
        struct iovec part = {.iov_base = (void *)(uintptr_t)data, .iov_len = size < piece ? size : piece};
        ssize_t count = pwritev2(descriptor, &part, 1, (off_t)offset, flags);
        if (count < 0 && errno == EINTR)
            continue;
        if (count <= 0)
            return count ? errno_of_disk() : EIO;
        data += count;
        size -= (size_t)count;
        offset += (uint64_t)count;
    }
    return 0;
}

/* In one call, for each waits for the storage. */
static int put_through(int descriptor, const uint8_t *data, size_t size, uint64_t offset) {
    int error = put(descriptor, data, size, offset, SIZE_MAX, RWF_DSYNC);
    if (error != EOPNOTSUPP) /* a file system that knows no flags */
        return error;
    error = put(descriptor, data, size, offset, SIZE_MAX, 0);
    return error ? error : sync_all(descriptor);
}

/* --- alone ------------------------------------------------------------------------------------------------------------ */

/* Has the idle descriptors hear of failures up to now: whoever takes one next shall hear of his own. */
static void have_heard(const struct file_writes *writes) {
    for (size_t i = 0; i < writes->count; i++)
        (void)sync_file_range(writes->descriptors[i], 0, 1, SYNC_FILE_RANGE_WAIT_BEFORE);
}

/* No flush and no other synchronous write is under way. What is heard before it is written is of others; if those are not
 * synchronous, they hear of it by the next flush. What is refused at once is not lost: nothing was taken. */
static int write_alone(struct file_writes *writes, const uint8_t *data, size_t size, uint64_t offset) {
    int error = 0;
    for (int attempt = 0; attempt < (writes->through ? 1 : ATTEMPTS); attempt++) {
        int before = sync_all(writes->descriptor);
        if (before && !writes->through)
            atomic_store(&writes->lost, before);
        error = put(writes->descriptor, data, size, offset, SIZE_MAX, 0);
        if (error)
            break;
        error = put_through(writes->descriptor, data, size, offset);
        if (!error)
            break;
        atomic_store(&writes->lost, error);
    }
    have_heard(writes);
    return error;
}

static int take(struct file_writes *writes) {
    pthread_mutex_lock(&writes->mutex);
    while (!writes->left)
        pthread_cond_wait(&writes->given_back, &writes->mutex);
    int descriptor = writes->descriptors[--writes->left];
    pthread_mutex_unlock(&writes->mutex);
    return descriptor;
}

static void give_back(struct file_writes *writes, int descriptor) {
    pthread_mutex_lock(&writes->mutex);
    writes->descriptors[writes->left++] = descriptor;
    pthread_cond_signal(&writes->given_back);
    pthread_mutex_unlock(&writes->mutex);
}

static int write_synchronously(struct file_writes *writes, const uint8_t *data, size_t size, uint64_t offset) {
    if (writes->count) {
        pthread_rwlock_rdlock(&writes->others);
        int descriptor = take(writes);
        int error = put_through(descriptor, data, size, offset);
        give_back(writes, descriptor);
        pthread_rwlock_unlock(&writes->others);
        if (!error)
            return 0;
    }
    pthread_rwlock_wrlock(&writes->others);
    int error = write_alone(writes, data, size, offset);
    pthread_rwlock_unlock(&writes->others);
    return error;
}

int file_writes_write(struct file_writes *writes, const uint8_t *data, size_t size, uint64_t offset, int synchronous) {
    if (synchronous || writes->through)
        return write_synchronously(writes, data, size, offset);
    return put(writes->descriptor, data, size, offset, writes->piece, 0);
}

int file_writes_flush(struct file_writes *writes, int asked) {
    pthread_rwlock_rdlock(&writes->others);
    int error = sync_all(writes->descriptor);
    int lost = asked ? atomic_exchange(&writes->lost, 0) : 0;
    if (error && !asked)
        atomic_store(&writes->lost, error); /* the kernel tells it once, and who asks for a flush has to hear it */
    pthread_rwlock_unlock(&writes->others);
    return error ? error : lost;
}
