/* See lane.h. The protocol is the kernel's: include/uapi/linux/fuse.h. */
#define _GNU_SOURCE
#include "lane.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/falloc.h>
#include <linux/fuse.h>
#include <linux/magic.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

#include "coherence.h"
#include "confinement.h"
#include "ready_memory.h"
#include "sector_cipher.h"
#include "sector_locks.h"

/* Newer than some distributions' headers. */
#ifndef FOPEN_PARALLEL_DIRECT_WRITES
#define FOPEN_PARALLEL_DIRECT_WRITES (1 << 6) /* 7.37 */
#endif
#ifndef FUSE_HANDLE_KILLPRIV_V2
#define FUSE_HANDLE_KILLPRIV_V2 (1 << 28) /* 7.33 */
#endif
#define DIRECT_IO_ALLOW_MMAP (1U << 4) /* flags2, 7.39: FUSE_DIRECT_IO_ALLOW_MMAP, bit 36 of all flags */

#define LARGEST_REQUEST ((size_t)1 << 20) /* bytes of data; what INIT's answer grants is cut to it */
#define LARGEST_SECTOR ((size_t)4096)
#define LARGEST_ANSWER (LARGEST_REQUEST + ((size_t)1 << 16)) /* of libfuse: where it serves reads, their data */
#define STACK_SIZE ((size_t)1 << 17)

/* Threads beyond the workers, so that somebody is there to read what is not for us while all workers wait for a slow
 * payload. Reads that find no free worker are put aside, so only more than these many writes can keep them all. */
#define SPARE_THREADS 4

/* Requests that the kernel may have under way in the background (readahead, writeback, asynchronous direct I/O);
 * libfuse grants 12, which leaves deep queues idle. */
#define MAX_BACKGROUND 128
#define CONGESTION_THRESHOLD 96

/* How often the reader looks for the next request before it sleeps, some ten microseconds: a caller that does one
 * thing after the other is served without waking anybody up. Where that is in vain, it is tried only now and then. */
#define LOOKS 100
#define VAIN_ATTEMPTS 4
#define SELDOM 32

/* Who goes to wait for the payload does not know whether it will take long: a write to a file mostly ends in the page
 * cache. To wake somebody up each time would cost more than the write. So a thread watches, and looks this often whether
 * a request lies unread because everybody waits; where that was so, the next waits call a reader before they begin. */
#define WATCH_INTERVAL_NS 300000
#define EAGER_WAITS 1000
#define LONG_WAIT 4  /* looks after which somebody is to read anyway */
#define QUIET_LOOKS 20 /* looks without any wait after which the watching thread sleeps */

/* Requests that a payload over the network serves while no thread waits for them, and their bytes. */
#define MAX_ERRANDS 64
#define LARGEST_ERRAND ((size_t)1 << 16)

/* READs that can be put aside; each thread can keep one more. */
#define PUT_ASIDE 256

#define REMEMBERED_INTERRUPTS 16
#define REMEMBERED_SYNCS 64
#define STOP_SIGNAL (SIGRTMIN + 5)

typedef int (*crypt_function)(struct sector_cipher *, int, uint8_t *, size_t, uint64_t);
typedef void (*hold_function)(struct sector_locks *, struct sector_range *, uint64_t, uint64_t, int);
typedef int (*try_function)(struct sector_locks *, struct sector_range *, uint64_t, uint64_t, int);
typedef void (*release_function)(struct sector_locks *, struct sector_range *);
typedef int (*payload_read_function)(void *, uint8_t *, size_t, uint64_t);
typedef int (*payload_write_function)(void *, const uint8_t *, size_t, uint64_t, int);
typedef int (*payload_flush_function)(void *, int);
typedef int (*payload_start_function)(void *, int, uint8_t *, size_t, uint64_t, void (*)(void *, int), void *);

/* The start of a request, up to the data of a WRITE. */
struct request {
    struct fuse_in_header header;
    union {
        struct fuse_read_in read;
        struct fuse_write_in write;
        struct fuse_fallocate_in fallocate;
        struct fuse_interrupt_in interrupt;
        struct fuse_open_in open;
        struct fuse_release_in release;
        struct fuse_fsync_in fsync;
        struct fuse_init_in init;
    };
};
#define WRITE_HEAD (sizeof(struct fuse_in_header) + sizeof(struct fuse_write_in))

/* A data request that waits for a free worker: a READ that was put aside, or a thread that holds its own request. */
struct waiting {
    struct waiting *next;
    struct request *request; /* NULL: a thread waits for `turn` */
    int turn;
    pthread_cond_t called;
};

/* An OPEN that libfuse has not answered yet. */
struct opening {
    struct opening *next;
    struct handle *handle; /* what it becomes */
    uint64_t unique;
    uint32_t flags;
};

/* An open image, as pyfuse3 has numbered it. */
struct handle {
    struct handle *next;
    uint64_t number;
    unsigned heard; /* of so many failed flushes */
    int cached;     /* it goes through the page cache */
};

/* A synchronous write that has succeeded, and whose caller the kernel has sync the handle next: it does so where the page
 * cache is used. */
struct synced {
    uint64_t handle;
    uint32_t caller; /* 0: none */
};

/* A flush that is under way, or whose outcome nobody has taken down yet. */
struct flush {
    struct flush *next;
    uint64_t began;
};

/* A thread. Its buffer is room for a sector, the data of the largest request, and room for another sector: so the
 * sectors that a request touches only in part lie beside its data, and everything is done in place. */
struct worker {
    struct lane *lane;
    struct ready_thread thread;
    int started;
    uint8_t *buffer;
    struct request request;
    int wiped; /* under the lane's mutex */
    uint64_t fallocating; /* unique of the FALLOCATE that it serves, under the lane's mutex */
    atomic_int interrupted;
};
#define BUFFER_SIZE (LARGEST_SECTOR + LARGEST_REQUEST + LARGEST_SECTOR)

/* The part of a range of plaintext that is in one extent, and the whole sectors around it. */
struct piece {
    const struct lane_extent *extent;
    uint64_t at;   /* first whole sector, bytes in the extent */
    size_t skip;   /* bytes of it before the range */
    size_t size;   /* bytes of the range */
    size_t covered; /* bytes of the whole sectors */
};

/* A request that the payload serves by itself: one piece of whole sectors, which stays locked until it is done. */
struct errand {
    struct errand *next; /* among those that are free */
    struct lane *lane;
    uint64_t unique;
    int writing, direct;
    uint64_t offset; /* on the volume */
    struct piece piece;
    struct sector_range range;
    uint8_t *data;
};

/* A write past the cache that libfuse has not answered yet, where it answers them. */
struct relayed_write {
    struct relayed_write *next;
    uint64_t unique, offset, size;
};

struct lane {
    struct lane_config config;
    struct lane_extent *extents;
    _Atomic uint64_t size; /* of the volume; what tells where it ends */
    struct coherence *coherence;
    crypt_function crypt;
    hold_function hold;
    try_function try_hold;
    release_function release;
    payload_read_function payload_read; /* NULL: the descriptor is read */
    payload_write_function payload_write;
    payload_flush_function payload_flush;
    payload_start_function payload_start;
    int payload_is_memory; /* it never blocks */
    unsigned processors;

    pthread_mutex_t mutex; /* for all that follows, up to the threads */
    unsigned serving;      /* data requests under way, workers at most; nobody waits while there are fewer */
    unsigned wiped; /* threads whose buffers hold no plaintext any more, as the lane is locked */
    struct waiting *first_waiting, *last_waiting;
    struct waiting *free_aside; /* places for READs that are put aside */
    struct opening *openings;
    struct relayed_write *relayed_writes;
    struct handle *handles;
    unsigned failures; /* flushes that have failed so far */
    int failure;       /* the last one's errno */
    struct flush *flushes;
    uint64_t flushes_begun;
    pthread_cond_t flushed;
    struct synced synced[REMEMBERED_SYNCS]; /* at the place that the caller's number gives */
    uint64_t init_unique;
    uint32_t offered, offered2; /* flags and flags2 of the kernel's INIT */
    int coherent;      /* O_DIRECT may go past the page cache: the kernel keeps both in step */
    uint64_t interrupts[REMEMBERED_INTERRUPTS];
    unsigned next_interrupt;
    unsigned running; /* threads that have not ended */
    unsigned readers; /* threads that read requests, or are about to */
    unsigned parked;  /* threads that have nothing to do while others read */
    unsigned waiting; /* threads that may be waiting for something else than requests */
    unsigned blocked; /* those of them that have called another one in their place */
    unsigned waits;   /* begun so far; wraps */
    unsigned eager;   /* how many more waits call a reader at once */
    int watching;     /* the watching thread is awake */
    pthread_cond_t watch;
    unsigned calls;   /* parked threads that are called and have not come yet */
    pthread_cond_t called;
    int ended; /* there are no more requests */
    struct errand *free_errands;
    unsigned errands_out;

    atomic_int stopping, locked;
    _Atomic uint64_t requests; /* data requests so far */
    atomic_uint vain_looks;
    struct ready_thread answers, watcher;
    int answers_started, watcher_started;
    uint8_t *errand_data, *answer_buffer;
    struct {
        struct waiting waiting;
        struct request request;
    } aside[PUT_ASIDE];
    struct errand errands[MAX_ERRANDS];
    size_t thread_count;
    struct worker workers[];
};

static void tell(const struct lane *lane, enum lane_trouble trouble, uint64_t offset, int error) {
    struct lane_event event = {.offset = offset, .trouble = (int32_t)trouble, .error = error};
    /* a log that is full misses a line */
    (void)send(lane->config.events, &event, sizeof event, MSG_DONTWAIT | MSG_NOSIGNAL);
}

/* By each thread, for itself. A kernel that cannot do it serves as well. */
static void confine(const struct lane *lane) {
    pthread_setname_np(pthread_self(), "lane");
    if (lane->config.confined)
        (void)confine_thread();
}

/* --- answers to the kernel ------------------------------------------------------------------------------------- */

static void answer(struct lane *lane, uint64_t unique, int error, const void *data, size_t size) {
    struct fuse_out_header header = {
        .len = (uint32_t)(sizeof header + size), .error = -error, .unique = unique};
    struct iovec parts[2] = {{.iov_base = &header, .iov_len = sizeof header},
                             {.iov_base = (void *)(uintptr_t)data, .iov_len = size}};
    while (writev(lane->config.device, parts, size ? 2 : 1) < 0 && errno == EINTR)
        ;
    /* nothing to be done about the rest: the caller was killed (ENOENT), or the mount is gone (ENODEV) */
}

/* --- who reads requests ----------------------------------------------------------------------------------------- */

/* At best one thread reads requests, serves what it finds, and reads on: nobody has to be woken. As soon as it is to do
 * what may block, or finds that more is waiting while there are idle processors, it calls another one. */

/* Under the mutex. */
static void call_reader(struct lane *lane) {
    if (lane->readers == 0 && lane->parked > lane->calls) {
        lane->calls++;
        pthread_cond_signal(&lane->called);
    }
}

/* Around whatever may wait for the payload. What the first one returns, the second one takes. */
static int begin_wait(struct lane *lane) {
    pthread_mutex_lock(&lane->mutex);
    int called = lane->eager > 0;
    lane->waiting++;
    lane->waits++;
    if (called) {
        lane->eager--;
        lane->blocked++;
        call_reader(lane);
    } else if (!lane->watching)
        pthread_cond_signal(&lane->watch);
    pthread_mutex_unlock(&lane->mutex);
    return called;
}

static void end_wait(struct lane *lane, int called) {
    pthread_mutex_lock(&lane->mutex);
    lane->waiting--;
    lane->blocked -= (unsigned)called;
    pthread_mutex_unlock(&lane->mutex);
}

static int request_waits(const struct lane *lane) {
    struct pollfd device = {.fd = lane->config.device, .events = POLLIN};
    return poll(&device, 1, 0) > 0;
}

/* The thread that sees to it that no request lies unread for long while all others wait. */
static void *watch(void *argument) {
    struct lane *lane = argument;
    const struct timespec interval = {.tv_nsec = WATCH_INTERVAL_NS};
    unsigned seen = 0, quiet = 0, unread = 0;
    confine(lane);
    pthread_mutex_lock(&lane->mutex);
    while (!lane->ended) {
        int attended = !lane->waiting || lane->readers;
        quiet = attended && lane->waits == seen ? quiet + 1 : 0;
        unread = attended ? 0 : unread + 1;
        seen = lane->waits;
        lane->watching = quiet < QUIET_LOOKS;
        while (!lane->watching && lane->waits == seen && !lane->ended)
            pthread_cond_wait(&lane->watch, &lane->mutex);
        lane->watching = 1;
        pthread_mutex_unlock(&lane->mutex);
        if (unread) {
            int found = request_waits(lane);
            pthread_mutex_lock(&lane->mutex);
            if (found && !lane->readers)
                lane->eager = EAGER_WAITS;
            if (found || unread >= LONG_WAIT)
                call_reader(lane);
            pthread_mutex_unlock(&lane->mutex);
        }
        nanosleep(&interval, NULL);
        pthread_mutex_lock(&lane->mutex);
    }
    pthread_mutex_unlock(&lane->mutex);
    return NULL;
}

/* Under the mutex. The thread serves nothing any more, and nothing of what it has served stays in its buffer. */
static void wipe(struct worker *worker) {
    if (worker->wiped)
        return;
    explicit_bzero(worker->buffer, BUFFER_SIZE);
    worker->wiped = 1;
    worker->lane->wiped++;
}

/* Under the mutex. */
static void wipe_if_locked(struct worker *worker) {
    if (atomic_load(&worker->lane->locked))
        wipe(worker);
}

/* Returns when it is this thread's turn to read; 0 if there is nothing to read any more. */
static int become_reader(struct worker *worker) {
    struct lane *lane = worker->lane;
    pthread_mutex_lock(&lane->mutex);
    int wanted = 0;
    if (lane->readers && lane->readers < lane->processors) {
        pthread_mutex_unlock(&lane->mutex);
        wanted = request_waits(lane);
        pthread_mutex_lock(&lane->mutex);
    }
    if (lane->readers && !wanted) {
        lane->parked++;
        wipe_if_locked(worker);
        while (!lane->calls && !lane->ended) {
            pthread_cond_wait(&lane->called, &lane->mutex);
            wipe_if_locked(worker);
        }
        lane->parked--;
        lane->calls -= lane->calls > 0;
    }
    lane->readers++;
    int ended = lane->ended;
    pthread_mutex_unlock(&lane->mutex);
    return !ended;
}

/* `more`: its request was there at once, so there may be others. */
static void stop_reading(struct lane *lane, int more) {
    pthread_mutex_lock(&lane->mutex);
    lane->readers--;
    if (more && lane->running - lane->parked + lane->calls - lane->blocked < lane->processors)
        call_reader(lane);
    pthread_mutex_unlock(&lane->mutex);
}

static void end_reading(struct lane *lane) {
    pthread_mutex_lock(&lane->mutex);
    lane->ended = 1;
    pthread_cond_broadcast(&lane->called);
    pthread_cond_signal(&lane->watch);
    pthread_mutex_unlock(&lane->mutex);
}

/* --- ciphertext ------------------------------------------------------------------------------------------------ */

/* Reads what can be read at once, and says so to others before it waits for the rest. */
static ssize_t read_at(struct lane *lane, uint8_t *data, size_t size, uint64_t offset) {
    if (lane->payload_is_memory)
        return pread(lane->config.payload, data, size, (off_t)offset);
    struct iovec part = {.iov_base = data, .iov_len = size};
    ssize_t count = preadv2(lane->config.payload, &part, 1, (off_t)offset, RWF_NOWAIT);
    if (count > 0)
        return count;
    int called = begin_wait(lane); /* not in the page cache; or a file system that cannot tell */
    count = pread(lane->config.payload, data, size, (off_t)offset);
    int error = errno;
    end_wait(lane, called);
    errno = error;
    return count;
}

/* The errno that a request gets. A payload on a file system whose daemon is gone says that of its own connection; to
 * whoever uses the image it is a disk that fails. */
static int storage_error(void) { return errno == ENOTCONN || errno == ECONNABORTED ? EIO : errno; }

/* Returns 0 or an errno, as all that follow. */
static int call_read(struct lane *lane, uint8_t *data, size_t size, uint64_t offset) {
    int called = begin_wait(lane);
    int error = lane->payload_read(lane->config.payload_object, data, size, offset);
    end_wait(lane, called);
    if (error)
        tell(lane, LANE_READING, offset, error);
    return error;
}

static int read_payload(struct lane *lane, uint8_t *data, size_t size, uint64_t offset) {
    if (lane->payload_read)
        return call_read(lane, data, size, offset);
    while (size) {
        ssize_t count = read_at(lane, data, size, offset);
        if (count < 0 && errno == EINTR)
            continue;
        if (count <= 0) {
            int error = count ? storage_error() : EIO;
            tell(lane, count ? LANE_READING : LANE_CUT_OFF, offset, error);
            return error;
        }
        data += count;
        size -= (size_t)count;
        offset += (uint64_t)count;
    }
    return 0;
}

static int write_out(struct lane *lane, const uint8_t *data, size_t size, uint64_t offset, int synchronous) {
    int error = lane->payload_write(lane->config.payload_object, data, size, offset, synchronous);
    if (error)
        tell(lane, LANE_WRITING, offset, error);
    return error;
}

static int write_payload(struct lane *lane, const uint8_t *data, size_t size, uint64_t offset, int synchronous) {
    if (lane->payload_is_memory)
        return write_out(lane, data, size, offset, synchronous);
    int called = begin_wait(lane);
    int error = write_out(lane, data, size, offset, synchronous);
    end_wait(lane, called);
    return error;
}

/* Whole sectors, in place; `at` is the first one's byte in the extent. */
static int crypt_sectors(struct lane *lane, const struct lane_extent *extent, int encrypt, uint8_t *data, size_t size,
                         uint64_t at) {
    if (!extent->cipher)
        return 0;
    int status = lane->crypt(extent->cipher, encrypt, data, size, extent->iv_tweak + (at >> 9));
    if (status == CIPHER_OK)
        return 0;
    int error = status == CIPHER_NO_MEMORY ? ENOMEM : EIO;
    tell(lane, LANE_CIPHER, extent->payload_offset + at, error);
    return error;
}

/* --- plaintext ------------------------------------------------------------------------------------------------- */

static struct piece piece_in(const struct lane_extent *extent, uint64_t offset, uint64_t end) {
    uint64_t first = offset - extent->start;
    uint64_t last = end - extent->start < extent->size ? end - extent->start : extent->size;
    size_t skip = (size_t)(first % extent->sector_size);
    size_t covered = skip + (size_t)(last - first);
    covered += (extent->sector_size - covered % extent->sector_size) % extent->sector_size;
    return (struct piece){
        .extent = extent, .at = first - skip, .skip = skip, .size = (size_t)(last - first), .covered = covered};
}

static void hold(struct lane *lane, struct sector_range *range, const struct piece *piece, int exclusive) {
    uint64_t start = piece->extent->start + piece->at;
    if (lane->try_hold(lane->config.locks, range, start, start + piece->covered, exclusive))
        return;
    int called = begin_wait(lane); /* the other one may be waiting for the payload */
    lane->hold(lane->config.locks, range, start, start + piece->covered, exclusive);
    end_wait(lane, called);
}

/* The sectors come to lie around `data`, with the plaintext that was asked for at `data` itself. */
static int read_piece(struct lane *lane, const struct piece *piece, uint8_t *data) {
    uint8_t *sectors = data - piece->skip;
    struct sector_range range;
    hold(lane, &range, piece, 0);
    int error = read_payload(lane, sectors, piece->covered, piece->extent->payload_offset + piece->at);
    lane->release(lane->config.locks, &range);
    return error ? error : crypt_sectors(lane, piece->extent, 0, sectors, piece->covered, piece->at);
}

/* Puts the plaintext of a sector that is only partly written around the part. */
static int fetch_around(struct lane *lane, const struct piece *piece, uint8_t *sectors, size_t at, size_t from,
                        size_t to) {
    uint8_t sector[LARGEST_SECTOR];
    size_t size = piece->extent->sector_size;
    int error = read_payload(lane, sector, size, piece->extent->payload_offset + piece->at + at);
    if (!error)
        error = crypt_sectors(lane, piece->extent, 0, sector, size, piece->at + at);
    if (!error) {
        memcpy(sectors + at, sector, from);
        memcpy(sectors + at + to, sector + to, size - to);
    }
    explicit_bzero(sector, sizeof sector);
    return error;
}

static int fetch_partial_sectors(struct lane *lane, const struct piece *piece, uint8_t *sectors) {
    size_t unit = piece->extent->sector_size, end = piece->skip + piece->size, last = piece->covered - unit;
    if (piece->skip || end < unit) { /* `end` may lie in the first sector, too */
        int error = fetch_around(lane, piece, sectors, 0, piece->skip, end < unit ? end : unit);
        if (error || last == 0)
            return error;
    }
    return end < piece->covered ? fetch_around(lane, piece, sectors, last, 0, end - last) : 0;
}

static int write_sectors(struct lane *lane, const struct piece *piece, uint8_t *data, int synchronous) {
    uint8_t *sectors = data - piece->skip;
    struct sector_range range;
    hold(lane, &range, piece, 1);
    int error = fetch_partial_sectors(lane, piece, sectors);
    if (!error)
        error = crypt_sectors(lane, piece->extent, 1, sectors, piece->covered, piece->at);
    if (!error)
        error = write_payload(lane, sectors, piece->covered, piece->extent->payload_offset + piece->at, synchronous);
    lane->release(lane->config.locks, &range);
    return error;
}

static int write_piece(struct lane *lane, const struct piece *piece, uint8_t *data) {
    return write_sectors(lane, piece, data, 0);
}

/* It is on the storage then; and if not, the error is its own, whatever becomes of others' writes. */
static int write_piece_synchronously(struct lane *lane, const struct piece *piece, uint8_t *data) {
    return write_sectors(lane, piece, data, 1);
}

/* Does something with each piece of a range of plaintext. A piece that is not the first one begins at a sector's
 * start, and one that is not the last ends at a sector's end: only the outer ends reach past the range. */
static int with_pieces(struct lane *lane, int (*work)(struct lane *, const struct piece *, uint8_t *), uint8_t *data,
                       uint64_t offset, size_t size) {
    uint64_t end = offset + size;
    for (size_t i = 0; i < lane->config.extent_count && offset < end; i++) {
        if (offset - lane->extents[i].start >= lane->extents[i].size)
            continue;
        struct piece piece = piece_in(&lane->extents[i], offset, end);
        int error = work(lane, &piece, data);
        if (error)
            return error;
        data += piece.size;
        offset += piece.size;
    }
    return 0;
}

/* How much of a range is before the volume's end. */
static uint64_t clipped(const struct lane *lane, uint64_t offset, uint64_t size) {
    uint64_t end = atomic_load(&lane->size);
    if (offset >= end)
        return 0;
    return size < end - offset ? size : end - offset;
}

/* --- the requests that are served here ------------------------------------------------------------------------- */

static uint8_t *data_of(const struct worker *worker) { return worker->buffer + LARGEST_SECTOR; }

static void serve_read(struct worker *worker) {
    const struct request *request = &worker->request;
    struct lane *lane = worker->lane;
    uint64_t count = clipped(lane, request->read.offset, request->read.size);
    int error = request->read.size > LARGEST_REQUEST ? EINVAL : 0; /* more than INIT's answer grants */
    if (!error)
        error = with_pieces(lane, read_piece, data_of(worker), request->read.offset, (size_t)count);
    answer(lane, request->header.unique, error, data_of(worker), error ? 0 : (size_t)count);
}

static int flush_payload(struct lane *lane, int asked) {
    int called = begin_wait(lane);
    int error = lane->payload_flush(lane->config.payload_object, asked);
    end_wait(lane, called);
    if (error)
        tell(lane, LANE_FLUSHING, 0, error);
    return error;
}

/* Under the mutex: whether a flush is under way that began up to a number. */
static int is_flushing(const struct lane *lane, uint64_t number) {
    for (const struct flush *each = lane->flushes; each; each = each->next)
        if (each->began <= number)
            return 1;
    return 0;
}

/* Under the mutex. */
static struct handle *find_handle(const struct lane *lane, uint64_t number) {
    struct handle *handle = lane->handles;
    while (handle && handle->number != number)
        handle = handle->next;
    return handle;
}

/* Flushes for a handle. A failure is told to every handle that is open, once, as the kernel does with a file's (errseq_t).
 * For it tells each descriptor of the payload once, and we have one: of two flushes at the same time only one may hear of
 * what both should. So nobody says that all is well while another one is not done that began before. */
static int flush_for(struct lane *lane, uint64_t number) {
    struct flush own;
    pthread_mutex_lock(&lane->mutex);
    own.began = ++lane->flushes_begun;
    own.next = lane->flushes;
    lane->flushes = &own;
    pthread_mutex_unlock(&lane->mutex);
    int error = flush_payload(lane, 1);
    pthread_mutex_lock(&lane->mutex);
    struct flush **at = &lane->flushes;
    while (*at != &own)
        at = &(*at)->next;
    *at = own.next;
    if (error) {
        lane->failures++;
        lane->failure = error;
    }
    pthread_cond_broadcast(&lane->flushed);
    uint64_t begun = lane->flushes_begun;
    if (!error && is_flushing(lane, begun)) {
        pthread_mutex_unlock(&lane->mutex);
        int called = begin_wait(lane);
        pthread_mutex_lock(&lane->mutex);
        while (is_flushing(lane, begun))
            pthread_cond_wait(&lane->flushed, &lane->mutex);
        pthread_mutex_unlock(&lane->mutex);
        end_wait(lane, called);
        pthread_mutex_lock(&lane->mutex);
    }
    struct handle *handle = find_handle(lane, number);
    if (handle) {
        if (!error && handle->heard != lane->failures)
            error = lane->failure;
        handle->heard = lane->failures;
    }
    pthread_mutex_unlock(&lane->mutex);
    return error;
}

/* Before it is answered. */
static void note_synced(struct lane *lane, const struct request *request) {
    pthread_mutex_lock(&lane->mutex);
    const struct handle *handle = find_handle(lane, request->write.fh);
    if (handle && handle->cached)
        lane->synced[request->header.pid % REMEMBERED_SYNCS] =
            (struct synced){.handle = handle->number, .caller = request->header.pid};
    pthread_mutex_unlock(&lane->mutex);
}

/* Whether a sync is the end of a synchronous write, which has said already what became of it. */
static int ends_write(struct lane *lane, const struct request *request) {
    pthread_mutex_lock(&lane->mutex);
    struct synced *synced = &lane->synced[request->header.pid % REMEMBERED_SYNCS];
    int ends = synced->caller == request->header.pid && synced->caller && synced->handle == request->fsync.fh;
    if (ends)
        synced->caller = 0;
    pthread_mutex_unlock(&lane->mutex);
    return ends;
}

/* For who has not asked for more than his own write. If that fails, it is others' data that are lost, and they hear. */
static int flush_after_write(struct lane *lane) {
    int error = flush_payload(lane, 0);
    if (error) {
        pthread_mutex_lock(&lane->mutex);
        lane->failures++;
        lane->failure = error;
        pthread_mutex_unlock(&lane->mutex);
    }
    return error;
}

/* The answer says that everything answered before is on the storage. */
static void serve_fsync(struct worker *worker) {
    struct lane *lane = worker->lane;
    int error = 0;
    if (!lane->config.read_only)
        error = ends_write(lane, &worker->request) ? flush_after_write(lane) : flush_for(lane, worker->request.fsync.fh);
    answer(lane, worker->request.header.unique, error, NULL, 0);
}

/* Whether a write goes past the page cache: the kernel says whose it is of no other. */
static int is_direct(const struct request *request) {
    return (request->write.write_flags & (FUSE_WRITE_LOCKOWNER | FUSE_WRITE_CACHE)) == FUSE_WRITE_LOCKOWNER;
}

/* Whoever has read `count` bytes in between through the cache may have put back there what they were before: a write
 * past it is answered when the kernel has none of them. So is one that failed, for a part may have been written. */
static void answer_write(struct lane *lane, uint64_t unique, int direct, int error, uint64_t offset, uint64_t count) {
    struct {
        struct fuse_out_header header;
        struct fuse_write_out written;
    } message = {.header = {.len = error ? sizeof message.header : sizeof message, .error = -error, .unique = unique},
                 .written = {.size = (uint32_t)count}};
    if (direct)
        coherence_answer(lane->coherence, offset, count, &message, message.header.len);
    else
        answer(lane, unique, error, &message.written, error ? 0 : sizeof message.written);
}

static void serve_write(struct worker *worker) {
    const struct request *request = &worker->request;
    struct lane *lane = worker->lane;
    uint64_t count = clipped(lane, request->write.offset, request->write.size);
    int error = 0;
    if (lane->config.read_only)
        error = EROFS;
    else if (request->write.size && !count)
        error = ENOSPC; /* as at the end of a block device */
    else /* O_SYNC contains O_DSYNC; the kernel leaves that to us */
        error = with_pieces(lane, request->write.flags & O_DSYNC ? write_piece_synchronously : write_piece,
                            data_of(worker), request->write.offset, (size_t)count);
    if (!error && request->write.flags & O_DSYNC)
        note_synced(lane, request);
    answer_write(lane, request->header.unique, is_direct(request), error, request->write.offset, count);
}

/* Space for a range, from the payload's own file system. Its bytes stay what they are. */
static int preallocate(struct lane *lane, uint64_t offset, uint64_t size) {
    if (lane->config.payload_is_device)
        return 0;
    if (lane->config.payload < 0)
        return EOPNOTSUPP; /* nothing there promises space */
    for (size_t i = 0; i < lane->config.extent_count; i++) {
        const struct lane_extent *extent = &lane->extents[i];
        if (!size || offset - extent->start >= extent->size)
            continue;
        struct piece piece = piece_in(extent, offset, offset + size);
        uint64_t at = extent->payload_offset + piece.at;
        int failed;
        do
            failed = fallocate(lane->config.payload, FALLOC_FL_KEEP_SIZE, (off_t)at, (off_t)piece.covered);
        while (failed && errno == EINTR && !atomic_load(&lane->stopping) && !atomic_load(&lane->locked));
        if (failed) {
            int error = errno;
            tell(lane, LANE_ALLOCATING, at, error);
            return error;
        }
        offset += piece.size;
        size -= piece.size;
    }
    return 0;
}

/* Writes zeros, encrypted, in steps; ends early with EINTR if the caller is interrupted. Sets `written` to how many bytes
 * are zero now. */
static int write_zeros(struct worker *worker, uint64_t offset, uint64_t size, uint64_t *written) {
    struct lane *lane = worker->lane;
    int error = 0;
    for (*written = 0; *written < size && !error;) {
        /* steps end where the next one can begin with a whole sector */
        uint64_t step = LARGEST_REQUEST - (offset + *written) % LARGEST_SECTOR;
        if (step > size - *written)
            step = size - *written;
        memset(data_of(worker), 0, (size_t)step);
        if (atomic_load(&worker->interrupted) || atomic_load(&lane->stopping))
            error = EINTR;
        else
            error = with_pieces(lane, write_piece, data_of(worker), offset + *written, (size_t)step);
        if (!error)
            *written += step;
    }
    return error;
}

static void serve_fallocate(struct worker *worker) {
    const struct fuse_fallocate_in *in = &worker->request.fallocate;
    struct lane *lane = worker->lane;
    uint64_t size = clipped(lane, in->offset, in->length), zeroed = 0;
    int error = 0;
    if (lane->config.read_only)
        error = EROFS;
    else if (in->mode & ~(uint32_t)(FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE))
        error = EOPNOTSUPP; /* a hole would be promised, which gives space back: the payload keeps its own */
    else if (!(in->mode & FALLOC_FL_KEEP_SIZE) && size < in->length)
        error = ENOSPC; /* the image would have to grow */
    else {
        int called = begin_wait(lane); /* it may take minutes, if only of work */
        error = in->mode & FALLOC_FL_ZERO_RANGE ? write_zeros(worker, in->offset, size, &zeroed)
                                                : preallocate(lane, in->offset, size);
        end_wait(lane, called);
    }
    uint64_t unique = worker->request.header.unique;
    struct fuse_out_header message = {.len = sizeof message, .error = -error, .unique = unique};
    if (error && zeroed) /* the kernel takes what is half done for not done at all */
        coherence_drop_and_answer(lane->coherence, worker->request.header.nodeid, in->offset, zeroed, &message,
                                  sizeof message);
    else
        answer(lane, unique, error, NULL, 0);
}

/* From here on an INTERRUPT finds the FALLOCATE; one that came earlier is remembered. */
static void begin_fallocate(struct worker *worker) {
    struct lane *lane = worker->lane;
    pthread_mutex_lock(&lane->mutex);
    worker->fallocating = worker->request.header.unique;
    atomic_store(&worker->interrupted, 0);
    for (size_t i = 0; i < REMEMBERED_INTERRUPTS; i++)
        if (lane->interrupts[i] == worker->fallocating)
            atomic_store(&worker->interrupted, 1);
    pthread_mutex_unlock(&lane->mutex);
}

static void end_fallocate(struct worker *worker) {
    pthread_mutex_lock(&worker->lane->mutex);
    worker->fallocating = 0;
    pthread_mutex_unlock(&worker->lane->mutex);
}

/* Reads and writes are not interrupted: programs do not expect that of a file, and they end by themselves. Nor does
 * anything in pyfuse3 listen. An INTERRUPT has no answer. */
static void interrupt(struct lane *lane, uint64_t unique) {
    pthread_mutex_lock(&lane->mutex);
    lane->interrupts[lane->next_interrupt++ % REMEMBERED_INTERRUPTS] = unique;
    for (size_t i = 0; i < lane->thread_count; i++)
        if (lane->workers[i].fallocating == unique)
            atomic_store(&lane->workers[i].interrupted, 1);
    pthread_mutex_unlock(&lane->mutex);
}

/* --- requests that no thread waits for --------------------------------------------------------------------------- */

static void give_back(struct lane *lane, struct errand *errand) {
    pthread_mutex_lock(&lane->mutex);
    errand->next = lane->free_errands;
    lane->free_errands = errand;
    lane->errands_out--;
    pthread_mutex_unlock(&lane->mutex);
}

/* By a thread of the payload's. */
static void errand_finished(void *argument, int error) {
    struct errand *errand = argument;
    struct lane *lane = errand->lane;
    const struct piece *piece = &errand->piece;
    if (error)
        tell(lane, errand->writing ? LANE_WRITING : LANE_READING, piece->extent->payload_offset + piece->at, error);
    else if (!errand->writing)
        error = crypt_sectors(lane, piece->extent, 0, errand->data, piece->covered, piece->at);
    if (errand->writing)
        answer_write(lane, errand->unique, errand->direct, error, errand->offset, piece->size);
    else
        answer(lane, errand->unique, error, errand->data, error ? 0 : piece->size);
    if (atomic_load(&lane->locked))
        explicit_bzero(errand->data, LARGEST_ERRAND);
    lane->release(lane->config.locks, &errand->range);
    give_back(lane, errand);
}

/* Under the mutex. */
static struct errand *take_errand(struct lane *lane) {
    struct errand *errand = lane->free_errands;
    if (errand) {
        lane->free_errands = errand->next;
        lane->errands_out++;
    }
    return errand;
}

/* Sends the payload a READ or WRITE that is whole sectors of one extent, and waits for nothing. Returns whether it took
 * it; if not, a thread is to serve it. */
static int send_errand(struct worker *worker) {
    const struct request *request = &worker->request;
    struct lane *lane = worker->lane;
    int writing = request->header.opcode == FUSE_WRITE;
    uint64_t offset = writing ? request->write.offset : request->read.offset;
    uint64_t size = writing ? request->write.size : request->read.size;
    if (!lane->payload_start || size > LARGEST_ERRAND || !size || clipped(lane, offset, size) != size)
        return 0;
    if (writing && (lane->config.read_only || request->write.flags & O_DSYNC))
        return 0;
    const struct lane_extent *extent = lane->extents;
    while (offset - extent->start >= extent->size)
        extent++; /* there is one, for the range is not past the end */
    struct piece piece = piece_in(extent, offset, offset + size);
    if (piece.size != size || piece.covered != size)
        return 0;
    pthread_mutex_lock(&lane->mutex);
    struct errand *errand = atomic_load(&lane->locked) ? NULL : take_errand(lane);
    pthread_mutex_unlock(&lane->mutex);
    if (!errand)
        return 0;
    uint64_t start = extent->start + piece.at;
    if (!lane->try_hold(lane->config.locks, &errand->range, start, start + piece.covered, writing)) {
        give_back(lane, errand);
        return 0;
    }
    errand->unique = request->header.unique;
    errand->writing = writing;
    errand->direct = writing && is_direct(request);
    errand->offset = offset;
    errand->piece = piece;
    int sent = 1;
    if (writing) {
        memcpy(errand->data, data_of(worker), (size_t)size);
        sent = crypt_sectors(lane, extent, 1, errand->data, piece.covered, piece.at) == 0;
    }
    sent = sent && lane->payload_start(lane->config.payload_object, writing, errand->data, piece.covered,
                                       extent->payload_offset + piece.at, errand_finished, errand);
    if (!sent) {
        lane->release(lane->config.locks, &errand->range);
        give_back(lane, errand);
    }
    return sent;
}

static void serve(struct worker *worker) {
    if (atomic_load(&worker->lane->locked)) {
        explicit_bzero(worker->buffer, BUFFER_SIZE); /* what was to be written */
        answer(worker->lane, worker->request.header.unique, EIO, NULL, 0);
        return;
    }
    switch (worker->request.header.opcode) {
    case FUSE_READ:
        serve_read(worker);
        break;
    case FUSE_WRITE:
        serve_write(worker);
        break;
    case FUSE_FSYNC:
        serve_fsync(worker);
        break;
    case FUSE_FALLOCATE:
        begin_fallocate(worker);
        serve_fallocate(worker);
        end_fallocate(worker);
        break;
    }
}

/* --- whose turn it is ------------------------------------------------------------------------------------------ */

static void queue(struct lane *lane, struct waiting *waiting) {
    waiting->next = NULL;
    if (lane->first_waiting)
        lane->last_waiting->next = waiting;
    else
        lane->first_waiting = waiting;
    lane->last_waiting = waiting;
}

/* Returns whether the worker is to serve its request now. If not, the request was put aside for another one. */
static int begin(struct worker *worker) {
    struct lane *lane = worker->lane;
    struct waiting *aside = NULL;
    struct waiting here = {.turn = 0};
    pthread_mutex_lock(&lane->mutex);
    if (lane->serving < lane->config.workers) {
        lane->serving++;
        pthread_mutex_unlock(&lane->mutex);
        return 1;
    }
    if (worker->request.header.opcode == FUSE_READ && (aside = lane->free_aside)) {
        lane->free_aside = aside->next;
        memcpy(aside->request, &worker->request, sizeof worker->request);
        queue(lane, aside);
    } else {
        pthread_cond_init(&here.called, NULL);
        queue(lane, &here);
        lane->blocked++;
        lane->waiting++;
        call_reader(lane);
        while (!here.turn)
            pthread_cond_wait(&here.called, &lane->mutex);
        lane->blocked--;
        lane->waiting--;
        pthread_cond_destroy(&here.called);
    }
    pthread_mutex_unlock(&lane->mutex);
    return !aside;
}

/* Returns whether there is another request for the worker, which then is in its place. */
static int next(struct worker *worker) {
    struct lane *lane = worker->lane;
    pthread_mutex_lock(&lane->mutex);
    struct waiting *waiting = lane->first_waiting;
    struct request *request = waiting ? waiting->request : NULL;
    if (waiting)
        lane->first_waiting = waiting->next;
    else
        lane->serving--;
    if (waiting && !request) { /* it goes on in this one's stead */
        waiting->turn = 1;
        pthread_cond_signal(&waiting->called);
    }
    if (request) {
        memcpy(&worker->request, request, sizeof worker->request);
        waiting->next = lane->free_aside;
        lane->free_aside = waiting;
    }
    pthread_mutex_unlock(&lane->mutex);
    return request != NULL;
}

/* --- what goes through libfuse --------------------------------------------------------------------------------- */

static void note_init(struct lane *lane, const struct request *request) {
    pthread_mutex_lock(&lane->mutex);
    lane->init_unique = request->header.unique;
    lane->offered = request->init.flags;
    if (request->init.flags & FUSE_INIT_EXT)
        lane->offered2 = request->init.flags2;
    pthread_mutex_unlock(&lane->mutex);
}

static void note_open(struct lane *lane, const struct request *request) {
    /* not under the mutex: whoever waits for memory must not hold up those who could make some free */
    struct opening *opening = malloc(sizeof *opening);
    struct handle *handle = malloc(sizeof *handle);
    if (!opening || !handle) { /* the file is opened as libfuse says, which is right, if slower */
        free(opening);
        free(handle);
        return;
    }
    opening->handle = handle;
    opening->unique = request->header.unique;
    opening->flags = request->open.flags;
    pthread_mutex_lock(&lane->mutex);
    opening->next = lane->openings;
    lane->openings = opening;
    pthread_mutex_unlock(&lane->mutex);
}

/* Under the mutex. A failure before it was opened is none of its business. */
static void note_handle(struct lane *lane, struct handle *handle, uint64_t number, int cached) {
    *handle = (struct handle){.next = lane->handles, .number = number, .heard = lane->failures, .cached = cached};
    lane->handles = handle;
}

static void forget_handle(struct lane *lane, uint64_t number) {
    struct handle *gone = NULL;
    pthread_mutex_lock(&lane->mutex);
    for (struct handle **at = &lane->handles; *at && !gone; at = &(*at)->next)
        if ((*at)->number == number) {
            gone = *at;
            *at = gone->next;
            break;
        }
    pthread_mutex_unlock(&lane->mutex);
    free(gone);
}

/* Returns whether its answer will be known. */
static int note_relayed_write(struct lane *lane, const struct request *request) {
    struct relayed_write *write = malloc(sizeof *write);
    if (!write)
        return 0;
    *write = (struct relayed_write){
        .unique = request->header.unique, .offset = request->write.offset, .size = request->write.size};
    pthread_mutex_lock(&lane->mutex);
    write->next = lane->relayed_writes;
    lane->relayed_writes = write;
    pthread_mutex_unlock(&lane->mutex);
    return 1;
}

/* Returns whether a message answers a write past the cache; takes it from the list then. */
static int take_relayed_write(struct lane *lane, uint64_t unique, struct relayed_write *taken) {
    int found = 0;
    pthread_mutex_lock(&lane->mutex);
    for (struct relayed_write **at = &lane->relayed_writes; *at; at = &(*at)->next)
        if ((*at)->unique == unique) {
            struct relayed_write *write = *at;
            *taken = *write;
            *at = write->next;
            free(write);
            found = 1;
            break;
        }
    pthread_mutex_unlock(&lane->mutex);
    return found;
}

/* It may have to wait, for pyfuse3 or for memory. */
static void forward(struct worker *worker, const uint8_t *message, size_t size) {
    struct lane *lane = worker->lane;
    const struct fuse_in_header *header = &worker->request.header;
    int called = begin_wait(lane);
    if (header->opcode == FUSE_INIT)
        note_init(lane, &worker->request);
    else if (header->opcode == FUSE_OPEN)
        note_open(lane, &worker->request);
    else if (header->opcode == FUSE_RELEASE)
        forget_handle(lane, worker->request.release.fh);
    else if (header->opcode == FUSE_WRITE && is_direct(&worker->request) && !note_relayed_write(lane, &worker->request)) {
        end_wait(lane, called);
        answer(lane, header->unique, ENOMEM, NULL, 0);
        return;
    }
    ssize_t sent;
    do
        sent = send(lane->config.libfuse, message, size, MSG_NOSIGNAL);
    while (sent < 0 && errno == EINTR);
    end_wait(lane, called);
    if (sent < 0 && header->opcode != FUSE_FORGET && header->opcode != FUSE_BATCH_FORGET)
        answer(lane, header->unique, EIO, NULL, 0); /* libfuse is gone: the mount is ending */
}

/* Grants what libfuse does not know of, and nothing that our buffers do not hold. */
static void amend_init(struct lane *lane, struct fuse_init_out *out, size_t size) {
    if (size < offsetof(struct fuse_init_out, unused)) /* the protocol before 7.23, Linux 3.15 */
        return;
    size_t largest = lane->config.largest_request, pages = largest / lane->config.page_size;
    if (out->max_write > largest)
        out->max_write = (uint32_t)largest;
    if (out->max_pages > pages)
        out->max_pages = (uint16_t)pages;
    out->max_readahead = (uint32_t)largest;
    out->max_background = MAX_BACKGROUND;
    out->congestion_threshold = CONGESTION_THRESHOLD;
    /* nobody else changes the payload: a new time of modification is our own doing, and no reason to drop the cache; what
     * is to be dropped we say (coherence.h) */
    out->flags &= ~(uint32_t)FUSE_AUTO_INVAL_DATA;
    /* no file of ours has set-user-ID bits or capabilities to lose, so the kernel need not look before each write */
    out->flags |= lane->offered & FUSE_HANDLE_KILLPRIV_V2;
    if (lane->offered2 & DIRECT_IO_ALLOW_MMAP) {
        out->flags |= FUSE_INIT_EXT;
        out->flags2 |= DIRECT_IO_ALLOW_MMAP;
        lane->coherent = 1;
    }
}

/* Direct writes in parallel: the sectors' own locks keep them apart where they meet. */
static void amend_open(const struct lane *lane, struct fuse_open_out *out, uint32_t flags) {
    if (flags & O_DIRECT && lane->coherent)
        out->open_flags |= FOPEN_DIRECT_IO;
    if (out->open_flags & FOPEN_DIRECT_IO)
        out->open_flags |= FOPEN_PARALLEL_DIRECT_WRITES;
}

static void amend(struct lane *lane, uint8_t *message, size_t size) {
    struct fuse_out_header header;
    if (size < sizeof header)
        return;
    memcpy(&header, message, sizeof header);
    uint8_t *body = message + sizeof header;
    size -= sizeof header;
    struct opening *gone = NULL;
    pthread_mutex_lock(&lane->mutex);
    if (header.unique && header.unique == lane->init_unique && size) { /* 0: a notification */
        struct fuse_init_out out = {0};
        size_t known = size < sizeof out ? size : sizeof out;
        memcpy(&out, body, known);
        amend_init(lane, &out, size);
        memcpy(body, &out, known);
        lane->init_unique = 0;
    }
    for (struct opening **at = &lane->openings; *at; at = &(*at)->next)
        if ((*at)->unique == header.unique) {
            struct opening *opening = *at;
            struct fuse_open_out out;
            if (size == sizeof out) {
                memcpy(&out, body, sizeof out);
                amend_open(lane, &out, opening->flags);
                note_handle(lane, opening->handle, out.fh, !(out.open_flags & FOPEN_DIRECT_IO));
                opening->handle = NULL;
                memcpy(body, &out, sizeof out);
            }
            *at = opening->next;
            gone = opening;
            break;
        }
    pthread_mutex_unlock(&lane->mutex);
    if (gone)
        free(gone->handle);
    free(gone);
}

/* A notification may make the kernel wait for requests that are under way, whose answers this thread is to bring. */
static void pass_on(struct lane *lane, const uint8_t *message, size_t size) {
    struct relayed_write direct;
    struct fuse_out_header header = {0};
    memcpy(&header, message, size < sizeof header ? size : sizeof header);
    if (!header.unique)
        coherence_notify(lane->coherence, message, size);
    else if (take_relayed_write(lane, header.unique, &direct))
        coherence_answer(lane->coherence, direct.offset, direct.size, message, size);
    else
        while (write(lane->config.device, message, size) < 0 && errno == EINTR)
            ;
}

/* The thread that brings libfuse's answers to the kernel. */
static void *bring_answers(void *argument) {
    struct lane *lane = argument;
    confine(lane);
    uint8_t *message = lane->answer_buffer;
    for (;;) {
        ssize_t size = recv(lane->config.libfuse, message, LARGEST_ANSWER, MSG_TRUNC);
        if (size < 0 && errno == EINTR)
            continue;
        if (size <= 0)
            break;
        if ((size_t)size > LARGEST_ANSWER) {
            tell(lane, LANE_TOO_LONG, 0, EMSGSIZE);
            struct fuse_out_header header;
            memcpy(&header, message, sizeof header);
            answer(lane, header.unique, EIO, NULL, 0);
            continue;
        }
        amend(lane, message, (size_t)size);
        pass_on(lane, message, (size_t)size);
    }
    return NULL;
}

/* --- the threads ----------------------------------------------------------------------------------------------- */

/* Returns whether there is a request now. If not, looks for one for a moment, if that was of use lately. */
static int look_out(struct lane *lane) {
    unsigned vain = atomic_load_explicit(&lane->vain_looks, memory_order_relaxed);
    if (lane->processors < 2)
        return 0;
    if (request_waits(lane))
        return 1;
    if (vain < VAIN_ATTEMPTS || vain % SELDOM == 0)
        for (int i = 0; i < LOOKS; i++)
            if (request_waits(lane)) {
                atomic_store_explicit(&lane->vain_looks, 0, memory_order_relaxed);
                return 0;
            }
    atomic_store_explicit(&lane->vain_looks, vain + 1, memory_order_relaxed);
    return 0;
}

/* Returns the size of the next request, which lies before and at the buffer's data; 0 at the end. Says whether it was
 * there at once. */
static size_t read_request(struct worker *worker, int *at_once) {
    struct lane *lane = worker->lane;
    uint8_t *start = data_of(worker) - WRITE_HEAD;
    while (!atomic_load(&lane->stopping)) {
        if (atomic_load(&lane->locked)) {
            pthread_mutex_lock(&lane->mutex);
            wipe_if_locked(worker);
            pthread_mutex_unlock(&lane->mutex);
        }
        *at_once = look_out(lane);
        ssize_t size = read(lane->config.device, start, WRITE_HEAD + LARGEST_REQUEST);
        if (size >= (ssize_t)sizeof(struct fuse_in_header)) {
            memset(&worker->request, 0, sizeof worker->request);
            memcpy(&worker->request, start, (size_t)size < sizeof worker->request ? (size_t)size : sizeof worker->request);
            return (size_t)size;
        }
        if (size == 0 || (size < 0 && errno == ENODEV)) /* unmounted */
            return 0;
        if (size < 0 && errno != EINTR && errno != ENOENT && errno != EAGAIN) { /* ENOENT: its caller was killed */
            tell(lane, LANE_DEVICE, 0, errno);
            return 0;
        }
    }
    return 0;
}

/* Says what the kernel is about to cache: the requests that fill its pages, or write them back, are nobody's. */
static void note_cached(struct worker *worker) {
    const struct request *request = &worker->request;
    struct coherence *coherence = worker->lane->coherence;
    if (request->header.opcode == FUSE_READ && !(request->read.read_flags & FUSE_READ_LOCKOWNER))
        coherence_note_cached(coherence, request->header.nodeid, request->read.offset, request->read.size);
    else if (request->header.opcode == FUSE_WRITE && !is_direct(request))
        coherence_note_cached(coherence, request->header.nodeid, request->write.offset, request->write.size);
}

static void dispatch(struct worker *worker, size_t size) {
    note_cached(worker);
    if (worker->lane->config.relay_only) {
        forward(worker, data_of(worker) - WRITE_HEAD, size);
        return;
    }
    switch (worker->request.header.opcode) {
    case FUSE_READ:
    case FUSE_WRITE:
    case FUSE_FSYNC:
    case FUSE_FALLOCATE:
        atomic_fetch_add_explicit(&worker->lane->requests, 1, memory_order_relaxed);
        if ((worker->request.header.opcode == FUSE_READ || worker->request.header.opcode == FUSE_WRITE) &&
            send_errand(worker))
            break;
        if (begin(worker))
            do
                serve(worker);
            while (next(worker));
        break;
    case FUSE_INTERRUPT:
        interrupt(worker->lane, worker->request.interrupt.unique);
        break;
    default:
        forward(worker, data_of(worker) - WRITE_HEAD, size);
    }
}

static void *work(void *argument) {
    struct worker *worker = argument;
    struct lane *lane = worker->lane;
    size_t size;
    int at_once;
    pthread_mutex_lock(&lane->mutex); /* held until all threads are there */
    pthread_mutex_unlock(&lane->mutex);
    void *volatile first = malloc(sizeof(struct opening)); /* volatile: else the compiler leaves it out */
    free(first); /* what the C library has for this thread is there now */
    confine(lane);
    while (become_reader(worker) && (size = read_request(worker, &at_once))) {
        stop_reading(lane, at_once);
        dispatch(worker, size);
    }
    end_reading(lane);
    pthread_mutex_lock(&lane->mutex);
    wipe(worker); /* locked or not: who locks later need not wait for it */
    if (--lane->running == 0)
        shutdown(lane->config.events, SHUT_WR);
    pthread_mutex_unlock(&lane->mutex);
    return NULL;
}

/* Interrupts a read of /dev/fuse; what it finds is that the lane is stopping. */
static void wake(int number) { (void)number; }

/* The threads take no signals but ours: the rest are the program's, which has a thread for them. */
static int start_threads(struct lane *lane) {
    sigset_t ours, before;
    struct sigaction action = {.sa_handler = wake}; /* without SA_RESTART */
    sigaction(STOP_SIGNAL, &action, NULL);
    sigfillset(&ours);
    sigdelset(&ours, STOP_SIGNAL);
    pthread_sigmask(SIG_SETMASK, &ours, &before);
    int error = coherence_start(lane->coherence, lane->config.confined);
    if (!error)
        error = ready_thread_start(&lane->answers, STACK_SIZE, bring_answers, lane);
    lane->answers_started = !error;
    if (!error)
        error = ready_thread_start(&lane->watcher, STACK_SIZE, watch, lane);
    lane->watcher_started = !error;
    /* all or none: the mutex keeps the first ones from reading anything until the last one is there */
    pthread_mutex_lock(&lane->mutex);
    for (size_t i = 0; i < lane->thread_count && !error; i++) {
        error = ready_thread_start(&lane->workers[i].thread, STACK_SIZE, work, &lane->workers[i]);
        lane->workers[i].started = !error;
        lane->running += !error;
    }
    atomic_store(&lane->stopping, error != 0);
    pthread_mutex_unlock(&lane->mutex);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return error;
}

static void release_memory(struct lane *lane) {
    for (size_t i = 0; i < lane->thread_count; i++) {
        ready_memory_free(lane->workers[i].buffer, BUFFER_SIZE);
        ready_thread_free(&lane->workers[i].thread);
    }
    ready_thread_free(&lane->answers);
    ready_thread_free(&lane->watcher);
    ready_memory_free(lane->errand_data, MAX_ERRANDS * LARGEST_ERRAND);
    ready_memory_free(lane->answer_buffer, LARGEST_ANSWER);
    while (lane->openings) {
        struct opening *opening = lane->openings;
        lane->openings = opening->next;
        free(opening->handle);
        free(opening);
    }
    while (lane->handles) {
        struct handle *handle = lane->handles;
        lane->handles = handle->next;
        free(handle);
    }
    while (lane->relayed_writes) {
        struct relayed_write *write = lane->relayed_writes;
        lane->relayed_writes = write->next;
        free(write);
    }
    coherence_free(lane->coherence);
    pthread_cond_destroy(&lane->flushed);
    pthread_cond_destroy(&lane->called);
    pthread_cond_destroy(&lane->watch);
    pthread_mutex_destroy(&lane->mutex);
    free(lane->extents);
    free(lane);
}

static int make_errands(struct lane *lane) {
    lane->errand_data = ready_memory(MAX_ERRANDS * LARGEST_ERRAND);
    if (!lane->errand_data)
        return 0;
    for (size_t i = 0; i < MAX_ERRANDS; i++) {
        struct errand *errand = &lane->errands[i];
        *errand = (struct errand){.next = lane->free_errands, .lane = lane, .data = lane->errand_data + i * LARGEST_ERRAND};
        lane->free_errands = errand;
    }
    return 1;
}

static struct lane *lane_new(const struct lane_config *config) {
    size_t count = config->workers + SPARE_THREADS;
    struct lane *lane = calloc(1, sizeof *lane + count * sizeof lane->workers[0]);
    if (!lane)
        return NULL;
    pthread_mutex_init(&lane->mutex, NULL);
    pthread_cond_init(&lane->called, NULL);
    pthread_cond_init(&lane->watch, NULL);
    pthread_cond_init(&lane->flushed, NULL);
    lane->config = *config;
    lane->crypt = (crypt_function)config->crypt;
    lane->hold = (hold_function)config->hold;
    lane->try_hold = (try_function)config->try_hold;
    lane->release = (release_function)config->release;
    lane->payload_read = (payload_read_function)config->payload_read;
    lane->payload_write = (payload_write_function)config->payload_write;
    lane->payload_flush = (payload_flush_function)config->payload_flush;
    lane->payload_start = (payload_start_function)config->payload_start;
    lane->thread_count = count;
    long processors = sysconf(_SC_NPROCESSORS_ONLN);
    lane->processors = processors > 0 ? (unsigned)processors : 1;
    struct statfs storage;
    lane->payload_is_memory = fstatfs(config->payload, &storage) == 0 &&
                              (storage.f_type == TMPFS_MAGIC || storage.f_type == RAMFS_MAGIC) &&
                              !config->payload_is_device; /* /dev is a tmpfs, too */
    lane->coherence = coherence_new(config->device, config->size);
    lane->extents = calloc(config->extent_count + 1, sizeof *lane->extents);
    int complete = lane->extents && lane->coherence;
    if (complete && config->extent_count) {
        memcpy(lane->extents, config->extents, config->extent_count * sizeof *lane->extents);
        struct lane_extent *last = &lane->extents[config->extent_count - 1];
        lane->size = last->start + last->size;
        last->size = UINT64_MAX - last->start; /* it reaches as far as the volume does, now and later */
    }
    for (size_t i = 0; i < count && complete; i++) {
        lane->workers[i].lane = lane;
        lane->workers[i].buffer = ready_memory(BUFFER_SIZE);
        complete = lane->workers[i].buffer != NULL;
    }
    for (size_t i = 0; i < PUT_ASIDE; i++) {
        lane->aside[i].waiting = (struct waiting){.next = lane->free_aside, .request = &lane->aside[i].request};
        lane->free_aside = &lane->aside[i].waiting;
    }
    lane->answer_buffer = ready_memory(LARGEST_ANSWER);
    complete = complete && lane->answer_buffer;
    if (complete && lane->payload_start)
        complete = make_errands(lane);
    if (complete)
        return lane;
    release_memory(lane);
    return NULL;
}

void lane_set_size(struct lane *lane, uint64_t size) { atomic_store(&lane->size, size); }

uint64_t lane_requests(const struct lane *lane) { return atomic_load(&lane->requests); }

static int64_t now_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

int lane_lock(struct lane *lane, unsigned patience_ms) {
    const struct timespec moment = {.tv_nsec = 2000000};
    int64_t until = now_ms() + patience_ms;
    atomic_store(&lane->locked, 1);
    for (;;) {
        pthread_mutex_lock(&lane->mutex);
        int done = lane->serving == 0 && lane->errands_out == 0 && lane->wiped == lane->thread_count &&
                   coherence_is_idle(lane->coherence);
        pthread_cond_broadcast(&lane->called); /* parked threads wipe their buffers */
        pthread_mutex_unlock(&lane->mutex);
        if (done && lane->errand_data)
            explicit_bzero(lane->errand_data, MAX_ERRANDS * LARGEST_ERRAND);
        if (done || now_ms() > until)
            return done;
        for (size_t i = 0; i < lane->thread_count; i++) {
            atomic_store(&lane->workers[i].interrupted, 1); /* a FALLOCATE ends early */
            pthread_kill(lane->workers[i].thread.thread, STOP_SIGNAL); /* and so does a wait for the next request */
        }
        nanosleep(&moment, NULL);
    }
}

int lane_forget_cached(struct lane *lane, unsigned patience_ms) {
    const struct timespec moment = {.tv_nsec = 1000000};
    int64_t until = now_ms() + patience_ms;
    coherence_drop_all(lane->coherence);
    while (!coherence_is_idle(lane->coherence)) {
        if (now_ms() > until)
            return 0;
        nanosleep(&moment, NULL);
    }
    return 1;
}

struct lane *lane_start(const struct lane_config *config, int *error) {
    struct lane *lane = lane_new(config);
    *error = lane ? start_threads(lane) : ENOMEM;
    if (lane && *error) {
        (void)lane_stop(lane, UINT_MAX);
        lane = NULL;
    }
    return lane;
}

/* Returns whether the thread has ended. `until` is a time of CLOCK_MONOTONIC in milliseconds. */
static int join_until(pthread_t thread, int64_t until, int interrupt) {
    for (;;) { /* again and again: a signal may come just before the read that it is to interrupt */
        struct timespec soon;
        if (interrupt)
            pthread_kill(thread, STOP_SIGNAL);
        clock_gettime(CLOCK_REALTIME, &soon);
        soon.tv_nsec += 5000000;
        soon.tv_sec += soon.tv_nsec / 1000000000;
        soon.tv_nsec %= 1000000000;
        if (pthread_timedjoin_np(thread, NULL, &soon) != ETIMEDOUT)
            return 1;
        if (now_ms() > until)
            return 0;
    }
}

int lane_stop(struct lane *lane, unsigned patience_ms) {
    int64_t until = now_ms() + patience_ms;
    /* first, and while requests are served: it may be waiting for one */
    coherence_end(lane->coherence);
    int ended = coherence_join(lane->coherence, until);
    atomic_store(&lane->stopping, 1);
    end_reading(lane);
    for (size_t i = 0; i < lane->thread_count && ended; i++)
        if (lane->workers[i].started) {
            ended = join_until(lane->workers[i].thread.thread, until, 1);
            lane->workers[i].started = !ended;
        }
    while (ended) { /* those that the payload is at still answer */
        const struct timespec moment = {.tv_nsec = 1000000};
        pthread_mutex_lock(&lane->mutex);
        unsigned out = lane->errands_out;
        pthread_mutex_unlock(&lane->mutex);
        if (!out)
            break;
        ended = now_ms() <= until;
        nanosleep(&moment, NULL);
    }
    shutdown(lane->config.libfuse, SHUT_RDWR); /* ends the other thread's wait */
    if (ended && lane->answers_started)
        ended = join_until(lane->answers.thread, until, 0);
    if (ended && lane->watcher_started)
        pthread_join(lane->watcher.thread, NULL);
    if (ended)
        release_memory(lane);
    return ended;
}
