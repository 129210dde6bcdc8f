/* See retrier.h. */
#define _GNU_SOURCE
#include "payload/nbd/retrier.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>

#include "threads/confinement.h"

static struct unattended_command *claim(struct nbd_retrier *retrier) {
    pthread_mutex_lock(&retrier->session->mutex);
    struct unattended_command *command = retrier->free;
    if (command)
        retrier->free = command->next;
    pthread_mutex_unlock(&retrier->session->mutex);
    return command;
}

static void give_back(struct nbd_retrier *retrier, struct unattended_command *command) {
    pthread_mutex_lock(&retrier->session->mutex);
    command->next = retrier->free;
    retrier->free = command;
    pthread_mutex_unlock(&retrier->session->mutex);
}

static void finish(struct unattended_command *command, int error) {
    struct nbd_retrier *retrier = command->retrier;
    struct payload_request *request = command->request;
    if (error && command->issued.keep)
        unflushed_writes_cancel(&retrier->session->unflushed, command->issued.command.size);
    give_back(retrier, command);
    request->finished(request, error);
}

static void answered(struct nbd_command *finished, int error) {
    struct unattended_command *command = (struct unattended_command *)finished;
    struct nbd_retrier *retrier = command->retrier;
    struct nbd_session *session = retrier->session;
    struct nbd_connection *connection = command->connection; /* the retrier may issue it again before this thread leaves */
    if (error == 0)
        issued_command_settle(&command->issued, session);
    if (error < 0) {
        pthread_mutex_lock(&session->mutex);
        command->next = retrier->broken;
        retrier->broken = command;
        pthread_mutex_unlock(&session->mutex);
        nbd_session_leave(session, connection, 1);
        return;
    }
    nbd_session_leave(session, connection, 0);
    finish(command, error ? errno_of_server(error) : 0);
}

/* Returns whether there was a connection for it. Once it is started, it may be over, and somebody else's. */
static int issue(struct unattended_command *command, struct nbd_session *session) {
    struct nbd_command *nbd = &command->issued.command;
    pthread_mutex_lock(&session->mutex);
    struct nbd_connection *chosen = session->state == NBD_UP ? nbd_session_choose(session, nbd->size) : NULL;
    command->connection = chosen;
    pthread_mutex_unlock(&session->mutex);
    if (chosen)
        nbd_connection_start(chosen, nbd);
    return chosen != NULL;
}

int nbd_retrier_issue(struct nbd_retrier *retrier, struct payload_request *request) {
    struct nbd_session *session = retrier->session;
    int keep = request->writing && session->export.can_flush;
    struct unattended_command *command = claim(retrier);
    if (!command)
        return 0;
    *command = (struct unattended_command){
        .issued = {.command = {.kind = request->writing ? NBD_WRITE : NBD_READ, .data = request->data,
                               .size = request->size, .offset = request->offset,
                               .until = nbd_session_deadline(session), .finished = answered},
                   .keep = keep},
        .retrier = retrier,
        .request = request,
    };
    if (keep && !unflushed_writes_reserve(&session->unflushed, request->size)) {
        give_back(retrier, command);
        return 0;
    }
    if (issue(command, session))
        return 1;
    if (keep)
        unflushed_writes_cancel(&session->unflushed, request->size);
    give_back(retrier, command);
    return 0;
}

/* --- the thread -------------------------------------------------------------------------------------------------------- */

/* Issues again the commands whose connection broke, and fails those whose deadline has passed. Returns whether it did
 * anything; sets `*next` to the earliest deadline that is left. Call with the session's mutex held; it is released while
 * callbacks run. */
static int retry_broken(struct nbd_retrier *retrier, int64_t *next) {
    struct nbd_session *session = retrier->session;
    struct unattended_command *over = NULL, **at = &retrier->broken;
    *next = INT64_MAX / 2;
    while (*at) {
        struct unattended_command *command = *at;
        int64_t until = command->issued.command.until;
        int late = retrier->ending || nbd_session_is_over(session, until);
        if (!late && session->state != NBD_UP && !session->given_up) {
            *next = until < *next ? until : *next;
            at = &command->next;
            continue;
        }
        *at = command->next;
        if (!late && session->state == NBD_UP) {
            command->connection = nbd_session_choose(session, command->issued.command.size);
            nbd_connection_start(command->connection, &command->issued.command);
        } else {
            command->next = over;
            over = command;
        }
    }
    if (!over)
        return 0;
    pthread_mutex_unlock(&session->mutex);
    while (over) {
        struct unattended_command *command = over;
        over = command->next;
        finish(command, EIO);
    }
    pthread_mutex_lock(&session->mutex);
    return 1;
}

/* Reports what other threads have found out, which can do nothing but use their descriptors. Returns whether there was
 * anything. Call with the session's mutex held; it is released meanwhile. */
static int report_events(struct nbd_session *session) {
    int lost = session->lost, failed = session->flush_failed;
    session->lost = session->flush_failed = 0;
    if (!lost && !failed)
        return 0;
    pthread_mutex_unlock(&session->mutex);
    if (lost)
        nbd_session_report(session, NBD_CLIENT_LOST, "");
    if (failed)
        nbd_session_report(session, NBD_CLIENT_FAILED, strerrordesc_np(failed));
    pthread_mutex_lock(&session->mutex);
    return 1;
}

/* The reconnecting thread could not do this: it may be connecting. */
static void *run_retrier(void *argument) {
    struct nbd_retrier *retrier = argument;
    struct nbd_session *session = retrier->session;
    (void)confine_connecting_thread(); /* it logs, which may take more than descriptors that are open */
    pthread_mutex_lock(&session->mutex);
    for (;;) {
        int64_t next;
        if (report_events(session) || retry_broken(retrier, &next))
            continue;
        if (retrier->ending)
            break;
        nbd_session_wait(session, next);
    }
    pthread_mutex_unlock(&session->mutex);
    return NULL;
}

int nbd_retrier_start(struct nbd_retrier *retrier, struct nbd_session *session) {
    *retrier = (struct nbd_retrier){.session = session};
    for (size_t i = 0; i < NBD_MOST_UNATTENDED; i++)
        give_back(retrier, &retrier->commands[i]);
    return ready_thread_start(&retrier->thread, NBD_STACK_SIZE, 0, run_retrier, retrier);
}

void nbd_retrier_end(struct nbd_retrier *retrier) {
    pthread_mutex_lock(&retrier->session->mutex);
    retrier->ending = 1;
    pthread_cond_broadcast(&retrier->session->changed);
    pthread_mutex_unlock(&retrier->session->mutex);
    ready_thread_join(&retrier->thread);
}
