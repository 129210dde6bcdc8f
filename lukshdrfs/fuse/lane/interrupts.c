/* See interrupts.h. */
#include "fuse/lane/interrupts.h"

#include <stddef.h>

void interrupts_init(struct interrupts *interrupts) {
    *interrupts = (struct interrupts){.first = NULL};
    pthread_mutex_init(&interrupts->mutex, NULL);
}

void interrupts_destroy(struct interrupts *interrupts) { pthread_mutex_destroy(&interrupts->mutex); }

void interrupts_begin(struct interrupts *interrupts, struct interruptible *request, uint64_t unique) {
    pthread_mutex_lock(&interrupts->mutex);
    request->unique = unique;
    atomic_store(&request->interrupted, interrupts->always);
    for (size_t i = 0; i < REMEMBERED_INTERRUPTS; i++)
        if (interrupts->remembered[i] == unique)
            atomic_store(&request->interrupted, 1);
    request->next = interrupts->first;
    interrupts->first = request;
    pthread_mutex_unlock(&interrupts->mutex);
}

void interrupts_end(struct interrupts *interrupts, struct interruptible *request) {
    pthread_mutex_lock(&interrupts->mutex);
    struct interruptible **at = &interrupts->first;
    while (*at != request)
        at = &(*at)->next;
    *at = request->next;
    pthread_mutex_unlock(&interrupts->mutex);
}

void interrupts_deliver(struct interrupts *interrupts, uint64_t unique) {
    pthread_mutex_lock(&interrupts->mutex);
    interrupts->remembered[interrupts->next++ % REMEMBERED_INTERRUPTS] = unique;
    for (struct interruptible *each = interrupts->first; each; each = each->next)
        if (each->unique == unique)
            atomic_store(&each->interrupted, 1);
    pthread_mutex_unlock(&interrupts->mutex);
}

void interrupts_deliver_all(struct interrupts *interrupts) {
    pthread_mutex_lock(&interrupts->mutex);
    interrupts->always = 1;
    for (struct interruptible *each = interrupts->first; each; each = each->next)
        atomic_store(&each->interrupted, 1);
    pthread_mutex_unlock(&interrupts->mutex);
}
