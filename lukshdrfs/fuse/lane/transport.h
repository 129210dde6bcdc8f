/* How requests come from the kernel, and how answers get there. */
#ifndef LUKSHDRFS_TRANSPORT_H
#define LUKSHDRFS_TRANSPORT_H

#include <stddef.h>
#include <stdint.h>

#include "fuse/lane/request.h"

struct transport;

/* Over `device`, /dev/fuse, which stays the caller's and is blocking. Returns NULL where there is no memory. */
struct transport *transport_new(int device);
void transport_free(struct transport *transport);

/* Bytes of the memory that a thread brings along for a request, and where in it the request's data come to lie. */
size_t transport_buffer_size(void);
uint8_t *transport_data(uint8_t *buffer);

enum received {
    RECEIVED_NOTHING,  /* a signal came */
    RECEIVED_REQUEST,
    RECEIVED_END,      /* there will be no more: the file system is unmounted */
    RECEIVED_ERROR,    /* the same, with errno */
};

/* Waits for a request, which comes to lie in `buffer`. */
enum received transport_receive(struct transport *transport, uint8_t *buffer, struct request *request);

/* Whether a request waits to be received. Does not wait. */
int transport_has_more(const struct transport *transport);

/* Answers a request, once, from any thread: with an errno and nothing else, or with 0 and `size` bytes. */
void transport_answer(struct transport *transport, uint64_t unique, int error, const void *body, size_t size);

/* Sends a message that is complete: an answer, or a notification, which may wait for requests that are under way. */
void transport_send(struct transport *transport, const void *message, size_t size);

#endif
