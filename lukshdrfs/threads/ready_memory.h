/* Memory that is there before it is used.
 *
 * Whoever serves a disk must not need memory to do so: when there is none, the kernel writes to that very disk to get
 * some. So all of it is touched in advance. Where the process may lock its memory it stays there, too. */
#ifndef LUKSHDRFS_READY_MEMORY_H
#define LUKSHDRFS_READY_MEMORY_H

#include <stddef.h>

/* Returns zeros, kept out of core dumps, or NULL where there is not so much. `size` is in bytes, a multiple of a page. */
void *ready_memory(size_t size);

/* Has memory there that belongs to nobody else yet. */
void ready_memory_touch(void *memory, size_t size);

void ready_memory_free(void *memory, size_t size);

#endif
