/* libnbd, loaded when it is needed: who has only files for payloads need not install it.
 *
 * The declarations are those of libnbd 1.x's <libnbd.h>, whose functions are part of its stable interface. */
#ifndef LUKSHDRFS_NBD_LIBRARY_H
#define LUKSHDRFS_NBD_LIBRARY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct nbd_handle;

typedef struct {
    int (*callback)(void *user_data, int *error);
    void *user_data;
    void (*free)(void *user_data);
} nbd_completion_callback;

enum { NBD_SIZE_MINIMUM = 0, NBD_SIZE_MAXIMUM = 2 };  /* LIBNBD_SIZE_* */
enum { NBD_DIRECTION_READ = 1, NBD_DIRECTION_WRITE = 2 }; /* LIBNBD_AIO_DIRECTION_* */

/* Result, name, parameters. All but the first three return -1 or NULL where they fail. */
#define NBD_FUNCTIONS(F)                                                                                              \
    F(struct nbd_handle *, create, (void))                                                                            \
    F(void, close, (struct nbd_handle *))                                                                             \
    F(const char *, get_error, (void))                                                                                \
    F(int, get_errno, (void))                                                                                         \
    F(int, set_uri_allow_local_file, (struct nbd_handle *, bool))                                                     \
    F(int, set_request_structured_replies, (struct nbd_handle *, bool))                                               \
    F(int, aio_connect_uri, (struct nbd_handle *, const char *))                                                      \
    F(int, aio_is_ready, (struct nbd_handle *))                                                                       \
    F(int, aio_is_dead, (struct nbd_handle *))                                                                        \
    F(int, aio_is_closed, (struct nbd_handle *))                                                                      \
    F(int, aio_get_fd, (struct nbd_handle *))                                                                         \
    F(unsigned, aio_get_direction, (struct nbd_handle *))                                                             \
    F(int, aio_notify_read, (struct nbd_handle *))                                                                    \
    F(int, aio_notify_write, (struct nbd_handle *))                                                                   \
    F(int64_t, aio_pread, (struct nbd_handle *, void *, size_t, uint64_t, nbd_completion_callback, uint32_t))         \
    F(int64_t, aio_pwrite, (struct nbd_handle *, const void *, size_t, uint64_t, nbd_completion_callback, uint32_t))  \
    F(int64_t, aio_flush, (struct nbd_handle *, nbd_completion_callback, uint32_t))                                   \
    F(int, get_tls_negotiated, (struct nbd_handle *))                                                                 \
    F(int64_t, get_size, (struct nbd_handle *))                                                                       \
    F(int64_t, get_block_size, (struct nbd_handle *, int))                                                            \
    F(int, is_read_only, (struct nbd_handle *))                                                                       \
    F(int, can_flush, (struct nbd_handle *))                                                                          \
    F(int, can_fua, (struct nbd_handle *))                                                                            \
    F(int, can_multi_conn, (struct nbd_handle *))

#define NBD_POINTER(result, name, parameters) result(*name) parameters;
struct nbd_library {
    NBD_FUNCTIONS(NBD_POINTER)
    int (*set_pread_initialize)(struct nbd_handle *, bool); /* 1.12; NULL where it is older */
};
#undef NBD_POINTER

/* Returns the library, or NULL if it is not installed or lacks something. Loads it once; by one thread. */
const struct nbd_library *nbd_library_load(void);

#endif
