/* What a failed call on a file says to whoever uses the disk that is made of it. */
#ifndef LUKSHDRFS_ERRNO_OF_DISK_H
#define LUKSHDRFS_ERRNO_OF_DISK_H

#include <errno.h>

/* Returns the errno that a request gets. A file system whose daemon is gone speaks of its own connection; to whoever uses
 * the image that is a disk that fails. */
static inline int errno_of_disk(void) { return errno == ENOTCONN || errno == ECONNABORTED ? EIO : errno; }

#endif
