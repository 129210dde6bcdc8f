/* Which threads read requests.
 *
 * As many threads as there are processors attend to requests: each reads one, serves it, and reads on; the kernel wakes one
 * for each request, and they wake nobody. The others are parked. Where a thread may have to wait for the payload, another
 * one takes its place: at once where such waits have been long lately, else as soon as a request is seen to lie unread.
 *
 * It was measured against two other forms: one reader that calls others (a quarter fewer small requests, at twice the
 * processor time), and looking for the next request for 15 us before sleeping (a quarter fewer at depth 1).
 *
 * Somebody always attends, or comes to: a thread gives way only to enough others that do. One that stops to attend either
 * calls another, or wakes the watching thread, which sleeps only while somebody attends. */
#ifndef LUKSHDRFS_READERS_H
#define LUKSHDRFS_READERS_H

#include <pthread.h>
#include <stdatomic.h>

#include "fuse/lane/transport.h"
#include "threads/ready_thread.h"

struct readers {
    const struct transport *transport;
    int confined;
    int most_active; /* threads */

    atomic_int active;           /* threads that are neither parked nor replaced */
    atomic_int maybe_blocked;    /* active threads that may be waiting for the payload */
    atomic_uint waits;           /* begun so far; wraps */
    atomic_int eager_waits_left; /* how many more waits call another thread at once */
    atomic_int watching;         /* the watching thread is awake */
    atomic_int ended;            /* there are no more requests */

    pthread_mutex_t mutex; /* for all that follows, up to the thread; it may be taken while `turns.mutex` is held */
    pthread_cond_t called;
    pthread_cond_t watch;
    unsigned running; /* threads that have not ended */
    unsigned parked;
    unsigned wakeups; /* parked threads that are called and have not come yet */
    unsigned recalls; /* how often all threads were asked to look at what has changed */

    struct ready_thread watcher;
};

/* `threads` is how many there will be. */
void readers_init(struct readers *readers, const struct transport *transport, unsigned threads, int confined);
void readers_destroy(struct readers *readers);

/* Starts the watching thread. Returns 0 or an errno. */
int readers_start(struct readers *readers);

/* Counts a thread that will read, before it runs. */
void readers_join(struct readers *readers);

/* Counts it out. Returns whether it was the last one. */
int readers_leave(struct readers *readers);

enum reader_turn { READER_READS, READER_ENDED, READER_RECALLED };

/* Returns when this thread is to read, when there is nothing to read any more, or when readers_recall() has been called
 * since this thread's last call, and the thread is parked. `*recalls` is 0 at a thread's first call, and later what this
 * function left there. */
enum reader_turn readers_wait(struct readers *readers, unsigned *recalls);

/* Around whatever may wait for the payload. What the first one returns, the second one is given. */
int readers_before_wait(struct readers *readers);
void readers_after_wait(struct readers *readers, int token);

/* Around a wait for a turn, which always blocks. */
void readers_block(struct readers *readers);
void readers_unblock(struct readers *readers);

/* Has each thread that is parked, or comes to be, return from readers_wait(). */
void readers_recall(struct readers *readers);

/* From now on there is nothing to read. */
void readers_end(struct readers *readers);

/* Waits for the watching thread's end, after readers_end(). */
void readers_stop(struct readers *readers);

#endif
