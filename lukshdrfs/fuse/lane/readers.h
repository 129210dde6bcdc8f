/* Who reads requests.
 *
 * At best one thread reads requests, serves what it finds, and reads on: nobody has to be woken. As soon as it is to do
 * what may wait, or finds that more is there while processors are idle, it calls another one that is parked. */
#ifndef LUKSHDRFS_READERS_H
#define LUKSHDRFS_READERS_H

#include <pthread.h>

#include "fuse/lane/transport.h"
#include "threads/ready_thread.h"

struct readers {
    const struct transport *transport;
    unsigned processors;
    int confined;

    pthread_mutex_t mutex; /* for all that follows, up to the thread; `turns.mutex` may be held before */
    unsigned running;      /* threads that have not ended */
    unsigned readers;      /* threads that read requests, or are about to */
    unsigned parked;       /* threads that have nothing to do while others read */
    unsigned wakeups;      /* parked threads that are called and have not come yet */
    unsigned maybe_blocked;   /* threads that may be waiting for something else than requests */
    unsigned replaced;        /* those of them that have called another one in their place */
    unsigned waits;           /* begun so far; wraps */
    unsigned eager_waits_left; /* how many more waits call a reader at once */
    unsigned recalls;         /* how often all threads were asked to look at what has changed */
    int watching;             /* the watching thread is awake */
    int ended;                /* there are no more requests */
    pthread_cond_t called;
    pthread_cond_t watch;

    struct ready_thread watcher;
};

void readers_init(struct readers *readers, const struct transport *transport, int confined);
void readers_destroy(struct readers *readers);

/* Starts the watching thread. Returns 0 or an errno. */
int readers_start(struct readers *readers);

/* Counts a thread that will read; before it runs. */
void readers_join(struct readers *readers);

/* Counts it out. Returns whether it was the last one. */
int readers_leave(struct readers *readers);

enum reader_turn { READER_READS, READER_ENDED, READER_RECALLED };

/* Returns when it is this thread's turn to read, when there is nothing to read any more, or when readers_recall() has been
 * called since `*recalls` was 0 or set by this function. After READER_READS, call readers_pass_on() or
 * readers_leave_off(). */
enum reader_turn readers_wait(struct readers *readers, unsigned *recalls);

/* Ends a turn: a request was read. `more`: there may be others, for idle processors. */
void readers_pass_on(struct readers *readers, int more);

/* Ends a turn in which nothing was read. */
void readers_leave_off(struct readers *readers);

/* Around whatever may wait for the payload. What the first one returns, the second one is given. */
int readers_before_wait(struct readers *readers);
void readers_after_wait(struct readers *readers, int token);

/* Around what waits for certain, and not for the payload: a turn. */
void readers_block(struct readers *readers);
void readers_unblock(struct readers *readers);

/* Has each thread that is parked, or comes to be, return from readers_wait(). */
void readers_recall(struct readers *readers);

/* From now on there is nothing to read. */
void readers_end(struct readers *readers);

/* Waits for the watching thread's end, after readers_end(). */
void readers_stop(struct readers *readers);

#endif
