/* A command, and what becomes of it where it succeeds. */
#ifndef LUKSHDRFS_NBD_ISSUED_COMMAND_H
#define LUKSHDRFS_NBD_ISSUED_COMMAND_H

#include "payload/nbd/session.h"

struct issued_command {
    struct nbd_command command; /* first: the session gives it back */
    int keep;                   /* it is a write that is kept until it is flushed */
    uint64_t mark;              /* of a flush: what was kept up to there is forgotten */
};

/* Returns the errno by which a disk would say what a server says (proto.md, "Error values"). */
int errno_of_server(int error);

/* Notes that a command has succeeded. To be called before the thread leaves the session: so a server that is lost
 * afterwards is given all that it had acknowledged, and nobody changes what is kept while it is written again. */
void issued_command_settle(const struct issued_command *issued, struct nbd_session *session);

/* Carries a command out on any run of the server, until its time is over. One that was cut off is done again: reads change
 * nothing, and a write that is done twice is the same write. Returns 0, an errno, or NBD_NO_ANSWER. */
int issued_command_run(struct issued_command *issued, struct nbd_session *session);

#endif
