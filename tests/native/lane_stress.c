/* Plays the kernel and libfuse for the fast lane, from many threads at once, and checks every byte.
 *
 *   lane_stress SEED THREADS WORKERS ROUNDS end|stop|lock|end-lock|resize|resize-lock
 *
 * The lane reads requests from a socket pair here: messages have their bounds, as those of /dev/fuse. Each thread owns
 * stripes of the volume that share sectors with those of the others, and knows what must be in them. At the end
 * /dev/fuse ends (as after an unmount), or the lane is stopped. Built with sanitizers by test_lane.py. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fuse.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "cipher/sector_cipher.h"
#include "fuse/lane/lane.h"
#include "payload/file_payload.h"
#include "volume/native_volume.h"

#define STRIPE 1400  /* bytes, and no multiple of a sector */
#define LARGEST 90000 /* bytes of a request: a message must fit a socket's buffer */
#define THREADS 16
#define PAYLOAD_OFFSET 8192

static const uint64_t VOLUME = 512 * 300 + 4096 * 20 + 4096 * 60;
static const uint64_t SMALLEST = 512 * 300 + 4096 * 20 + 4096 * 40; /* while its size changes; stripes end there */
static int kernel, libfuse;              /* our ends */
static int mailbox[THREADS + 1][2];      /* a thread's answers arrive here; the last one is the main thread's */
static atomic_uint notices;              /* of ranges that the kernel is to drop from its cache */
static pthread_mutex_t model_mutex = PTHREAD_MUTEX_INITIALIZER;
static uint8_t *model;
static unsigned rounds, threads;
static atomic_int locking; /* requests may be refused now */
static atomic_int over;    /* the volume's size is to change no more */
static int resizing;       /* it changes */
static const uint32_t page_size = 65536; /* arm64 has such kernels */

#define CHECK(condition) ((condition) ? (void)0 : fail(#condition, __LINE__))

static void fail(const char *what, int line) {
    fprintf(stderr, "lane_stress.c:%d: %s is not so (%s)\n", line, what, strerror(errno));
    _exit(1);
}

static uint32_t rnd(uint64_t *state, uint32_t below) {
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(*state >> 33) % below;
}

/* --- the kernel's side: requests, and who gets the answers ------------------------------------------------------ */

struct message {
    struct fuse_out_header header;
    uint8_t body[LARGEST];
};

static void *sort_answers(void *unused) {
    static struct message message;
    ssize_t size;
    while ((size = recv(kernel, &message, sizeof message, 0)) > 0) {
        CHECK((size_t)size == message.header.len);
        if (!message.header.unique) {
            CHECK(message.header.error == FUSE_NOTIFY_INVAL_INODE);
            atomic_fetch_add(&notices, 1);
            continue;
        }
        unsigned owner = (unsigned)(message.header.unique >> 32) - 1;
        CHECK(owner <= threads);
        CHECK(send(mailbox[owner][0], &message, (size_t)size, 0) == size);
    }
    return unused;
}

static void post(unsigned owner, uint64_t number, uint32_t opcode, const void *arguments, size_t size,
                 const void *data, size_t data_size) {
    uint8_t buffer[256];
    struct fuse_in_header header = {.len = (uint32_t)(sizeof header + size + data_size),
                                    .opcode = opcode,
                                    .unique = ((uint64_t)(owner + 1) << 32) + number,
                                    .nodeid = 2};
    memcpy(buffer, &header, sizeof header);
    memcpy(buffer + sizeof header, arguments, size);
    struct iovec parts[2] = {{buffer, sizeof header + size}, {(void *)(uintptr_t)data, data_size}};
    struct msghdr whole = {.msg_iov = parts, .msg_iovlen = data_size ? 2 : 1};
    CHECK(sendmsg(kernel, &whole, 0) == (ssize_t)header.len);
}

static size_t await(unsigned owner, uint64_t number, struct message *answer) {
    ssize_t size = recv(mailbox[owner][1], answer, sizeof *answer, 0);
    CHECK(size >= (ssize_t)sizeof answer->header);
    CHECK((uint32_t)answer->header.unique == (uint32_t)number);
    return (size_t)size - sizeof answer->header;
}

/* --- libfuse's side ---------------------------------------------------------------------------------------------- */

static void *play_libfuse(void *unused) {
    static struct message request, answer;
    while (recv(libfuse, &request, sizeof request, 0) > 0) {
        const struct fuse_in_header *in = (const void *)&request;
        struct fuse_init_out init = {.major = 7, .minor = 38, .max_write = 1 << 30, .max_background = 12,
                                     .flags = FUSE_AUTO_INVAL_DATA | FUSE_ASYNC_READ, .max_pages = 60000};
        struct fuse_open_out opened = {.fh = 7, .open_flags = FOPEN_KEEP_CACHE};
        size_t size = in->opcode == FUSE_INIT ? sizeof init : in->opcode == FUSE_OPEN ? sizeof opened : 0;
        if (in->opcode == FUSE_FORGET)
            continue;
        answer.header = (struct fuse_out_header){.len = (uint32_t)(sizeof answer.header + size), .unique = in->unique};
        memcpy(answer.body, in->opcode == FUSE_INIT ? (void *)&init : (void *)&opened, size);
        CHECK(send(libfuse, &answer, answer.header.len, 0) == (ssize_t)answer.header.len);
    }
    return unused;
}

/* --- what the threads do ------------------------------------------------------------------------------------------ */

static int is_refused(const struct message *answer) {
    return answer->header.error == -EIO && atomic_load(&locking);
}

static size_t min(size_t a, size_t b) { return a < b ? a : b; }

/* Part of a stripe that is the thread's own; stripes go round. */
static uint64_t own_range(unsigned me, uint64_t *state, size_t *size) {
    uint64_t stripes = SMALLEST / STRIPE / threads;
    uint64_t start = (rnd(state, (uint32_t)stripes) * threads + me) * STRIPE;
    uint32_t from = rnd(state, STRIPE);
    *size = 1 + rnd(state, STRIPE - from);
    return start + from;
}

static void write_some(unsigned me, uint64_t number, uint64_t *state, struct message *answer) {
    size_t size;
    uint64_t offset = own_range(me, state, &size);
    uint8_t data[STRIPE];
    for (size_t i = 0; i < size; i++)
        data[i] = (uint8_t)rnd(state, 256);
    struct fuse_write_in in = {.offset = offset, .size = (uint32_t)size, .flags = rnd(state, 8) ? 0 : O_DSYNC,
                               .write_flags = rnd(state, 2) ? FUSE_WRITE_LOCKOWNER : 0};
    pthread_mutex_lock(&model_mutex);
    memcpy(model + offset, data, size); /* its own bytes: nobody reads them in the meantime */
    pthread_mutex_unlock(&model_mutex);
    post(me, number, FUSE_WRITE, &in, sizeof in, data, size);
    size_t body = await(me, number, answer);
    if (is_refused(answer))
        return;
    CHECK(body == sizeof(struct fuse_write_out) && !answer->header.error);
    CHECK(((struct fuse_write_out *)(void *)answer->body)->size == size);
}

/* Reads across other threads' stripes, too; checks what is in its own. */
static void read_some(unsigned me, uint64_t number, uint64_t *state, struct message *answer) {
    uint64_t offset = rnd(state, (uint32_t)VOLUME + 5000);
    uint32_t size = 1 + rnd(state, LARGEST - 1);
    struct fuse_read_in in = {.offset = offset, .size = size, .read_flags = rnd(state, 2) ? FUSE_READ_LOCKOWNER : 0};
    post(me, number, FUSE_READ, &in, sizeof in, NULL, 0);
    size_t count = await(me, number, answer);
    if (is_refused(answer))
        return;
    CHECK(!answer->header.error && count <= (offset >= VOLUME ? 0 : min(size, VOLUME - offset)));
    CHECK(count >= (offset >= SMALLEST ? 0 : min(size, SMALLEST - offset)));
    CHECK(resizing || count == (offset >= VOLUME ? 0 : min(size, VOLUME - offset)));
    pthread_mutex_lock(&model_mutex);
    for (size_t i = 0; i < count; i++)
        if ((offset + i) / STRIPE % threads == me && (offset + i) / STRIPE / threads < SMALLEST / STRIPE / threads)
            CHECK(answer->body[i] == model[offset + i]);
    pthread_mutex_unlock(&model_mutex);
}

static void zero_some(unsigned me, uint64_t number, uint64_t *state, struct message *answer) {
    size_t size;
    uint64_t offset = own_range(me, state, &size);
    struct fuse_fallocate_in in = {
        .offset = offset, .length = size, .mode = FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE};
    struct fuse_interrupt_in nothing = {.unique = 1}; /* of somebody who is not there */
    post(me, number + 1, FUSE_INTERRUPT, &nothing, sizeof nothing, NULL, 0);
    post(me, number, FUSE_FALLOCATE, &in, sizeof in, NULL, 0);
    CHECK(await(me, number, answer) == 0);
    if (is_refused(answer))
        return;
    CHECK(!answer->header.error);
    pthread_mutex_lock(&model_mutex);
    memset(model + offset, 0, size);
    pthread_mutex_unlock(&model_mutex);
}

static void open_some(unsigned me, uint64_t number, struct message *answer) {
    struct fuse_open_in in = {.flags = O_RDWR | (number & 2 ? O_DIRECT : 0)};
    post(me, number, FUSE_OPEN, &in, sizeof in, NULL, 0);
    CHECK(await(me, number, answer) == sizeof(struct fuse_open_out));
    uint32_t flags = ((struct fuse_open_out *)(void *)answer->body)->open_flags;
    CHECK(flags & FOPEN_KEEP_CACHE && !!(flags & FOPEN_DIRECT_IO) == !!(in.flags & O_DIRECT));
}

/* The volume's end moves, by whole sectors, as fast as that can be. */
static void *move_the_end(void *volume) {
    uint64_t state = rounds;
    while (!atomic_load(&over))
        native_volume_set_size(volume, SMALLEST + 4096 * (uint64_t)rnd(&state, 21));
    native_volume_set_size(volume, VOLUME);
    return NULL;
}

static void *play_thread(void *argument) {
    unsigned me = (unsigned)(uintptr_t)argument;
    uint64_t state = me * 77 + rounds;
    struct message *answer = malloc(sizeof *answer);
    for (uint64_t number = 2; number < 2 * (uint64_t)rounds; number += 2)
        switch (rnd(&state, 16)) {
        case 0:
            open_some(me, number, answer);
            break;
        case 1: /* libfuse answers this one */
            post(me, number, FUSE_GETATTR, &state, sizeof state, NULL, 0);
            CHECK(await(me, number, answer) == 0);
            break;
        case 2:
            zero_some(me, number, &state, answer);
            break;
        case 3:
        case 4:
        case 5:
        case 6:
        case 7:
            read_some(me, number, &state, answer);
            break;
        default:
            write_some(me, number, &state, answer);
        }
    free(answer);
    return NULL;
}

/* --- single requests ------------------------------------------------------------------------------------------------ */

static void greet(struct message *answer) {
    struct fuse_init_in in = {.major = 7, .minor = 40, .flags = FUSE_INIT_EXT, .flags2 = 1 << 4};
    post(threads, 1, FUSE_INIT, &in, sizeof in, NULL, 0);
    CHECK(await(threads, 1, answer) == sizeof(struct fuse_init_out));
    struct fuse_init_out *out = (void *)answer->body;
    /* as many pages as have 1 MiB, whatever size they have there */
    CHECK(out->max_write == 1 << 20 && out->max_pages == (1 << 20) / page_size && out->max_background > 12);
    CHECK(!(out->flags & FUSE_AUTO_INVAL_DATA) && out->flags & FUSE_ASYNC_READ && out->flags2 == 1 << 4);
}

static int error_of(uint64_t number, uint32_t opcode, const void *in, size_t size, const void *data, size_t data_size,
                    struct message *answer) {
    post(threads, number, opcode, in, size, data, data_size);
    await(threads, number, answer);
    return -answer->header.error;
}

static void check_refusals(struct message *answer) {
    struct fuse_write_in behind = {.offset = VOLUME, .size = 5};
    CHECK(error_of(2, FUSE_WRITE, &behind, sizeof behind, "12345", 5, answer) == ENOSPC);
    struct fuse_fallocate_in growing = {.offset = VOLUME - 5, .length = 6};
    CHECK(error_of(3, FUSE_FALLOCATE, &growing, sizeof growing, NULL, 0, answer) == ENOSPC);
    struct fuse_fallocate_in collapsing = {.length = 4096, .mode = FALLOC_FL_COLLAPSE_RANGE};
    CHECK(error_of(4, FUSE_FALLOCATE, &collapsing, sizeof collapsing, NULL, 0, answer) == EOPNOTSUPP);
    struct fuse_fallocate_in punching = {.length = 4096, .mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE};
    CHECK(error_of(8, FUSE_FALLOCATE, &punching, sizeof punching, NULL, 0, answer) == EOPNOTSUPP);
    /* an INTERRUPT that comes before its FALLOCATE has been seen */
    struct fuse_interrupt_in early = {.unique = ((uint64_t)(threads + 1) << 32) + 5};
    post(threads, 6, FUSE_INTERRUPT, &early, sizeof early, NULL, 0);
    post(threads, 7, FUSE_GETATTR, &early, sizeof early, NULL, 0);
    await(threads, 7, answer);
    usleep(50000); /* both are with the lane by now */
    struct fuse_fallocate_in zeroing = {.length = VOLUME, .mode = FALLOC_FL_ZERO_RANGE};
    CHECK(error_of(5, FUSE_FALLOCATE, &zeroing, sizeof zeroing, NULL, 0, answer) == EINTR);
}

/* The kernel is told to drop what it has cached of what is written past its cache, before the write is answered; once, and
 * only where it has anything. */
static void check_coherence(struct message *answer) {
    struct fuse_read_in read = {.size = 4096, .read_flags = FUSE_READ_LOCKOWNER};
    struct fuse_write_in write = {.size = 5, .write_flags = FUSE_WRITE_LOCKOWNER};
    CHECK(!error_of(1000, FUSE_READ, &read, sizeof read, NULL, 0, answer));
    CHECK(!error_of(1001, FUSE_WRITE, &write, sizeof write, "12345", 5, answer));
    CHECK(notices == 0); /* all past the cache */
    read.read_flags = 0;
    for (unsigned i = 1; i <= 3; i++) {
        CHECK(!error_of(1000 + 10 * i, FUSE_READ, &read, sizeof read, NULL, 0, answer));
        for (unsigned k = 1; k <= 3; k++) {
            CHECK(!error_of(1000 + 10 * i + k, FUSE_WRITE, &write, sizeof write, "12345", 5, answer));
            CHECK(notices == i);
        }
    }
    write.offset = 100000; /* another granule */
    CHECK(!error_of(1050, FUSE_WRITE, &write, sizeof write, "12345", 5, answer));
    write.write_flags = 0; /* through the cache, where it stays */
    CHECK(!error_of(1051, FUSE_WRITE, &write, sizeof write, "12345", 5, answer));
    CHECK(notices == 3);
    write.write_flags = FUSE_WRITE_LOCKOWNER;
    CHECK(!error_of(1052, FUSE_WRITE, &write, sizeof write, "12345", 5, answer));
    CHECK(notices == 4);
    /* whoever writes here and there after all has been read through the cache waits for a few drops, not for one a granule */
    unsigned granules = 0, before = notices;
    for (read.offset = 0; read.offset < VOLUME; read.offset += 65536)
        CHECK(!error_of(1100 + granules++, FUSE_READ, &read, sizeof read, NULL, 0, answer));
    for (unsigned i = 0; i < granules; i++) {
        write.offset = 65536 * (uint64_t)i;
        CHECK(!error_of(1200 + i, FUSE_WRITE, &write, sizeof write, "12345", 5, answer));
        CHECK(notices > before);
    }
    CHECK(granules == 8 && notices == before + 4);
    write.offset = VOLUME; /* nothing is written, and nothing is known to be unchanged */
    CHECK(error_of(1053, FUSE_WRITE, &write, sizeof write, "12345", 5, answer) == ENOSPC);
}

static struct sector_cipher *new_cipher(size_t sector_size) {
    static uint8_t key[64];
    for (size_t i = 0; i < sizeof key; i++)
        key[i] = (uint8_t)i;
    int status;
    struct sector_cipher *cipher = sector_cipher_new(NULL, NULL, "AES256", "xts", 16, IV_PLAIN64, NULL, key, sizeof key,
                                                     sector_size, &status);
    CHECK(cipher && status == CIPHER_OK);
    return cipher;
}

static void start(pthread_t *thread, void *(*run)(void *), uintptr_t argument) {
    CHECK(!pthread_create(thread, NULL, run, (void *)argument));
}

int main(int count, char **words) {
    CHECK(count == 6);
    uint64_t seed = strtoull(words[1], NULL, 10);
    threads = (unsigned)atoi(words[2]);
    rounds = (unsigned)atoi(words[4]);
    CHECK(threads && threads <= THREADS);
    int device[2], socket[2], events[2], payload = memfd_create("payload", 0), further = dup(payload);
    CHECK(payload >= 0 && further >= 0 && !ftruncate(payload, (off_t)(PAYLOAD_OFFSET + VOLUME)));
    CHECK(!socketpair(AF_UNIX, SOCK_SEQPACKET, 0, device) && !socketpair(AF_UNIX, SOCK_SEQPACKET, 0, socket));
    CHECK(!socketpair(AF_UNIX, SOCK_SEQPACKET, 0, events));
    for (unsigned i = 0; i <= threads; i++)
        CHECK(!socketpair(AF_UNIX, SOCK_SEQPACKET, 0, mailbox[i]));
    kernel = device[0];
    libfuse = socket[0];
    struct sector_cipher *small = new_cipher(512), *large = new_cipher(4096);
    const uint64_t first = 512 * 300, second = first + 4096 * 20;
    const uint64_t ends[] = {first, second, VOLUME};
    const struct extent extents[] = {
        {.payload_shift = PAYLOAD_OFFSET, .iv_shift = seed, .sector_size = 512, .cipher = small},
        {.payload_shift = PAYLOAD_OFFSET, .iv_shift = 0 - first / 512, .sector_size = 512, .cipher = NULL},
        {.payload_shift = PAYLOAD_OFFSET, .iv_shift = 8 - second / 512, .sector_size = 4096, .cipher = large}};
    struct sector_locks *locks = sector_locks_new();
    struct payload *stored = file_payload_new(payload, &further, 1, 0);
    CHECK(locks && stored);
    struct native_volume *volume = native_volume_new(stored, locks, 0, extents, ends, 3);
    CHECK(volume && native_volume_size(volume) == VOLUME);
    struct lane_config config = {.device = device[1], .libfuse = socket[1], .events = events[1], .size = VOLUME,
                                 .largest_request = 1 << 20, .page_size = page_size,
                                 .workers = (unsigned)atoi(words[3]), .volume = volume};
    int error;
    struct lane *lane = lane_start(&config, &error);
    CHECK(lane && !error);
    pthread_t sorter, peer, player[THREADS];
    struct message *answer = malloc(sizeof *answer);
    start(&sorter, sort_answers, 0);
    start(&peer, play_libfuse, 0);
    greet(answer);
    check_refusals(answer);
    check_coherence(answer);

    model = calloc(1, VOLUME);
    for (uint64_t at = 0; at < VOLUME; at += 65536) { /* from now on all is zeros */
        struct fuse_fallocate_in in = {
            .offset = at, .length = min(65536, VOLUME - at), .mode = FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE};
        CHECK(!error_of(10 + at, FUSE_FALLOCATE, &in, sizeof in, NULL, 0, answer));
    }
    pthread_t mover;
    resizing = !strncmp(words[5], "resize", 6);
    if (resizing)
        start(&mover, move_the_end, (uintptr_t)volume);
    for (unsigned i = 0; i < threads; i++)
        start(&player[i], play_thread, i);
    if (!strcmp(words[5], "lock") || !strcmp(words[5], "resize-lock")) { /* at some moment while requests are under way */
        usleep(1000 * (unsigned)(seed % 300));
        atomic_store(&locking, 1);
        CHECK(lane_lock(lane, 20000));
    }
    for (unsigned i = 0; i < threads; i++)
        pthread_join(player[i], NULL);
    atomic_store(&over, 1);
    if (resizing)
        pthread_join(mover, NULL);
    if (!strcmp(words[5], "end-lock")) { /* the mount ends just when it is locked: nobody is waited for who is gone */
        shutdown(kernel, SHUT_RDWR);
        usleep(1000 * (unsigned)(seed % 20));
        CHECK(lane_lock(lane, 20000));
        CHECK(lane_lock(lane, 0));
    }

    if (!strcmp(words[5], "end")) { /* what an unmount does */
        struct pollfd told = {.fd = events[0], .events = POLLIN};
        shutdown(kernel, SHUT_RDWR);
        CHECK(poll(&told, 1, 20000) == 1);
        CHECK(recv(events[0], &error, sizeof error, 0) == 0);
    }
    if (!lane_stop(lane, 60000))
        return 1;
    shutdown(kernel, SHUT_RDWR);
    pthread_join(sorter, NULL);
    pthread_join(peer, NULL);
    native_volume_free(volume);
    sector_locks_free(locks);
    file_payload_free(stored);
    sector_cipher_free(small);
    sector_cipher_free(large);
    free(model);
    free(answer);
    puts("all as expected");
    return 0;
}
