/* Requests that no thread waits for: a payload over the network serves many at a time. */
#ifndef LUKSHDRFS_ASYNC_REQUESTS_H
#define LUKSHDRFS_ASYNC_REQUESTS_H

#include <pthread.h>
#include <stdatomic.h>

#include "fuse/lane/answers.h"
#include "volume/native_volume.h"

#define MAX_ASYNC_REQUESTS 64
#define LARGEST_ASYNC_REQUEST ((size_t)1 << 16) /* bytes */

struct async_requests;

struct async_request {
    struct volume_request volume; /* first: the volume gives it back */
    struct async_request *next;   /* among those that are free */
    struct async_requests *owner;
    uint8_t *data;
    uint64_t unique;
    int direct;
};

struct async_requests {
    struct native_volume *volume;
    const struct volume_host *host;
    const struct answers *answers;
    const atomic_int *locked;
    uint8_t *data; /* room for all of them; NULL: the payload serves no such requests */

    pthread_mutex_t mutex; /* for all that follows */
    struct async_request *free;
    unsigned out;
    struct async_request requests[MAX_ASYNC_REQUESTS];
};

/* Once `*locked` is set, no request is taken any more. Returns 0 or an errno. */
int async_requests_init(struct async_requests *async, struct native_volume *volume, const struct volume_host *host,
                        const struct answers *answers, const atomic_int *locked);
void async_requests_destroy(struct async_requests *async);

/* Takes a READ or WRITE, and waits for nothing. Returns 0 if it cannot: then a thread is to serve it. */
int async_requests_take(struct async_requests *async, const struct request *request);

/* Returns how many are under way. */
unsigned async_requests_out(struct async_requests *async);

/* Wipes their data, when none is under way any more. */
void async_requests_wipe(struct async_requests *async);

#endif
