/* See readers.h. */
#define _GNU_SOURCE
#include "fuse/lane/readers.h"

#include <time.h>
#include <unistd.h>

#include "threads/confinement.h"

#define STACK_SIZE ((size_t)1 << 17)

/* Who goes to wait for the payload does not know whether it will take long: a write to a file mostly ends in the page
 * cache. To wake somebody up each time would cost more than the write. So a thread watches, and looks this often whether
 * a request lies unread because all wait. After it has found one, each of the next EAGER_WAITS waits calls another thread
 * before it begins. */
#define WATCH_INTERVAL_NS 300000
#define EAGER_WAITS 1000
#define LONG_WAIT 4    /* looks after which somebody is to read anyway */
#define QUIET_LOOKS 20 /* looks without any wait after which the watching thread sleeps */

void readers_init(struct readers *readers, const struct transport *transport, unsigned threads, int confined) {
    long processors = sysconf(_SC_NPROCESSORS_ONLN);
    int most = processors < 1 ? 1 : processors < (long)threads ? (int)processors : (int)threads;
    readers->transport = transport;
    readers->confined = confined;
    readers->most_active = most;
    pthread_mutex_init(&readers->mutex, NULL);
    pthread_cond_init(&readers->called, NULL);
    pthread_cond_init(&readers->watch, NULL);
}

void readers_destroy(struct readers *readers) {
    pthread_cond_destroy(&readers->called);
    pthread_cond_destroy(&readers->watch);
    pthread_mutex_destroy(&readers->mutex);
}

void readers_join(struct readers *readers) {
    pthread_mutex_lock(&readers->mutex);
    readers->running++;
    pthread_mutex_unlock(&readers->mutex);
    atomic_fetch_add(&readers->active, 1);
}

int readers_leave(struct readers *readers) {
    atomic_fetch_sub(&readers->active, 1);
    pthread_mutex_lock(&readers->mutex);
    int last = --readers->running == 0;
    pthread_mutex_unlock(&readers->mutex);
    return last;
}

/* Returns how many threads read, or serve and come back by themselves. */
static int attending(const struct readers *readers) {
    return atomic_load(&readers->active) - atomic_load(&readers->maybe_blocked);
}

/* Has a parked thread become active. */
static void call_another(struct readers *readers) {
    pthread_mutex_lock(&readers->mutex);
    if (readers->parked > readers->wakeups) {
        readers->wakeups++;
        atomic_fetch_add(&readers->active, 1); /* from now on, so that nobody else is called for the same reason */
        pthread_cond_signal(&readers->called);
    }
    pthread_mutex_unlock(&readers->mutex);
}

/* --- turns to read ----------------------------------------------------------------------------------------------------- */

/* Whether this thread is one too many; then it is counted out. */
static int gives_way(struct readers *readers) {
    int active = atomic_load(&readers->active);
    while (active - atomic_load(&readers->maybe_blocked) > readers->most_active)
        if (atomic_compare_exchange_weak(&readers->active, &active, active - 1))
            return 1;
    return 0;
}

static enum reader_turn park(struct readers *readers, unsigned *recalls) {
    enum reader_turn turn = READER_READS;
    pthread_mutex_lock(&readers->mutex);
    readers->parked++;
    while (!readers->wakeups && !atomic_load(&readers->ended) && *recalls == readers->recalls)
        pthread_cond_wait(&readers->called, &readers->mutex);
    readers->parked--;
    if (readers->wakeups) {
        readers->wakeups--; /* who called has counted this thread */
    } else {
        turn = READER_RECALLED;
        *recalls = readers->recalls;
        atomic_fetch_add(&readers->active, 1);
    }
    pthread_mutex_unlock(&readers->mutex);
    return turn;
}

enum reader_turn readers_wait(struct readers *readers, unsigned *recalls) {
    enum reader_turn turn = READER_READS;
    if (!atomic_load(&readers->ended) && gives_way(readers))
        turn = park(readers, recalls);
    return atomic_load(&readers->ended) ? READER_ENDED : turn;
}

void readers_recall(struct readers *readers) {
    pthread_mutex_lock(&readers->mutex);
    readers->recalls++;
    pthread_cond_broadcast(&readers->called);
    pthread_mutex_unlock(&readers->mutex);
}

void readers_end(struct readers *readers) {
    pthread_mutex_lock(&readers->mutex);
    atomic_store(&readers->ended, 1);
    pthread_cond_broadcast(&readers->called);
    pthread_cond_signal(&readers->watch);
    pthread_mutex_unlock(&readers->mutex);
}

/* --- waits ------------------------------------------------------------------------------------------------------------- */

/* The watching thread looks at `waits` under the mutex after it has said that it sleeps, so it cannot miss this. */
static void wake_watcher(struct readers *readers) {
    pthread_mutex_lock(&readers->mutex);
    pthread_cond_signal(&readers->watch);
    pthread_mutex_unlock(&readers->mutex);
}

void readers_block(struct readers *readers) {
    atomic_fetch_sub(&readers->active, 1);
    if (attending(readers) < readers->most_active)
        call_another(readers);
}

void readers_unblock(struct readers *readers) { atomic_fetch_add(&readers->active, 1); }

int readers_before_wait(struct readers *readers) {
    atomic_fetch_add(&readers->waits, 1);
    if (atomic_load(&readers->eager_waits_left) > 0) {
        atomic_fetch_sub(&readers->eager_waits_left, 1);
        readers_block(readers);
        return 1;
    }
    atomic_fetch_add(&readers->maybe_blocked, 1);
    if (!atomic_load(&readers->watching))
        wake_watcher(readers);
    return 0;
}

void readers_after_wait(struct readers *readers, int token) {
    if (token)
        readers_unblock(readers);
    else
        atomic_fetch_sub(&readers->maybe_blocked, 1);
}

/* --- the watching thread: no request lies unread for long while all threads wait ----------------------------------------- */

static void sleep_until_somebody_waits(struct readers *readers, unsigned seen) {
    pthread_mutex_lock(&readers->mutex);
    atomic_store(&readers->watching, 0);
    while (atomic_load(&readers->waits) == seen && !atomic_load(&readers->ended))
        pthread_cond_wait(&readers->watch, &readers->mutex);
    atomic_store(&readers->watching, 1);
    pthread_mutex_unlock(&readers->mutex);
}

static void *run_watcher(void *argument) {
    struct readers *readers = argument;
    const struct timespec interval = {.tv_nsec = WATCH_INTERVAL_NS};
    unsigned seen = 0, quiet = 0, unread = 0;
    begin_confined("lane", readers->confined);
    while (!atomic_load(&readers->ended)) {
        unsigned waits = atomic_load(&readers->waits);
        int attended = attending(readers) > 0;
        quiet = attended && waits == seen ? quiet + 1 : 0;
        unread = attended ? 0 : unread + 1;
        seen = waits;
        if (quiet >= QUIET_LOOKS)
            sleep_until_somebody_waits(readers, seen);
        if (unread) {
            int more = transport_has_more(readers->transport);
            if (more)
                atomic_store(&readers->eager_waits_left, EAGER_WAITS);
            if (more || unread >= LONG_WAIT)
                call_another(readers);
        }
        nanosleep(&interval, NULL);
    }
    return NULL;
}

int readers_start(struct readers *readers) {
    return ready_thread_start(&readers->watcher, STACK_SIZE, 0, run_watcher, readers);
}

void readers_stop(struct readers *readers) { ready_thread_join(&readers->watcher); }
