/* Memory, and threads whose stacks are memory, that is there before it is used.
 *
 * Whoever serves a disk must not need memory to do so: when there is none, the kernel writes to that very disk to get
 * some. So all of it is touched in advance. Where the process may lock its memory it stays there, too. */
#ifndef LUKSHDRFS_READY_MEMORY_H
#define LUKSHDRFS_READY_MEMORY_H

#include <pthread.h>
#include <stddef.h>

/* Zeros, kept out of core dumps. NULL where there is not so much. `size` is in bytes, a multiple of a page. */
void *ready_memory(size_t size);
/* Has memory there that belongs to nobody else yet. */
void ready_memory_touch(void *memory, size_t size);
void ready_memory_free(void *memory, size_t size);

/* A thread that has all of its stack. */
struct ready_thread {
    pthread_t thread;
    void *stack;
    size_t size;
};

/* Returns 0 or an errno. The new thread has the caller's signal mask. */
int ready_thread_start(struct ready_thread *thread, size_t stack_size, void *(*run)(void *), void *argument);

/* After the thread has been joined, and for one that was never started (all zeros). */
void ready_thread_free(struct ready_thread *thread);

#endif
