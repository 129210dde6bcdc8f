/* See async_requests.h. */
#define _GNU_SOURCE
#include "fuse/lane/async_requests.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "threads/ready_memory.h"

int async_requests_init(struct async_requests *async, struct native_volume *volume, const struct volume_host *host,
                        const struct answers *answers, const atomic_int *locked) {
    *async = (struct async_requests){.volume = volume, .host = host, .answers = answers, .locked = locked};
    pthread_mutex_init(&async->mutex, NULL);
    if (!volume || !native_volume_can_start(volume))
        return 0;
    async->data = ready_memory(MAX_ASYNC_REQUESTS * LARGEST_ASYNC_REQUEST);
    if (!async->data)
        return ENOMEM;
    for (size_t i = 0; i < MAX_ASYNC_REQUESTS; i++) {
        async->requests[i] = (struct async_request){
            .next = async->free, .owner = async, .data = async->data + i * LARGEST_ASYNC_REQUEST};
        async->free = &async->requests[i];
    }
    return 0;
}

void async_requests_destroy(struct async_requests *async) {
    ready_memory_free(async->data, MAX_ASYNC_REQUESTS * LARGEST_ASYNC_REQUEST);
    pthread_mutex_destroy(&async->mutex);
}

/* `locked` is read and the request counted under one mutex. lane_lock() sets `locked` and reads the count under that mutex
 * afterwards: either it sees this request, or this request has seen `locked`. */
static struct async_request *claim(struct async_requests *async) {
    pthread_mutex_lock(&async->mutex);
    struct async_request *request = atomic_load(async->locked) ? NULL : async->free;
    if (request) {
        async->free = request->next;
        async->out++;
    }
    pthread_mutex_unlock(&async->mutex);
    return request;
}

static void give_back(struct async_requests *async, struct async_request *request) {
    pthread_mutex_lock(&async->mutex);
    request->next = async->free;
    async->free = request;
    async->out--;
    pthread_mutex_unlock(&async->mutex);
}

static void finished(struct volume_request *done, int error) {
    struct async_request *request = (struct async_request *)done;
    struct async_requests *async = request->owner;
    if (done->writing)
        answers_written(async->answers, request->unique, request->direct, error, done->offset, done->size);
    else
        transport_answer(async->answers->transport, request->unique, error, done->data, done->size);
    if (atomic_load(async->locked))
        explicit_bzero(request->data, LARGEST_ASYNC_REQUEST);
    give_back(async, request);
}

int async_requests_take(struct async_requests *async, const struct request *request) {
    int writing = request->head.header.opcode == FUSE_WRITE;
    uint64_t offset = writing ? request->head.write.offset : request->head.read.offset;
    size_t size = writing ? request->head.write.size : request->head.read.size;
    if (!async->data || size > LARGEST_ASYNC_REQUEST || (writing && request->head.write.flags & O_DSYNC))
        return 0;
    struct async_request *own = claim(async);
    if (!own)
        return 0;
    own->unique = request->head.header.unique;
    own->direct = is_direct_write(request);
    own->volume = (struct volume_request){.writing = writing,
                                          .data = own->data,
                                          .size = size,
                                          .offset = offset,
                                          .host = async->host,
                                          .finished = finished};
    if (writing)
        memcpy(own->data, request->data, size); /* native_volume_start() encrypts in place, and may refuse */
    if (native_volume_start(async->volume, &own->volume))
        return 1;
    give_back(async, own);
    return 0;
}

unsigned async_requests_out(struct async_requests *async) {
    pthread_mutex_lock(&async->mutex);
    unsigned out = async->out;
    pthread_mutex_unlock(&async->mutex);
    return out;
}

void async_requests_wipe(struct async_requests *async) {
    if (async->data)
        explicit_bzero(async->data, MAX_ASYNC_REQUESTS * LARGEST_ASYNC_REQUEST);
}
