/* Threads whose stacks are there before they are used (ready_memory.h), and the clock by which they are waited for. */
#ifndef LUKSHDRFS_READY_THREAD_H
#define LUKSHDRFS_READY_THREAD_H

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>

/* All zeros: a thread that was never started. */
struct ready_thread {
    pthread_t thread;
    void *stack;
    size_t size;
    int is_started; /* and not joined yet */
};

/* Starts a thread that takes no signal but `open_signal`, none at all for 0. Returns 0 or an errno. */
int ready_thread_start(struct ready_thread *thread, size_t stack_size, int open_signal, void *(*run)(void *),
                       void *argument);

/* Waits for the end of a thread, if it was started. */
void ready_thread_join(struct ready_thread *thread);

/* Waits until a time of now_ms(). If `signal` is not 0, interrupts the thread with it until it ends. Returns whether it
 * has ended. */
int ready_thread_join_until(struct ready_thread *thread, int64_t until, int signal);

/* Milliseconds of CLOCK_MONOTONIC. */
int64_t now_ms(void);

/* Lets a moment pass, for whoever looks again and again. */
void pause_ms(unsigned milliseconds);

#endif
