/* See transmission.h. */
#define _GNU_SOURCE
#include "payload/nbd/transmission.h"

#include <endian.h>
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>

/* proto.md, "Request message" and "Simple reply message" */
#define REQUEST_MAGIC 0x25609513u
#define REPLY_MAGIC 0x67446698u

void nbd_transmission_begin(struct nbd_transmission *transmission, int socket) {
    transmission->socket = socket;
    transmission->first_outgoing = transmission->last_outgoing = transmission->receiving = NULL;
    transmission->sent = transmission->received = transmission->start = transmission->end = 0;
}

static void put(uint8_t *at, uint64_t value, size_t size) {
    uint64_t big = htobe64(value << (64 - 8 * size));
    memcpy(at, &big, size);
}

static uint64_t get(const uint8_t *at, size_t size) {
    uint64_t big = 0;
    memcpy(&big, at, size);
    return be64toh(big) >> (64 - 8 * size);
}

/* A command's cookie is its address; one that a server makes up is found in no list. */
static void make_request(const struct nbd_command *command, uint8_t *request) {
    put(request, REQUEST_MAGIC, 4);
    put(request + 4, command->flags, 2);
    put(request + 6, (uint64_t)command->kind, 2);
    put(request + 8, (uintptr_t)command, 8);
    put(request + 16, command->offset, 8);
    put(request + 24, command->size, 4);
}

int nbd_transmission_send_rest(struct nbd_transmission *transmission) {
    while (transmission->first_outgoing) {
        struct nbd_command *command = transmission->first_outgoing;
        uint8_t request[NBD_REQUEST_SIZE];
        size_t size = command->kind == NBD_WRITE ? command->size : 0, sent = transmission->sent;
        size_t head = sent < sizeof request ? sizeof request - sent : 0, body = sent - (sizeof request - head);
        make_request(command, request);
        struct iovec parts[2] = {{request + sizeof request - head, head}, {command->data + body, size - body}};
        struct msghdr message = {.msg_iov = parts, .msg_iovlen = size ? 2 : 1};
        ssize_t count = sendmsg(transmission->socket, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (count < 0 && errno == EINTR)
            continue;
        if (count < 0)
            return errno == EAGAIN ? 0 : -1;
        transmission->sent += (size_t)count;
        command->sent = 1;
        if (transmission->sent == sizeof request + size) {
            transmission->first_outgoing = command->next_outgoing;
            transmission->sent = 0;
        }
    }
    return 0;
}

int nbd_transmission_send(struct nbd_transmission *transmission, struct nbd_command *command) {
    command->next_outgoing = NULL;
    command->sent = 0;
    if (transmission->first_outgoing) {
        transmission->last_outgoing->next_outgoing = command;
        transmission->last_outgoing = command;
        return 0; /* whoever waits for the socket sends it */
    }
    transmission->first_outgoing = transmission->last_outgoing = command;
    return nbd_transmission_send_rest(transmission);
}

/* Returns 0 or -1 for a reply that is none. */
static int begin_reply(struct nbd_transmission *transmission, struct nbd_command *commands, const uint8_t *reply) {
    struct nbd_command *command = commands;
    uint64_t cookie = get(reply + 8, 8);
    while (command && (uintptr_t)command != cookie)
        command = command->next;
    if (get(reply, 4) != REPLY_MAGIC || !command || !command->sent || command->answered)
        return -1;
    if (command == transmission->first_outgoing)
        return -1; /* it has not been asked yet */
    uint64_t error = get(reply + 4, 4);
    command->result = error <= INT32_MAX ? (int)error : EIO;
    if (command->kind == NBD_READ && !command->result) {
        transmission->receiving = command;
        transmission->received = 0;
    } else
        command->answered = 1;
    return 0;
}

static void receive_data(struct nbd_transmission *transmission, size_t count) {
    struct nbd_command *command = transmission->receiving;
    transmission->received += count;
    if (transmission->received == command->size) {
        command->answered = 1;
        transmission->receiving = NULL;
    }
}

/* Goes through what has come in. Returns 0 or -1. */
static int sort(struct nbd_transmission *transmission, struct nbd_command *commands) {
    for (;;) {
        size_t there = transmission->end - transmission->start;
        const uint8_t *data = transmission->incoming + transmission->start;
        struct nbd_command *command = transmission->receiving;
        if (command && there) {
            size_t wanted = command->size - transmission->received, count = there < wanted ? there : wanted;
            memcpy(command->data + transmission->received, data, count);
            transmission->start += count;
            receive_data(transmission, count);
        } else if (!command && there >= NBD_REPLY_SIZE) {
            transmission->start += NBD_REPLY_SIZE;
            if (begin_reply(transmission, commands, data) < 0)
                return -1;
        } else
            return 0;
    }
}

int nbd_transmission_receive(struct nbd_transmission *transmission, struct nbd_command *commands) {
    for (;;) {
        struct nbd_command *command = transmission->receiving;
        memmove(transmission->incoming, transmission->incoming + transmission->start,
                transmission->end - transmission->start);
        transmission->end -= transmission->start;
        transmission->start = 0;
        size_t room = sizeof transmission->incoming - transmission->end;
        /* what is large goes to its place at once */
        struct iovec parts[2] = {{NULL, 0}, {transmission->incoming + transmission->end, room}};
        if (command)
            parts[0] = (struct iovec){command->data + transmission->received, command->size - transmission->received};
        struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};
        ssize_t count = recvmsg(transmission->socket, &message, MSG_DONTWAIT);
        if (count < 0 && errno == EINTR)
            continue;
        if (count < 0)
            return errno == EAGAIN ? 0 : -1;
        if (count == 0)
            return -1;
        size_t asked = parts[0].iov_len + room, direct = (size_t)count < parts[0].iov_len ? (size_t)count : parts[0].iov_len;
        if (direct)
            receive_data(transmission, direct);
        transmission->end += (size_t)count - direct;
        if (sort(transmission, commands) < 0)
            return -1;
        if ((size_t)count < asked)
            return 0;
    }
}

void nbd_transmission_end(struct nbd_transmission *transmission) {
    uint8_t request[NBD_REQUEST_SIZE];
    struct nbd_command command = {.kind = NBD_DISCONNECT};
    make_request(&command, request);
    if (transmission->socket >= 0 && !transmission->first_outgoing)
        (void)send(transmission->socket, request, sizeof request, MSG_DONTWAIT | MSG_NOSIGNAL);
    transmission->socket = -1;
}
