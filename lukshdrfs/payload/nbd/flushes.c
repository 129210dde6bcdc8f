/* See flushes.h. */
#include "payload/nbd/flushes.h"

#include <errno.h>

#include "payload/nbd/issued_command.h"

struct flush_waiter {
    struct flush_waiter *next;
    int asked;
    int done, error;
};

void nbd_flushes_init(struct nbd_flushes *flushes, struct nbd_session *session) {
    *flushes = (struct nbd_flushes){.session = session};
    pthread_mutex_init(&flushes->mutex, NULL);
    pthread_cond_init(&flushes->flushed, NULL);
}

void nbd_flushes_destroy(struct nbd_flushes *flushes) {
    pthread_cond_destroy(&flushes->flushed);
    pthread_mutex_destroy(&flushes->mutex);
}

static int flush_once(struct nbd_session *session) {
    if (!session->export.can_flush)
        return 0;
    struct issued_command flush = {.command = {.kind = NBD_FLUSH, .until = nbd_session_deadline(session)},
                                   .mark = unflushed_writes_mark(&session->unflushed)};
    return issued_command_run(&flush, session);
}

/* Ends the waits of those for whom a flush was, with its result. A flush without an answer has lost nothing: all of it is
 * still kept. Call with the mutex held. */
static void end_waits(struct nbd_flushes *flushes, struct flush_waiter *waiters, int result) {
    int heard = 0, error = result < 0 ? EIO : result;
    flushes->failures += result > 0;
    for (struct flush_waiter *each = waiters; each; each = each->next)
        heard |= each->asked;
    if (result > 0 && !heard) {
        flushes->failed = error;
        nbd_session_note_failed_flush(flushes->session, error);
    }
    int refused = heard ? nbd_session_take_refused(flushes->session) : 0;
    int before = flushes->failed ? flushes->failed : refused;
    if (heard)
        flushes->failed = 0;
    while (waiters) {
        struct flush_waiter *each = waiters;
        waiters = each->next; /* it is gone as soon as it may be */
        each->error = error || !each->asked ? error : before;
        each->done = 1;
    }
    pthread_cond_broadcast(&flushes->flushed);
}

int nbd_flushes_flush(struct nbd_flushes *flushes, int asked) {
    struct flush_waiter waiter = {.asked = asked};
    pthread_mutex_lock(&flushes->mutex);
    waiter.next = flushes->waiters;
    flushes->waiters = &waiter;
    while (!waiter.done) {
        if (flushes->flushing) {
            pthread_cond_wait(&flushes->flushed, &flushes->mutex);
            continue;
        }
        struct flush_waiter *waiters = flushes->waiters;
        flushes->waiters = NULL;
        flushes->flushing = 1;
        pthread_mutex_unlock(&flushes->mutex);
        int result = flush_once(flushes->session);
        pthread_mutex_lock(&flushes->mutex);
        flushes->flushing = 0;
        end_waits(flushes, waiters, result);
    }
    pthread_mutex_unlock(&flushes->mutex);
    return waiter.error;
}

unsigned nbd_flushes_losses(struct nbd_flushes *flushes) {
    pthread_mutex_lock(&flushes->mutex);
    unsigned failures = flushes->failures;
    pthread_mutex_unlock(&flushes->mutex);
    return failures + nbd_session_refusals(flushes->session);
}
