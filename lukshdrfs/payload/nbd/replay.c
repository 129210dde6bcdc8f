/* See replay.h. */
#define _GNU_SOURCE
#include "payload/nbd/replay.h"

#include <pthread.h>
#include <time.h>

#define AT_ONCE 32                       /* writes that are under way, for there may be thousands of small ones, */
#define LARGEST_BATCH ((uint64_t)1 << 20) /* and their bytes: all of it has to come through in time */

struct batch;

struct replayed_write {
    struct nbd_command command; /* first: the command is the write */
    struct batch *batch;
    int under_way;
};

struct batch {
    pthread_mutex_t mutex; /* for all that follows */
    pthread_cond_t called;
    struct replayed_write writes[AT_ONCE];
    unsigned under_way;
    uint64_t bytes_under_way;
    uint64_t total;
    int refused; /* an errno of the server's */
    int cut_off;
};

static void finished(struct nbd_command *command, int error) {
    struct replayed_write *write = (struct replayed_write *)command;
    struct batch *batch = write->batch;
    pthread_mutex_lock(&batch->mutex);
    write->under_way = 0;
    batch->under_way--;
    batch->bytes_under_way -= command->size;
    if (error < 0)
        batch->cut_off = 1;
    else if (error)
        batch->refused = error;
    else
        batch->total += command->size;
    pthread_cond_signal(&batch->called);
    pthread_mutex_unlock(&batch->mutex);
}

/* Returns where the next write can be put, NULL while it has to wait: servers do what is under way in any order, and two
 * writes to one place have theirs. */
static struct replayed_write *place_for(struct batch *batch, const struct unflushed_write *kept) {
    struct replayed_write *place = NULL;
    if (batch->under_way && batch->bytes_under_way + kept->size > LARGEST_BATCH)
        return NULL;
    for (size_t i = 0; i < AT_ONCE; i++) {
        struct replayed_write *write = &batch->writes[i];
        if (!write->under_way)
            place = write;
        else if (kept->offset < write->command.offset + write->command.size &&
                 write->command.offset < kept->offset + kept->size)
            return NULL;
    }
    return place;
}

/* Waits for the end of one write. Call with the mutex held. Somebody may want the client to end meanwhile. */
static void wait_for_one(struct batch *batch, struct nbd_connection *connection, const atomic_int *ending) {
    struct timespec end;
    clock_gettime(CLOCK_MONOTONIC, &end);
    end.tv_sec++;
    pthread_cond_clockwait(&batch->called, &batch->mutex, CLOCK_MONOTONIC, &end);
    if (atomic_load(ending) && !batch->cut_off) {
        batch->cut_off = 1;
        pthread_mutex_unlock(&batch->mutex);
        nbd_connection_break(connection);
        pthread_mutex_lock(&batch->mutex);
    }
}

/* Call with the mutex held, which is released meanwhile. */
static void start(struct batch *batch, struct replayed_write *write, struct unflushed_write *kept,
                  struct nbd_connection *connection, int64_t until) {
    *write = (struct replayed_write){
        .command = {.kind = NBD_WRITE, .data = kept->data, .size = kept->size, .offset = kept->offset, .until = until,
                    .finished = finished},
        .batch = batch,
        .under_way = 1,
    };
    batch->under_way++;
    batch->bytes_under_way += kept->size;
    pthread_mutex_unlock(&batch->mutex);
    nbd_connection_start(connection, &write->command);
    pthread_mutex_lock(&batch->mutex);
}

int nbd_replay_run(struct nbd_replay *replay, struct unflushed_writes *kept, struct nbd_connection *connection,
                   unsigned patience_ms, const atomic_int *ending) {
    struct batch batch = {.mutex = PTHREAD_MUTEX_INITIALIZER, .called = PTHREAD_COND_INITIALIZER};
    struct unflushed_write *next;
    uint64_t position = kept->start;
    pthread_mutex_lock(&batch.mutex);
    while (!batch.cut_off && (next = unflushed_writes_next(kept, &position))) {
        struct replayed_write *place;
        while (!(place = place_for(&batch, next)) && !batch.cut_off)
            wait_for_one(&batch, connection, ending);
        if (!batch.cut_off)
            start(&batch, place, next, connection, now_ms() + patience_ms);
    }
    while (batch.under_way)
        wait_for_one(&batch, connection, ending);
    pthread_mutex_unlock(&batch.mutex);
    pthread_mutex_destroy(&batch.mutex);
    pthread_cond_destroy(&batch.called);
    *replay = (struct nbd_replay){.total = batch.total, .refused = batch.refused};
    return batch.cut_off ? -1 : 0;
}
