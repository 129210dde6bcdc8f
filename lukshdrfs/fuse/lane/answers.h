/* Answers to requests that write, in step with what the kernel has cached of the image (coherence.h). */
#ifndef LUKSHDRFS_ANSWERS_H
#define LUKSHDRFS_ANSWERS_H

#include <stdint.h>

#include "fuse/lane/coherence.h"
#include "fuse/lane/transport.h"

struct answers {
    struct transport *transport;
    struct coherence *coherence;
};

/* Answers a WRITE of `count` bytes, `direct` if it went past the page cache. Whoever has read them in between through the
 * cache may have put back there what they were before: a direct write is answered when the kernel has none of them. So is
 * one that failed, for a part may have been written. */
void answers_written(const struct answers *answers, uint64_t unique, int direct, int error, uint64_t offset,
                     uint64_t count);

/* Answers a FALLOCATE of which `zeroed` bytes from `offset` on are zeros now. The kernel takes what is half done for not
 * done at all. */
void answers_allocated(const struct answers *answers, uint64_t unique, uint64_t node, int error, uint64_t offset,
                       uint64_t zeroed);

#endif
