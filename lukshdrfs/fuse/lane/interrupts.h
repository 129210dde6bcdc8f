/* FALLOCATEs that are interrupted. Reads and writes are not: programs do not expect that of a file, and they end by
 * themselves. */
#ifndef LUKSHDRFS_INTERRUPTS_H
#define LUKSHDRFS_INTERRUPTS_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>

/* Interrupts whose requests have not been seen: another thread may have read the one that came first. */
#define REMEMBERED_INTERRUPTS 16

/* A request that may be interrupted, while it is served. */
struct interruptible {
    struct interruptible *next;
    uint64_t unique;
    atomic_int interrupted;
};

struct interrupts {
    pthread_mutex_t mutex; /* for all that follows */
    struct interruptible *first;
    uint64_t remembered[REMEMBERED_INTERRUPTS];
    unsigned next;
    int always;
};

void interrupts_init(struct interrupts *interrupts);
void interrupts_destroy(struct interrupts *interrupts);

/* From here on an interrupt finds the request; one that came earlier is found, too. */
void interrupts_begin(struct interrupts *interrupts, struct interruptible *request, uint64_t unique);
void interrupts_end(struct interrupts *interrupts, struct interruptible *request);

/* Interrupts the request that has this number, now or when it begins. */
void interrupts_deliver(struct interrupts *interrupts, uint64_t unique);

/* Interrupts all requests, those that are to come, too. */
void interrupts_deliver_all(struct interrupts *interrupts);

#endif
