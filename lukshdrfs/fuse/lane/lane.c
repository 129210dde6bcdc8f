/* Start, lock and stop. See lane.h and parts.h. */
#define _GNU_SOURCE
#include "fuse/lane/lane.h"

#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/socket.h>

#include "fuse/lane/parts.h"
#include "threads/ready_memory.h"

#define STACK_SIZE ((size_t)1 << 17)

/* Threads beyond the workers, so that somebody is there to read what is not for us while all workers wait for a slow
 * payload. Reads that find no free worker are put aside, so only more than these many writes can keep them all. */
#define SPARE_THREADS 4

/* --- what the volume asks its host --------------------------------------------------------------------------------------- */

static int before_wait(void *self) { return readers_before_wait(&((struct lane *)self)->readers); }

static void after_wait(void *self, int token) { readers_after_wait(&((struct lane *)self)->readers, token); }

static void report(void *self, int trouble, uint64_t payload_offset, int error) {
    const struct lane *lane = self;
    struct lane_event event = {.offset = payload_offset, .trouble = trouble, .error = error};
    /* a log that is full misses a line */
    (void)send(lane->config.events, &event, sizeof event, MSG_DONTWAIT | MSG_NOSIGNAL);
}

/* --- start --------------------------------------------------------------------------------------------------------------- */

static void release(struct lane *lane) {
    for (size_t i = 0; i < lane->worker_count; i++)
        ready_memory_free(lane->workers[i].buffer, transport_buffer_size());
    relay_destroy(&lane->relay);
    async_requests_destroy(&lane->async_requests);
    interrupts_destroy(&lane->interrupts);
    flush_errors_destroy(&lane->flush_errors);
    turns_destroy(&lane->turns);
    readers_destroy(&lane->readers);
    coherence_free(lane->coherence);
    transport_free(lane->transport);
    pthread_mutex_destroy(&lane->starting);
    free(lane);
}

/* Returns whether there was memory for all parts. */
static int make_parts(struct lane *lane) {
    const struct lane_config *config = &lane->config;
    const struct relay_config relay = {.libfuse = config->libfuse,
                                       .confined = config->confined,
                                       .largest_request = config->largest_request,
                                       .page_size = config->page_size};
    lane->host = (struct volume_host){
        .self = lane, .before_wait = before_wait, .after_wait = after_wait, .report = report};
    lane->transport = transport_new(config->device);
    lane->coherence = coherence_new(lane->transport, config->device, config->size);
    lane->answers = (struct answers){.transport = lane->transport, .coherence = lane->coherence};
    readers_init(&lane->readers, lane->transport, (unsigned)lane->worker_count, config->confined);
    turns_init(&lane->turns, &lane->readers, config->workers);
    flush_errors_init(&lane->flush_errors, lane->volume, &lane->host);
    interrupts_init(&lane->interrupts);
    int error = async_requests_init(&lane->async_requests, lane->volume, &lane->host, &lane->answers, &lane->locked);
    error |= relay_init(&lane->relay, &relay, &lane->answers, &lane->flush_errors, &lane->host);
    return !error && lane->transport && lane->coherence;
}

static struct lane *lane_new(const struct lane_config *config) {
    size_t count = config->workers + SPARE_THREADS;
    struct lane *lane = calloc(1, sizeof *lane + count * sizeof lane->workers[0]);
    if (!lane)
        return NULL;
    lane->config = *config;
    lane->volume = config->volume;
    lane->worker_count = count;
    pthread_mutex_init(&lane->starting, NULL);
    int complete = make_parts(lane);
    for (size_t i = 0; i < count && complete; i++) {
        lane->workers[i].lane = lane;
        lane->workers[i].buffer = ready_memory(transport_buffer_size());
        complete = lane->workers[i].buffer != NULL;
    }
    if (complete)
        return lane;
    release(lane);
    return NULL;
}

/* The handler of STOP_SIGNAL, which interrupts a system call. */
static void wake(int number) { (void)number; }

/* The threads take no signals but ours: the rest are the program's, which has a thread for them. */
static int start_threads(struct lane *lane) {
    struct sigaction action = {.sa_handler = wake}; /* without SA_RESTART */
    sigaction(STOP_SIGNAL, &action, NULL);
    int error = coherence_start(lane->coherence, lane->config.confined);
    if (!error)
        error = relay_start(&lane->relay);
    if (!error)
        error = readers_start(&lane->readers);
    /* all or none: the first ones read nothing until the last one is there */
    pthread_mutex_lock(&lane->starting);
    for (size_t i = 0; i < lane->worker_count && !error; i++) {
        error = ready_thread_start(&lane->workers[i].thread, STACK_SIZE, STOP_SIGNAL, run_worker, &lane->workers[i]);
        if (!error)
            readers_join(&lane->readers);
    }
    atomic_store(&lane->stopping, error != 0);
    pthread_mutex_unlock(&lane->starting);
    return error;
}

uint32_t lane_largest_request(void) { return (uint32_t)LARGEST_REQUEST; }

struct lane *lane_start(const struct lane_config *config, int *error) {
    struct lane *lane = lane_new(config);
    *error = lane ? start_threads(lane) : ENOMEM;
    if (lane && *error) {
        (void)lane_stop(lane, UINT_MAX);
        lane = NULL;
    }
    return lane;
}

uint64_t lane_requests(const struct lane *lane) { return atomic_load(&lane->requests); }

/* --- lock ---------------------------------------------------------------------------------------------------------------- */

static int all_are_wiped(const struct lane *lane) {
    for (size_t i = 0; i < lane->worker_count; i++)
        if (!atomic_load(&lane->workers[i].wiped))
            return 0;
    return 1;
}

/* See parts.h for why the parts may be asked one after the other. */
static int is_quiet(struct lane *lane) {
    return turns_taken(&lane->turns) == 0 && async_requests_out(&lane->async_requests) == 0 && all_are_wiped(lane) &&
           coherence_is_idle(lane->coherence);
}

int lane_lock(struct lane *lane, unsigned patience_ms) {
    int64_t until = now_ms() + patience_ms;
    atomic_store(&lane->locked, 1);
    interrupts_deliver_all(&lane->interrupts); /* a FALLOCATE ends early */
    while (!is_quiet(lane)) {
        if (now_ms() > until)
            return 0;
        readers_recall(&lane->readers); /* parked threads wipe their buffers, and so do those that wait for requests */
        for (size_t i = 0; i < lane->worker_count; i++)
            pthread_kill(lane->workers[i].thread.thread, STOP_SIGNAL);
        pause_ms(2);
    }
    async_requests_wipe(&lane->async_requests);
    return 1;
}

int lane_forget_cached(struct lane *lane, unsigned patience_ms) {
    int64_t until = now_ms() + patience_ms;
    coherence_drop_all(lane->coherence);
    while (!coherence_is_idle(lane->coherence)) {
        if (now_ms() > until)
            return 0;
        pause_ms(1);
    }
    return 1;
}

/* --- stop ---------------------------------------------------------------------------------------------------------------- */

static int wait_for_async_requests(struct lane *lane, int64_t until) {
    while (async_requests_out(&lane->async_requests)) {
        if (now_ms() > until)
            return 0;
        pause_ms(1);
    }
    return 1;
}

int lane_stop(struct lane *lane, unsigned patience_ms) {
    int64_t until = now_ms() + patience_ms;
    /* first, and while requests are served: it may be waiting for one */
    coherence_end(lane->coherence);
    int ended = coherence_join(lane->coherence, until);
    atomic_store(&lane->stopping, 1);
    interrupts_deliver_all(&lane->interrupts);
    readers_end(&lane->readers);
    for (size_t i = 0; i < lane->worker_count && ended; i++)
        ended = ready_thread_join_until(&lane->workers[i].thread, until, STOP_SIGNAL);
    ended = ended && wait_for_async_requests(lane, until); /* what the payload is at is still answered */
    ended = relay_stop(&lane->relay, until) && ended;
    if (!ended)
        return 0;
    readers_stop(&lane->readers);
    release(lane);
    return 1;
}
