/* Commands that no thread waits for: issued, and issued again when the server is back. */
#ifndef LUKSHDRFS_NBD_RETRIER_H
#define LUKSHDRFS_NBD_RETRIER_H

#include "payload/nbd/issued_command.h"
#include "payload/payload.h"
#include "threads/ready_thread.h"

#define NBD_MOST_UNATTENDED 64

struct nbd_retrier;

struct unattended_command {
    struct issued_command issued; /* first: the connection gives it back */
    struct nbd_retrier *retrier;
    struct nbd_connection *connection;
    struct unattended_command *next;
    struct payload_request *request;
};

struct nbd_retrier {
    struct nbd_session *session;
    /* `session->mutex` is for all that follows, up to the thread: */
    struct unattended_command *free;
    struct unattended_command *broken; /* their connection broke: to be issued again */
    int ending;
    struct unattended_command commands[NBD_MOST_UNATTENDED];

    struct ready_thread thread;
};

/* Starts the thread. Returns 0 or an errno. */
int nbd_retrier_start(struct nbd_retrier *retrier, struct nbd_session *session);

/* Ends the thread, after nbd_session_end(). Requests that are left fail. */
void nbd_retrier_end(struct nbd_retrier *retrier);

/* Issues a request of whole blocks, and waits for nothing. Returns 0 if that cannot be: the server is away, or there are
 * too many. */
int nbd_retrier_issue(struct nbd_retrier *retrier, struct payload_request *request);

#endif
