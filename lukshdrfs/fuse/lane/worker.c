/* The loop of one thread: read a request, serve it or have it served, read on. See parts.h. */
#define _GNU_SOURCE
#include "fuse/lane/parts.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>

#include "threads/confinement.h"

/* Nothing of what the thread has served stays in its buffer. */
static void wipe(struct worker *worker) {
    explicit_bzero(worker->buffer, transport_buffer_size());
    atomic_store(&worker->wiped, 1);
}

static void wipe_if_locked(struct worker *worker) {
    if (atomic_load(&worker->lane->locked) && !atomic_load(&worker->wiped))
        wipe(worker);
}

/* Call while a turn is held. `locked` is looked at here: a request that takes its turn after lane_lock() has counted the
 * turns is refused. */
static void serve(struct worker *worker) {
    struct lane *lane = worker->lane;
    if (atomic_load(&lane->locked)) {
        wipe(worker); /* what was to be written */
        transport_answer(lane->transport, worker->request.head.header.unique, EIO, NULL, 0);
        return;
    }
    switch (worker->request.head.header.opcode) {
    case FUSE_READ:
        serve_read(worker);
        break;
    case FUSE_WRITE:
        serve_write(worker);
        break;
    case FUSE_FSYNC:
        serve_fsync(worker);
        break;
    case FUSE_FALLOCATE:
        serve_fallocate(worker);
        break;
    }
}

static void serve_in_turn(struct worker *worker) {
    struct turns *turns = &worker->lane->turns;
    if (turns_take(turns, &worker->request) == TURN_PUT_ASIDE)
        return;
    do
        serve(worker);
    while (turns_pass_on(turns, &worker->request));
}

/* Says what the kernel is about to cache: the requests that fill its pages, or write them back, have no lock owner. */
static void note_cached(struct worker *worker) {
    const struct request_head *head = &worker->request.head;
    struct coherence *coherence = worker->lane->coherence;
    if (head->header.opcode == FUSE_READ && !(head->read.read_flags & FUSE_READ_LOCKOWNER))
        coherence_note_cached(coherence, head->header.nodeid, head->read.offset, head->read.size);
    else if (head->header.opcode == FUSE_WRITE && !is_direct_write(&worker->request))
        coherence_note_cached(coherence, head->header.nodeid, head->write.offset, head->write.size);
}

static int is_data_request(uint32_t opcode) {
    return opcode == FUSE_READ || opcode == FUSE_WRITE || opcode == FUSE_FSYNC || opcode == FUSE_FALLOCATE;
}

static void dispatch(struct worker *worker) {
    struct lane *lane = worker->lane;
    uint32_t opcode = worker->request.head.header.opcode;
    note_cached(worker);
    if (!lane->volume) {
        relay_forward(&lane->relay, &worker->request);
    } else if (is_data_request(opcode)) {
        atomic_fetch_add_explicit(&lane->requests, 1, memory_order_relaxed);
        if ((opcode == FUSE_READ || opcode == FUSE_WRITE) && async_requests_take(&lane->async_requests, &worker->request))
            return;
        serve_in_turn(worker);
    } else if (opcode == FUSE_INTERRUPT) { /* nothing in pyfuse3 listens to it, and it has no answer */
        interrupts_deliver(&lane->interrupts, worker->request.head.interrupt.unique);
    } else {
        relay_forward(&lane->relay, &worker->request);
    }
}

/* Returns whether there was a request; if not, there will be no more. */
static int receive(struct worker *worker) {
    struct lane *lane = worker->lane;
    enum received received = RECEIVED_NOTHING;
    while (received == RECEIVED_NOTHING && !atomic_load(&lane->stopping)) {
        wipe_if_locked(worker);
        received = transport_receive(lane->transport, worker->buffer, &worker->request);
    }
    if (received == RECEIVED_ERROR)
        lane->host.report(lane->host.self, LANE_DEVICE, 0, errno);
    return received == RECEIVED_REQUEST;
}

/* Returns 0 when there is nothing to read any more. */
static int serve_next(struct worker *worker) {
    struct readers *readers = &worker->lane->readers;
    switch (readers_wait(readers, &worker->recalls)) {
    case READER_ENDED:
        return 0;
    case READER_RECALLED:
        wipe_if_locked(worker);
        return 1;
    case READER_READS:
        break;
    }
    if (!receive(worker))
        return 0;
    dispatch(worker);
    return 1;
}

void *run_worker(void *argument) {
    struct worker *worker = argument;
    struct lane *lane = worker->lane;
    pthread_mutex_lock(&lane->starting);
    pthread_mutex_unlock(&lane->starting);
    relay_warm_up();
    begin_confined("lane", lane->config.confined);
    while (serve_next(worker))
        ;
    readers_end(&lane->readers);
    wipe(worker); /* also if it is not locked: lane_lock() waits until all threads have, those that ended, too */
    if (readers_leave(&lane->readers))
        shutdown(lane->config.events, SHUT_WR);
    return NULL;
}
