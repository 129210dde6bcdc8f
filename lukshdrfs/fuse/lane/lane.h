/* The fast lane: threads that serve READ, WRITE, FSYNC and FALLOCATE of the image straight from /dev/fuse.
 *
 * Every other request goes through a socket to libfuse, as it is, and libfuse's answers come back the same way.
 * ARCHITECTURE.md, "The fast lane", has the life of a request and the invariants. */
#ifndef LUKSHDRFS_LANE_H
#define LUKSHDRFS_LANE_H

#include <stddef.h>
#include <stdint.h>

struct native_volume;

struct lane_config {
    int device;  /* /dev/fuse, blocking */
    int libfuse; /* our end of the socket pair whose other end libfuse takes for /dev/fuse */
    int events;  /* a socket: a message is a struct lane_event; its end says that the last thread has ended */
    int confined;             /* the threads may use what is open, and nothing else */
    unsigned workers;         /* data requests that are served at the same time */
    uint64_t size;            /* the image's, in bytes */
    uint32_t largest_request; /* bytes of data, at most lane_largest_request(): what INIT's answer grants is cut to it */
    uint32_t page_size;       /* the kernel's, in bytes: it counts requests in pages */
    struct native_volume *volume; /* stays the caller's; NULL: libfuse serves all requests */
};

/* Beside those of the volume, enum volume_trouble. */
enum lane_trouble {
    LANE_DEVICE = 100,   /* /dev/fuse failed; the lane ends */
    LANE_TOO_LONG = 101, /* libfuse's answer is longer than any that is known */
};

/* A request that was answered with an error, for the log. */
struct lane_event {
    uint64_t offset; /* bytes, on the payload */
    int32_t trouble; /* enum volume_trouble or lane_trouble */
    int32_t error;   /* errno */
};

struct lane;

/* Returns how many bytes of data one request may have: what buffers are made for. */
uint32_t lane_largest_request(void);

/* Starts the threads. Returns NULL and sets *error to an errno if that fails; then nothing has been read, but the
 * socket to libfuse is shut down. */
struct lane *lane_start(const struct lane_config *config, int *error);

/* From now on all data requests are answered with EIO. Returns 1 when those that were begun are answered and what was in
 * the buffers is wiped: nothing uses ciphers and payload any more. 0 if that takes longer than so many milliseconds. */
int lane_lock(struct lane *lane, unsigned patience_ms);

/* Has the kernel drop what it has cached of the image. Returns 1 when it has, 0 if that takes longer than so many
 * milliseconds: a request for one of the pages is not being answered. */
int lane_forget_cached(struct lane *lane, unsigned patience_ms);

/* Returns how many data requests there have been so far. */
uint64_t lane_requests(const struct lane *lane);

/* Returns 1 when every request that was begun is answered and all threads have ended, whether the file system is still
 * mounted or not; frees the lane. All descriptors and the volume stay the caller's. 0 if a thread hangs at the payload for
 * longer than so many milliseconds: then nothing may be freed or closed, and the process is to end. */
int lane_stop(struct lane *lane, unsigned patience_ms);

#endif
