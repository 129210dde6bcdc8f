/* See sector_locks.h. */
#include "sector_locks.h"

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
        pthread_mutex_init(&locks->mutex, NULL);
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

void sector_locks_hold(struct sector_locks *locks, struct sector_range *range, uint64_t start, uint64_t end,
                       int exclusive) {
    range->start = start;
    range->end = end;
    range->exclusive = exclusive;
    range->after = NULL;
    pthread_mutex_lock(&locks->mutex);
    range->before = locks->last;
    if (locks->last)
        locks->last->after = range;
    else
        locks->first = range;
    locks->last = range;
    while (must_wait(range)) {
        locks->waiting++;
        pthread_cond_wait(&locks->freed, &locks->mutex);
        locks->waiting--;
    }
    pthread_mutex_unlock(&locks->mutex);
}

void sector_locks_release(struct sector_locks *locks, struct sector_range *range) {
    pthread_mutex_lock(&locks->mutex);
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
    pthread_mutex_unlock(&locks->mutex);
}
