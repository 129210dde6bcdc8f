/* One connection to an NBD server, which any number of threads use at once. */
#ifndef LUKSHDRFS_NBD_CONNECTION_H
#define LUKSHDRFS_NBD_CONNECTION_H

#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include "nbd_command.h"
#include "nbd_library.h"
#include "ready_memory.h"
#include "nbd_transmission.h"

struct nbd_connection {
    const struct nbd_library *library;
    struct nbd_handle *handle; /* NULL: closed */
    struct ready_thread attendant;
    int has_attendant;
    pthread_mutex_t mutex; /* for all that follows, and for the handle */
    pthread_cond_t changed;
    struct nbd_command *commands; /* those that are not over */
    int attended;                 /* open, and the attendant is at it, up to nbd_connection_close() */
    int asleep;                   /* the attendant looks at no clock */
    int broken;                   /* no more answers are to come */
    int closing;                  /* the attendant is to leave it */
    int ending;
    int by_libnbd; /* it is under TLS: libnbd has it all; elsewhere, the handshake alone */
    struct nbd_transmission transmission;
    int bell; /* an eventfd: the attendant is to look again */
};

/* Milliseconds of CLOCK_MONOTONIC. */
int64_t nbd_now_ms(void);

/* Starts a thread with all signals blocked. Returns 0 or an errno. */
int nbd_start_thread(struct ready_thread *thread, void *(*run)(void *), void *argument);
/* Waits for its end. */
void nbd_join_thread(struct ready_thread *thread);

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
