/* See unflushed_writes.h. */
#define _GNU_SOURCE
#include "payload/nbd/unflushed_writes.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "threads/ready_memory.h"

int unflushed_writes_init(struct unflushed_writes *writes, size_t capacity) {
    *writes = (struct unflushed_writes){.capacity = capacity, .memory = memfd_create("unflushed writes", MFD_CLOEXEC)};
    pthread_mutex_init(&writes->mutex, NULL);
    if (writes->memory < 0 || ftruncate(writes->memory, (off_t)capacity) < 0)
        return errno;
    uint8_t *place = mmap(NULL, 2 * capacity, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (place == MAP_FAILED)
        return errno;
    writes->ring = place;
    for (int turn = 0; turn < 2; turn++)
        if (mmap(place + (size_t)turn * capacity, capacity, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
                 writes->memory, 0) == MAP_FAILED)
            return errno;
    ready_memory_touch(place, 2 * capacity); /* both, for each has page tables of its own */
    return 0;
}

void unflushed_writes_destroy(struct unflushed_writes *writes) {
    if (writes->ring)
        munmap(writes->ring, 2 * writes->capacity);
    if (writes->memory >= 0)
        close(writes->memory);
    pthread_mutex_destroy(&writes->mutex);
}

static size_t record_size(size_t size) { return sizeof(struct unflushed_write) + (size + 15) / 16 * 16; }

int unflushed_writes_reserve(struct unflushed_writes *writes, size_t size) {
    pthread_mutex_lock(&writes->mutex);
    int fits = writes->end - writes->start + writes->reserved + record_size(size) <= writes->capacity;
    if (fits)
        writes->reserved += record_size(size);
    pthread_mutex_unlock(&writes->mutex);
    return fits;
}

void unflushed_writes_cancel(struct unflushed_writes *writes, size_t size) {
    pthread_mutex_lock(&writes->mutex);
    writes->reserved -= record_size(size);
    pthread_mutex_unlock(&writes->mutex);
}

static struct unflushed_write *record_at(const struct unflushed_writes *writes, uint64_t position) {
    return (struct unflushed_write *)(void *)(writes->ring + position % writes->capacity);
}

void unflushed_writes_keep(struct unflushed_writes *writes, const uint8_t *data, size_t size, uint64_t offset) {
    pthread_mutex_lock(&writes->mutex); /* for the copy, too: a flush may forget it in the meantime, and others come there */
    struct unflushed_write *record = record_at(writes, writes->end);
    record->offset = offset;
    record->size = size;
    memcpy(record->data, data, size);
    writes->end += record_size(size);
    writes->reserved -= record_size(size);
    pthread_mutex_unlock(&writes->mutex);
}

uint64_t unflushed_writes_mark(struct unflushed_writes *writes) {
    pthread_mutex_lock(&writes->mutex);
    uint64_t mark = writes->end;
    pthread_mutex_unlock(&writes->mutex);
    return mark;
}

void unflushed_writes_forget(struct unflushed_writes *writes, uint64_t mark) {
    pthread_mutex_lock(&writes->mutex);
    if (mark > writes->start)
        writes->start = mark;
    /* a turn begins where nothing is kept, so that few writes at a time stay in few pages */
    if (writes->start == writes->end && writes->end % writes->capacity)
        writes->start = writes->end += writes->capacity - writes->end % writes->capacity;
    pthread_mutex_unlock(&writes->mutex);
}

struct unflushed_write *unflushed_writes_next(struct unflushed_writes *writes, uint64_t *position) {
    if (*position == writes->end)
        return NULL;
    struct unflushed_write *record = record_at(writes, *position);
    *position += record_size((size_t)record->size);
    return record;
}

size_t unflushed_writes_size(struct unflushed_writes *writes) {
    pthread_mutex_lock(&writes->mutex);
    size_t size = (size_t)(writes->end - writes->start);
    pthread_mutex_unlock(&writes->mutex);
    return size;
}
