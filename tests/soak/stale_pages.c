/* Writes past the page cache, reads through it, and looks for data that are older than they may be.
 *
 *   stale_pages WRITE_TO READ_FROM SECONDS pwrite|aio|uring
 *
 * WRITE_TO and READ_FROM are the image, or a loop device on it and the image. Each of several threads owns a part of it;
 * it writes its next number all over its part by direct I/O, and when that is done reads it back through the page cache
 * and through a mapping. Other threads read all the time, in order and at random, so that pages come back while they are
 * written. Nobody may read a number that is lower than what was written when the read began. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <linux/io_uring.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define WRITERS 3
#define READERS 4
#define BLOCK ((size_t)4096)
#define PART ((size_t)1 << 20)

static const char *target, *source, *how;
static _Atomic uint64_t written[WRITERS]; /* the number that is all over the part, or a newer one */
static atomic_int stop, stale;
static const uint8_t *mapping; /* NULL: the kernel allows none */
static _Atomic uint64_t writes, reads;

static void die(const char *what) {
    perror(what);
    exit(2);
}

static uint64_t next_random(uint64_t *state) {
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return *state >> 33;
}

static void check(const char *who, size_t part, size_t at, uint64_t least, const uint64_t *block) {
    uint64_t first = block[0], last = block[BLOCK / 8 - 1];
    atomic_fetch_add_explicit(&reads, 1, memory_order_relaxed);
    if (first >= least && last >= least)
        return;
    if (!atomic_exchange(&stale, 1))
        printf("%s: byte %zu of part %zu has %lu and %lu, although %lu was written before\n", who, at, part,
               (unsigned long)first, (unsigned long)last, (unsigned long)least);
    atomic_store(&stop, 1);
}

static void read_mapped(const char *who, size_t part, size_t at) {
    uint64_t least = atomic_load(&written[part]), block[BLOCK / 8];
    if (!mapping)
        return;
    memcpy(block, mapping + part * PART + at, BLOCK);
    check(who, part, at, least, block);
}

static void read_cached(const char *who, int file, size_t part, size_t at, size_t size, uint64_t *buffer) {
    uint64_t least = atomic_load(&written[part]);
    if (pread(file, buffer, size, (off_t)(part * PART + at)) != (ssize_t)size)
        die("pread");
    for (size_t block = 0; block < size; block += BLOCK)
        check(who, part, at + block, least, buffer + block / 8);
}

static void *run_reader(void *argument) {
    size_t me = (size_t)argument;
    int file = open(source, O_RDONLY);
    uint64_t state = me + 1, *buffer = malloc(PART);
    if (file < 0 || !buffer)
        die(source);
    while (!atomic_load(&stop)) {
        size_t part = next_random(&state) % WRITERS, at = next_random(&state) % (PART / BLOCK) * BLOCK;
        switch (me % 3) {
        case 0: /* in order, so that the kernel reads ahead */
            for (at = 0; at < PART && !atomic_load(&stop); at += 16 * BLOCK)
                read_cached("a reader", file, part, at, 16 * BLOCK, buffer);
            break;
        case 1:
            read_cached("a reader at random", file, part, at, BLOCK, buffer);
            break;
        default:
            read_mapped("a mapping", part, at);
        }
    }
    close(file);
    free(buffer);
    return NULL;
}

/* --- ways to write ------------------------------------------------------------------------------------------------- */

struct ring {
    int file;
    _Atomic unsigned *tail, *mask, *array, *done_head, *done_tail;
    struct io_uring_sqe *entries;
    struct io_uring_cqe *completions;
    unsigned done_mask;
};

static struct ring open_ring(void) {
    struct io_uring_params parameters = {0};
    struct ring ring = {.file = (int)syscall(SYS_io_uring_setup, 4, &parameters)};
    if (ring.file < 0)
        die("io_uring_setup");
    uint8_t *queue = mmap(NULL, parameters.sq_off.array + 4 * 4, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE,
                          ring.file, IORING_OFF_SQ_RING);
    uint8_t *done = mmap(NULL, parameters.cq_off.cqes + 8 * sizeof(struct io_uring_cqe), PROT_READ | PROT_WRITE,
                         MAP_SHARED | MAP_POPULATE, ring.file, IORING_OFF_CQ_RING);
    ring.entries = mmap(NULL, 4 * sizeof(struct io_uring_sqe), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE,
                        ring.file, IORING_OFF_SQES);
    if (queue == MAP_FAILED || done == MAP_FAILED || ring.entries == MAP_FAILED)
        die("mmap of io_uring");
    ring.tail = (void *)(queue + parameters.sq_off.tail);
    ring.mask = (void *)(queue + parameters.sq_off.ring_mask);
    ring.array = (void *)(queue + parameters.sq_off.array);
    ring.done_head = (void *)(done + parameters.cq_off.head);
    ring.done_tail = (void *)(done + parameters.cq_off.tail);
    ring.completions = (void *)(done + parameters.cq_off.cqes);
    ring.done_mask = *(unsigned *)(void *)(done + parameters.cq_off.ring_mask);
    return ring;
}

static ssize_t write_by_ring(struct ring *ring, int file, const void *data, size_t size, off_t offset) {
    unsigned tail = atomic_load(ring->tail), slot = tail & atomic_load(ring->mask);
    ring->entries[slot] = (struct io_uring_sqe){.opcode = IORING_OP_WRITE, .fd = file, .addr = (uintptr_t)data,
                                                .len = (unsigned)size, .off = (uint64_t)offset};
    atomic_store(&ring->array[slot], slot);
    atomic_store(ring->tail, tail + 1);
    while (syscall(SYS_io_uring_enter, ring->file, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0) < 0)
        if (errno != EINTR)
            die("io_uring_enter");
    unsigned head = atomic_load(ring->done_head);
    while (head == atomic_load(ring->done_tail))
        ;
    ssize_t result = ring->completions[head & ring->done_mask].res;
    atomic_store(ring->done_head, head + 1);
    return result;
}

static ssize_t write_by_aio(aio_context_t context, int file, const void *data, size_t size, off_t offset) {
    struct iocb call = {.aio_lio_opcode = IOCB_CMD_PWRITE, .aio_fildes = (unsigned)file, .aio_buf = (uintptr_t)data,
                        .aio_nbytes = size, .aio_offset = offset}, *calls = &call;
    struct io_event event;
    if (syscall(SYS_io_submit, context, 1, &calls) != 1 || syscall(SYS_io_getevents, context, 1, 1, &event, NULL) != 1)
        die("aio");
    return (ssize_t)event.res;
}

static void *run_writer(void *argument) {
    size_t me = (size_t)argument;
    int file = open(target, O_RDWR | O_DIRECT), cached = open(source, O_RDONLY);
    uint64_t state = me + 100, *data = aligned_alloc(BLOCK, PART), *buffer = malloc(PART);
    aio_context_t context = 0;
    struct ring ring = {0};
    if (file < 0 || cached < 0 || !data || !buffer)
        die(target);
    if (!strcmp(how, "aio") && syscall(SYS_io_setup, 8, &context))
        die("io_setup");
    if (!strcmp(how, "uring"))
        ring = open_ring();
    memset(data, 0, PART);
    for (uint64_t number = 1; !atomic_load(&stop); number++) {
        for (size_t i = 0; i < PART / 8; i += BLOCK / 8)
            data[i] = data[i + BLOCK / 8 - 1] = number;
        off_t start = (off_t)(me * PART);
        ssize_t done = context    ? write_by_aio(context, file, data, PART, start)
                       : ring.file ? write_by_ring(&ring, file, data, PART, start)
                                   : pwrite(file, data, PART, start);
        if (done != (ssize_t)PART) {
            errno = done < 0 && (context || ring.file) ? (int)-done : errno;
            die("write");
        }
        atomic_store(&written[me], number);
        atomic_fetch_add(&writes, 1);
        for (int i = 0; i < 8; i++) {
            size_t at = next_random(&state) % (PART / BLOCK) * BLOCK;
            read_cached("the writer", cached, me, at, BLOCK, buffer);
            read_mapped("the writer's mapping", me, at);
        }
        read_cached("the writer", cached, me, 0, PART, buffer);
    }
    close(file);
    close(cached);
    return NULL;
}

int main(int count, char **words) {
    if (count != 5)
        return fprintf(stderr, "usage: stale_pages WRITE_TO READ_FROM SECONDS pwrite|aio|uring\n"), 1;
    target = words[1], source = words[2], how = words[4];
    pthread_t threads[WRITERS + READERS];
    int file = open(source, O_RDONLY);
    if (file < 0)
        die(source);
    void *mapped = mmap(NULL, WRITERS * PART, PROT_READ, MAP_SHARED, file, 0);
    if (mapped == MAP_FAILED && errno != ENODEV)
        die("mmap");
    mapping = mapped == MAP_FAILED ? NULL : mapped;
    for (size_t i = 0; i < WRITERS; i++)
        pthread_create(&threads[i], NULL, run_writer, (void *)i);
    for (size_t i = 0; i < READERS; i++)
        pthread_create(&threads[WRITERS + i], NULL, run_reader, (void *)i);
    struct timespec now, start;
    clock_gettime(CLOCK_MONOTONIC, &start);
    do {
        usleep(50000);
        clock_gettime(CLOCK_MONOTONIC, &now);
    } while (!atomic_load(&stop) && now.tv_sec - start.tv_sec < atol(words[3]));
    atomic_store(&stop, 1);
    for (size_t i = 0; i < WRITERS + READERS; i++)
        pthread_join(threads[i], NULL);
    printf("%lu writes of %zu bytes, %lu blocks read, %s\n", (unsigned long)writes, PART, (unsigned long)reads,
           stale ? "some of them old" : mapping ? "all as written" : "all as written; no mapping");
    return stale;
}
