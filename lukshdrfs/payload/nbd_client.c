/* See nbd_client.h. */
#define _GNU_SOURCE
#include "nbd_client.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "nbd_connection.h"
#include "unflushed_writes.h"

#define MAX_CONNECTIONS 16
#define SMALL ((size_t)1 << 14) /* bytes */
#define CROWD 16                /* commands that servers work at at once, on one connection (qemu-nbd, nbdkit) */
#define LARGEST_COMMAND ((uint64_t)32 << 20) /* bytes of data; servers need not take more (proto.md, "Block size constraints") */
#define LARGEST_BLOCK ((uint64_t)64 << 10)   /* bytes; a server's minimum block is no larger (ibid.) */
#define CONNECT_MS 10000                    /* for one attempt */
#define RETRY_MS 250                        /* between two attempts */
#define AGAIN_MS 10                         /* after one that was in vain only later */

typedef void (*told_function)(uintptr_t about, int what, const char *words);

enum session { UP, FAILING, DOWN };

/* A command, and what becomes of it where it succeeds: a write is kept until it is flushed, a flush has those up to its
 * mark forgotten. */
struct errand {
    struct nbd_command command;
    int keep;
    uint64_t mark;
    /* of those that nobody waits for: */
    struct nbd_client *client;
    struct nbd_connection *connection;
    struct errand *next;
    nbd_client_finished finished;
    void *argument;
};

struct nbd_client {
    struct nbd_client_config config;
    char *uri;
    const struct nbd_library *library;

    pthread_mutex_t mutex; /* for all that follows, up to the connections themselves */
    pthread_cond_t changed;
    enum session session;
    unsigned users;      /* threads that use its connections */
    unsigned connection_count;
    unsigned load[MAX_CONNECTIONS]; /* threads on each connection */
    int64_t lost_at;     /* when the session was lost */
    int64_t next_try;    /* not earlier is it tried to connect */
    int lost;            /* nobody has been told yet */
    int flush_failed;    /* likewise, of a flush that nobody had asked for: its errno */
    int given_up;        /* it has been away for longer than anybody waits */
    struct errand *cut_off; /* to be done again, by the keeper */
    int ending;
    pthread_t keeper;
    int has_keeper;
    int failed;          /* the errno of a flush that nobody has heard of yet */
    _Atomic uint64_t size;
    uint64_t block, largest; /* the server's minimum and maximum, bytes */
    int can_flush, can_fua;

    pthread_mutex_t flushing; /* held by who flushes; only `blocks` may be held before */
    pthread_rwlock_t blocks; /* held alone where blocks are written only in part; see below */
    struct unflushed_writes unflushed;
    struct nbd_connection connections[MAX_CONNECTIONS];
};

static void tell(const struct nbd_client *client, int what, const char *words) {
    if (client->config.told)
        ((told_function)client->config.told)(client->config.about, what, words);
}

static int64_t deadline(const struct nbd_client *client) { return nbd_now_ms() + client->config.patience_ms; }

static int is_ending(struct nbd_client *client) {
    pthread_mutex_lock(&client->mutex);
    int ending = client->ending;
    pthread_mutex_unlock(&client->mutex);
    return ending;
}

/* --- a session: all connections to one run of the server --------------------------------------------------------- */

/* One broken connection ends them all: what the server has forgotten is known only to the whole. By the last thread that
 * uses one, or by one that has not shared them with anybody yet. */
static void close_all(struct nbd_client *client) {
    for (unsigned i = 0; i < MAX_CONNECTIONS; i++)
        nbd_connection_close(&client->connections[i]);
}

/* Takes down what the server says of the export; returns 0, or -1 if this is not the export that it was. */
static int learn(struct nbd_client *client, int first, int *trouble, char *words, size_t room) {
    const struct nbd_library *library = client->library;
    struct nbd_handle *handle = client->connections[0].handle;
    int64_t size = library->get_size(handle);
    int64_t block = library->get_block_size(handle, NBD_SIZE_MINIMUM);
    int64_t largest = library->get_block_size(handle, NBD_SIZE_MAXIMUM);
    if (size < 0) {
        snprintf(words, room, "the server does not say how large the export is");
        return -1;
    }
    if (!client->config.read_only && library->is_read_only(handle)) {
        *trouble = NBD_CLIENT_READ_ONLY;
        snprintf(words, room, "the export is for reading only now");
        return -1;
    }
    if (!first && (uint64_t)size < atomic_load(&client->size)) {
        snprintf(words, room, "the export has %lld bytes now; it had %llu", (long long)size,
                 (unsigned long long)atomic_load(&client->size));
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
    if (!first && (blocks > client->block || most < client->largest || can_flush < client->can_flush ||
                   can_fua < client->can_fua)) {
        snprintf(words, room, "the server can do less than before");
        return -1;
    }
    if (!first) /* others read these without a lock */
        return 0;
    client->block = blocks;
    client->largest = most;
    client->can_flush = can_flush;
    client->can_fua = can_fua;
    atomic_store(&client->size, (uint64_t)size);
    return 0;
}

/* Connects; nobody else may. Returns 0 or -1. */
static int connect_all(struct nbd_client *client, int first, int64_t until, int *trouble, char *words, size_t room) {
    if (nbd_connection_open(&client->connections[0], client->uri, until, words, room) < 0)
        return -1;
    if (learn(client, first, trouble, words, room) < 0) {
        close_all(client);
        return -1;
    }
    client->connection_count = 1;
    if (client->library->can_multi_conn(client->connections[0].handle) > 0)
        while (client->connection_count < client->config.connections && client->connection_count < MAX_CONNECTIONS) {
            char ignored[1]; /* a server may have a limit, and one connection does */
            if (nbd_connection_open(&client->connections[client->connection_count], client->uri, until, ignored,
                                    sizeof ignored) < 0)
                break;
            client->connection_count++;
        }
    return 0;
}

/* Writes again what may have been forgotten, in the order in which it was acknowledged. By the thread that has connected,
 * before anybody else uses the session. Returns 0 or -1. */
static int write_again(struct nbd_client *client) {
    size_t total = 0;
    int refused = 0;
    struct unflushed_write *write;
    uint64_t position = client->unflushed.start;
    while ((write = unflushed_writes_next(&client->unflushed, &position))) {
        struct nbd_command command = {.kind = NBD_WRITE, .data = write->data, .size = write->size,
                                      .offset = write->offset, .until = deadline(client)};
        if (is_ending(client))
            return -1;
        int error = nbd_connection_run(&client->connections[0], &command);
        if (error < 0)
            return -1;
        if (error)
            refused = error;
        else
            total += write->size;
    }
    char words[64];
    snprintf(words, sizeof words, "%zu", total);
    tell(client, NBD_CLIENT_BACK, words);
    if (refused) {
        pthread_mutex_lock(&client->mutex);
        client->failed = refused;
        pthread_mutex_unlock(&client->mutex);
        tell(client, NBD_CLIENT_REFUSED, strerrordesc_np(refused));
        unflushed_writes_forget(&client->unflushed, position);
    }
    return 0;
}

static void wait_for_change(struct nbd_client *client, int64_t until) {
    struct timespec end = {.tv_sec = until / 1000, .tv_nsec = until % 1000 * 1000000};
    pthread_cond_clockwait(&client->changed, &client->mutex, CLOCK_MONOTONIC, &end);
}

/* Under the mutex. Large pieces go to the connection that has least to do: their bytes take time. Small ones go to as few
 * connections as will do, for what comes in one go is read and answered in one go, here and there. */
static struct nbd_connection *choose(struct nbd_client *client, size_t size) {
    unsigned least = 0;
    for (unsigned i = 1; i < client->connection_count; i++)
        if (client->load[i] < client->load[least] && (size > SMALL || client->load[least] >= CROWD))
            least = i;
    client->load[least]++;
    client->users++;
    return &client->connections[least];
}

/* Returns the connection to use; NULL if there is none until the time that is given. */
static struct nbd_connection *enter(struct nbd_client *client, size_t size, int64_t until) {
    struct nbd_connection *chosen = NULL;
    pthread_mutex_lock(&client->mutex);
    /* nobody waits for a server that others have waited for in vain */
    while (client->session != UP && !client->given_up && nbd_now_ms() < until)
        wait_for_change(client, until);
    if (client->session == UP && nbd_now_ms() < until) /* what is late already would only break the session */
        chosen = choose(client, size);
    pthread_mutex_unlock(&client->mutex);
    return chosen;
}

static void leave(struct nbd_client *client, struct nbd_connection *connection, int broken) {
    pthread_mutex_lock(&client->mutex);
    client->load[connection - client->connections]--;
    client->users--;
    if (broken && client->session == UP) {
        client->session = FAILING;
        client->lost_at = nbd_now_ms();
        client->lost = 1;
    }
    for (unsigned i = 0; broken && client->session == FAILING && i < client->connection_count; i++)
        nbd_connection_break(&client->connections[i]);
    if (client->session == FAILING && client->users == 0)
        pthread_cond_broadcast(&client->changed);
    pthread_mutex_unlock(&client->mutex);
}

/* --- commands ------------------------------------------------------------------------------------------------------ */

/* What a server may say to a client, as a disk would say it (proto.md, "Error values"). */
static int storage_error(int error) { return error == ENOSPC || error == ENOMEM || error == EPERM ? error : EIO; }

/* Before the thread leaves the session: so a server that is lost afterwards is given all that it had acknowledged, and
 * nobody changes what is kept while it is written again. */
static void settle(struct nbd_client *client, struct errand *errand) {
    const struct nbd_command *command = &errand->command;
    if (errand->keep)
        unflushed_writes_keep(&client->unflushed, command->data, command->size, command->offset);
    if (errand->command.kind == NBD_FLUSH)
        unflushed_writes_forget(&client->unflushed, errand->mark);
}

/* Carries a command out on any session, until the time is over. Whoever was cut off does it again: reads change nothing,
 * and a write that is done twice is the same write. Returns 0 or an errno. */
static int carry_out(struct nbd_client *client, struct errand *errand, int64_t until) {
    struct nbd_connection *connection;
    errand->command.until = until;
    while ((connection = enter(client, errand->command.size, until))) {
        int error = nbd_connection_run(connection, &errand->command);
        if (error == 0)
            settle(client, errand);
        leave(client, connection, error < 0);
        if (error >= 0)
            return error ? storage_error(error) : 0;
    }
    return EIO;
}

/* One flush at a time: a server tells of what it could not write once, and whoever asks meanwhile must hear of it, too. */
static int flush(struct nbd_client *client, int64_t until) {
    struct errand errand = {.command = {.kind = NBD_FLUSH}, .mark = unflushed_writes_mark(&client->unflushed)};
    return client->can_flush ? carry_out(client, &errand, until) : 0;
}

int nbd_client_flush(struct nbd_client *client) {
    int64_t until = deadline(client);
    pthread_mutex_lock(&client->flushing);
    int error = flush(client, until);
    pthread_mutex_lock(&client->mutex);
    if (!error)
        error = client->failed;
    client->failed = 0;
    pthread_mutex_unlock(&client->mutex);
    pthread_mutex_unlock(&client->flushing);
    return error;
}

/* Makes room for a write among those that are kept, by a flush if need be. Returns 0 or an errno. */
static int reserve(struct nbd_client *client, size_t size, int64_t until) {
    if (unflushed_writes_reserve(&client->unflushed, size))
        return 0;
    int error = 0;
    pthread_mutex_lock(&client->flushing);
    while (!error && !unflushed_writes_reserve(&client->unflushed, size)) { /* another one may have made some */
        error = flush(client, until);
        if (error) { /* whoever asks for a flush next has not been told */
            pthread_mutex_lock(&client->mutex);
            client->failed = client->flush_failed = error;
            pthread_cond_broadcast(&client->changed);
            pthread_mutex_unlock(&client->mutex);
        }
    }
    pthread_mutex_unlock(&client->flushing);
    return error;
}

/* A range in commands that the server takes. Bounds are multiples of its blocks. A write that only its flush puts on the
 * storage is kept until then, if `keep` says so. */
static int in_commands(struct nbd_client *client, struct nbd_command rest, int keep) {
    int64_t until = deadline(client);
    int error = 0;
    size_t largest = (size_t)client->largest;
    if (keep && largest > client->config.kept_size / 4) /* several are kept at a time */
        largest = client->config.kept_size / 4 - client->config.kept_size / 4 % client->block;
    while (rest.size && !error) {
        struct errand errand = {.command = rest, .keep = keep};
        size_t size = rest.size < largest ? rest.size : largest;
        errand.command.size = size;
        if (keep)
            error = reserve(client, size, until);
        if (!error) {
            error = carry_out(client, &errand, until);
            if (error && keep)
                unflushed_writes_cancel(&client->unflushed, size);
        }
        rest.data += size;
        rest.offset += size;
        rest.size -= size;
    }
    return error;
}

static int read_blocks(struct nbd_client *client, uint8_t *data, size_t size, uint64_t offset) {
    return in_commands(client, (struct nbd_command){.kind = NBD_READ, .data = data, .size = size, .offset = offset}, 0);
}

static int write_blocks(struct nbd_client *client, const uint8_t *data, size_t size, uint64_t offset) {
    struct nbd_command command = {.kind = NBD_WRITE, .data = (uint8_t *)(uintptr_t)data, .size = size, .offset = offset};
    int through = client->config.write_through;
    if (through && client->can_fua) {
        command.flags = NBD_FLAG_FUA;
        return in_commands(client, command, 0);
    }
    /* a server that cannot flush has nothing to flush */
    int error = in_commands(client, command, client->can_flush);
    return !error && through ? nbd_client_flush(client) : error;
}

/* --- ranges that are no whole blocks of the server's --------------------------------------------------------------- */

/* The blocks that a range touches, where it is not whole blocks itself. Most servers have blocks of one byte. */
struct around {
    uint64_t offset;
    size_t size, skip;
};

static int is_whole(const struct nbd_client *client, size_t size, uint64_t offset) {
    return (size | offset) % client->block == 0;
}

static struct around blocks_around(const struct nbd_client *client, size_t size, uint64_t offset) {
    uint64_t start = offset - offset % client->block, end = offset + size + client->block - 1;
    uint64_t last = atomic_load(&client->size);
    end -= end % client->block;
    if (end > last) /* it need not end with a whole block */
        end = last > offset + size ? last : offset + size; /* nor may it have shrunk below what is asked for: see is_there */
    return (struct around){.offset = start, .size = (size_t)(end - start), .skip = (size_t)(offset - start)};
}

/* A server may have said meanwhile that there is less. */
static int is_there(const struct nbd_client *client, size_t size, uint64_t offset) {
    uint64_t end = atomic_load(&client->size);
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

static int write_partly(struct nbd_client *client, const uint8_t *data, size_t size, uint64_t offset) {
    struct around around = blocks_around(client, size, offset);
    uint8_t *blocks = malloc(around.size);
    if (!blocks)
        return ENOMEM;
    int error = read_blocks(client, blocks, around.size, around.offset);
    if (!error) {
        memcpy(blocks + around.skip, data, size);
        error = write_blocks(client, blocks, around.size, around.offset);
    }
    free(blocks);
    return error;
}

int nbd_client_write(struct nbd_client *client, const uint8_t *data, size_t size, uint64_t offset) {
    if (!is_there(client, size, offset))
        return EIO;
    /* two sectors of one block have two writers: one of them would put back what the other one has written */
    int whole = is_whole(client, size, offset);
    if (whole)
        pthread_rwlock_rdlock(&client->blocks);
    else
        pthread_rwlock_wrlock(&client->blocks);
    int error = whole ? write_blocks(client, data, size, offset) : write_partly(client, data, size, offset);
    pthread_rwlock_unlock(&client->blocks);
    return error;
}

/* --- commands that nobody waits for -------------------------------------------------------------------------------- */

static void end_errand(struct errand *errand, int error) {
    if (error && errand->keep)
        unflushed_writes_cancel(&errand->client->unflushed, errand->command.size);
    nbd_client_finished finished = errand->finished;
    void *argument = errand->argument;
    free(errand);
    finished(argument, error);
}

static void errand_answered(struct nbd_command *command, int error) {
    struct errand *errand = (struct errand *)command; /* its first member */
    struct nbd_client *client = errand->client;
    if (error == 0)
        settle(client, errand);
    if (error < 0) { /* before it leaves the session, so that the keeper finds it when that is over */
        pthread_mutex_lock(&client->mutex);
        errand->next = client->cut_off;
        client->cut_off = errand;
        pthread_mutex_unlock(&client->mutex);
        leave(client, errand->connection, 1);
        return;
    }
    leave(client, errand->connection, 0);
    end_errand(errand, error ? storage_error(error) : 0);
}

int nbd_client_start(struct nbd_client *client, int writing, uint8_t *data, size_t size, uint64_t offset,
                     nbd_client_finished finished, void *argument) {
    int keep = writing && client->can_flush;
    if (!is_whole(client, size, offset) || !is_there(client, size, offset) || size > client->largest || (writing && client->config.write_through) ||
        (writing && client->block > 1)) /* the lock that keeps parts of blocks apart belongs to a thread */
        return 0;
    struct errand *errand = malloc(sizeof *errand);
    if (!errand)
        return 0;
    *errand = (struct errand){
        .command = {.kind = writing ? NBD_WRITE : NBD_READ, .data = data, .size = size, .offset = offset,
                    .until = deadline(client), .finished = errand_answered},
        .keep = keep, .client = client, .finished = finished, .argument = argument};
    if (keep && !unflushed_writes_reserve(&client->unflushed, size)) {
        free(errand);
        return 0;
    }
    pthread_mutex_lock(&client->mutex);
    struct nbd_connection *connection = errand->connection = client->session == UP ? choose(client, size) : NULL;
    pthread_mutex_unlock(&client->mutex);
    if (connection) {
        nbd_connection_start(connection, &errand->command);
        return 1;
    }
    if (keep)
        unflushed_writes_cancel(&client->unflushed, size);
    free(errand);
    return 0;
}

/* --- the keeper ---------------------------------------------------------------------------------------------------- */

/* Takes those that were cut off: to do them again, or to end them if their time is over. Under the mutex. */
static void see_to_cut_off(struct nbd_client *client) {
    struct errand *over = NULL, **at = &client->cut_off;
    int64_t now = nbd_now_ms();
    while (*at) {
        struct errand *errand = *at;
        int again = client->session == UP && !client->ending && errand->command.until > now;
        if (!again && !client->given_up && !client->ending && errand->command.until > now) {
            at = &errand->next;
            continue;
        }
        *at = errand->next;
        if (again) {
            errand->connection = choose(client, errand->command.size);
            nbd_connection_start(errand->connection, &errand->command);
        } else {
            errand->next = over;
            over = errand;
        }
    }
    pthread_mutex_unlock(&client->mutex);
    while (over) {
        struct errand *errand = over;
        over = errand->next;
        end_errand(errand, EIO);
    }
    pthread_mutex_lock(&client->mutex);
}

/* Tries once to be connected again. Under the mutex, which is let go meanwhile: nobody else uses the connections. */
static void reconnect(struct nbd_client *client) {
    pthread_mutex_unlock(&client->mutex);
    char words[256] = "";
    int64_t now = nbd_now_ms(), latest = client->lost_at + client->config.patience_ms; /* as long as others wait */
    int64_t until = !client->given_up && latest < now + CONNECT_MS ? latest : now + CONNECT_MS;
    int trouble = 0, done = connect_all(client, 0, until > now ? until : now + RETRY_MS, &trouble, words, sizeof words) == 0;
    if (done && write_again(client) < 0) {
        close_all(client);
        done = 0;
    }
    int give_up = !done && !client->given_up && nbd_now_ms() >= client->lost_at + client->config.patience_ms;
    if (give_up)
        tell(client, NBD_CLIENT_GIVEN_UP, words);
    pthread_mutex_lock(&client->mutex);
    client->given_up = done ? 0 : client->given_up || give_up;
    client->session = done ? UP : DOWN;
    client->next_try = nbd_now_ms() + (done ? AGAIN_MS : RETRY_MS);
    pthread_cond_broadcast(&client->changed);
}

/* Under the mutex, which is let go meanwhile. Whoever finds something out may be a thread that can do nothing but use
 * its descriptors, so the keeper tells of it. */
static void tell_news(struct nbd_client *client) {
    int lost = client->lost, failed = client->flush_failed;
    client->lost = client->flush_failed = 0;
    pthread_mutex_unlock(&client->mutex);
    if (lost)
        tell(client, NBD_CLIENT_LOST, "");
    if (failed)
        tell(client, NBD_CLIENT_FAILED, strerrordesc_np(failed));
    pthread_mutex_lock(&client->mutex);
}

/* The thread that takes the rests of a lost session away, connects again and does again what was cut off. */
static void *keep(void *argument) {
    struct nbd_client *client = argument;
    pthread_mutex_lock(&client->mutex);
    while (!client->ending) {
        int64_t next = INT64_MAX / 2;
        if (client->lost || client->flush_failed)
            tell_news(client);
        if (client->session == FAILING && client->users == 0) {
            pthread_mutex_unlock(&client->mutex);
            close_all(client);
            pthread_mutex_lock(&client->mutex);
            client->session = DOWN;
        }
        if (client->session == DOWN && client->cut_off)
            see_to_cut_off(client); /* those whose time is over do not wait for the connection */
        if (client->session == DOWN) {
            if (nbd_now_ms() >= client->next_try)
                reconnect(client);
            if (client->session == DOWN)
                next = client->next_try;
        }
        if (client->cut_off)
            see_to_cut_off(client);
        if (!client->ending && !client->lost && !client->flush_failed && (client->session != FAILING || client->users))
            wait_for_change(client, next);
    }
    see_to_cut_off(client);
    pthread_mutex_unlock(&client->mutex);
    return NULL;
}

/* --- its life ------------------------------------------------------------------------------------------------------ */

static void release(struct nbd_client *client) {
    if (client->has_keeper) {
        pthread_mutex_lock(&client->mutex);
        client->ending = 1;
        pthread_cond_broadcast(&client->changed);
        pthread_mutex_unlock(&client->mutex);
        pthread_join(client->keeper, NULL);
    }
    for (unsigned i = 0; i < MAX_CONNECTIONS; i++)
        if (client->connections[i].library)
            nbd_connection_destroy(&client->connections[i]);
    unflushed_writes_destroy(&client->unflushed);
    pthread_mutex_destroy(&client->flushing);
    pthread_rwlock_destroy(&client->blocks);
    pthread_cond_destroy(&client->changed);
    pthread_mutex_destroy(&client->mutex);
    free(client->uri);
    free(client);
}

struct nbd_client *nbd_client_open(const struct nbd_client_config *config, int *trouble, char *words, size_t room) {
    const struct nbd_library *library = nbd_library_load();
    *trouble = library ? NBD_CLIENT_NO_MEMORY : NBD_CLIENT_NO_LIBRARY;
    struct nbd_client *client = library ? calloc(1, sizeof *client) : NULL;
    if (!client)
        return NULL;
    client->config = *config;
    client->library = library;
    client->uri = strdup(config->uri);
    pthread_mutex_init(&client->mutex, NULL);
    pthread_cond_init(&client->changed, NULL);
    pthread_rwlock_init(&client->blocks, NULL);
    pthread_mutex_init(&client->flushing, NULL);
    int complete = unflushed_writes_init(&client->unflushed, config->kept_size) == 0 && client->uri != NULL;
    for (unsigned i = 0; i < MAX_CONNECTIONS && complete; i++)
        complete = nbd_connection_init(&client->connections[i], library) == 0;
    if (complete) {
        *trouble = NBD_CLIENT_NO_SERVER;
        if (connect_all(client, 1, nbd_now_ms() + (config->patience_ms < CONNECT_MS ? config->patience_ms : CONNECT_MS), trouble, words, room) == 0) {
            client->has_keeper = nbd_start_thread(&client->keeper, keep, client) == 0;
            *trouble = client->has_keeper ? NBD_CLIENT_OK : NBD_CLIENT_NO_MEMORY;
        }
        if (client->has_keeper)
            return client;
    }
    release(client);
    return NULL;
}

void nbd_client_close(struct nbd_client *client) { release(client); }

int nbd_client_refresh(struct nbd_client *client) {
    struct nbd_connection probe;
    char ignored[1];
    if (nbd_connection_init(&probe, client->library))
        return EMFILE;
    int64_t size = -1;
    if (nbd_connection_open(&probe, client->uri, nbd_now_ms() + CONNECT_MS, ignored, sizeof ignored) == 0)
        size = client->library->get_size(probe.handle);
    nbd_connection_destroy(&probe);
    if (size < 0)
        return EIO;
    if ((uint64_t)size > atomic_load(&client->size)) {
        /* A connection keeps the size that it began with, so that is the end of those: when everybody who uses one has
         * his answer, for nothing is wrong with them. */
        pthread_mutex_lock(&client->mutex);
        if (client->session == UP) {
            client->session = FAILING;
            client->lost_at = nbd_now_ms();
            client->lost = 1;
            pthread_cond_broadcast(&client->changed);
        }
        pthread_mutex_unlock(&client->mutex);
    }
    atomic_store(&client->size, (uint64_t)size);
    return 0;
}

uint64_t nbd_client_size(const struct nbd_client *client) { return atomic_load(&client->size); }

int nbd_client_can_flush(const struct nbd_client *client) { return client->can_flush; }

unsigned nbd_client_connections(const struct nbd_client *client) { return client->connection_count; }

size_t nbd_client_unflushed(struct nbd_client *client) { return unflushed_writes_size(&client->unflushed); }
