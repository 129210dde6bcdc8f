/* See nbd_client.h. */
#define _GNU_SOURCE
#include "nbd_client.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "confinement.h"
#include "fair_lock.h"
#include "nbd_session.h"

/* A command, and what becomes of it where it succeeds: a write is kept until it is flushed, a flush has those up to its
 * mark forgotten. */
struct errand {
    struct nbd_command command; /* first: the command is the errand */
    int keep;
    uint64_t mark;
    /* of those that nobody waits for: */
    struct nbd_client *client;
    struct nbd_connection *connection;
    struct errand *next;
    nbd_client_finished finished;
    void *argument;
};

/* Somebody who waits for a flush. */
struct flush_waiter {
    struct flush_waiter *next;
    int asked; /* he is to hear of flushes that failed while nobody had asked for any */
    int done, error;
};

#define MAX_ERRANDS 64

struct nbd_client {
    struct nbd_session session;

    pthread_mutex_t flush_mutex; /* for what follows; only `blocks` may be held before */
    pthread_cond_t flushed;
    struct flush_waiter *flush_waiters;
    int flushing;
    int failed; /* the errno of a flush that nobody has heard of yet */
    unsigned failures; /* flushes that have failed so far */

    pthread_rwlock_t blocks; /* held alone where blocks are written only in part; see below */

    /* under the session's mutex: */
    struct errand *free_errands;
    struct errand errands[MAX_ERRANDS];
    struct errand *cut_off; /* to be done again, by the usher */
    int flush_failed;       /* the errno of a flush that nobody had asked for, to be told of */
    struct ready_thread usher;
    int has_usher, ending;
};

/* --- commands ------------------------------------------------------------------------------------------------------ */

/* What a server may say to a client, as a disk would say it (proto.md, "Error values"). */
static int storage_error(int error) { return error == ENOSPC || error == ENOMEM || error == EPERM ? error : EIO; }

/* Before the thread leaves the session: so a server that is lost afterwards is given all that it had acknowledged, and
 * nobody changes what is kept while it is written again. */
static void settle(struct nbd_client *client, struct errand *errand) {
    const struct nbd_command *command = &errand->command;
    if (errand->keep)
        unflushed_writes_keep(&client->session.unflushed, command->data, command->size, command->offset);
    if (errand->command.kind == NBD_FLUSH)
        unflushed_writes_forget(&client->session.unflushed, errand->mark);
}

/* Carries a command out on any session, until its time is over. Whoever was cut off does it again: reads change nothing,
 * and a write that is done twice is the same write. Returns 0, an errno that the server gave, or NBD_NO_ANSWER. */
static int carry_out(struct nbd_client *client, struct errand *errand) {
    struct nbd_connection *connection;
    while ((connection = nbd_session_enter(&client->session, errand->command.size, errand->command.until))) {
        int error = nbd_connection_run(connection, &errand->command);
        if (error == 0)
            settle(client, errand);
        nbd_session_leave(&client->session, connection, error < 0);
        if (error >= 0)
            return error ? storage_error(error) : 0;
    }
    return NBD_NO_ANSWER;
}

/* --- flushes ------------------------------------------------------------------------------------------------------- */

static int flush_once(struct nbd_client *client) {
    if (!client->session.can_flush)
        return 0;
    struct errand errand = {.command = {.kind = NBD_FLUSH, .until = nbd_session_deadline(&client->session)},
                            .mark = unflushed_writes_mark(&client->session.unflushed)};
    return carry_out(client, &errand);
}

/* Under the mutex. Tells those who waited for a flush what has become of it. A flush without an answer has lost nothing:
 * all of it is still kept. */
static void tell_waiters(struct nbd_client *client, struct flush_waiter *waiters, int result) {
    int heard = 0, error = result < 0 ? EIO : result;
    client->failures += result > 0;
    for (struct flush_waiter *each = waiters; each; each = each->next)
        heard |= each->asked;
    if (result > 0 && !heard) {
        client->failed = error;
        pthread_mutex_lock(&client->session.mutex);
        client->flush_failed = error;
        pthread_cond_broadcast(&client->session.changed);
        pthread_mutex_unlock(&client->session.mutex);
    }
    int refused = heard ? nbd_session_take_refused(&client->session) : 0;
    int before = client->failed ? client->failed : refused;
    if (heard)
        client->failed = 0;
    while (waiters) {
        struct flush_waiter *each = waiters;
        waiters = each->next; /* he is gone as soon as he may be */
        each->error = error || !each->asked ? error : before;
        each->done = 1;
    }
    pthread_cond_broadcast(&client->flushed);
}

/* One flush at a time, for all who have come before it began: a server tells of what it could not write once, and whoever
 * asks meanwhile must hear of it, too. */
static int flush(struct nbd_client *client, int asked) {
    struct flush_waiter waiter = {.asked = asked};
    pthread_mutex_lock(&client->flush_mutex);
    waiter.next = client->flush_waiters;
    client->flush_waiters = &waiter;
    while (!waiter.done) {
        if (client->flushing) {
            pthread_cond_wait(&client->flushed, &client->flush_mutex);
            continue;
        }
        struct flush_waiter *waiters = client->flush_waiters;
        client->flush_waiters = NULL;
        client->flushing = 1;
        pthread_mutex_unlock(&client->flush_mutex);
        int result = flush_once(client);
        pthread_mutex_lock(&client->flush_mutex);
        client->flushing = 0;
        tell_waiters(client, waiters, result);
    }
    pthread_mutex_unlock(&client->flush_mutex);
    return waiter.error;
}

int nbd_client_flush(struct nbd_client *client, int asked) { return flush(client, asked); }

/* Makes room for a write among those that are kept, by a flush if need be. Returns 0 or an errno. */
static int reserve(struct nbd_client *client, size_t size) {
    int error = 0;
    while (!error && !unflushed_writes_reserve(&client->session.unflushed, size)) /* others take room, too */
        error = flush(client, 0);
    return error;
}

/* --- ranges -------------------------------------------------------------------------------------------------------- */

/* A range in commands that the server takes. Bounds are multiples of its blocks. A write that only its flush puts on the
 * storage is kept until then, if `keep` says so. */
static int in_commands(struct nbd_client *client, struct nbd_command rest, int keep) {
    struct nbd_session *session = &client->session;
    int error = 0;
    size_t largest = (size_t)session->largest, quarter = session->config.kept_size / 4;
    if (keep && largest > quarter) /* several are kept at a time */
        largest = quarter - quarter % session->block;
    while (rest.size && !error) {
        size_t size = rest.size < largest ? rest.size : largest;
        if (keep)
            error = reserve(client, size);
        if (!error) {
            struct errand errand = {.command = rest, .keep = keep};
            errand.command.size = size;
            errand.command.until = nbd_session_deadline(session);
            error = carry_out(client, &errand);
            if (error && keep)
                unflushed_writes_cancel(&session->unflushed, size);
        }
        rest.data += size;
        rest.offset += size;
        rest.size -= size;
    }
    return error < 0 ? EIO : error;
}

static int read_blocks(struct nbd_client *client, uint8_t *data, size_t size, uint64_t offset) {
    return in_commands(client, (struct nbd_command){.kind = NBD_READ, .data = data, .size = size, .offset = offset}, 0);
}

/* How often something that was acknowledged has been lost. */
static unsigned losses(struct nbd_client *client) {
    pthread_mutex_lock(&client->flush_mutex);
    unsigned failures = client->failures;
    pthread_mutex_unlock(&client->flush_mutex);
    return failures + nbd_session_refusals(&client->session);
}

/* A server tells once of what a flush could not write. If that was in somebody else's flush since the write began, it may
 * have been ours; then `*doubtful` is set. Whoever asks for a flush hears of the failure, too. */
static int write_and_flush(struct nbd_client *client, struct nbd_command command, int *doubtful) {
    unsigned before = losses(client);
    int error = in_commands(client, command, client->session.can_flush);
    if (error)
        return error;
    error = flush(client, 0);
    *doubtful = losses(client) != before;
    return *doubtful && !error ? EIO : error;
}

/* `*doubtful`, where it fails: it may have been another one's write that failed. */
static int write_blocks(struct nbd_client *client, const uint8_t *data, size_t size, uint64_t offset, int synchronous,
                        int *doubtful) {
    struct nbd_session *session = &client->session;
    struct nbd_command command = {.kind = NBD_WRITE, .data = (uint8_t *)(uintptr_t)data, .size = size, .offset = offset};
    /* a server that cannot flush has nothing to flush */
    int keep = session->can_flush, through = session->config.write_through;
    if (!synchronous && !through)
        return in_commands(client, command, keep);
    if (!session->can_fua)
        return write_and_flush(client, command, doubtful);
    command.flags = NBD_FLAG_FUA;
    return in_commands(client, command, keep && !through); /* what is kept of earlier writes may be done again before it */
}

/* --- ranges that are no whole blocks of the server's --------------------------------------------------------------- */

/* The blocks that a range touches, where it is not whole blocks itself. Most servers have blocks of one byte. */
struct around {
    uint64_t offset;
    size_t size, skip;
};

static int is_whole(const struct nbd_client *client, size_t size, uint64_t offset) {
    return (size | offset) % client->session.block == 0;
}

static struct around blocks_around(const struct nbd_client *client, size_t size, uint64_t offset) {
    uint64_t block = client->session.block;
    uint64_t start = offset - offset % block, end = offset + size + block - 1;
    uint64_t last = atomic_load(&client->session.size);
    end -= end % block;
    if (end > last) /* it need not end with a whole block */
        end = last > offset + size ? last : offset + size; /* nor may it have shrunk below what is asked for: see is_there */
    return (struct around){.offset = start, .size = (size_t)(end - start), .skip = (size_t)(offset - start)};
}

/* A server may have said meanwhile that there is less. */
static int is_there(const struct nbd_client *client, size_t size, uint64_t offset) {
    uint64_t end = atomic_load(&client->session.size);
    return offset <= end && size <= end - offset;
}

int nbd_client_read(struct nbd_client *client, uint8_t *data, size_t size, uint64_t offset) {
    if (!is_there(client, size, offset))
        return EIO;
    if (is_whole(client, size, offset))
        return read_blocks(client, data, size, offset);
    struct around around = blocks_around(client, size, offset);
    uint8_t *blocks = malloc(around.size);
    if (!blocks)
        return ENOMEM;
    int error = read_blocks(client, blocks, around.size, around.offset);
    if (!error)
        memcpy(data, blocks + around.skip, size);
    free(blocks);
    return error;
}

static int write_partly(struct nbd_client *client, const uint8_t *data, size_t size, uint64_t offset, int synchronous,
                        int *doubtful) {
    struct around around = blocks_around(client, size, offset);
    uint8_t *blocks = malloc(around.size);
    if (!blocks)
        return ENOMEM;
    int error = read_blocks(client, blocks, around.size, around.offset);
    if (!error) {
        memcpy(blocks + around.skip, data, size);
        error = write_blocks(client, blocks, around.size, around.offset, synchronous, doubtful);
    }
    free(blocks);
    return error;
}

int nbd_client_write(struct nbd_client *client, const uint8_t *data, size_t size, uint64_t offset, int synchronous) {
    if (!is_there(client, size, offset))
        return EIO;
    /* two sectors of one block have two writers: one of them would put back what the other one has written */
    int whole = is_whole(client, size, offset), error = 0, doubtful = 1;
    for (int attempt = 0; attempt < 2 && doubtful; attempt++) { /* the second one is its own outcome */
        doubtful = 0;
        if (whole && !attempt)
            pthread_rwlock_rdlock(&client->blocks);
        else
            pthread_rwlock_wrlock(&client->blocks);
        error = whole ? write_blocks(client, data, size, offset, synchronous, &doubtful)
                      : write_partly(client, data, size, offset, synchronous, &doubtful);
        pthread_rwlock_unlock(&client->blocks);
    }
    return error;
}

/* --- commands that nobody waits for -------------------------------------------------------------------------------- */

static struct errand *take_errand(struct nbd_client *client) {
    pthread_mutex_lock(&client->session.mutex);
    struct errand *errand = client->free_errands;
    if (errand)
        client->free_errands = errand->next;
    pthread_mutex_unlock(&client->session.mutex);
    return errand;
}

static void give_back(struct nbd_client *client, struct errand *errand) {
    pthread_mutex_lock(&client->session.mutex);
    errand->next = client->free_errands;
    client->free_errands = errand;
    pthread_mutex_unlock(&client->session.mutex);
}

static void end_errand(struct errand *errand, int error) {
    if (error && errand->keep)
        unflushed_writes_cancel(&errand->client->session.unflushed, errand->command.size);
    nbd_client_finished finished = errand->finished;
    void *argument = errand->argument;
    give_back(errand->client, errand);
    finished(argument, error);
}

static void errand_answered(struct nbd_command *command, int error) {
    struct errand *errand = (struct errand *)command;
    struct nbd_client *client = errand->client;
    struct nbd_session *session = &client->session;
    struct nbd_connection *connection = errand->connection; /* whoever ends the errand may come before it is left */
    if (error == 0)
        settle(client, errand);
    if (error < 0) {
        pthread_mutex_lock(&session->mutex);
        errand->next = client->cut_off;
        client->cut_off = errand;
        pthread_mutex_unlock(&session->mutex);
        nbd_session_leave(session, connection, 1);
        return;
    }
    nbd_session_leave(session, connection, 0);
    end_errand(errand, error ? storage_error(error) : 0);
}

int nbd_client_start(struct nbd_client *client, int writing, uint8_t *data, size_t size, uint64_t offset,
                     nbd_client_finished finished, void *argument) {
    struct nbd_session *session = &client->session;
    int keep = writing && session->can_flush;
    if (!is_whole(client, size, offset) || !is_there(client, size, offset) || size > session->largest ||
        (writing && session->config.write_through) ||
        (writing && session->block > 1)) /* the lock that keeps parts of blocks apart belongs to a thread */
        return 0;
    struct errand *errand = take_errand(client);
    if (!errand)
        return 0;
    *errand = (struct errand){
        .command = {.kind = writing ? NBD_WRITE : NBD_READ, .data = data, .size = size, .offset = offset,
                    .until = nbd_session_deadline(session), .finished = errand_answered},
        .keep = keep, .client = client, .finished = finished, .argument = argument};
    if (keep && !unflushed_writes_reserve(&session->unflushed, size)) {
        give_back(client, errand);
        return 0;
    }
    pthread_mutex_lock(&session->mutex);
    errand->connection = session->state == NBD_UP ? nbd_session_choose(session, size) : NULL;
    pthread_mutex_unlock(&session->mutex);
    if (errand->connection) {
        nbd_connection_start(errand->connection, &errand->command);
        return 1;
    }
    if (keep)
        unflushed_writes_cancel(&session->unflushed, size);
    give_back(client, errand);
    return 0;
}

/* --- the usher ----------------------------------------------------------------------------------------------------- */

/* Under the mutex, which is let go where anything is done. Has those that were cut off done again, or ends them where
 * their time is over. Returns whether there was anything to do; if not, when the next one's time is over. */
static int see_to_cut_off(struct nbd_client *client, int64_t *next) {
    struct nbd_session *session = &client->session;
    struct errand *over = NULL, **at = &client->cut_off;
    *next = INT64_MAX / 2;
    while (*at) {
        struct errand *errand = *at;
        int late = client->ending || nbd_session_is_over(session, errand->command.until);
        if (!late && session->state != NBD_UP && !session->given_up) {
            *next = errand->command.until < *next ? errand->command.until : *next;
            at = &errand->next;
            continue;
        }
        *at = errand->next;
        if (!late && session->state == NBD_UP) {
            errand->connection = nbd_session_choose(session, errand->command.size);
            nbd_connection_start(errand->connection, &errand->command);
        } else {
            errand->next = over;
            over = errand;
        }
    }
    if (!over)
        return 0;
    pthread_mutex_unlock(&session->mutex);
    while (over) {
        struct errand *errand = over;
        over = errand->next;
        end_errand(errand, EIO);
    }
    pthread_mutex_lock(&session->mutex);
    return 1;
}

/* Under the mutex, which is let go meanwhile. Whoever finds something out may be a thread that can do nothing but use
 * its descriptors, so it is told of here. Returns whether there was anything to tell. */
static int tell_news(struct nbd_client *client) {
    struct nbd_session *session = &client->session;
    int lost = session->lost, failed = client->flush_failed;
    session->lost = client->flush_failed = 0;
    if (!lost && !failed)
        return 0;
    pthread_mutex_unlock(&session->mutex);
    if (lost)
        nbd_session_tell(session, NBD_CLIENT_LOST, "");
    if (failed)
        nbd_session_tell(session, NBD_CLIENT_FAILED, strerrordesc_np(failed));
    pthread_mutex_lock(&session->mutex);
    return 1;
}

/* The thread for what nobody waits for. The session's keeper could not do it: it may be connecting. */
static void *usher(void *argument) {
    struct nbd_client *client = argument;
    struct nbd_session *session = &client->session;
    (void)confine_connecting_thread(); /* it logs, which may take more than descriptors that are open */
    pthread_mutex_lock(&session->mutex);
    for (;;) {
        int64_t next;
        if (tell_news(client) || see_to_cut_off(client, &next))
            continue;
        if (client->ending)
            break;
        nbd_session_wait(session, next);
    }
    pthread_mutex_unlock(&session->mutex);
    return NULL;
}

/* --- its life ------------------------------------------------------------------------------------------------------ */

static void release(struct nbd_client *client) {
    struct nbd_session *session = &client->session;
    nbd_session_end(session);
    pthread_mutex_lock(&session->mutex);
    client->ending = 1;
    pthread_cond_broadcast(&session->changed);
    pthread_mutex_unlock(&session->mutex);
    if (client->has_usher)
        nbd_join_thread(&client->usher);
    nbd_session_destroy(session);
    pthread_cond_destroy(&client->flushed);
    pthread_mutex_destroy(&client->flush_mutex);
    pthread_rwlock_destroy(&client->blocks);
    free(client);
}

struct nbd_client *nbd_client_open(const struct nbd_client_config *config, int *trouble, char *words, size_t room) {
    *trouble = NBD_CLIENT_NO_MEMORY;
    struct nbd_client *client = calloc(1, sizeof *client);
    if (!client)
        return NULL;
    if (nbd_session_open(&client->session, config, trouble, words, room) < 0) {
        free(client);
        return NULL;
    }
    fair_lock_init(&client->blocks);
    pthread_mutex_init(&client->flush_mutex, NULL);
    pthread_cond_init(&client->flushed, NULL);
    for (size_t i = 0; i < MAX_ERRANDS; i++)
        give_back(client, &client->errands[i]);
    client->has_usher = nbd_start_thread(&client->usher, usher, client) == 0;
    if (client->has_usher)
        return client;
    *trouble = NBD_CLIENT_NO_MEMORY;
    release(client);
    return NULL;
}

void nbd_client_close(struct nbd_client *client) { release(client); }

void nbd_client_be_patient(struct nbd_client *client, int patient) { nbd_session_be_patient(&client->session, patient); }

int nbd_client_refresh(struct nbd_client *client) { return nbd_session_refresh(&client->session); }

uint64_t nbd_client_size(const struct nbd_client *client) { return atomic_load(&client->session.size); }

int nbd_client_can_flush(const struct nbd_client *client) { return client->session.can_flush; }

unsigned nbd_client_connections(const struct nbd_client *client) { return client->session.connection_count; }

size_t nbd_client_unflushed(struct nbd_client *client) { return unflushed_writes_size(&client->session.unflushed); }
