/* A payload behind an NBD server: bytes at offsets, for any number of threads at once, through libnbd.
 *
 * A server that goes away is connected to again, and what it had acknowledged but not flushed is written again before
 * anything else. Protocol: NetworkBlockDevice/nbd, doc/proto.md. */
#ifndef LUKSHDRFS_NBD_CLIENT_H
#define LUKSHDRFS_NBD_CLIENT_H

#include <stddef.h>
#include <stdint.h>

#include "payload/nbd/options.h"
#include "payload/payload.h"

struct nbd_client;

/* Connects. Returns NULL where that fails, with what is wrong: enum nbd_client_trouble, and for NO_SERVER words. */
struct nbd_client *nbd_client_open(const struct nbd_client_config *config, int *trouble, char *words, size_t room);

/* Nobody may be using it. Nothing is flushed. */
void nbd_client_close(struct nbd_client *client);

/* Returns the client as a payload; it stays the client's. A request that no thread waits for should be small: one thread
 * receives all answers. */
struct payload *nbd_client_payload(struct nbd_client *client);

/* Each returns 0 or an errno. Sizes and offsets are in bytes, and need not be multiples of the server's blocks. */
int nbd_client_read(struct nbd_client *client, uint8_t *data, size_t size, uint64_t offset);
/* Whoever writes to a place keeps all others from writing there meanwhile. With `synchronous`, it is on the server's storage
 * on return. */
int nbd_client_write(struct nbd_client *client, const uint8_t *data, size_t size, uint64_t offset, int synchronous);
/* Everything that was acknowledged is on the server's storage then. A flush that failed meanwhile, without having been
 * `asked` for, fails the next one that is. */
int nbd_client_flush(struct nbd_client *client, int asked);

/* Has nobody wait for the server any more: whatever is under way fails with EIO, and so does all that comes, until
 * nbd_client_wait_again() is called. What was acknowledged stays kept. */
void nbd_client_fail_waiting(struct nbd_client *client);
void nbd_client_wait_again(struct nbd_client *client);

/* Asks the server for the export's size again. Returns 0 or an errno. */
int nbd_client_refresh(struct nbd_client *client);

uint64_t nbd_client_size(const struct nbd_client *client);
int nbd_client_can_flush(const struct nbd_client *client);
unsigned nbd_client_connections(const struct nbd_client *client);

/* Returns how many bytes of acknowledged writes are not flushed. */
size_t nbd_client_unflushed(struct nbd_client *client);

#endif
