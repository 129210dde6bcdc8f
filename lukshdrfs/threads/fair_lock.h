/* A lock that many may have together or one alone, and for which who wants it alone does not wait for ever. */
#ifndef LUKSHDRFS_FAIR_LOCK_H
#define LUKSHDRFS_FAIR_LOCK_H

#include <pthread.h>

/* By default, readers who keep coming keep a writer out. Whoever has it may not take it again. */
static inline void fair_lock_init(pthread_rwlock_t *lock) {
    pthread_rwlockattr_t fair;
    pthread_rwlockattr_init(&fair);
    pthread_rwlockattr_setkind_np(&fair, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
    pthread_rwlock_init(lock, &fair);
    pthread_rwlockattr_destroy(&fair);
}

#endif
