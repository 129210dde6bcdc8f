/* See session.h. */
#define _GNU_SOURCE
#include "payload/nbd/session.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "payload/nbd/replay.h"
#include "threads/confinement.h"

#define SMALL ((size_t)1 << 14) /* bytes */
#define CROWD 16                /* commands that servers work at at once, on one connection (qemu-nbd, nbdkit) */
#define CONNECT_MS 10000                     /* for one attempt */
#define RETRY_MS 250                         /* between two attempts */
#define AGAIN_MS 10                          /* after one that was in vain only later */

void nbd_session_report(const struct nbd_session *session, int event, const char *detail) {
    if (session->config.on_event)
        session->config.on_event(session->config.context, event, detail);
}

/* --- connecting ---------------------------------------------------------------------------------------------------- */

/* By the last thread that uses one, or by one that has not shared them with anybody yet. */
static void close_all(struct nbd_session *session) {
    for (unsigned i = 0; i < NBD_MAX_CONNECTIONS; i++)
        nbd_connection_close(&session->connections[i]);
}

/* Asks for the export, and notes it at first; later, it must be able to do what it could. Returns 0 or -1. */
static int learn(struct nbd_session *session, int first, int *trouble, char *words, size_t room) {
    struct nbd_export found;
    if (nbd_export_ask(&found, session->library, session->connections[0].handle, words, room) < 0)
        return -1;
    if (!session->config.read_only && found.read_only) {
        *trouble = NBD_CLIENT_READ_ONLY;
        snprintf(words, room, "the export is for reading only now");
        return -1;
    }
    if (first) { /* later, others read it without a lock */
        session->export = found;
        atomic_store(&session->size, found.size);
        return 0;
    }
    struct nbd_export before = session->export;
    before.size = atomic_load(&session->size);
    return nbd_export_compare(&before, &found, words, room);
}

static int connect_one(struct nbd_session *session, unsigned which, int64_t until, char *words, size_t room) {
    return nbd_connection_open(&session->connections[which], session->uri, until, &session->ending, words, room);
}

/* Connects; nobody else may. Returns 0 or -1. */
static int connect_all(struct nbd_session *session, int first, int64_t until, int *trouble, char *words, size_t room) {
    if (connect_one(session, 0, until, words, room) < 0)
        return -1;
    if (learn(session, first, trouble, words, room) < 0) {
        close_all(session);
        return -1;
    }
    session->connection_count = 1;
    if (session->library->can_multi_conn(session->connections[0].handle) > 0)
        while (session->connection_count < session->config.connections && session->connection_count < NBD_MAX_CONNECTIONS) {
            char ignored[1]; /* a server may have a limit, and one connection does */
            if (connect_one(session, session->connection_count, until, ignored, sizeof ignored) < 0)
                break;
            session->connection_count++;
        }
    return 0;
}

/* Somebody who is to learn what a server says, in a thread of its own: that one is confined, whoever wants to know. */
struct asking {
    struct nbd_session *session;
    int first; /* all connections are to be made; else one, for the size alone */
    int *trouble;
    char *words;
    size_t room;
    int64_t size;
    int error;
};

static void *ask(void *argument) {
    struct asking *asking = argument;
    struct nbd_session *session = asking->session;
    struct nbd_connection probe;
    (void)confine_connecting_thread(); /* a kernel that cannot do it serves as well */
    if (asking->first) {
        int64_t patience = session->config.patience_ms < CONNECT_MS ? session->config.patience_ms : CONNECT_MS;
        asking->error = connect_all(session, 1, now_ms() + patience, asking->trouble, asking->words, asking->room);
        return NULL;
    }
    asking->error = nbd_connection_init(&probe, session->library) ? EMFILE : EIO;
    if (asking->error == EMFILE)
        return NULL;
    if (nbd_connection_open(&probe, session->uri, now_ms() + CONNECT_MS, &session->ending, asking->words,
                            asking->room) == 0)
        asking->size = session->library->get_size(probe.handle);
    nbd_connection_destroy(&probe);
    asking->error = asking->size < 0 ? EIO : 0;
    return NULL;
}

/* Returns what `ask` has set, or an errno where there is no thread to be had. */
static int ask_apart(struct asking *asking) {
    struct ready_thread thread;
    int error = ready_thread_start(&thread, NBD_STACK_SIZE, 0, ask, asking);
    if (error)
        return error;
    ready_thread_join(&thread);
    return asking->error;
}

/* --- using it ------------------------------------------------------------------------------------------------------ */

int64_t nbd_session_deadline(const struct nbd_session *session) { return now_ms() + session->config.patience_ms; }

int nbd_session_is_over(const struct nbd_session *session, int64_t until) {
    return atomic_load(&session->impatient) || now_ms() >= until;
}

void nbd_session_wait(struct nbd_session *session, int64_t until) {
    struct timespec end = {.tv_sec = until / 1000, .tv_nsec = until % 1000 * 1000000};
    pthread_cond_clockwait(&session->changed, &session->mutex, CLOCK_MONOTONIC, &end);
}

/* Large pieces go to the connection that has least to do: their bytes take time. Small ones go to as few connections as
 * will do, for what comes in one go is read and answered in one go, here and there. */
struct nbd_connection *nbd_session_choose(struct nbd_session *session, size_t size) {
    unsigned least = 0;
    for (unsigned i = 1; i < session->connection_count; i++)
        if (session->load[i] < session->load[least] && (size > SMALL || session->load[least] >= CROWD))
            least = i;
    session->load[least]++;
    session->users++;
    return &session->connections[least];
}

struct nbd_connection *nbd_session_enter(struct nbd_session *session, size_t size, int64_t until) {
    struct nbd_connection *chosen = NULL;
    pthread_mutex_lock(&session->mutex);
    /* nobody waits for a server that others have waited for in vain */
    while (session->state != NBD_UP && !session->given_up && !nbd_session_is_over(session, until))
        nbd_session_wait(session, until);
    /* what is late already would only break the session */
    if (session->state == NBD_UP && !nbd_session_is_over(session, until))
        chosen = nbd_session_choose(session, size);
    pthread_mutex_unlock(&session->mutex);
    return chosen;
}

/* Call with the mutex held. */
static void lose(struct nbd_session *session) {
    session->state = NBD_FAILING;
    session->lost_at = now_ms();
    session->lost = 1;
    pthread_cond_broadcast(&session->changed);
}

/* Call with the mutex held. */
static void break_all(struct nbd_session *session) {
    for (unsigned i = 0; i < session->connection_count; i++)
        nbd_connection_break(&session->connections[i]);
}

void nbd_session_leave(struct nbd_session *session, struct nbd_connection *connection, int broken) {
    pthread_mutex_lock(&session->mutex);
    session->load[connection - session->connections]--;
    session->users--;
    if (broken && session->state == NBD_UP)
        lose(session);
    if (broken && session->state == NBD_FAILING)
        break_all(session);
    if (session->state == NBD_FAILING && session->users == 0)
        pthread_cond_broadcast(&session->changed);
    pthread_mutex_unlock(&session->mutex);
}

void nbd_session_fail_waiting(struct nbd_session *session) {
    pthread_mutex_lock(&session->mutex);
    atomic_store(&session->impatient, 1);
    if (session->state == NBD_UP && session->users)
        lose(session);
    if (session->state == NBD_FAILING)
        break_all(session);
    pthread_cond_broadcast(&session->changed);
    pthread_mutex_unlock(&session->mutex);
}

void nbd_session_wait_again(struct nbd_session *session) {
    pthread_mutex_lock(&session->mutex);
    atomic_store(&session->impatient, 0);
    pthread_cond_broadcast(&session->changed);
    pthread_mutex_unlock(&session->mutex);
}

int nbd_session_take_refused(struct nbd_session *session) {
    pthread_mutex_lock(&session->mutex);
    int refused = session->refused;
    session->refused = 0;
    pthread_mutex_unlock(&session->mutex);
    return refused;
}

void nbd_session_note_failed_flush(struct nbd_session *session, int error) {
    pthread_mutex_lock(&session->mutex);
    session->flush_failed = error;
    pthread_cond_broadcast(&session->changed);
    pthread_mutex_unlock(&session->mutex);
}

unsigned nbd_session_refusals(struct nbd_session *session) {
    pthread_mutex_lock(&session->mutex);
    unsigned refusals = session->refusals;
    pthread_mutex_unlock(&session->mutex);
    return refusals;
}

int nbd_session_refresh(struct nbd_session *session) {
    char ignored[1];
    struct asking asking = {.session = session, .words = ignored, .room = sizeof ignored, .size = -1};
    int error = ask_apart(&asking);
    if (error)
        return error;
    int64_t size = asking.size;
    if ((uint64_t)size > atomic_load(&session->size)) {
        /* A connection keeps the size that it began with, so that is the end of those: when everybody who uses one has
         * his answer, for nothing is wrong with them. */
        pthread_mutex_lock(&session->mutex);
        if (session->state == NBD_UP)
            lose(session);
        pthread_mutex_unlock(&session->mutex);
    }
    atomic_store(&session->size, (uint64_t)size);
    return 0;
}

/* --- the reconnecting thread ---------------------------------------------------------------------------------------------------- */

/* Writes again what the server may have forgotten, and reports it. Returns 0 or -1. */
static int write_again(struct nbd_session *session) {
    struct nbd_replay replay;
    char words[64];
    if (nbd_replay_run(&replay, &session->unflushed, &session->connections[0], session->config.patience_ms,
                       &session->ending) < 0)
        return -1;
    snprintf(words, sizeof words, "%llu", (unsigned long long)replay.total);
    nbd_session_report(session, NBD_CLIENT_BACK, words);
    if (replay.refused) {
        /* all of it stays kept, up to the next flush: who hears of it here may free the server's disk, and restart it */
        pthread_mutex_lock(&session->mutex);
        session->refused = replay.refused;
        session->refusals++;
        pthread_mutex_unlock(&session->mutex);
        nbd_session_report(session, NBD_CLIENT_REFUSED, strerrordesc_np(replay.refused));
    }
    return 0;
}

/* Tries once to be connected again. Call with the mutex held, which is released meanwhile: nobody else uses the connections. */
static void reconnect(struct nbd_session *session) {
    pthread_mutex_unlock(&session->mutex);
    char words[256] = "";
    int64_t now = now_ms(), latest = session->lost_at + session->config.patience_ms; /* as long as others wait */
    int64_t until = !session->given_up && latest < now + CONNECT_MS ? latest : now + CONNECT_MS;
    int trouble = 0;
    int done = connect_all(session, 0, until > now ? until : now + RETRY_MS, &trouble, words, sizeof words) == 0;
    if (done && write_again(session) < 0) {
        close_all(session);
        done = 0;
    }
    int give_up = !done && !session->given_up && now_ms() >= latest && !atomic_load(&session->ending);
    if (give_up)
        nbd_session_report(session, NBD_CLIENT_GIVEN_UP, words);
    pthread_mutex_lock(&session->mutex);
    session->given_up = done ? 0 : session->given_up || give_up;
    session->state = done ? NBD_UP : NBD_DOWN;
    session->next_try = now_ms() + (done ? AGAIN_MS : RETRY_MS);
    pthread_cond_broadcast(&session->changed);
}

/* The thread that takes the rests of a lost session away, and connects again. */
static void *run_reconnector(void *argument) {
    struct nbd_session *session = argument;
    (void)confine_connecting_thread();
    pthread_mutex_lock(&session->mutex);
    while (!atomic_load(&session->ending)) {
        if (session->state == NBD_FAILING && session->users == 0) {
            pthread_mutex_unlock(&session->mutex);
            close_all(session);
            pthread_mutex_lock(&session->mutex);
            session->state = NBD_DOWN;
        } else if (session->state == NBD_DOWN && now_ms() >= session->next_try) {
            reconnect(session);
        } else {
            nbd_session_wait(session, session->state == NBD_DOWN ? session->next_try : INT64_MAX / 2);
        }
    }
    pthread_mutex_unlock(&session->mutex);
    return NULL;
}

/* --- its life ------------------------------------------------------------------------------------------------------ */

int nbd_session_open(struct nbd_session *session, const struct nbd_client_config *config, int *trouble, char *words,
                     size_t room) {
    *session = (struct nbd_session){.config = *config, .uri = strdup(config->uri), .library = nbd_library_load()};
    *trouble = session->library ? NBD_CLIENT_NO_MEMORY : NBD_CLIENT_NO_LIBRARY;
    pthread_mutex_init(&session->mutex, NULL);
    pthread_cond_init(&session->changed, NULL);
    int complete = unflushed_writes_init(&session->unflushed, config->kept_size) == 0 && session->uri && session->library;
    for (unsigned i = 0; i < NBD_MAX_CONNECTIONS && complete; i++)
        complete = nbd_connection_init(&session->connections[i], session->library) == 0;
    if (complete) {
        struct asking asking = {.session = session, .first = 1, .trouble = trouble, .words = words, .room = room};
        *trouble = NBD_CLIENT_NO_SERVER;
        if (ask_apart(&asking) == 0) {
            int error = ready_thread_start(&session->reconnector, NBD_STACK_SIZE, 0, run_reconnector, session);
            *trouble = error ? NBD_CLIENT_NO_MEMORY : NBD_CLIENT_OK;
        }
    }
    if (*trouble == NBD_CLIENT_OK)
        return 0;
    nbd_session_destroy(session);
    return -1;
}

void nbd_session_end(struct nbd_session *session) {
    pthread_mutex_lock(&session->mutex);
    atomic_store(&session->ending, 1);
    pthread_cond_broadcast(&session->changed);
    pthread_mutex_unlock(&session->mutex);
    ready_thread_join(&session->reconnector);
}

void nbd_session_destroy(struct nbd_session *session) {
    nbd_session_end(session);
    for (unsigned i = 0; i < NBD_MAX_CONNECTIONS; i++)
        if (session->connections[i].library)
            nbd_connection_destroy(&session->connections[i]);
    unflushed_writes_destroy(&session->unflushed);
    pthread_cond_destroy(&session->changed);
    pthread_mutex_destroy(&session->mutex);
    free(session->uri);
}
