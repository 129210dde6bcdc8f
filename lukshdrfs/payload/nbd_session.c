/* See nbd_session.h. */
#define _GNU_SOURCE
#include "nbd_session.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "confinement.h"

#define SMALL ((size_t)1 << 14) /* bytes */
#define CROWD 16                /* commands that servers work at at once, on one connection (qemu-nbd, nbdkit) */
#define LARGEST_COMMAND ((uint64_t)32 << 20) /* bytes of data; servers need not take more (proto.md, "Block size constraints") */
#define LARGEST_BLOCK ((uint64_t)64 << 10)   /* bytes; a server's minimum block is no larger (ibid.) */
#define CONNECT_MS 10000                     /* for one attempt */
#define RETRY_MS 250                         /* between two attempts */
#define AGAIN_MS 10                          /* after one that was in vain only later */
#define AGAIN_AT_ONCE 32                     /* writes that are done again, */
#define AGAIN_BYTES ((uint64_t)1 << 20)      /* and how much of them: all of it has to come through in time */

typedef void (*told_function)(uintptr_t about, int what, const char *words);

void nbd_session_tell(const struct nbd_session *session, int what, const char *words) {
    if (session->config.told)
        ((told_function)session->config.told)(session->config.about, what, words);
}

/* --- connecting ---------------------------------------------------------------------------------------------------- */

/* By the last thread that uses one, or by one that has not shared them with anybody yet. */
static void close_all(struct nbd_session *session) {
    for (unsigned i = 0; i < NBD_MAX_CONNECTIONS; i++)
        nbd_connection_close(&session->connections[i]);
}

/* Takes down what the server says of the export; returns 0, or -1 if this is not the export that it was. */
static int learn(struct nbd_session *session, int first, int *trouble, char *words, size_t room) {
    const struct nbd_library *library = session->library;
    struct nbd_handle *handle = session->connections[0].handle;
    int64_t size = library->get_size(handle);
    int64_t block = library->get_block_size(handle, NBD_SIZE_MINIMUM);
    int64_t largest = library->get_block_size(handle, NBD_SIZE_MAXIMUM);
    if (size < 0) {
        snprintf(words, room, "the server does not say how large the export is");
        return -1;
    }
    if (!session->config.read_only && library->is_read_only(handle)) {
        *trouble = NBD_CLIENT_READ_ONLY;
        snprintf(words, room, "the export is for reading only now");
        return -1;
    }
    if (!first && (uint64_t)size < atomic_load(&session->size)) {
        snprintf(words, room, "the export has %lld bytes now; it had %llu", (long long)size,
                 (unsigned long long)atomic_load(&session->size));
        return -1;
    }
    if (block > (int64_t)LARGEST_BLOCK || (block > 0 && block & (block - 1))) {
        snprintf(words, room, "the server wants blocks of %lld bytes, which the protocol does not have", (long long)block);
        return -1;
    }
    uint64_t blocks = block > 0 ? (uint64_t)block : 1;
    uint64_t most = largest >= (int64_t)LARGEST_BLOCK && (uint64_t)largest < LARGEST_COMMAND ? (uint64_t)largest
                                                                                             : LARGEST_COMMAND;
    most -= most % blocks;
    int can_flush = library->can_flush(handle) > 0, can_fua = library->can_fua(handle) > 0;
    if (!first && (blocks > session->block || most < session->largest || can_flush < session->can_flush ||
                   can_fua < session->can_fua)) {
        snprintf(words, room, "the server can do less than before");
        return -1;
    }
    if (!first) /* others read these without a lock */
        return 0;
    session->block = blocks;
    session->largest = most;
    session->can_flush = can_flush;
    session->can_fua = can_fua;
    atomic_store(&session->size, (uint64_t)size);
    return 0;
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
        asking->error = connect_all(session, 1, nbd_now_ms() + patience, asking->trouble, asking->words, asking->room);
        return NULL;
    }
    asking->error = nbd_connection_init(&probe, session->library) ? EMFILE : EIO;
    if (asking->error == EMFILE)
        return NULL;
    if (nbd_connection_open(&probe, session->uri, nbd_now_ms() + CONNECT_MS, &session->ending, asking->words,
                            asking->room) == 0)
        asking->size = session->library->get_size(probe.handle);
    nbd_connection_destroy(&probe);
    asking->error = asking->size < 0 ? EIO : 0;
    return NULL;
}

/* Returns what `ask` has set, or an errno where there is no thread to be had. */
static int ask_apart(struct asking *asking) {
    struct ready_thread thread;
    int error = nbd_start_thread(&thread, ask, asking);
    if (error)
        return error;
    nbd_join_thread(&thread);
    return asking->error;
}

/* --- writing again ------------------------------------------------------------------------------------------------- */

struct again;

struct write_again {
    struct nbd_command command; /* first: the command is the write */
    struct again *of;
    int under_way;
};

/* Several writes at a time, for what is kept may be thousands of small ones, and the server far away. */
struct again {
    pthread_mutex_t mutex; /* for all that follows */
    pthread_cond_t called;
    struct write_again writes[AGAIN_AT_ONCE];
    unsigned under_way;
    uint64_t bytes_under_way;
    uint64_t total; /* bytes that were written */
    int refused;    /* an errno of the server's */
    int cut_off;
};

static void written_again(struct nbd_command *command, int error) {
    struct write_again *write = (struct write_again *)command;
    struct again *again = write->of;
    pthread_mutex_lock(&again->mutex);
    write->under_way = 0;
    again->under_way--;
    again->bytes_under_way -= command->size;
    if (error < 0)
        again->cut_off = 1;
    else if (error)
        again->refused = error;
    else
        again->total += command->size;
    pthread_cond_signal(&again->called);
    pthread_mutex_unlock(&again->mutex);
}

/* Where the next write can be put; NULL while it has to wait: servers do what is under way in any order, and two writes to
 * one place have theirs. */
static struct write_again *place_for(struct again *again, const struct unflushed_write *kept) {
    struct write_again *place = NULL;
    if (again->under_way && again->bytes_under_way + kept->size > AGAIN_BYTES)
        return NULL;
    for (size_t i = 0; i < AGAIN_AT_ONCE; i++) {
        struct write_again *write = &again->writes[i];
        if (!write->under_way)
            place = write;
        else if (kept->offset < write->command.offset + write->command.size &&
                 write->command.offset < kept->offset + kept->size)
            return NULL;
    }
    return place;
}

/* Under the mutex. Somebody may want the session to end meanwhile. */
static void wait_for_one(struct nbd_session *session, struct again *again) {
    struct timespec end;
    clock_gettime(CLOCK_MONOTONIC, &end);
    end.tv_sec++;
    pthread_cond_clockwait(&again->called, &again->mutex, CLOCK_MONOTONIC, &end);
    if (atomic_load(&session->ending) && !again->cut_off) {
        again->cut_off = 1;
        pthread_mutex_unlock(&again->mutex);
        nbd_connection_break(&session->connections[0]);
        pthread_mutex_lock(&again->mutex);
    }
}

/* Writes again what may have been forgotten, two writes to one place in the order in which they were acknowledged. By the
 * thread that has connected, before anybody else uses the session. Returns 0 or -1. */
static int write_again(struct nbd_session *session) {
    struct again again = {.mutex = PTHREAD_MUTEX_INITIALIZER, .called = PTHREAD_COND_INITIALIZER};
    struct unflushed_write *kept;
    uint64_t position = session->unflushed.start;
    pthread_mutex_lock(&again.mutex);
    while (!again.cut_off && (kept = unflushed_writes_next(&session->unflushed, &position))) {
        struct write_again *write;
        while (!(write = place_for(&again, kept)) && !again.cut_off)
            wait_for_one(session, &again);
        if (again.cut_off)
            break;
        *write = (struct write_again){
            .command = {.kind = NBD_WRITE, .data = kept->data, .size = kept->size, .offset = kept->offset,
                        .until = nbd_session_deadline(session), .finished = written_again},
            .of = &again, .under_way = 1};
        again.under_way++;
        again.bytes_under_way += kept->size;
        pthread_mutex_unlock(&again.mutex);
        nbd_connection_start(&session->connections[0], &write->command);
        pthread_mutex_lock(&again.mutex);
    }
    while (again.under_way)
        wait_for_one(session, &again);
    pthread_mutex_unlock(&again.mutex);
    pthread_mutex_destroy(&again.mutex);
    pthread_cond_destroy(&again.called);
    if (again.cut_off)
        return -1;
    char words[64];
    snprintf(words, sizeof words, "%llu", (unsigned long long)again.total);
    nbd_session_tell(session, NBD_CLIENT_BACK, words);
    if (again.refused) {
        /* all of it stays kept, up to the next flush: who is told here may free the server's disk, and restart it */
        pthread_mutex_lock(&session->mutex);
        session->refused = again.refused;
        session->refusals++;
        pthread_mutex_unlock(&session->mutex);
        nbd_session_tell(session, NBD_CLIENT_REFUSED, strerrordesc_np(again.refused));
    }
    return 0;
}

/* --- using it ------------------------------------------------------------------------------------------------------ */

int64_t nbd_session_deadline(const struct nbd_session *session) { return nbd_now_ms() + session->config.patience_ms; }

int nbd_session_is_over(const struct nbd_session *session, int64_t until) {
    return atomic_load(&session->impatient) || nbd_now_ms() >= until;
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

/* Under the mutex. */
static void lose(struct nbd_session *session) {
    session->state = NBD_FAILING;
    session->lost_at = nbd_now_ms();
    session->lost = 1;
    pthread_cond_broadcast(&session->changed);
}

/* Under the mutex. */
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

void nbd_session_be_patient(struct nbd_session *session, int patient) {
    pthread_mutex_lock(&session->mutex);
    atomic_store(&session->impatient, !patient);
    if (!patient && session->state == NBD_UP && session->users)
        lose(session);
    if (!patient && session->state == NBD_FAILING)
        break_all(session);
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

/* --- the keeper ---------------------------------------------------------------------------------------------------- */

/* Tries once to be connected again. Under the mutex, which is let go meanwhile: nobody else uses the connections. */
static void reconnect(struct nbd_session *session) {
    pthread_mutex_unlock(&session->mutex);
    char words[256] = "";
    int64_t now = nbd_now_ms(), latest = session->lost_at + session->config.patience_ms; /* as long as others wait */
    int64_t until = !session->given_up && latest < now + CONNECT_MS ? latest : now + CONNECT_MS;
    int trouble = 0;
    int done = connect_all(session, 0, until > now ? until : now + RETRY_MS, &trouble, words, sizeof words) == 0;
    if (done && write_again(session) < 0) {
        close_all(session);
        done = 0;
    }
    int give_up = !done && !session->given_up && nbd_now_ms() >= latest && !atomic_load(&session->ending);
    if (give_up)
        nbd_session_tell(session, NBD_CLIENT_GIVEN_UP, words);
    pthread_mutex_lock(&session->mutex);
    session->given_up = done ? 0 : session->given_up || give_up;
    session->state = done ? NBD_UP : NBD_DOWN;
    session->next_try = nbd_now_ms() + (done ? AGAIN_MS : RETRY_MS);
    pthread_cond_broadcast(&session->changed);
}

/* The thread that takes the rests of a lost session away, and connects again. */
static void *keep(void *argument) {
    struct nbd_session *session = argument;
    (void)confine_connecting_thread();
    pthread_mutex_lock(&session->mutex);
    while (!atomic_load(&session->ending)) {
        if (session->state == NBD_FAILING && session->users == 0) {
            pthread_mutex_unlock(&session->mutex);
            close_all(session);
            pthread_mutex_lock(&session->mutex);
            session->state = NBD_DOWN;
        } else if (session->state == NBD_DOWN && nbd_now_ms() >= session->next_try) {
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
            session->has_keeper = nbd_start_thread(&session->keeper, keep, session) == 0;
            *trouble = session->has_keeper ? NBD_CLIENT_OK : NBD_CLIENT_NO_MEMORY;
        }
    }
    if (session->has_keeper)
        return 0;
    nbd_session_destroy(session);
    return -1;
}

void nbd_session_end(struct nbd_session *session) {
    pthread_mutex_lock(&session->mutex);
    atomic_store(&session->ending, 1);
    pthread_cond_broadcast(&session->changed);
    pthread_mutex_unlock(&session->mutex);
    if (session->has_keeper)
        nbd_join_thread(&session->keeper);
    session->has_keeper = 0;
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
