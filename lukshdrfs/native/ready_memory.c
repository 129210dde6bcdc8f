/* See ready_memory.h. */
#define _GNU_SOURCE
#include "ready_memory.h"

#include <errno.h>
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

int ready_thread_start(struct ready_thread *thread, size_t stack_size, void *(*run)(void *), void *argument) {
    pthread_attr_t attributes;
#ifdef __SANITIZE_THREAD__
    stack_size += (size_t)1 << 20; /* it keeps its own things there */
#endif
    size_t size = page_size() + stack_size;
    *thread = (struct ready_thread){.stack = ready_memory(size), .size = size};
    if (!thread->stack)
        return ENOMEM;
    mprotect(thread->stack, page_size(), PROT_NONE); /* who goes past the end meets it */
    pthread_attr_init(&attributes);
    int error = pthread_attr_setstack(&attributes, (char *)thread->stack + page_size(), stack_size);
    if (!error)
        error = pthread_create(&thread->thread, &attributes, run, argument);
    pthread_attr_destroy(&attributes);
    if (error)
        ready_thread_free(thread);
    return error;
}

void ready_thread_free(struct ready_thread *thread) {
    ready_memory_free(thread->stack, thread->size);
    thread->stack = NULL;
}
