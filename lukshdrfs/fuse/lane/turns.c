/* See turns.h. */
#include "fuse/lane/turns.h"

#include <string.h>

void turns_init(struct turns *turns, struct readers *readers, unsigned limit) {
    turns->readers = readers;
    turns->limit = (int)limit;
    pthread_mutex_init(&turns->mutex, NULL);
    for (size_t i = 0; i < PUT_ASIDE; i++) {
        turns->aside[i].waiting = (struct waiting_request){.next = turns->free_aside, .head = &turns->aside[i].head};
        turns->free_aside = &turns->aside[i].waiting;
    }
}

void turns_destroy(struct turns *turns) { pthread_mutex_destroy(&turns->mutex); }

int turns_taken(const struct turns *turns) { return atomic_load(&turns->serving); }

/* Takes a turn if there is one. Mostly there is, and nobody waits: then no mutex is needed.
 *
 * Whoever comes to the queue counts himself in `waiting` first and tries this then; whoever ends a turn counts it out of
 * `serving` first and looks at `waiting` then. So at least one of the two sees the other. */
static int claim(struct turns *turns) {
    int serving = atomic_load(&turns->serving);
    while (serving < turns->limit)
        if (atomic_compare_exchange_weak(&turns->serving, &serving, serving + 1))
            return 1;
    return 0;
}

/* --- the queue: call with the mutex held ------------------------------------------------------------------------------- */

static void queue(struct turns *turns, struct waiting_request *waiting) {
    waiting->next = NULL;
    if (turns->first)
        turns->last->next = waiting;
    else
        turns->first = waiting;
    turns->last = waiting;
    atomic_fetch_add(&turns->waiting, 1);
}

static struct waiting_request *take_first(struct turns *turns) {
    struct waiting_request *first = turns->first;
    turns->first = first->next;
    atomic_fetch_sub(&turns->waiting, 1);
    if (first->head) {
        first->next = turns->free_aside;
        turns->free_aside = first;
    }
    return first;
}

/* Whether there is a turn for a request that was just queued, and nobody before it; then it is in the queue no more. */
static int is_next(struct turns *turns, const struct waiting_request *waiting) {
    if (turns->first != waiting || !claim(turns))
        return 0;
    (void)take_first(turns);
    return 1;
}

/* Returns NULL if there is no place. */
static struct waiting_request *put_aside(struct turns *turns, const struct request *request) {
    struct waiting_request *aside = turns->free_aside;
    if (!aside)
        return NULL;
    turns->free_aside = aside->next;
    *aside->head = request->head;
    queue(turns, aside);
    return aside;
}

static void wait_in_queue(struct turns *turns) {
    struct waiting_request here = {.turn = 0};
    pthread_cond_init(&here.called, NULL);
    queue(turns, &here);
    if (!is_next(turns, &here)) {
        readers_block(turns->readers);
        while (!here.turn)
            pthread_cond_wait(&here.called, &turns->mutex);
        readers_unblock(turns->readers);
    }
    pthread_cond_destroy(&here.called);
}

/* ----------------------------------------------------------------------------------------------------------------------- */

enum turn turns_take(struct turns *turns, const struct request *request) {
    enum turn turn = TURN_NOW;
    struct waiting_request *aside = NULL;
    if (!atomic_load(&turns->waiting) && claim(turns))
        return TURN_NOW;
    pthread_mutex_lock(&turns->mutex);
    if (request->head.header.opcode == FUSE_READ && (aside = put_aside(turns, request)))
        turn = is_next(turns, aside) ? TURN_NOW : TURN_PUT_ASIDE;
    else
        wait_in_queue(turns);
    pthread_mutex_unlock(&turns->mutex);
    return turn;
}

int turns_pass_on(struct turns *turns, struct request *request) {
    int found = 0;
    atomic_fetch_sub(&turns->serving, 1);
    if (!atomic_load(&turns->waiting))
        return 0;
    pthread_mutex_lock(&turns->mutex);
    if (turns->first && claim(turns)) {
        struct waiting_request *first = take_first(turns);
        found = first->head != NULL;
        if (found) {
            request->head = *first->head;
        } else { /* the turn passes to the thread that waits */
            first->turn = 1;
            pthread_cond_signal(&first->called);
        }
    }
    pthread_mutex_unlock(&turns->mutex);
    return found;
}
