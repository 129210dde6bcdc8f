/* A payload behind an NBD server: bytes at offsets, for any number of threads at once, through libnbd.
 *
 * A server that goes away is connected to again, and what it had acknowledged but not flushed is written again before
 * anything else. Protocol: NetworkBlockDevice/nbd, doc/proto.md. */
#ifndef LUKSHDRFS_NBD_CLIENT_H
#define LUKSHDRFS_NBD_CLIENT_H

#include <stddef.h>
#include <stdint.h>

struct nbd_client;

struct nbd_client_config {
    const char *uri;
    int read_only;
    int write_through;      /* each write is on the storage when it returns */
    unsigned connections;   /* as many at most, where the server keeps several in step */
    unsigned patience_ms;   /* how long a request waits for a server that is away or silent, before it fails with EIO */
    unsigned kept_size;     /* bytes of unflushed writes that are kept, at most */
    uintptr_t told;         /* void (*)(uintptr_t about, int what, const char *words), from any thread, for the log */
    uintptr_t about;
};

enum nbd_client_news {
    NBD_CLIENT_LOST = 1, /* the server is gone; it is waited for */
    NBD_CLIENT_GIVEN_UP, /* requests fail from now on, until the server is there again */
    NBD_CLIENT_BACK,     /* it is there again; the words say how much was written again */
    NBD_CLIENT_REFUSED,  /* what was to be written again is refused: acknowledged writes are lost */
    NBD_CLIENT_FAILED,   /* a flush failed that nobody had asked for */
};

enum nbd_client_trouble { NBD_CLIENT_OK, NBD_CLIENT_NO_LIBRARY, NBD_CLIENT_NO_MEMORY, NBD_CLIENT_NO_SERVER,
                          NBD_CLIENT_READ_ONLY };

/* Connects. Returns NULL where that fails, with what is wrong: enum nbd_client_trouble, and for NO_SERVER words. */
struct nbd_client *nbd_client_open(const struct nbd_client_config *config, int *trouble, char *words, size_t room);

/* Nobody may be using it. Nothing is flushed. */
void nbd_client_close(struct nbd_client *client);

/* Each returns 0 or an errno. Sizes and offsets are in bytes, and need not be multiples of the server's blocks. */
int nbd_client_read(struct nbd_client *client, uint8_t *data, size_t size, uint64_t offset);
/* Whoever writes to a place keeps all others from writing there meanwhile. With `synchronous`, it is on the server's storage
 * on return. */
int nbd_client_write(struct nbd_client *client, const uint8_t *data, size_t size, uint64_t offset, int synchronous);
/* Everything that was acknowledged is on the server's storage then. A flush that failed meanwhile, without having been
 * `asked` for, fails the next one that is. */
int nbd_client_flush(struct nbd_client *client, int asked);

/* Reads or writes without waiting: `finished` is called with 0 or an errno when it is over, by another thread, which must
 * not be held up. Returns 0 if that cannot be (the server is away, or the range is no whole blocks of its): then it is to
 * be done by the functions above. For small pieces: one thread sees to the answers. */
typedef void (*nbd_client_finished)(void *argument, int error);
int nbd_client_start(struct nbd_client *client, int writing, uint8_t *data, size_t size, uint64_t offset,
                     nbd_client_finished finished, void *argument);

/* With 0, nobody waits for the server any more: whatever is under way fails with EIO, and so does all that comes, until
 * it is told to be patient again. What was acknowledged stays kept. */
void nbd_client_be_patient(struct nbd_client *client, int patient);

/* Asks the server for the export's size again. Returns 0 or an errno. */
int nbd_client_refresh(struct nbd_client *client);

uint64_t nbd_client_size(const struct nbd_client *client);
int nbd_client_can_flush(const struct nbd_client *client);
unsigned nbd_client_connections(const struct nbd_client *client);

/* How many bytes of acknowledged writes are not flushed. */
size_t nbd_client_unflushed(struct nbd_client *client);

#endif
