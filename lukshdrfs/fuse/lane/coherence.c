/* See coherence.h. */
#define _GNU_SOURCE
#include "fuse/lane/coherence.h"

#include <linux/fuse.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "fuse/lane/transport.h"
#include "threads/confinement.h"
#include "threads/ready_thread.h"

#ifndef CLOSE_RANGE_UNSHARE
#define CLOSE_RANGE_UNSHARE (1U << 1)
#endif

/* What may be cached is known by granules: as many bits as fit, of at least the largest page that Linux has. So a volume
 * of 64 GiB has granules of 64 KiB, one of 16 TiB has 16 MiB. A granule is dropped whole, so that its bit can be cleared. */
#define GRANULES ((uint64_t)1 << 20)
#define SMALLEST_GRANULE_SHIFT 16
#define WORD_BITS 64

/* How many granules on either side of those that must be dropped are dropped with them, at most. Whoever writes here and
 * there past the cache, after all has been read through it, would else have a drop to wait for in every granule. */
#define LARGEST_REACH ((uint64_t)1 << 12)

#define DUES 256 /* answers under way without asking for memory: what serves data must not wait for it */
#define LARGEST_MESSAGE 64
#define STACK_SIZE ((size_t)1 << 17)

/* An answer that is due as soon as the kernel has dropped a range. */
struct due {
    struct due *next;
    uint64_t first, last; /* granules */
    int forced;           /* drop them, cached or not */
    int ranged;
    int allocated; /* not one of `dues` */
    size_t length;
    uint8_t message[LARGEST_MESSAGE];
};

struct coherence {
    struct transport *transport;
    int device, confined;
    unsigned shift; /* of a granule */
    _Atomic uint64_t node; /* the image; 0: nothing was cached so far */
    /* the granules that are being dropped: (first + 1) << 32 | (last + 1); 0: none */
    _Atomic uint64_t dropping;
    _Atomic uint64_t *cached; /* a bit a granule */
    atomic_int filling; /* a bit was set since the last drop */
    uint64_t reach;     /* of the next drop; the thread's own */
    atomic_int ending;
    atomic_int forget_all; /* there was no memory to remember a range */

    pthread_mutex_t mutex; /* for all that follows; never held across a system call */
    pthread_cond_t called;
    struct due *first, *last;
    struct due *free;
    int busy; /* the thread is sending */
    struct due dues[DUES];

    struct ready_thread thread;
};

/* --- what may be cached ------------------------------------------------------------------------------------------- */

/* The last granule is as long as it takes: the volume may have grown. */
static uint64_t granule_of(const struct coherence *coherence, uint64_t offset) {
    uint64_t granule = offset >> coherence->shift;
    return granule < GRANULES ? granule : GRANULES - 1;
}

static uint64_t last_granule_of(const struct coherence *coherence, uint64_t offset, uint64_t size) {
    return granule_of(coherence, offset + (size ? size - 1 : 0));
}

void coherence_note_cached(struct coherence *coherence, uint64_t node, uint64_t offset, uint64_t size) {
    uint64_t last = last_granule_of(coherence, offset, size);
    atomic_store_explicit(&coherence->node, node, memory_order_relaxed);
    for (uint64_t granule = granule_of(coherence, offset); granule <= last; granule++) {
        _Atomic uint64_t *word = &coherence->cached[granule / WORD_BITS];
        uint64_t bit = (uint64_t)1 << granule % WORD_BITS;
        if (!(atomic_load(word) & bit)) { /* mostly it is there: no other processor loses the line */
            atomic_fetch_or(word, bit);
            if (!atomic_load(&coherence->filling))
                atomic_store(&coherence->filling, 1);
        }
    }
}

static int is_cached(struct coherence *coherence, uint64_t granule) {
    return (atomic_load(&coherence->cached[granule / WORD_BITS]) >> granule % WORD_BITS & 1) != 0;
}

/* Reads the bits before `dropping`: drop() sets `dropping` before it clears a bit, so one of the two shows it. */
static int may_be_cached(struct coherence *coherence, uint64_t first, uint64_t last) {
    for (uint64_t granule = first; granule <= last; granule++)
        if (is_cached(coherence, granule))
            return 1;
    uint64_t dropping = atomic_load(&coherence->dropping);
    return dropping && first <= (dropping & UINT32_MAX) - 1 && last >= (dropping >> 32) - 1;
}

/* --- the thread ----------------------------------------------------------------------------------------------------- */

/* Waits until no request that needs a page of the range is under way. */
static void drop(struct coherence *coherence, uint64_t first, uint64_t last) {
    struct {
        struct fuse_out_header header;
        struct fuse_notify_inval_inode_out range;
    } notice = {.header = {.len = sizeof notice, .error = FUSE_NOTIFY_INVAL_INODE, .unique = 0},
                .range = {.ino = atomic_load(&coherence->node), .off = (int64_t)(first << coherence->shift)}};
    if (!notice.range.ino)
        return;
    if (last < GRANULES - 1) /* a length of 0 means to the end of the file */
        notice.range.len = (int64_t)((last - first + 1) << coherence->shift);
    atomic_store(&coherence->dropping, (first + 1) << 32 | (last + 1));
    for (uint64_t granule = first; granule <= last; granule++)
        if (is_cached(coherence, granule))
            atomic_fetch_and(&coherence->cached[granule / WORD_BITS], ~((uint64_t)1 << granule % WORD_BITS));
    transport_send(coherence->transport, &notice, sizeof notice);
    atomic_store(&coherence->dropping, 0);
}

/* Drops a run of granules, and more around it each time, as long as nobody fills the cache: what is there is of no use to
 * anybody any more. */
static void drop_around(struct coherence *coherence, uint64_t first, uint64_t last) {
    if (atomic_exchange(&coherence->filling, 0))
        coherence->reach = 0;
    uint64_t reach = coherence->reach;
    drop(coherence, first < reach ? 0 : first - reach, last + reach < GRANULES ? last + reach : GRANULES - 1);
    if (coherence->reach < LARGEST_REACH)
        coherence->reach = 2 * coherence->reach + 1;
}

/* Drops what may be cached of a due range, one run of granules after the other. What was dropped since it became due
 * need not be dropped again: its bits are clear, and the kernel had finished. */
static void drop_cached(struct coherence *coherence, const struct due *due) {
    if (due->forced) {
        drop(coherence, due->first, due->last);
        return;
    }
    for (uint64_t granule = due->first; granule <= due->last; granule++) {
        uint64_t first = granule;
        while (granule <= due->last && is_cached(coherence, granule))
            granule++;
        if (granule > first)
            drop_around(coherence, first, granule - 1);
    }
}

static void release(struct coherence *coherence, struct due *due) {
    if (due->allocated) {
        free(due);
        return;
    }
    due->next = coherence->free;
    coherence->free = due;
}

/* Our descriptors but /dev/fuse are closed, for this thread alone. It may wait for others of this process; if they are
 * killed, it goes on waiting, and what it held open would stay so: the payload with its locks, and the pipe by whose end
 * the guard hears that the process has ended (guard.py). */
static void keep_only_the_device(const struct coherence *coherence) {
    unsigned device = (unsigned)coherence->device;
    if (device == 0 || syscall(SYS_close_range, 0U, device - 1, CLOSE_RANGE_UNSHARE) == 0)
        (void)syscall(SYS_close_range, device + 1, ~0U, CLOSE_RANGE_UNSHARE);
}

static void *run(void *argument) {
    struct coherence *coherence = argument;
    pthread_setname_np(pthread_self(), "coherence");
    if (coherence->confined) {
        keep_only_the_device(coherence);
        (void)confine_thread(); /* a kernel that cannot do it serves as well */
    }
    pthread_mutex_lock(&coherence->mutex);
    while (coherence->first || !atomic_load(&coherence->ending)) {
        struct due *due = coherence->first;
        if (!due && !atomic_load(&coherence->forget_all)) {
            coherence->busy = 0;
            pthread_cond_wait(&coherence->called, &coherence->mutex);
            continue;
        }
        coherence->busy = 1;
        if (due)
            coherence->first = due->next;
        pthread_mutex_unlock(&coherence->mutex);
        int ending = atomic_load(&coherence->ending);
        if (atomic_exchange(&coherence->forget_all, 0) && !ending)
            drop(coherence, 0, GRANULES - 1);
        if (due) {
            if (due->ranged && !ending)
                drop_cached(coherence, due);
            transport_send(coherence->transport, due->message, due->length);
        }
        pthread_mutex_lock(&coherence->mutex);
        if (due)
            release(coherence, due);
    }
    coherence->busy = 0;
    pthread_mutex_unlock(&coherence->mutex);
    return NULL;
}

/* --- answers that are due ------------------------------------------------------------------------------------------- */

static void enqueue(struct coherence *coherence, const struct due *what, const void *message, size_t length) {
    pthread_mutex_lock(&coherence->mutex);
    if (atomic_load(&coherence->ending)) { /* the thread may have looked for the last time */
        pthread_mutex_unlock(&coherence->mutex);
        transport_send(coherence->transport, message, length);
        return;
    }
    struct due *due = coherence->free;
    int allocated = 0;
    if (due)
        coherence->free = due->next;
    else {
        pthread_mutex_unlock(&coherence->mutex);
        due = malloc(sizeof *due);
        allocated = 1;
        pthread_mutex_lock(&coherence->mutex);
    }
    if (due && !atomic_load(&coherence->ending)) {
        *due = *what;
        due->next = NULL;
        due->allocated = allocated;
        due->length = length;
        memcpy(due->message, message, length);
        if (coherence->first)
            coherence->last->next = due;
        else
            coherence->first = due;
        coherence->last = due;
        message = NULL;
    } else if (due) {
        due->allocated = allocated;
        release(coherence, due);
    } else /* more writes at a time than anybody has seen, and no memory: this answer comes before the pages are dropped */
        atomic_store(&coherence->forget_all, 1);
    pthread_cond_signal(&coherence->called);
    pthread_mutex_unlock(&coherence->mutex);
    if (message)
        transport_send(coherence->transport, message, length);
}

void coherence_answer(struct coherence *coherence, uint64_t offset, uint64_t size, const void *message, size_t length) {
    struct due due = {.ranged = 1,
                      .first = granule_of(coherence, offset),
                      .last = last_granule_of(coherence, offset, size)};
    if (may_be_cached(coherence, due.first, due.last))
        enqueue(coherence, &due, message, length);
    else
        transport_send(coherence->transport, message, length);
}

void coherence_drop_and_answer(struct coherence *coherence, uint64_t node, uint64_t offset, uint64_t size,
                               const void *message, size_t length) {
    struct due due = {.ranged = 1,
                      .forced = 1,
                      .first = granule_of(coherence, offset),
                      .last = last_granule_of(coherence, offset, size)};
    atomic_store(&coherence->node, node);
    enqueue(coherence, &due, message, length);
}

void coherence_notify(struct coherence *coherence, const void *message, size_t length) {
    struct due due = {.ranged = 0};
    if (length <= LARGEST_MESSAGE)
        enqueue(coherence, &due, message, length);
}

void coherence_drop_all(struct coherence *coherence) {
    pthread_mutex_lock(&coherence->mutex);
    if (!atomic_load(&coherence->ending)) /* else the thread may have looked for the last time */
        atomic_store(&coherence->forget_all, 1);
    pthread_cond_signal(&coherence->called);
    pthread_mutex_unlock(&coherence->mutex);
}

int coherence_is_idle(struct coherence *coherence) {
    pthread_mutex_lock(&coherence->mutex);
    int idle = !coherence->first && !coherence->busy && !atomic_load(&coherence->forget_all);
    pthread_mutex_unlock(&coherence->mutex);
    return idle;
}

/* --- start and end -------------------------------------------------------------------------------------------------- */

struct coherence *coherence_new(struct transport *transport, int device, uint64_t size) {
    struct coherence *coherence = calloc(1, sizeof *coherence);
    _Atomic uint64_t *cached = calloc(GRANULES / WORD_BITS, sizeof *cached);
    if (!coherence || !cached) {
        free(coherence);
        free((void *)cached);
        return NULL;
    }
    coherence->transport = transport;
    coherence->device = device;
    coherence->cached = cached;
    coherence->shift = SMALLEST_GRANULE_SHIFT;
    while (size >> coherence->shift > GRANULES)
        coherence->shift++;
    pthread_mutex_init(&coherence->mutex, NULL);
    pthread_cond_init(&coherence->called, NULL);
    for (size_t i = 0; i < DUES; i++)
        release(coherence, &coherence->dues[i]);
    /* written once, so that memory is there before the first request: see ARCHITECTURE.md */
    for (uint64_t i = 0; i < GRANULES / WORD_BITS; i++)
        atomic_store_explicit(&cached[i], 0, memory_order_relaxed);
    return coherence;
}

void coherence_free(struct coherence *coherence) {
    if (!coherence)
        return;
    pthread_cond_destroy(&coherence->called);
    pthread_mutex_destroy(&coherence->mutex);
    free((void *)coherence->cached);
    free(coherence);
}

int coherence_start(struct coherence *coherence, int confined) {
    coherence->confined = confined;
    return ready_thread_start(&coherence->thread, STACK_SIZE, 0, run, coherence);
}

void coherence_end(struct coherence *coherence) {
    pthread_mutex_lock(&coherence->mutex);
    atomic_store(&coherence->ending, 1);
    pthread_cond_signal(&coherence->called);
    pthread_mutex_unlock(&coherence->mutex);
}

int coherence_join(struct coherence *coherence, int64_t until) {
    return ready_thread_join_until(&coherence->thread, until, 0);
}
