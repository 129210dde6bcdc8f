/* A payload that is a file or a block device. */
#ifndef LUKSHDRFS_FILE_PAYLOAD_H
#define LUKSHDRFS_FILE_PAYLOAD_H

#include <stddef.h>
#include <stdint.h>

struct payload;

/* `descriptor` stays the caller's; the `count` others, further open file descriptions of the same file, do not. So many
 * synchronous writes are done at a time, and one where there are none. With `through`, every write is synchronous. Returns
 * NULL where memory is missing; then nothing has been taken over. */
struct payload *file_payload_new(int descriptor, const int *others, size_t count, int through);

void file_payload_free(struct payload *payload);

/* Writes at a byte; with `synchronous`, it is on the storage on return. Returns 0 or an errno. */
int file_payload_write(struct payload *payload, const uint8_t *data, size_t size, uint64_t offset, int synchronous);

/* Returns 0 when everything written is on the storage, or an errno. With `asked`, also that of a synchronous write that has
 * failed since the last such call, for its data were taken and are lost. */
int file_payload_flush(struct payload *payload, int asked);

#endif
