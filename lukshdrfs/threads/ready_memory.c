/* See ready_memory.h. */
#define _GNU_SOURCE
#include "threads/ready_memory.h"

#include <sys/mman.h>
#include <unistd.h>

static size_t page_size(void) { return (size_t)sysconf(_SC_PAGESIZE); }

void ready_memory_touch(void *memory, size_t size) {
    /* MAP_POPULATE does nothing where memory is locked as it is touched (mlockall(2), MCL_ONFAULT) */
    volatile char *at = memory;
    for (size_t i = 0; i < size; i += page_size())
        at[i] = at[i];
}

void *ready_memory(size_t size) {
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return NULL;
    madvise(memory, size, MADV_DONTDUMP);
    ready_memory_touch(memory, size);
    return memory;
}

void ready_memory_free(void *memory, size_t size) {
    if (memory)
        munmap(memory, size);
}
