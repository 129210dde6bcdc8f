/* See flush_errors.h. */
#include "fuse/lane/flush_errors.h"

#include <stdlib.h>

struct flush {
    struct flush *next;
    uint64_t number;
};

void flush_errors_init(struct flush_errors *errors, struct native_volume *volume, const struct volume_host *host) {
    *errors = (struct flush_errors){.volume = volume, .host = host};
    pthread_mutex_init(&errors->mutex, NULL);
    pthread_cond_init(&errors->flushed, NULL);
}

void flush_errors_destroy(struct flush_errors *errors) {
    while (errors->handles) {
        struct handle *handle = errors->handles;
        errors->handles = handle->next;
        free(handle);
    }
    pthread_cond_destroy(&errors->flushed);
    pthread_mutex_destroy(&errors->mutex);
}

/* --- handles ----------------------------------------------------------------------------------------------------------- */

void flush_errors_add(struct flush_errors *errors, struct handle *handle, uint64_t number, int cached) {
    pthread_mutex_lock(&errors->mutex);
    /* a failure before it was opened is none of its business */
    *handle = (struct handle){.next = errors->handles, .number = number, .heard = errors->failures, .cached = cached};
    errors->handles = handle;
    pthread_mutex_unlock(&errors->mutex);
}

void flush_errors_forget(struct flush_errors *errors, uint64_t number) {
    struct handle *gone = NULL;
    pthread_mutex_lock(&errors->mutex);
    for (struct handle **at = &errors->handles; *at && !gone; at = &(*at)->next)
        if ((*at)->number == number) {
            gone = *at;
            *at = gone->next;
            break;
        }
    pthread_mutex_unlock(&errors->mutex);
    free(gone);
}

/* Call with the mutex held, as the following ones. */
static struct handle *find(const struct flush_errors *errors, uint64_t number) {
    struct handle *handle = errors->handles;
    while (handle && handle->number != number)
        handle = handle->next;
    return handle;
}

/* --- flushes ----------------------------------------------------------------------------------------------------------- */

static void note_failure(struct flush_errors *errors, int error) {
    if (error) {
        errors->failures++;
        errors->failure = error;
    }
}

/* Returns whether a flush is under way that began up to a number. */
static int is_flushing(const struct flush_errors *errors, uint64_t number) {
    for (const struct flush *each = errors->flushes; each; each = each->next)
        if (each->number <= number)
            return 1;
    return 0;
}

/* Waits for the flushes that began up to a number. The mutex is released meanwhile. */
static void wait_for_others(struct flush_errors *errors, uint64_t number) {
    pthread_mutex_unlock(&errors->mutex);
    int token = errors->host->before_wait(errors->host->self);
    pthread_mutex_lock(&errors->mutex);
    while (is_flushing(errors, number))
        pthread_cond_wait(&errors->flushed, &errors->mutex);
    pthread_mutex_unlock(&errors->mutex);
    errors->host->after_wait(errors->host->self, token);
    pthread_mutex_lock(&errors->mutex);
}

static void begin(struct flush_errors *errors, struct flush *flush) {
    flush->number = ++errors->begun;
    flush->next = errors->flushes;
    errors->flushes = flush;
}

static void end(struct flush_errors *errors, const struct flush *flush) {
    struct flush **at = &errors->flushes;
    while (*at != flush)
        at = &(*at)->next;
    *at = flush->next;
    pthread_cond_broadcast(&errors->flushed);
}

/* Returns what the handle is to hear. */
static int flush_for(struct flush_errors *errors, uint64_t number) {
    struct flush own;
    pthread_mutex_lock(&errors->mutex);
    begin(errors, &own);
    pthread_mutex_unlock(&errors->mutex);
    int error = native_volume_flush(errors->volume, errors->host, 1);
    pthread_mutex_lock(&errors->mutex);
    note_failure(errors, error);
    end(errors, &own);
    uint64_t begun = errors->begun;
    if (!error && is_flushing(errors, begun))
        wait_for_others(errors, begun);
    struct handle *handle = find(errors, number);
    if (handle) {
        if (!error && handle->heard != errors->failures)
            error = errors->failure;
        handle->heard = errors->failures;
    }
    pthread_mutex_unlock(&errors->mutex);
    return error;
}

/* Serves the FSYNC that the kernel adds after a synchronous write. Its failure concerns other writes, so it is noted for
 * all handles. */
static int flush_after_write(struct flush_errors *errors) {
    int error = native_volume_flush(errors->volume, errors->host, 0);
    pthread_mutex_lock(&errors->mutex);
    note_failure(errors, error);
    pthread_mutex_unlock(&errors->mutex);
    return error;
}

/* --- synchronous writes ------------------------------------------------------------------------------------------------ */

void flush_errors_note_synced(struct flush_errors *errors, const struct request *request) {
    uint32_t caller = request->head.header.pid;
    pthread_mutex_lock(&errors->mutex);
    const struct handle *handle = find(errors, request->head.write.fh);
    if (handle && handle->cached) {
        errors->synced[caller % REMEMBERED_SYNCS].handle = handle->number;
        errors->synced[caller % REMEMBERED_SYNCS].caller = caller;
    }
    pthread_mutex_unlock(&errors->mutex);
}

/* Returns whether a sync is the end of a synchronous write, which has said already what became of it. */
static int ends_write(struct flush_errors *errors, const struct request *request) {
    uint32_t caller = request->head.header.pid, *noted = &errors->synced[caller % REMEMBERED_SYNCS].caller;
    pthread_mutex_lock(&errors->mutex);
    int ends = caller && *noted == caller && errors->synced[caller % REMEMBERED_SYNCS].handle == request->head.fsync.fh;
    if (ends)
        *noted = 0;
    pthread_mutex_unlock(&errors->mutex);
    return ends;
}

int flush_errors_sync(struct flush_errors *errors, const struct request *request) {
    return ends_write(errors, request) ? flush_after_write(errors) : flush_for(errors, request->head.fsync.fh);
}
