/* What a client is to do, and what it tells of. */
#ifndef LUKSHDRFS_NBD_OPTIONS_H
#define LUKSHDRFS_NBD_OPTIONS_H

#include <stdint.h>

struct nbd_client_config {
    const char *uri;
    int read_only;
    int write_through;      /* each write is on the storage when it returns */
    unsigned connections;   /* as many at most, where the server keeps several in step */
    unsigned patience_ms;   /* how long a request waits for a server that is away or silent, before it fails with EIO */
    unsigned kept_size;     /* bytes of unflushed writes that are kept, at most */
    /* Called for each event, enum nbd_client_event, from any thread, with words where the event has some. May be NULL. */
    void (*on_event)(void *context, int event, const char *detail);
    void *context;
};

enum nbd_client_event {
    NBD_CLIENT_LOST = 1, /* the server is gone; it is waited for */
    NBD_CLIENT_GIVEN_UP, /* requests fail from now on, until the server is there again */
    NBD_CLIENT_BACK,     /* it is there again; the detail says how many bytes were written again */
    NBD_CLIENT_REFUSED,  /* what was to be written again is refused: acknowledged writes are lost */
    NBD_CLIENT_FAILED,   /* a flush failed that nobody had asked for */
};

enum nbd_client_trouble { NBD_CLIENT_OK, NBD_CLIENT_NO_LIBRARY, NBD_CLIENT_NO_MEMORY, NBD_CLIENT_NO_SERVER,
                          NBD_CLIENT_READ_ONLY };

#endif
