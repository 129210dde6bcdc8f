/* What lies between a client and its server: all connections to one run of the server, and to the next run after it.
 *
 * One broken connection ends them all, for what the server has forgotten is known only to the whole. Then a thread of the
 * session's, the reconnector, connects again, and writes again what had been acknowledged and not flushed, before anybody else
 * uses the connections. */
#ifndef LUKSHDRFS_NBD_SESSION_H
#define LUKSHDRFS_NBD_SESSION_H

#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include "payload/nbd/connection.h"
#include "payload/nbd/export.h"
#include "payload/nbd/options.h"
#include "payload/nbd/unflushed_writes.h"

#define NBD_MAX_CONNECTIONS 16

enum nbd_session_state { NBD_UP, NBD_FAILING, NBD_DOWN };

struct nbd_session {
    struct nbd_client_config config;
    char *uri;
    const struct nbd_library *library;

    struct nbd_export export; /* as the first run of the server said */
    _Atomic uint64_t size;    /* bytes; only this changes later */

    atomic_int impatient; /* nobody waits for the server, and nobody begins to */
    atomic_int ending;
    pthread_mutex_t mutex; /* for all that follows, up to the connections themselves */
    pthread_cond_t changed;
    enum nbd_session_state state;
    unsigned users; /* threads that use its connections */
    unsigned connection_count;
    unsigned load[NBD_MAX_CONNECTIONS]; /* commands on each connection */
    int64_t lost_at;  /* when it was lost */
    int64_t next_try; /* not earlier is it tried to connect */
    int given_up;     /* it has been away for longer than anybody waits */
    int lost;         /* that it was lost is to be reported */
    int flush_failed; /* the errno of a flush that failed and nobody had asked for, to be reported */
    int refused;      /* the errno of a write that could not be done again, for the next flush to return */
    unsigned refusals; /* times that there was one */
    struct ready_thread reconnector;

    struct unflushed_writes unflushed;
    struct nbd_connection connections[NBD_MAX_CONNECTIONS];
};

/* Connects. Returns 0, or -1 with what is wrong: enum nbd_client_trouble, and for NO_SERVER words. */
int nbd_session_open(struct nbd_session *session, const struct nbd_client_config *config, int *trouble, char *words,
                     size_t room);

/* Nobody uses it any more, and nobody comes. The mutex remains for whoever is told that it ends. */
void nbd_session_end(struct nbd_session *session);
void nbd_session_destroy(struct nbd_session *session);

/* Calls the configuration's `on_event`. */
void nbd_session_report(const struct nbd_session *session, int event, const char *detail);

/* Until when whoever begins now waits, of now_ms(). */
int64_t nbd_session_deadline(const struct nbd_session *session);
/* Whether the time of somebody who waits until then is over. */
int nbd_session_is_over(const struct nbd_session *session, int64_t until);
/* Waits for a change, until a time of now_ms(). Call with the mutex held. */
void nbd_session_wait(struct nbd_session *session, int64_t until);

/* A connection for a command of so many bytes; everybody leaves it afterwards, and says whether it was cut off. `enter`
 * waits for one, and returns NULL if there is none in time; `choose` is under the mutex and for a session that is up. */
struct nbd_connection *nbd_session_enter(struct nbd_session *session, size_t size, int64_t until);
struct nbd_connection *nbd_session_choose(struct nbd_session *session, size_t size);
void nbd_session_leave(struct nbd_session *session, struct nbd_connection *connection, int broken);

/* See nbd_client_fail_waiting(). */
void nbd_session_fail_waiting(struct nbd_session *session);
void nbd_session_wait_again(struct nbd_session *session);

/* Has it reported that a flush failed which nobody had asked for. */
void nbd_session_note_failed_flush(struct nbd_session *session, int error);

/* The errno of a write that could not be done again, once; 0 if there was none. */
int nbd_session_take_refused(struct nbd_session *session);
/* How often there was one so far. */
unsigned nbd_session_refusals(struct nbd_session *session);

/* Asks the server for the export's size again. Returns 0 or an errno. */
int nbd_session_refresh(struct nbd_session *session);

#endif
