/* See sector_locks.h. */
#define _GNU_SOURCE
#include "volume/sector_locks.h"

#include <pthread.h>
#include <stdlib.h>

struct sector_locks {
    pthread_mutex_t mutex;
    pthread_cond_t freed;
    struct sector_range *first, *last; /* held and wanted, in the order in which they were asked for */
    unsigned waiting;
};

struct sector_locks *sector_locks_new(void) {
    struct sector_locks *locks = calloc(1, sizeof *locks);
    if (locks) {
        pthread_mutexattr_t briefly; /* it is held for some ten instructions: to sleep for it costs more than to look again */
        pthread_mutexattr_init(&briefly);
        pthread_mutexattr_settype(&briefly, PTHREAD_MUTEX_ADAPTIVE_NP);
        pthread_mutex_init(&locks->mutex, &briefly);
        pthread_mutexattr_destroy(&briefly);
        pthread_cond_init(&locks->freed, NULL);
    }
    return locks;
}

void sector_locks_free(struct sector_locks *locks) {
    pthread_cond_destroy(&locks->freed);
    pthread_mutex_destroy(&locks->mutex);
    free(locks);
}

/* An earlier range counts even while it waits itself: so a stream of readers does not keep a writer out. */
static int must_wait(const struct sector_range *wanted) {
    for (const struct sector_range *earlier = wanted->before; earlier; earlier = earlier->before)
        if ((earlier->exclusive || wanted->exclusive) && earlier->start < wanted->end && wanted->start < earlier->end)
            return 1;
    return 0;
}

static void enter(struct sector_locks *locks, struct sector_range *range, uint64_t start, uint64_t end, int exclusive) {
    *range = (struct sector_range){.before = locks->last, .start = start, .end = end, .exclusive = exclusive};
    if (locks->last)
        locks->last->after = range;
    else
        locks->first = range;
    locks->last = range;
}

static void leave(struct sector_locks *locks, struct sector_range *range) {
    if (range->before)
        range->before->after = range->after;
    else
        locks->first = range->after;
    if (range->after)
        range->after->before = range->before;
    else
        locks->last = range->before;
    if (locks->waiting)
        pthread_cond_broadcast(&locks->freed);
}

void sector_locks_hold(struct sector_locks *locks, struct sector_range *range, uint64_t start, uint64_t end,
                       int exclusive) {
    pthread_mutex_lock(&locks->mutex);
    enter(locks, range, start, end, exclusive);
    while (must_wait(range)) {
        locks->waiting++;
        pthread_cond_wait(&locks->freed, &locks->mutex);
        locks->waiting--;
    }
    pthread_mutex_unlock(&locks->mutex);
}

int sector_locks_try(struct sector_locks *locks, struct sector_range *range, uint64_t start, uint64_t end,
                     int exclusive) {
    pthread_mutex_lock(&locks->mutex);
    enter(locks, range, start, end, exclusive);
    int held = !must_wait(range);
    if (!held)
        leave(locks, range);
    pthread_mutex_unlock(&locks->mutex);
    return held;
}

void sector_locks_release(struct sector_locks *locks, struct sector_range *range) {
    pthread_mutex_lock(&locks->mutex);
    leave(locks, range);
    pthread_mutex_unlock(&locks->mutex);
}
