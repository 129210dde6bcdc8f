/* What a payload is to C code: bytes at offsets, used by any number of threads at a time. It is what base.py's Payload is
 * to Python. */
#ifndef LUKSHDRFS_PAYLOAD_H
#define LUKSHDRFS_PAYLOAD_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* What `read` returns for a payload that ends before the range does: no errno has this number. */
#define PAYLOAD_ENDS (1 << 16)

struct payload {
    const struct payload_operations *operations;
    int never_blocks; /* it is memory: nobody need be told that a thread is about to wait */
};

/* A read or write that no thread waits for. `data` stays where it is until `finished` is called, once, by any thread, with
 * 0 or an errno; what is called there must not wait. */
struct payload_request {
    int writing;
    uint8_t *data;
    size_t size;     /* bytes */
    uint64_t offset; /* in bytes */
    void (*finished)(struct payload_request *request, int error);
};

/* Sizes and offsets are in bytes. Each returns 0 or an errno unless it says otherwise. */
struct payload_operations {
    /* Reads what needs no waiting, and returns how many bytes that were: -1 if there are none. May be NULL. */
    ssize_t (*read_now)(struct payload *payload, uint8_t *data, size_t size, uint64_t offset);
    int (*read)(struct payload *payload, uint8_t *data, size_t size, uint64_t offset);
    /* With `synchronous`, it is on the storage on return; what is returned is this write's own outcome. */
    int (*write)(struct payload *payload, const uint8_t *data, size_t size, uint64_t offset, int synchronous);
    /* With `asked`, also fails for what others' synchronous writes and flushes have lost since the last such call. */
    int (*flush)(struct payload *payload, int asked);
    /* Sets space aside, and changes no byte. EINTR if a signal came before it was done. May be NULL: nobody promises
     * space. */
    int (*allocate)(struct payload *payload, uint64_t offset, uint64_t size);
    /* Begins a request and waits for nothing. Returns 0 if that cannot be: then the caller uses `read` or `write`. May be
     * NULL. */
    int (*start)(struct payload *payload, struct payload_request *request);
};

#endif
