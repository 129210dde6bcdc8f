/* See relay.h. */
#define _GNU_SOURCE
#include "fuse/lane/relay.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "fuse/lane/lane.h"
#include "threads/confinement.h"
#include "threads/ready_memory.h"

#define STACK_SIZE ((size_t)1 << 17)
#define LARGEST_ANSWER (LARGEST_REQUEST + ((size_t)1 << 16)) /* of libfuse: where it serves reads, their data */

/* Requests that the kernel may have under way in the background (readahead, writeback, asynchronous direct I/O);
 * libfuse grants 12, which leaves deep queues idle. */
#define MAX_BACKGROUND 128
#define CONGESTION_THRESHOLD 96

/* An OPEN that libfuse has not answered yet. */
struct opening {
    struct opening *next;
    struct handle *handle; /* what it becomes */
    uint64_t unique;
    uint32_t flags;
};

/* A write past the cache that libfuse has not answered yet. */
struct relayed_write {
    struct relayed_write *next;
    uint64_t unique, offset, size;
};

int relay_init(struct relay *relay, const struct relay_config *config, const struct answers *answers,
               struct flush_errors *flush_errors, const struct volume_host *host) {
    *relay = (struct relay){.config = *config, .answers = answers, .flush_errors = flush_errors, .host = host};
    pthread_mutex_init(&relay->mutex, NULL);
    relay->buffer = ready_memory(LARGEST_ANSWER);
    return relay->buffer ? 0 : ENOMEM;
}

void relay_destroy(struct relay *relay) {
    while (relay->openings) {
        struct opening *opening = relay->openings;
        relay->openings = opening->next;
        free(opening->handle);
        free(opening);
    }
    while (relay->writes) {
        struct relayed_write *write = relay->writes;
        relay->writes = write->next;
        free(write);
    }
    ready_memory_free(relay->buffer, LARGEST_ANSWER);
    pthread_mutex_destroy(&relay->mutex);
}

void relay_warm_up(void) {
    void *volatile first = malloc(sizeof(struct opening)); /* volatile: else the compiler leaves it out */
    free(first);
}

/* --- to libfuse -------------------------------------------------------------------------------------------------------- */

static void note_init(struct relay *relay, const struct request *request) {
    const struct fuse_init_in *init = &request->head.init;
    pthread_mutex_lock(&relay->mutex);
    relay->init_unique = request->head.header.unique;
    relay->offered = init->flags;
    if (init->flags & FUSE_INIT_EXT)
        relay->offered2 = init->flags2;
    pthread_mutex_unlock(&relay->mutex);
}

static void note_open(struct relay *relay, const struct request *request) {
    /* the mutex is not held here: whoever waits for memory must not hold up those who could make some free */
    struct opening *opening = malloc(sizeof *opening);
    struct handle *handle = malloc(sizeof *handle);
    if (!opening || !handle) { /* the file is opened as libfuse says, which is right, if slower */
        free(opening);
        free(handle);
        return;
    }
    *opening = (struct opening){
        .handle = handle, .unique = request->head.header.unique, .flags = request->head.open.flags};
    pthread_mutex_lock(&relay->mutex);
    opening->next = relay->openings;
    relay->openings = opening;
    pthread_mutex_unlock(&relay->mutex);
}

/* Returns whether its answer will be known. */
static int note_write(struct relay *relay, const struct request *request) {
    struct relayed_write *write = malloc(sizeof *write);
    if (!write)
        return 0;
    *write = (struct relayed_write){.unique = request->head.header.unique,
                                    .offset = request->head.write.offset,
                                    .size = request->head.write.size};
    pthread_mutex_lock(&relay->mutex);
    write->next = relay->writes;
    relay->writes = write;
    pthread_mutex_unlock(&relay->mutex);
    return 1;
}

/* Notes what the answer will be amended by. Returns 0 or an errno. */
static int note(struct relay *relay, const struct request *request) {
    switch (request->head.header.opcode) {
    case FUSE_INIT:
        note_init(relay, request);
        break;
    case FUSE_OPEN:
        note_open(relay, request);
        break;
    case FUSE_RELEASE:
        flush_errors_forget(relay->flush_errors, request->head.release.fh);
        break;
    case FUSE_WRITE:
        if (is_direct_write(request) && !note_write(relay, request))
            return ENOMEM;
        break;
    }
    return 0;
}

/* Returns 0 or an errno: libfuse is gone, and the mount is ending. */
static int send_to_libfuse(const struct relay *relay, const struct request *request) {
    ssize_t sent;
    do
        sent = send(relay->config.libfuse, request->message, request->size, MSG_NOSIGNAL);
    while (sent < 0 && errno == EINTR);
    return sent < 0 ? EIO : 0;
}

void relay_forward(struct relay *relay, const struct request *request) {
    uint32_t opcode = request->head.header.opcode;
    int token = relay->host->before_wait(relay->host->self); /* for pyfuse3, or for memory */
    int error = note(relay, request);
    if (!error)
        error = send_to_libfuse(relay, request);
    relay->host->after_wait(relay->host->self, token);
    if (error && opcode != FUSE_FORGET && opcode != FUSE_BATCH_FORGET) /* those have no answer */
        transport_answer(relay->answers->transport, request->head.header.unique, error, NULL, 0);
}

/* --- answers ----------------------------------------------------------------------------------------------------------- */

/* Call with the mutex held, as the following ones. Grants what libfuse does not know of, and nothing that our buffers do
 * not hold. */
static void amend_init(struct relay *relay, struct fuse_init_out *out, size_t size) {
    if (size < offsetof(struct fuse_init_out, unused)) /* the protocol before 7.23, Linux 3.15 */
        return;
    size_t largest = relay->config.largest_request, pages = largest / relay->config.page_size;
    if (out->max_write > largest)
        out->max_write = (uint32_t)largest;
    if (out->max_pages > pages)
        out->max_pages = (uint16_t)pages;
    out->max_readahead = (uint32_t)largest;
    out->max_background = MAX_BACKGROUND;
    out->congestion_threshold = CONGESTION_THRESHOLD;
    /* nobody else changes the payload: a new time of modification is our own doing, and no reason to drop the cache; what
     * is to be dropped we say (coherence.h) */
    out->flags &= ~(uint32_t)FUSE_AUTO_INVAL_DATA;
    /* no file of ours has set-user-ID bits or capabilities to lose, so the kernel need not look before each write */
    out->flags |= relay->offered & FUSE_HANDLE_KILLPRIV_V2;
    if (relay->offered2 & DIRECT_IO_ALLOW_MMAP) {
        out->flags |= FUSE_INIT_EXT;
        out->flags2 |= DIRECT_IO_ALLOW_MMAP;
        relay->coherent = 1;
    }
}

/* Direct writes in parallel: the sectors' own locks keep them apart where they meet. */
static void amend_open(const struct relay *relay, struct fuse_open_out *out, uint32_t flags) {
    if (flags & O_DIRECT && relay->coherent)
        out->open_flags |= FOPEN_DIRECT_IO;
    if (out->open_flags & FOPEN_DIRECT_IO)
        out->open_flags |= FOPEN_PARALLEL_DIRECT_WRITES;
}

static struct opening *take_opening(struct relay *relay, uint64_t unique) {
    for (struct opening **at = &relay->openings; *at; at = &(*at)->next)
        if ((*at)->unique == unique) {
            struct opening *opening = *at;
            *at = opening->next;
            return opening;
        }
    return NULL;
}

static void answer_init(struct relay *relay, uint8_t *body, size_t size) {
    struct fuse_init_out out = {0};
    size_t known = size < sizeof out ? size : sizeof out;
    memcpy(&out, body, known);
    pthread_mutex_lock(&relay->mutex);
    amend_init(relay, &out, size);
    relay->init_unique = 0;
    pthread_mutex_unlock(&relay->mutex);
    memcpy(body, &out, known);
}

static void answer_open(struct relay *relay, struct opening *opening, uint8_t *body, size_t size) {
    struct fuse_open_out out;
    if (size == sizeof out) {
        memcpy(&out, body, sizeof out);
        pthread_mutex_lock(&relay->mutex);
        amend_open(relay, &out, opening->flags);
        pthread_mutex_unlock(&relay->mutex);
        flush_errors_add(relay->flush_errors, opening->handle, out.fh, !(out.open_flags & FOPEN_DIRECT_IO));
        opening->handle = NULL;
        memcpy(body, &out, sizeof out);
    }
    free(opening->handle);
    free(opening);
}

static void amend(struct relay *relay, uint8_t *message, size_t size) {
    struct fuse_out_header header;
    if (size < sizeof header)
        return;
    memcpy(&header, message, sizeof header);
    if (!header.unique) /* a notification */
        return;
    uint8_t *body = message + sizeof header;
    size -= sizeof header;
    pthread_mutex_lock(&relay->mutex);
    int is_init = header.unique == relay->init_unique && size;
    struct opening *opening = take_opening(relay, header.unique);
    pthread_mutex_unlock(&relay->mutex);
    if (is_init)
        answer_init(relay, body, size);
    if (opening)
        answer_open(relay, opening, body, size);
}

/* Returns whether a message answers a write past the cache, which is then in `*taken`. */
static int take_write(struct relay *relay, uint64_t unique, struct relayed_write *taken) {
    struct relayed_write *found = NULL;
    pthread_mutex_lock(&relay->mutex);
    for (struct relayed_write **at = &relay->writes; *at && !found; at = &(*at)->next)
        if ((*at)->unique == unique) {
            found = *at;
            *at = found->next;
            break;
        }
    pthread_mutex_unlock(&relay->mutex);
    if (!found)
        return 0;
    *taken = *found;
    free(found);
    return 1;
}

/* A notification may make the kernel wait for requests that are under way, whose answers this thread is to bring. */
static void pass_on(struct relay *relay, const uint8_t *message, size_t size) {
    struct relayed_write direct;
    struct fuse_out_header header = {0};
    memcpy(&header, message, size < sizeof header ? size : sizeof header);
    if (!header.unique)
        coherence_notify(relay->answers->coherence, message, size);
    else if (take_write(relay, header.unique, &direct))
        coherence_answer(relay->answers->coherence, direct.offset, direct.size, message, size);
    else
        transport_send(relay->answers->transport, message, size);
}

static void *run_answers(void *argument) {
    struct relay *relay = argument;
    begin_confined("lane", relay->config.confined);
    uint8_t *message = relay->buffer;
    for (;;) {
        ssize_t size = recv(relay->config.libfuse, message, LARGEST_ANSWER, MSG_TRUNC);
        if (size < 0 && errno == EINTR)
            continue;
        if (size <= 0)
            break;
        if ((size_t)size > LARGEST_ANSWER) {
            struct fuse_out_header header;
            memcpy(&header, message, sizeof header);
            relay->host->report(relay->host->self, LANE_TOO_LONG, 0, EMSGSIZE);
            transport_answer(relay->answers->transport, header.unique, EIO, NULL, 0);
            continue;
        }
        amend(relay, message, (size_t)size);
        pass_on(relay, message, (size_t)size);
    }
    return NULL;
}

int relay_start(struct relay *relay) { return ready_thread_start(&relay->thread, STACK_SIZE, 0, run_answers, relay); }

int relay_stop(struct relay *relay, int64_t until) {
    shutdown(relay->config.libfuse, SHUT_RDWR); /* ends the thread's wait */
    return ready_thread_join_until(&relay->thread, until, 0);
}
