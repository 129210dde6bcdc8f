/* Locks on ranges of a volume: shared for readers, exclusive for writers; who comes first is served first. */
#ifndef LUKSHDRFS_SECTOR_LOCKS_H
#define LUKSHDRFS_SECTOR_LOCKS_H

#include <stdint.h>

struct sector_locks;

/* A range that is held or waited for. It belongs to the one who holds it, and stays where it is until he lets go. */
struct sector_range {
    struct sector_range *before, *after;
    uint64_t start, end; /* bytes; the end is not in it */
    int exclusive;
};

struct sector_locks *sector_locks_new(void);

/* No range may still be held or waited for. */
void sector_locks_free(struct sector_locks *locks);

/* Waits until the range is free, and holds it. A thread holds one range at a time, so no two wait for each other. */
void sector_locks_hold(struct sector_locks *locks, struct sector_range *range, uint64_t start, uint64_t end,
                       int exclusive);

/* Holds the range if it is free now, and returns whether it does. */
int sector_locks_try(struct sector_locks *locks, struct sector_range *range, uint64_t start, uint64_t end,
                     int exclusive);

void sector_locks_release(struct sector_locks *locks, struct sector_range *range);

#endif
