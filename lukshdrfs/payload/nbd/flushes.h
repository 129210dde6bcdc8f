/* One flush for all who have asked for one.
 *
 * A server tells once of what it could not write, and whoever asks at that time must hear of it, too. So one flush is
 * under way at a time, for all who came before it began. */
#ifndef LUKSHDRFS_NBD_FLUSHES_H
#define LUKSHDRFS_NBD_FLUSHES_H

#include <pthread.h>

#include "payload/nbd/session.h"

struct nbd_flushes {
    struct nbd_session *session;

    pthread_mutex_t mutex; /* for all that follows; `session.mutex` may be taken while it is held */
    pthread_cond_t flushed;
    struct flush_waiter *waiters;
    int flushing;
    int failed;        /* the errno of a flush that nobody has heard of yet */
    unsigned failures; /* flushes that have failed so far */
};

void nbd_flushes_init(struct nbd_flushes *flushes, struct nbd_session *session);
void nbd_flushes_destroy(struct nbd_flushes *flushes);

/* Flushes. Returns 0 or an errno; with `asked`, also that of a flush which failed while nobody had asked for any, and of
 * what was acknowledged and could not be written again. */
int nbd_flushes_flush(struct nbd_flushes *flushes, int asked);

/* Returns how often something that was acknowledged has been lost. */
unsigned nbd_flushes_losses(struct nbd_flushes *flushes);

#endif
