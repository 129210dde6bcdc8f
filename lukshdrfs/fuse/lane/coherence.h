/* Keeps what the kernel has cached of the image in step with writes that go past its cache.
 *
 * There are two ways to the image: through the kernel's page cache (read(2), mmap(2)) and past it (O_DIRECT, loop devices
 * with direct I/O, asynchronous I/O). Before a direct write the kernel drops the pages of its range, but a reader may bring
 * the old data back until the write has reached the payload; for asynchronous writes the kernel does not look again. So
 * we have it drop them once more, after the data are on the payload and before the write is answered: whoever reads after
 * the write's end reads what was written, through a mapping, too.
 *
 * To drop a page, the kernel waits until nobody reads or writes it, so until a request is answered that the page belongs
 * to. Nobody may wait for that who is needed to answer it: a thread of its own does, and it holds nothing.
 *
 * What may be cached is known: the kernel fills its cache with requests that have no lock owner, direct ones have one
 * (fuse_direct_io() in the kernel's fs/fuse/file.c). Where nothing is cached, a write costs two looks at a bitmap. */
#ifndef LUKSHDRFS_COHERENCE_H
#define LUKSHDRFS_COHERENCE_H

#include <stddef.h>
#include <stdint.h>

struct coherence;
struct transport;

/* `device` is what the transport needs to stay open, `size` the image's in bytes; it may become larger. NULL: there is no
 * memory. */
struct coherence *coherence_new(struct transport *transport, int device, uint64_t size);
void coherence_free(struct coherence *coherence);

/* Starts the thread. If `confined`, it can use nothing but `device`. Returns 0 or an errno. */
int coherence_start(struct coherence *coherence, int confined);

/* The kernel is about to have so many bytes of its file `node` in its cache. To be called before they are read from the
 * payload or written to it. */
void coherence_note_cached(struct coherence *coherence, uint64_t node, uint64_t offset, uint64_t size);

/* A write past the cache is done, or failed half-way: sends its answer, `message`, to the kernel; if any of the range may
 * be cached, after it is dropped. Does not wait. */
void coherence_answer(struct coherence *coherence, uint64_t offset, uint64_t size, const void *message, size_t length);

/* Sends an answer after a range is dropped, cached or not, for the kernel takes the range for unchanged. Does not wait. */
void coherence_drop_and_answer(struct coherence *coherence, uint64_t node, uint64_t offset, uint64_t size,
                               const void *message, size_t length);

/* Sends the kernel a message that may make it wait for requests, a notification of libfuse's. Does not wait. */
void coherence_notify(struct coherence *coherence, const void *message, size_t length);

/* Has the kernel drop all that may be cached. Does not wait: coherence_is_idle() says when that is done. */
void coherence_drop_all(struct coherence *coherence);

/* Whether all answers that were asked for are sent. */
int coherence_is_idle(struct coherence *coherence);

/* From now on answers are sent at once: the mount is ending, and who would serve a page's request may be gone. */
void coherence_end(struct coherence *coherence);

/* Returns 1 when the thread has ended, 0 if it has not at a time of now_ms(). */
int coherence_join(struct coherence *coherence, int64_t until);

#endif
