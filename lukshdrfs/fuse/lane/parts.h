/* The lane as a list of its parts. Only what puts parts together includes this: worker.c, data_requests.c, fallocate.c and
 * lane.c. A part has its state, its mutex and what it promises in its own header, and does not know this one.
 *
 * Mutexes are held for a few instructions, never across a system call that may wait. The one nesting is `turns.mutex` ->
 * `readers.mutex`: a thread that finds no turn says that it waits.
 *
 * Locking (lane_lock) asks one part after the other whether all is quiet, without a mutex over all of them. It suffices,
 * for `locked` is set first. A thread looks at it while it holds a turn (worker.c, serve()), so a request that takes its
 * turn after lane_lock() has counted is refused; asynchronous requests are counted and look at it under one mutex
 * (async_requests.c, claim()). */
#ifndef LUKSHDRFS_PARTS_H
#define LUKSHDRFS_PARTS_H

#include <stdatomic.h>

#include "fuse/lane/async_requests.h"
#include "fuse/lane/interrupts.h"
#include "fuse/lane/lane.h"
#include "fuse/lane/readers.h"
#include "fuse/lane/relay.h"
#include "fuse/lane/turns.h"

/* Interrupts a thread's system call; what it finds is that the lane is locked or stopping. */
#define STOP_SIGNAL (SIGRTMIN + 5)

/* A thread. */
struct worker {
    struct lane *lane;
    struct ready_thread thread;
    uint8_t *buffer; /* transport_buffer_size() bytes */
    struct request request;
    struct interruptible interruptible;
    unsigned recalls;
    atomic_int wiped; /* its buffer has been, since the lane was locked */
};

struct lane {
    struct lane_config config;
    struct native_volume *volume; /* NULL: libfuse serves all requests */
    struct volume_host host;      /* the volume's: `readers` hears of waits, the daemon's log of troubles */
    struct transport *transport;
    struct coherence *coherence;
    struct answers answers;
    struct readers readers;
    struct turns turns;
    struct flush_errors flush_errors;
    struct interrupts interrupts;
    struct async_requests async_requests;
    struct relay relay;
    atomic_int stopping, locked;
    _Atomic uint64_t requests; /* data requests so far */
    pthread_mutex_t starting;  /* held until all threads are there */
    size_t worker_count;
    struct worker workers[];
};

/* worker.c: the thread. */
void *run_worker(void *worker);

/* data_requests.c and fallocate.c: each serves the worker's request and answers it. */
void serve_read(struct worker *worker);
void serve_write(struct worker *worker);
void serve_fsync(struct worker *worker);
void serve_fallocate(struct worker *worker);

#endif
