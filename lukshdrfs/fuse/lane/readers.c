/* See readers.h. */
#define _GNU_SOURCE
#include "fuse/lane/readers.h"

#include <time.h>
#include <unistd.h>

#include "threads/confinement.h"

#define STACK_SIZE ((size_t)1 << 17)

/* Who goes to wait for the payload does not know whether it will take long: a write to a file mostly ends in the page
 * cache. To wake somebody up each time would cost more than the write. So a thread watches, and looks this often whether
 * a request lies unread because everybody waits; where that was so, the next waits call a reader before they begin. */
#define WATCH_INTERVAL_NS 300000
#define EAGER_WAITS 1000
#define LONG_WAIT 4    /* looks after which somebody is to read anyway */
#define QUIET_LOOKS 20 /* looks without any wait after which the watching thread sleeps */

void readers_init(struct readers *readers, const struct transport *transport, int confined) {
    long processors = sysconf(_SC_NPROCESSORS_ONLN);
    *readers = (struct readers){
        .transport = transport, .confined = confined, .processors = processors > 0 ? (unsigned)processors : 1};
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
}

int readers_leave(struct readers *readers) {
    pthread_mutex_lock(&readers->mutex);
    int last = --readers->running == 0;
    pthread_mutex_unlock(&readers->mutex);
    return last;
}

/* Call with the mutex held. */
static void call_reader(struct readers *readers) {
    if (readers->readers == 0 && readers->parked > readers->wakeups) {
        readers->wakeups++;
        pthread_cond_signal(&readers->called);
    }
}

/* --- turns to read ----------------------------------------------------------------------------------------------------- */

/* Call with the mutex held, which is released meanwhile. Returns whether this thread is to read beside those who do: a
 * request waits, and there is a processor for it. */
static int is_wanted(struct readers *readers) {
    if (!readers->readers)
        return 1;
    if (readers->readers >= readers->processors)
        return 0;
    pthread_mutex_unlock(&readers->mutex);
    int more = transport_has_more(readers->transport);
    pthread_mutex_lock(&readers->mutex);
    return more || !readers->readers;
}

enum reader_turn readers_wait(struct readers *readers, unsigned *recalls) {
    pthread_mutex_lock(&readers->mutex);
    if (!is_wanted(readers)) {
        readers->parked++;
        while (!readers->wakeups && !readers->ended && *recalls == readers->recalls)
            pthread_cond_wait(&readers->called, &readers->mutex);
        readers->parked--;
        if (readers->wakeups)
            readers->wakeups--;
        else if (!readers->ended) {
            *recalls = readers->recalls;
            pthread_mutex_unlock(&readers->mutex);
            return READER_RECALLED;
        }
    }
    enum reader_turn turn = readers->ended ? READER_ENDED : READER_READS;
    readers->readers += turn == READER_READS;
    pthread_mutex_unlock(&readers->mutex);
    return turn;
}

void readers_pass_on(struct readers *readers, int more) {
    pthread_mutex_lock(&readers->mutex);
    readers->readers--;
    if (more && readers->running - readers->parked + readers->wakeups - readers->replaced < readers->processors)
        call_reader(readers);
    pthread_mutex_unlock(&readers->mutex);
}

void readers_leave_off(struct readers *readers) {
    pthread_mutex_lock(&readers->mutex);
    readers->readers--;
    pthread_mutex_unlock(&readers->mutex);
}

void readers_recall(struct readers *readers) {
    pthread_mutex_lock(&readers->mutex);
    readers->recalls++;
    pthread_cond_broadcast(&readers->called);
    pthread_mutex_unlock(&readers->mutex);
}

void readers_end(struct readers *readers) {
    pthread_mutex_lock(&readers->mutex);
    readers->ended = 1;
    pthread_cond_broadcast(&readers->called);
    pthread_cond_signal(&readers->watch);
    pthread_mutex_unlock(&readers->mutex);
}

/* --- waits ------------------------------------------------------------------------------------------------------------- */

int readers_before_wait(struct readers *readers) {
    pthread_mutex_lock(&readers->mutex);
    int replaced = readers->eager_waits_left > 0;
    readers->maybe_blocked++;
    readers->waits++;
    if (replaced) {
        readers->eager_waits_left--;
        readers->replaced++;
        call_reader(readers);
    } else if (!readers->watching)
        pthread_cond_signal(&readers->watch);
    pthread_mutex_unlock(&readers->mutex);
    return replaced;
}

void readers_after_wait(struct readers *readers, int token) {
    pthread_mutex_lock(&readers->mutex);
    readers->maybe_blocked--;
    readers->replaced -= (unsigned)token;
    pthread_mutex_unlock(&readers->mutex);
}

void readers_block(struct readers *readers) {
    pthread_mutex_lock(&readers->mutex);
    readers->maybe_blocked++;
    readers->replaced++;
    call_reader(readers);
    pthread_mutex_unlock(&readers->mutex);
}

void readers_unblock(struct readers *readers) { readers_after_wait(readers, 1); }

/* --- the watching thread: no request lies unread for long while all threads wait ----------------------------------------- */

/* Call with the mutex held, which is released meanwhile. */
static void look(struct readers *readers, unsigned unread) {
    pthread_mutex_unlock(&readers->mutex);
    int more = transport_has_more(readers->transport);
    pthread_mutex_lock(&readers->mutex);
    if (more && !readers->readers)
        readers->eager_waits_left = EAGER_WAITS;
    if (more || unread >= LONG_WAIT)
        call_reader(readers);
}

static void *run_watcher(void *argument) {
    struct readers *readers = argument;
    const struct timespec interval = {.tv_nsec = WATCH_INTERVAL_NS};
    unsigned seen = 0, quiet = 0, unread = 0;
    begin_confined("lane", readers->confined);
    pthread_mutex_lock(&readers->mutex);
    while (!readers->ended) {
        int attended = !readers->maybe_blocked || readers->readers;
        quiet = attended && readers->waits == seen ? quiet + 1 : 0;
        unread = attended ? 0 : unread + 1;
        seen = readers->waits;
        readers->watching = quiet < QUIET_LOOKS;
        while (!readers->watching && readers->waits == seen && !readers->ended)
            pthread_cond_wait(&readers->watch, &readers->mutex);
        readers->watching = 1;
        if (unread)
            look(readers, unread);
        pthread_mutex_unlock(&readers->mutex);
        nanosleep(&interval, NULL);
        pthread_mutex_lock(&readers->mutex);
    }
    pthread_mutex_unlock(&readers->mutex);
    return NULL;
}

int readers_start(struct readers *readers) {
    return ready_thread_start(&readers->watcher, STACK_SIZE, 0, run_watcher, readers);
}

void readers_stop(struct readers *readers) { ready_thread_join(&readers->watcher); }
