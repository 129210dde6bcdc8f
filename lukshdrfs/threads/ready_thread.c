/* See ready_thread.h. */
#define _GNU_SOURCE
#include "threads/ready_thread.h"

#include <errno.h>
#include <signal.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "threads/ready_memory.h"

#define LOOK_NS 5000000 /* how often a thread that is to end is interrupted */

static size_t page_size(void) { return (size_t)sysconf(_SC_PAGESIZE); }

static int create(struct ready_thread *thread, size_t stack_size, void *(*run)(void *), void *argument) {
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    int error = pthread_attr_setstack(&attributes, (char *)thread->stack + page_size(), stack_size);
    if (!error)
        error = pthread_create(&thread->thread, &attributes, run, argument);
    pthread_attr_destroy(&attributes);
    return error;
}

int ready_thread_start(struct ready_thread *thread, size_t stack_size, int open_signal, void *(*run)(void *),
                       void *argument) {
    sigset_t closed, before;
#ifdef __SANITIZE_THREAD__
    stack_size += (size_t)1 << 20; /* the sanitizer keeps its own things there */
#endif
    size_t size = page_size() + stack_size;
    *thread = (struct ready_thread){.stack = ready_memory(size), .size = size};
    if (!thread->stack)
        return ENOMEM;
    mprotect(thread->stack, page_size(), PROT_NONE); /* who goes past the end meets it */
    sigfillset(&closed);
    if (open_signal)
        sigdelset(&closed, open_signal);
    pthread_sigmask(SIG_SETMASK, &closed, &before);
    int error = create(thread, stack_size, run, argument);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    thread->is_started = !error;
    if (error) {
        ready_memory_free(thread->stack, thread->size);
        thread->stack = NULL;
    }
    return error;
}

static void forget(struct ready_thread *thread) {
    ready_memory_free(thread->stack, thread->size);
    *thread = (struct ready_thread){0};
}

void ready_thread_join(struct ready_thread *thread) {
    if (!thread->is_started)
        return;
    pthread_join(thread->thread, NULL);
    forget(thread);
}

int ready_thread_join_until(struct ready_thread *thread, int64_t until, int signal) {
    while (thread->is_started) { /* again and again: a signal may come just before the call that it is to interrupt */
        struct timespec soon;
        if (signal)
            pthread_kill(thread->thread, signal);
        clock_gettime(CLOCK_REALTIME, &soon);
        soon.tv_nsec += LOOK_NS;
        soon.tv_sec += soon.tv_nsec / 1000000000;
        soon.tv_nsec %= 1000000000;
        if (pthread_timedjoin_np(thread->thread, NULL, &soon) != ETIMEDOUT)
            forget(thread);
        else if (now_ms() > until)
            return 0;
    }
    return 1;
}

int64_t now_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

void pause_ms(unsigned milliseconds) {
    const struct timespec moment = {.tv_nsec = 1000000L * milliseconds};
    nanosleep(&moment, NULL);
}
