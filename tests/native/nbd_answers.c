/* Gives the NBD client's receiving half answers that no server should give, made up from good ones, and sees that it takes
 * them for what they are: every command gets its own bytes, or the connection is over.
 *
 *   nbd_answers SEED EXECUTIONS
 *
 * Built with sanitizers by test_nbd_client.py. */
#define _GNU_SOURCE
#include <endian.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "payload/nbd/transmission.h"

#define COMMANDS 6
#define LARGEST 2048

static uint64_t state;

static uint32_t rnd(uint32_t below) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state >> 33) % below;
}

static void check(int so, const char *what) {
    if (!so) {
        fprintf(stderr, "nbd_answers: %s\n", what);
        _exit(1);
    }
}

static size_t good_answer(uint8_t *at, const struct nbd_command *command, uint32_t error) {
    uint32_t magic = htobe32(0x67446698), big = htobe32(error);
    uint64_t cookie = htobe64((uintptr_t)command);
    memcpy(at, &magic, 4);
    memcpy(at + 4, &big, 4);
    memcpy(at + 8, &cookie, 8);
    size_t data = command->kind == NBD_READ && !error ? command->size : 0;
    memset(at + 16, (int)(command->offset & 255), data);
    return 16 + data;
}

int main(int count, char **arguments) {
    if (count != 3)
        return 2;
    state = strtoull(arguments[1], NULL, 10);
    unsigned long executions = strtoul(arguments[2], NULL, 10), over = 0, answered = 0;
    static struct nbd_transmission transmission;
    int ends[2];
    uint8_t stream[COMMANDS * (16 + LARGEST) + 64], requests[1 << 16];
    check(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0, "socketpair");
    for (unsigned long execution = 0; execution < executions; execution++) {
        struct nbd_command commands[COMMANDS];
        size_t length = 0;
        nbd_transmission_begin(&transmission, ends[0]);
        for (unsigned i = 0; i < COMMANDS; i++) {
            commands[i] = (struct nbd_command){.kind = (enum nbd_kind[]){NBD_READ, NBD_READ, NBD_WRITE, NBD_FLUSH}[rnd(4)],
                                               .size = 1 + rnd(LARGEST), .offset = rnd(1 << 20),
                                               .next = i ? &commands[i - 1] : NULL};
            commands[i].data = calloc(1, commands[i].size);
            check(nbd_transmission_send(&transmission, &commands[i]) == 0, "sending");
        }
        while (recv(ends[1], requests, sizeof requests, MSG_DONTWAIT) > 0)
            ;
        for (unsigned i = 0; i < COMMANDS; i++) /* some twice, some not at all */
            length += good_answer(stream + length, &commands[rnd(4) ? i : rnd(COMMANDS)], rnd(6) ? 0 : rnd(2) ? rnd(200) : ~0u);
        int spoilt = rnd(4) != 0;
        for (unsigned changes = spoilt ? 1 + rnd(4) : 0; changes; changes--)
            stream[rnd(2) ? rnd((uint32_t)length) : rnd(16)] = (uint8_t)rnd(256);
        if (rnd(4) == 0)
            length -= rnd((uint32_t)length);
        int status = 0;
        for (size_t sent = 0; sent < length && !status;) {
            size_t piece = 1 + rnd((uint32_t)(length - sent));
            check(send(ends[1], stream + sent, piece, 0) == (ssize_t)piece, "answering");
            sent += piece;
            status = nbd_transmission_receive(&transmission, &commands[COMMANDS - 1]);
        }
        over += status != 0;
        for (unsigned i = 0; i < COMMANDS; i++) {
            const struct nbd_command *command = &commands[i];
            answered += command->answered != 0;
            if (command->answered && !command->result && command->kind == NBD_READ && !spoilt)
                for (size_t byte = 0; byte < command->size; byte++)
                    check(command->data[byte] == (uint8_t)(command->offset & 255), "wrong data");
            free(command->data);
        }
        uint8_t rest[1 << 16]; /* what was not read is not the next one's */
        while (recv(ends[0], rest, sizeof rest, MSG_DONTWAIT) > 0)
            ;
    }
    printf("%lu executions, %lu answers, %lu connections over\n", executions, answered, over);
    return answered && over ? 0 : 1;
}
