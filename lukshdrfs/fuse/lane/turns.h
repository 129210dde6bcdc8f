/* Whose turn it is to use the payload: so many data requests at a time, in the order in which they came. */
#ifndef LUKSHDRFS_TURNS_H
#define LUKSHDRFS_TURNS_H

#include <pthread.h>
#include <stdatomic.h>

#include "fuse/lane/readers.h"
#include "fuse/lane/request.h"

/* READs that can be put aside. When all places are taken, a thread waits with its READ. */
#define PUT_ASIDE 256

/* A request that waits for its turn: a READ that was put aside, or that of a thread which waits with it. */
struct waiting_request {
    struct waiting_request *next;
    struct request_head *head; /* NULL: a thread waits for `turn` */
    int turn;
    pthread_cond_t called;
};

struct turns {
    struct readers *readers;
    int limit;
    atomic_int serving; /* turns that are taken, `limit` at most */
    atomic_int waiting; /* requests in the queue */

    pthread_mutex_t mutex; /* for all that follows; `readers.mutex` may be taken while it is held */
    struct waiting_request *first, *last;
    struct waiting_request *free_aside; /* places for READs that are put aside */
    struct {
        struct waiting_request waiting;
        struct request_head head;
    } aside[PUT_ASIDE];
};

void turns_init(struct turns *turns, struct readers *readers, unsigned limit);
void turns_destroy(struct turns *turns);

enum turn { TURN_NOW, TURN_PUT_ASIDE };

/* Waits for a turn to use the payload. A READ does not wait: it is put aside, and whoever passes his turn on serves it. */
enum turn turns_take(struct turns *turns, const struct request *request);

/* Ends a turn. Returns whether another request is to be served in it by the same thread, which then has its head in
 * `request`. */
int turns_pass_on(struct turns *turns, struct request *request);

/* Returns how many turns are taken. */
int turns_taken(const struct turns *turns);

#endif
