/* Writing once more, to a server that was away, what it may have forgotten. */
#ifndef LUKSHDRFS_NBD_REPLAY_H
#define LUKSHDRFS_NBD_REPLAY_H

#include <stdatomic.h>
#include <stdint.h>

#include "payload/nbd/connection.h"
#include "payload/nbd/unflushed_writes.h"

struct nbd_replay {
    uint64_t total; /* bytes that were written again */
    int refused;    /* an errno of the server's; 0: it took all */
};

/* Writes all that is kept, two writes to one place in the order in which they were acknowledged. By the thread that has
 * connected, before anybody else uses the connection. Each write may take `patience_ms`; once `*ending` is set, none goes
 * on. Returns 0, or -1 if the connection broke. */
int nbd_replay_run(struct nbd_replay *replay, struct unflushed_writes *kept, struct nbd_connection *connection,
                   unsigned patience_ms, const atomic_int *ending);

#endif
