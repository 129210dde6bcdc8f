/* One connection to an NBD server, which any number of threads use at once. */
#ifndef LUKSHDRFS_NBD_CONNECTION_H
#define LUKSHDRFS_NBD_CONNECTION_H

#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include "payload/nbd/command.h"
#include "payload/nbd/libnbd.h"
#include "payload/nbd/transmission.h"
#include "threads/ready_thread.h"

#define NBD_STACK_SIZE ((size_t)1 << 19) /* bytes, of each thread of a client's */

struct nbd_connection {
    const struct nbd_library *library;
    struct nbd_handle *handle; /* NULL: closed */
    struct ready_thread receiver;
    pthread_mutex_t mutex; /* for all that follows, and for the handle */
    pthread_cond_t changed;
    struct nbd_command *commands; /* those that are not over */
    int is_open;                  /* the receiver serves it, up to nbd_connection_close() */
    int asleep;                   /* the receiver looks at no clock */
    int broken;                   /* no more answers are to come */
    int closing;                  /* the receiver is to leave it */
    int ending;
    int by_libnbd; /* it is under TLS: libnbd has it all; elsewhere, the handshake alone */
    struct nbd_transmission transmission;
    int wakeup; /* an eventfd: the receiver is to look again */
};

/* Returns 0 or an errno. */
int nbd_connection_init(struct nbd_connection *connection, const struct nbd_library *library);
void nbd_connection_destroy(struct nbd_connection *connection);

/* Connects, until the time that is given, or until `ending` is set. Returns 0 or -1, with what is wrong in `problem` (at
 * most `room` bytes). */
int nbd_connection_open(struct nbd_connection *connection, const char *uri, int64_t until, const atomic_int *ending,
                        char *problem, size_t room);

/* Ends the connection. All commands are over when it returns. Not for functions that `finished` points to. */
void nbd_connection_close(struct nbd_connection *connection);

/* Has a command carried out, and returns at once. */
void nbd_connection_start(struct nbd_connection *connection, struct nbd_command *command);

/* Carries a command out. Returns 0, the errno that the server gives, or NBD_NO_ANSWER. */
int nbd_connection_run(struct nbd_connection *connection, struct nbd_command *command);

/* Has all commands be over, without an answer. */
void nbd_connection_break(struct nbd_connection *connection);

#endif
