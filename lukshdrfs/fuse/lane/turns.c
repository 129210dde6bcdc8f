/* See turns.h. */
#include "fuse/lane/turns.h"

#include <string.h>

void turns_init(struct turns *turns, struct readers *readers, unsigned limit) {
    turns->readers = readers;
    turns->limit = limit;
    pthread_mutex_init(&turns->mutex, NULL);
    for (size_t i = 0; i < PUT_ASIDE; i++) {
        turns->aside[i].waiting = (struct waiting_request){.next = turns->free_aside, .head = &turns->aside[i].head};
        turns->free_aside = &turns->aside[i].waiting;
    }
}

void turns_destroy(struct turns *turns) { pthread_mutex_destroy(&turns->mutex); }

/* Call with the mutex held, as the following ones. */
static void queue(struct turns *turns, struct waiting_request *waiting) {
    waiting->next = NULL;
    if (turns->first)
        turns->last->next = waiting;
    else
        turns->first = waiting;
    turns->last = waiting;
}

/* Returns whether there was a place for the request. */
static int put_aside(struct turns *turns, const struct request *request) {
    struct waiting_request *aside = turns->free_aside;
    if (!aside)
        return 0;
    turns->free_aside = aside->next;
    *aside->head = request->head;
    queue(turns, aside);
    return 1;
}

static void wait_in_queue(struct turns *turns) {
    struct waiting_request here = {.turn = 0};
    pthread_cond_init(&here.called, NULL);
    queue(turns, &here);
    readers_block(turns->readers);
    while (!here.turn)
        pthread_cond_wait(&here.called, &turns->mutex);
    readers_unblock(turns->readers);
    pthread_cond_destroy(&here.called);
}

enum turn turns_take(struct turns *turns, const struct request *request) {
    enum turn turn = TURN_NOW;
    pthread_mutex_lock(&turns->mutex);
    if (turns->serving < turns->limit)
        turns->serving++;
    else if (request->head.header.opcode == FUSE_READ && put_aside(turns, request))
        turn = TURN_PUT_ASIDE;
    else
        wait_in_queue(turns);
    pthread_mutex_unlock(&turns->mutex);
    return turn;
}

int turns_pass_on(struct turns *turns, struct request *request) {
    int found = 0;
    pthread_mutex_lock(&turns->mutex);
    struct waiting_request *waiting = turns->first;
    if (!waiting)
        turns->serving--;
    else
        turns->first = waiting->next;
    if (waiting && waiting->head) {
        request->head = *waiting->head;
        waiting->next = turns->free_aside;
        turns->free_aside = waiting;
        found = 1;
    } else if (waiting) { /* its thread goes on in this one's stead */
        waiting->turn = 1;
        pthread_cond_signal(&waiting->called);
    }
    pthread_mutex_unlock(&turns->mutex);
    return found;
}

unsigned turns_taken(struct turns *turns) {
    pthread_mutex_lock(&turns->mutex);
    unsigned serving = turns->serving;
    pthread_mutex_unlock(&turns->mutex);
    return serving;
}
