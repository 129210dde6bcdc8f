/* What goes through libfuse: every request that is not served here goes to it as it is, over a socket that it takes for
 * /dev/fuse. Its answers come back the same way, and some are amended. */
#ifndef LUKSHDRFS_RELAY_H
#define LUKSHDRFS_RELAY_H

#include <pthread.h>

#include "fuse/lane/answers.h"
#include "fuse/lane/flush_errors.h"
#include "threads/ready_thread.h"

struct relay_config {
    int libfuse;              /* our end of the socket */
    int confined;             /* the thread may use what is open, and nothing else */
    uint32_t largest_request; /* bytes of data, that INIT's answer may grant */
    uint32_t page_size;       /* the kernel's, in bytes: it counts requests in pages */
};

struct relay {
    struct relay_config config;
    const struct answers *answers;
    struct flush_errors *flush_errors; /* where opened handles are noted */
    const struct volume_host *host;

    pthread_mutex_t mutex; /* for all that follows, up to the thread */
    struct opening *openings;
    struct relayed_write *writes;
    uint64_t init_unique;
    uint32_t offered, offered2; /* flags and flags2 of the kernel's INIT */
    int coherent; /* O_DIRECT may go past the page cache: the kernel keeps both in step */

    struct ready_thread thread;
    uint8_t *buffer;
};

/* Returns 0 or an errno. */
int relay_init(struct relay *relay, const struct relay_config *config, const struct answers *answers,
               struct flush_errors *flush_errors, const struct volume_host *host);
void relay_destroy(struct relay *relay);

/* Starts the thread that brings libfuse's answers to the kernel. Returns 0 or an errno. */
int relay_start(struct relay *relay);

/* Sends a request to libfuse. May wait. */
void relay_forward(struct relay *relay, const struct request *request);

/* Ends the thread. Returns whether it has ended, at a time of now_ms() at the latest. */
int relay_stop(struct relay *relay, int64_t until);

/* Has a thread's share of the C library's memory there before it is needed, as for a request that is forwarded. */
void relay_warm_up(void);

#endif
