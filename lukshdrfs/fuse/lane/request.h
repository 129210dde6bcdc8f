/* A request of the kernel's. The protocol is that of include/uapi/linux/fuse.h. */
#ifndef LUKSHDRFS_REQUEST_H
#define LUKSHDRFS_REQUEST_H

#include <linux/fuse.h>
#include <stddef.h>
#include <stdint.h>

/* Newer than some distributions' headers. */
#ifndef FOPEN_PARALLEL_DIRECT_WRITES
#define FOPEN_PARALLEL_DIRECT_WRITES (1 << 6) /* 7.37 */
#endif
#ifndef FUSE_HANDLE_KILLPRIV_V2
#define FUSE_HANDLE_KILLPRIV_V2 (1 << 28) /* 7.33 */
#endif
#define DIRECT_IO_ALLOW_MMAP (1U << 4) /* flags2, 7.39: FUSE_DIRECT_IO_ALLOW_MMAP, bit 36 of all flags */

#define LARGEST_REQUEST ((size_t)1 << 20) /* bytes of data; what INIT's answer grants is cut to it */

/* The start of a request, up to the data of a WRITE. */
struct request_head {
    struct fuse_in_header header;
    union {
        struct fuse_read_in read;
        struct fuse_write_in write;
        struct fuse_fallocate_in fallocate;
        struct fuse_interrupt_in interrupt;
        struct fuse_open_in open;
        struct fuse_release_in release;
        struct fuse_fsync_in fsync;
        struct fuse_init_in init;
    };
};
#define WRITE_HEAD (sizeof(struct fuse_in_header) + sizeof(struct fuse_write_in))

struct request {
    struct request_head head;
    size_t size;    /* bytes of the whole message */
    uint8_t *data;  /* where a WRITE's data are and a READ's go; VOLUME_ROOM before and behind it is free */
    const uint8_t *message; /* the whole of it, as the kernel sent it */
};

/* Whether a write goes past the page cache: the kernel says of no other whose it is. */
static inline int is_direct_write(const struct request *request) {
    uint32_t flags = request->head.write.write_flags & (FUSE_WRITE_LOCKOWNER | FUSE_WRITE_CACHE);
    return request->head.header.opcode == FUSE_WRITE && flags == FUSE_WRITE_LOCKOWNER;
}

#endif
