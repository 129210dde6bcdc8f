/* Writes to a payload that is a file or a block device, and what becomes of each of them.
 *
 * The kernel tells each open file description once that something could not be written, whatever it was, and whoever asks
 * first hears it (errseq_t). So a synchronous write has a description of its own for as long as it takes: nobody else can
 * hear of its failure in its stead. What it hears may be the failure of another one's; then it is done again while no
 * other one is under way. */
#ifndef LUKSHDRFS_FILE_WRITES_H
#define LUKSHDRFS_FILE_WRITES_H

#include <stddef.h>
#include <stdint.h>

struct file_writes;

/* `descriptor` stays the caller's; the `count` others, further open file descriptions of the same file, do not. So many
 * synchronous writes are done at a time, and one where there are none. With `through`, every write is synchronous;
 * `in_memory`: the file is on a tmpfs. Returns NULL where memory is missing; then nothing has been taken over. */
struct file_writes *file_writes_new(int descriptor, const int *others, size_t count, int through, int in_memory);
void file_writes_free(struct file_writes *writes);

/* Writes at a byte; with `synchronous`, it is on the storage on return. Returns 0 or an errno. */
int file_writes_write(struct file_writes *writes, const uint8_t *data, size_t size, uint64_t offset, int synchronous);

/* Returns 0 when everything written is on the storage, or an errno. With `asked`, also that of a synchronous write that has
 * failed since the last such call, for its data were taken and are lost. */
int file_writes_flush(struct file_writes *writes, int asked);

#endif
