/* See file_payload.h, and payload.h for what the functions promise. */
#define _GNU_SOURCE
#include "payload/file_payload.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/magic.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "payload/errno_of_disk.h"
#include "payload/file_writes.h"
#include "payload/payload.h"

struct file_payload {
    struct payload payload; /* first: it is what others see */
    int descriptor;
    int is_device; /* a block device has all its space already */
    struct file_writes *writes;
};

static struct file_payload *of(struct payload *payload) { return (struct file_payload *)payload; }

static int is_memory(int descriptor) {
    struct statfs storage;
    struct stat status;
    return fstatfs(descriptor, &storage) == 0 && (storage.f_type == TMPFS_MAGIC || storage.f_type == RAMFS_MAGIC) &&
           fstat(descriptor, &status) == 0 && S_ISREG(status.st_mode); /* /dev is a tmpfs, too */
}

static ssize_t read_cached(struct payload *payload, uint8_t *data, size_t size, uint64_t offset) {
    struct iovec part = {.iov_base = data, .iov_len = size};
    return preadv2(of(payload)->descriptor, &part, 1, (off_t)offset, RWF_NOWAIT); /* or a file system that cannot tell */
}

static int read_all(struct payload *payload, uint8_t *data, size_t size, uint64_t offset) {
    while (size) {
        ssize_t count = pread(of(payload)->descriptor, data, size, (off_t)offset);
        if (count < 0 && errno == EINTR)
            continue;
        if (count <= 0)
            return count ? errno_of_disk() : PAYLOAD_ENDS;
        data += count;
        size -= (size_t)count;
        offset += (uint64_t)count;
    }
    return 0;
}

static int allocate(struct payload *payload, uint64_t offset, uint64_t size) {
    if (of(payload)->is_device)
        return 0;
    return fallocate(of(payload)->descriptor, FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)size) ? errno : 0;
}

int file_payload_write(struct payload *payload, const uint8_t *data, size_t size, uint64_t offset, int synchronous) {
    return file_writes_write(of(payload)->writes, data, size, offset, synchronous);
}

int file_payload_flush(struct payload *payload, int asked) { return file_writes_flush(of(payload)->writes, asked); }

static const struct payload_operations operations = {
    .read_now = read_cached,
    .read = read_all,
    .write = file_payload_write,
    .flush = file_payload_flush,
    .allocate = allocate,
};

struct payload *file_payload_new(int descriptor, const int *others, size_t count, int through) {
    struct stat status;
    struct file_payload *file = calloc(1, sizeof *file);
    struct file_writes *writes = file ? file_writes_new(descriptor, others, count, through, is_memory(descriptor)) : NULL;
    if (!writes) {
        free(file);
        return NULL;
    }
    *file = (struct file_payload){
        .payload = {.operations = &operations, .never_blocks = is_memory(descriptor)},
        .descriptor = descriptor,
        .is_device = fstat(descriptor, &status) == 0 && S_ISBLK(status.st_mode),
        .writes = writes,
    };
    return &file->payload;
}

void file_payload_free(struct payload *payload) {
    file_writes_free(of(payload)->writes);
    free(of(payload));
}
