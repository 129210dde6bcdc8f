/* See client.h. */
#define _GNU_SOURCE
#include "payload/nbd/client.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "payload/nbd/blocks.h"
#include "payload/nbd/flushes.h"
#include "payload/nbd/issued_command.h"
#include "payload/nbd/retrier.h"
#include "threads/fair_lock.h"

struct nbd_client {
    struct payload payload; /* first: it is what others see */
    struct nbd_session session;
    struct nbd_flushes flushes;
    struct nbd_retrier retrier;
    pthread_rwlock_t blocks; /* held alone where blocks are written only in part: see nbd_client_write() */
};

int nbd_client_flush(struct nbd_client *client, int asked) { return nbd_flushes_flush(&client->flushes, asked); }

/* Makes room for a write among those that are kept, by a flush if need be. Returns 0 or an errno. */
static int reserve(struct nbd_client *client, size_t size) {
    int error = 0;
    while (!error && !unflushed_writes_reserve(&client->session.unflushed, size)) /* others take room, too */
        error = nbd_client_flush(client, 0);
    return error;
}

/* --- ranges -------------------------------------------------------------------------------------------------------- */

/* A range in commands that the server takes. Bounds are multiples of its blocks. A write that only its flush puts on the
 * storage is kept until then, if `keep` says so. */
static int in_commands(struct nbd_client *client, struct nbd_command rest, int keep) {
    struct nbd_session *session = &client->session;
    int error = 0;
    size_t largest = (size_t)session->export.largest, quarter = session->config.kept_size / 4;
    if (keep && largest > quarter) /* several are kept at a time */
        largest = quarter - quarter % session->export.block;
    while (rest.size && !error) {
        size_t size = rest.size < largest ? rest.size : largest;
        if (keep)
            error = reserve(client, size);
        if (!error) {
            struct issued_command issued = {.command = rest, .keep = keep};
            issued.command.size = size;
            issued.command.until = nbd_session_deadline(session);
            error = issued_command_run(&issued, session);
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

/* A server tells once of what a flush could not write. If that was in somebody else's flush since the write began, it may
 * have been ours; then `*doubtful` is set. Whoever asks for a flush hears of the failure, too. */
static int write_and_flush(struct nbd_client *client, struct nbd_command command, int *doubtful) {
    unsigned before = nbd_flushes_losses(&client->flushes);
    int error = in_commands(client, command, client->session.export.can_flush);
    if (error)
        return error;
    error = nbd_client_flush(client, 0);
    *doubtful = nbd_flushes_losses(&client->flushes) != before;
    return *doubtful && !error ? EIO : error;
}

/* `*doubtful`, where it fails: it may have been another one's write that failed. */
static int write_blocks(struct nbd_client *client, const uint8_t *data, size_t size, uint64_t offset, int synchronous,
                        int *doubtful) {
    struct nbd_session *session = &client->session;
    struct nbd_command command = {.kind = NBD_WRITE, .data = (uint8_t *)(uintptr_t)data, .size = size, .offset = offset};
    /* a server that cannot flush has nothing to flush */
    int keep = session->export.can_flush, through = session->config.write_through;
    if (!synchronous && !through)
        return in_commands(client, command, keep);
    if (!session->export.can_fua)
        return write_and_flush(client, command, doubtful);
    command.flags = NBD_FLAG_FUA;
    return in_commands(client, command, keep && !through); /* what is kept of earlier writes may be done again before it */
}

/* --- ranges that are no whole blocks of the server's --------------------------------------------------------------- */

static int is_whole(const struct nbd_client *client, size_t size, uint64_t offset) {
    return nbd_blocks_are(size, offset, client->session.export.block);
}

static struct nbd_blocks blocks_around(const struct nbd_client *client, size_t size, uint64_t offset) {
    return nbd_blocks_around(size, offset, client->session.export.block, atomic_load(&client->session.size));
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
    struct nbd_blocks around = blocks_around(client, size, offset);
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
    struct nbd_blocks around = blocks_around(client, size, offset);
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

/* --- as a payload ---------------------------------------------------------------------------------------------------- */

static struct nbd_client *of(struct payload *payload) { return (struct nbd_client *)payload; }

static int read_payload(struct payload *payload, uint8_t *data, size_t size, uint64_t offset) {
    return nbd_client_read(of(payload), data, size, offset);
}

static int write_payload(struct payload *payload, const uint8_t *data, size_t size, uint64_t offset, int synchronous) {
    return nbd_client_write(of(payload), data, size, offset, synchronous);
}

static int flush_payload(struct payload *payload, int asked) { return nbd_client_flush(of(payload), asked); }

static int start_request(struct payload *payload, struct payload_request *request) {
    struct nbd_client *client = of(payload);
    const struct nbd_session *session = &client->session;
    if (!is_whole(client, request->size, request->offset) || !is_there(client, request->size, request->offset) ||
        request->size > session->export.largest || (request->writing && session->config.write_through) ||
        (request->writing && session->export.block > 1)) /* the lock that keeps parts of blocks apart belongs to a thread */
        return 0;
    return nbd_retrier_issue(&client->retrier, request);
}

static const struct payload_operations operations = {
    .read = read_payload,
    .write = write_payload,
    .flush = flush_payload,
    .start = start_request,
};

struct payload *nbd_client_payload(struct nbd_client *client) { return &client->payload; }

/* --- its life ------------------------------------------------------------------------------------------------------ */

static void release(struct nbd_client *client) {
    nbd_session_end(&client->session);
    nbd_retrier_end(&client->retrier);
    nbd_session_destroy(&client->session);
    nbd_flushes_destroy(&client->flushes);
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
    client->payload.operations = &operations;
    fair_lock_init(&client->blocks);
    nbd_flushes_init(&client->flushes, &client->session);
    if (nbd_retrier_start(&client->retrier, &client->session) == 0)
        return client;
    *trouble = NBD_CLIENT_NO_MEMORY;
    release(client);
    return NULL;
}

void nbd_client_close(struct nbd_client *client) { release(client); }

void nbd_client_fail_waiting(struct nbd_client *client) { nbd_session_fail_waiting(&client->session); }

void nbd_client_wait_again(struct nbd_client *client) { nbd_session_wait_again(&client->session); }

int nbd_client_refresh(struct nbd_client *client) { return nbd_session_refresh(&client->session); }

uint64_t nbd_client_size(const struct nbd_client *client) { return atomic_load(&client->session.size); }

int nbd_client_can_flush(const struct nbd_client *client) { return client->session.export.can_flush; }

unsigned nbd_client_connections(const struct nbd_client *client) { return client->session.connection_count; }

size_t nbd_client_unflushed(struct nbd_client *client) { return unflushed_writes_size(&client->session.unflushed); }
