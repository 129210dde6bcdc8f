/* NBD's transmission phase on a socket: requests out, simple replies in (proto.md, "Transmission phase").
 *
 * libnbd has it too, and serves connections under TLS here; it sends a write in two parts, which wakes the server twice,
 * and receives reply by reply. benchmarks/README.md has the difference. Not thread-safe. */
#ifndef LUKSHDRFS_NBD_TRANSMISSION_H
#define LUKSHDRFS_NBD_TRANSMISSION_H

#include <stddef.h>
#include <stdint.h>

#include "payload/nbd/command.h"

#define NBD_REQUEST_SIZE 28
#define NBD_REPLY_SIZE 16

struct nbd_transmission {
    int socket; /* -1: none */
    struct nbd_command *first_outgoing, *last_outgoing; /* not sent yet, or not all of it */
    size_t sent;                                        /* bytes of the first one */
    struct nbd_command *receiving;                      /* whose data come next */
    size_t received;                                    /* bytes of them */
    size_t start, end;                                  /* what `incoming` holds */
    uint8_t incoming[1 << 16];
};

/* Takes over a socket whose handshake is done; what was left of an earlier one is forgotten. */
void nbd_transmission_begin(struct nbd_transmission *transmission, int socket);

/* Sends a command, as far as the socket takes it. Returns 0 or -1 if the connection is over. */
int nbd_transmission_send(struct nbd_transmission *transmission, struct nbd_command *command);

/* Sends what is left. */
int nbd_transmission_send_rest(struct nbd_transmission *transmission);

/* Receives what there is, of answers to the commands in a list; sets their `answered` and `result`. Returns 0 or -1 if the
 * connection is over, or the server says what no server may say. */
int nbd_transmission_receive(struct nbd_transmission *transmission, struct nbd_command *commands);

/* Tells the server that there will be no more commands, if that can be without waiting. */
void nbd_transmission_end(struct nbd_transmission *transmission);

#endif
