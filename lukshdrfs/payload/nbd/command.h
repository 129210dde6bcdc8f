/* What is asked of an NBD server. */
#ifndef LUKSHDRFS_NBD_COMMAND_H
#define LUKSHDRFS_NBD_COMMAND_H

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>

enum nbd_kind { NBD_READ = 0, NBD_WRITE = 1, NBD_DISCONNECT = 2, NBD_FLUSH = 3 }; /* NBD_CMD_* */
enum { NBD_FLAG_FUA = 1 };                                                       /* NBD_CMD_FLAG_FUA */

enum { NBD_NO_ANSWER = -1 }; /* the connection broke: nobody knows what has become of the command */

struct nbd_connection;

struct nbd_command {
    enum nbd_kind kind;
    uint8_t *data;
    size_t size;     /* bytes, fewer than 4 GiB */
    uint64_t offset; /* bytes */
    uint32_t flags;  /* NBD_FLAG_* */
    int64_t until;   /* of now_ms(); an answer that comes later is none */
    /* Called once it is over, by the connection's thread, without a lock. NULL: somebody is in nbd_connection_run(). */
    void (*finished)(struct nbd_command *command, int result);
    /* the connection's own: */
    struct nbd_connection *connection;
    struct nbd_command *next, *next_outgoing;
    pthread_cond_t called;
    int sent, answered, over, result;
};

#endif
