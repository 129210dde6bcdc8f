/* Exercises a file of fixed size and compares it with memory after each operation: what fsx does (its operations, sizes and
 * checks: Apple's and xfstests' ltp/fsx.c), less truncation, for the image is a block device in all but name.
 *
 *   fsx FILE SEED OPERATIONS|SECONDSs BYTES
 *
 * Buffered, direct and mapped access at once, on one file; zeroed ranges read as zeros; fsync, msync,
 * dropped caches, closed and opened again. What the file system does not have (fallocate) is left out. Prints the last operations and the first wrong byte where something is wrong. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define LARGEST (256 * 1024)
#define UNIT 512 /* of direct access */
#define REMEMBERED 64

static uint8_t *model, *buffer, *map;
static size_t size;
static int buffered, direct;
static uint64_t state, number, moved;
static const char *path;
static char history[REMEMBERED][96];

static uint32_t rnd(uint32_t below) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state >> 33) % below;
}

static void note(const char *what, size_t offset, size_t length) {
    snprintf(history[number % REMEMBERED], sizeof history[0], "%llu %s %zu+%zu", (unsigned long long)number, what, offset,
             length);
    moved += length;
}

static void give_up(const char *what) {
    for (uint64_t i = number < REMEMBERED ? 0 : number - REMEMBERED + 1; i <= number; i++)
        fprintf(stderr, "%s\n", history[i % REMEMBERED]);
    fprintf(stderr, "fsx: %s: %s (%s)\n", path, what, strerror(errno));
    exit(1);
}

static void compare(const uint8_t *found, size_t offset, size_t length) {
    if (memcmp(found, model + offset, length) == 0)
        return;
    size_t at = 0;
    while (found[at] == model[offset + at])
        at++;
    fprintf(stderr, "fsx: byte %zu is %02x, not %02x\n", offset + at, found[at], model[offset + at]);
    give_up("wrong content");
}

/* Sizes of all magnitudes; `unit` of 1 or more. */
static void draw(size_t *offset, size_t *length, size_t unit) {
    size_t most = (size_t)1 << rnd(19);
    *length = 1 + rnd((uint32_t)(most < LARGEST ? most : LARGEST));
    *offset = rnd((uint32_t)size);
    if (rnd(4) == 0)
        *offset -= *offset % 4096;
    *offset -= *offset % unit;
    *length += (unit - *length % unit) % unit;
    if (*length > size - *offset)
        *length = size - *offset;
    *length -= *length % unit;
}

static void fill(size_t length) {
    for (size_t i = 0; i < length; i += 8) {
        uint64_t value = state += 0x9e3779b97f4a7c15u;
        memcpy(buffer + i, &value, 8);
    }
}

static void open_all(void) {
    buffered = open(path, O_RDWR);
    direct = open(path, O_RDWR | O_DIRECT);
    map = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, buffered, 0);
    if (buffered < 0 || direct < 0 || map == MAP_FAILED)
        give_up("open");
}

static void close_all(void) {
    if (munmap(map, size) || close(buffered) || close(direct))
        give_up("close");
}

static void zero(int mode, size_t offset, size_t length) {
    if (fallocate(buffered, mode, (off_t)offset, (off_t)length) == 0)
        memset(model + offset, 0, length);
    else if (errno != EOPNOTSUPP)
        give_up("fallocate");
}

static void step(void) {
    size_t offset, length;
    switch (rnd(100)) {
    case 0 ... 19:
        draw(&offset, &length, 1);
        note("read", offset, length);
        if (pread(buffered, buffer, length, (off_t)offset) != (ssize_t)length)
            give_up("read");
        compare(buffer, offset, length);
        break;
    case 20 ... 44:
        draw(&offset, &length, 1);
        note("write", offset, length);
        fill(length);
        memcpy(model + offset, buffer, length);
        if (pwrite(buffered, buffer, length, (off_t)offset) != (ssize_t)length)
            give_up("write");
        break;
    case 45 ... 54:
        draw(&offset, &length, UNIT);
        note("direct read", offset, length);
        if (pread(direct, buffer, length, (off_t)offset) != (ssize_t)length)
            give_up("direct read");
        compare(buffer, offset, length);
        break;
    case 55 ... 66:
        draw(&offset, &length, UNIT);
        note("direct write", offset, length);
        fill(length);
        memcpy(model + offset, buffer, length);
        if (pwrite(direct, buffer, length, (off_t)offset) != (ssize_t)length)
            give_up("direct write");
        break;
    case 67 ... 74:
        draw(&offset, &length, 1);
        note("mapped read", offset, length);
        compare(map + offset, offset, length);
        break;
    case 75 ... 83:
        draw(&offset, &length, 1);
        note("mapped write", offset, length);
        fill(length);
        memcpy(model + offset, buffer, length);
        memcpy(map + offset, buffer, length);
        break;
    case 84 ... 88:
        draw(&offset, &length, 1);
        note("zero range, keeping the size", offset, length);
        zero(FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, offset, length);
        break;
    case 89 ... 92:
        draw(&offset, &length, 1);
        note("zero range", offset, length);
        zero(FALLOC_FL_ZERO_RANGE, offset, length);
        break;
    case 93:
        note("fsync", 0, 0);
        if (fsync(buffered))
            give_up("fsync");
        break;
    case 94:
        note("fdatasync", 0, 0);
        if (fdatasync(direct))
            give_up("fdatasync");
        break;
    case 95:
        note("msync", 0, 0);
        if (msync(map, size, MS_SYNC))
            give_up("msync");
        break;
    case 96:
        note("drop the cache", 0, 0);
        if (fsync(buffered) || posix_fadvise(buffered, 0, 0, POSIX_FADV_DONTNEED))
            give_up("fadvise");
        break;
    case 97:
        note("close and open", 0, 0);
        close_all();
        open_all();
        break;
    default:
        note("compare all", 0, size);
        for (offset = 0; offset < size; offset += length) {
            length = size - offset < LARGEST ? size - offset : LARGEST;
            if (pread(rnd(2) ? buffered : direct, buffer, length, (off_t)offset) != (ssize_t)length)
                give_up("read");
            compare(buffer, offset, length);
        }
    }
}

int main(int count, char **arguments) {
    if (count != 5) {
        fprintf(stderr, "usage: fsx FILE SEED OPERATIONS|SECONDSs BYTES\n");
        return 2;
    }
    path = arguments[1];
    state = strtoull(arguments[2], NULL, 10);
    char *unit;
    uint64_t amount = strtoull(arguments[3], &unit, 10);
    int timed = *unit == 's';
    size = strtoull(arguments[4], NULL, 10);
    model = calloc(1, size);
    buffer = aligned_alloc(4096, LARGEST + 4096);
    if (!model || !buffer || size % UNIT || size < 2 * LARGEST)
        give_up("a size of whole sectors, some 512 KiB at least, is needed");
    open_all();
    for (size_t offset = 0; offset < size; offset += LARGEST) {
        size_t length = size - offset < LARGEST ? size - offset : LARGEST;
        if (pwrite(buffered, model + offset, length, (off_t)offset) != (ssize_t)length)
            give_up("write");
    }
    time_t start = time(NULL);
    for (; timed ? (uint64_t)(time(NULL) - start) < amount : number < amount; number++)
        step();
    note("at the end", 0, 0);
    for (size_t offset = 0; offset < size; offset += LARGEST) {
        size_t length = size - offset < LARGEST ? size - offset : LARGEST;
        if (pread(buffered, buffer, length, (off_t)offset) != (ssize_t)length)
            give_up("read");
        compare(buffer, offset, length);
    }
    if (fsync(buffered))
        give_up("fsync");
    printf("%llu operations, %llu MiB\n", (unsigned long long)number, (unsigned long long)(moved >> 20));
    return 0;
}
