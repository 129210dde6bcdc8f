/* The transport over /dev/fuse. See transport.h. */
#define _GNU_SOURCE
#include "fuse/lane/transport.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#include "volume/native_volume.h"

struct transport {
    int device;
};

struct transport *transport_new(int device) {
    struct transport *transport = calloc(1, sizeof *transport);
    if (transport)
        transport->device = device;
    return transport;
}

void transport_free(struct transport *transport) { free(transport); }

size_t transport_buffer_size(void) { return VOLUME_ROOM + LARGEST_REQUEST + VOLUME_ROOM; }

uint8_t *transport_data(uint8_t *buffer) { return buffer + VOLUME_ROOM; }

int transport_has_more(const struct transport *transport) {
    struct pollfd device = {.fd = transport->device, .events = POLLIN};
    return poll(&device, 1, 0) > 0;
}

enum received transport_receive(struct transport *transport, uint8_t *buffer, struct request *request) {
    uint8_t *start = transport_data(buffer) - WRITE_HEAD; /* so that a WRITE's data come to lie in their place */
    ssize_t size = read(transport->device, start, WRITE_HEAD + LARGEST_REQUEST);
    if (size >= (ssize_t)sizeof(struct fuse_in_header)) {
        *request = (struct request){
            .size = (size_t)size, .data = transport_data(buffer), .message = start};
        memcpy(&request->head, start, (size_t)size < sizeof request->head ? (size_t)size : sizeof request->head);
        return RECEIVED_REQUEST;
    }
    if (size == 0 || (size < 0 && errno == ENODEV))
        return RECEIVED_END;
    if (size > 0 || errno == EINTR || errno == ENOENT || errno == EAGAIN) /* ENOENT: its caller was killed */
        return RECEIVED_NOTHING;
    return RECEIVED_ERROR;
}

/* Nothing is to be done where an answer is refused: the caller was killed (ENOENT), or the mount is gone (ENODEV). */
void transport_answer(struct transport *transport, uint64_t unique, int error, const void *body, size_t size) {
    size_t sent = error ? 0 : size;
    struct fuse_out_header header = {.len = (uint32_t)(sizeof header + sent), .error = -error, .unique = unique};
    struct iovec parts[2] = {{.iov_base = &header, .iov_len = sizeof header},
                             {.iov_base = (void *)(uintptr_t)body, .iov_len = sent}};
    while (writev(transport->device, parts, sent ? 2 : 1) < 0 && errno == EINTR)
        ;
}

void transport_send(struct transport *transport, const void *message, size_t size) {
    while (size && write(transport->device, message, size) < 0 && errno == EINTR)
        ;
}
