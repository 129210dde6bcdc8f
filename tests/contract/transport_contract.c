/* What a transport promises to the lane (fuse/lane/transport.h), tried from the kernel's side.
 *
 *   transport_contract
 *
 * The kernel is the other end of a socket pair, whose messages have their bounds, as those of /dev/fuse. */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "fuse/lane/transport.h"
#include "volume/native_volume.h"

#define CHECK(condition) ((condition) ? (void)0 : fail(#condition, __LINE__))

static int kernel, device;
static struct transport *transport;
static uint8_t *buffer;

static void fail(const char *what, int line) {
    fprintf(stderr, "transport_contract.c:%d: %s is not so (%s)\n", line, what, strerror(errno));
    _exit(1);
}

static void post_write(uint64_t unique, const uint8_t *data, uint32_t size) {
    static uint8_t message[1 << 17];
    struct fuse_in_header header = {.len = (uint32_t)(WRITE_HEAD + size), .opcode = FUSE_WRITE, .unique = unique};
    struct fuse_write_in in = {.size = size, .offset = 4096, .write_flags = FUSE_WRITE_LOCKOWNER};
    memcpy(message, &header, sizeof header);
    memcpy(message + sizeof header, &in, sizeof in);
    memcpy(message + WRITE_HEAD, data, size);
    CHECK(send(kernel, message, header.len, 0) == (ssize_t)header.len);
}

/* A request is there whole, its data where there is room before and behind them. */
static void check_requests(void) {
    uint8_t data[9000];
    struct request request;
    for (size_t i = 0; i < sizeof data; i++)
        data[i] = (uint8_t)(i * 7);
    CHECK(!transport_has_more(transport));
    post_write(11, data, sizeof data);
    post_write(12, data, 1);
    CHECK(transport_has_more(transport));
    CHECK(transport_receive(transport, buffer, &request) == RECEIVED_REQUEST);
    CHECK(request.head.header.opcode == FUSE_WRITE && request.head.header.unique == 11);
    CHECK(request.head.write.size == sizeof data && request.size == WRITE_HEAD + sizeof data);
    CHECK(request.data == transport_data(buffer) && !memcmp(request.data, data, sizeof data));
    CHECK(request.data - buffer >= VOLUME_ROOM);
    CHECK(transport_buffer_size() - (size_t)(request.data - buffer) >= LARGEST_REQUEST + VOLUME_ROOM);
    CHECK(!memcmp(request.message + WRITE_HEAD, data, sizeof data));
    CHECK(is_direct_write(&request));
    CHECK(transport_receive(transport, buffer, &request) == RECEIVED_REQUEST);
    CHECK(request.head.header.unique == 12 && request.head.write.size == 1);
    CHECK(!transport_has_more(transport));
}

/* One message each: an error without a body, a body behind its header, and what is complete as it is. */
static void check_answers(void) {
    struct {
        struct fuse_out_header header;
        uint8_t body[64];
    } got;
    transport_answer(transport, 21, EIO, "ignored", 7);
    CHECK(recv(kernel, &got, sizeof got, 0) == sizeof got.header);
    CHECK(got.header.unique == 21 && got.header.error == -EIO && got.header.len == sizeof got.header);
    transport_answer(transport, 22, 0, "plaintext", 9);
    CHECK(recv(kernel, &got, sizeof got, 0) == sizeof got.header + 9);
    CHECK(got.header.unique == 22 && !got.header.error && !memcmp(got.body, "plaintext", 9));
    struct fuse_out_header notice = {.len = sizeof notice, .error = FUSE_NOTIFY_INVAL_INODE};
    transport_send(transport, &notice, sizeof notice);
    CHECK(recv(kernel, &got, sizeof got, 0) == sizeof notice && !got.header.unique);
}

static void wake(int number) { (void)number; }

static void *interrupt_soon(void *thread) {
    usleep(50000);
    pthread_kill(*(pthread_t *)thread, SIGUSR1);
    return NULL;
}

/* A signal ends the wait for a request, and nothing is lost by it. */
static void check_interrupts(void) {
    struct sigaction action = {.sa_handler = wake};
    struct request request;
    pthread_t self = pthread_self(), other;
    sigaction(SIGUSR1, &action, NULL);
    CHECK(!pthread_create(&other, NULL, interrupt_soon, &self));
    CHECK(transport_receive(transport, buffer, &request) == RECEIVED_NOTHING);
    pthread_join(other, NULL);
    post_write(31, (const uint8_t *)"x", 1);
    CHECK(transport_receive(transport, buffer, &request) == RECEIVED_REQUEST && request.head.header.unique == 31);
}

/* The end is said again and again, and answers go nowhere without harm. */
static void check_end(void) {
    struct request request;
    shutdown(kernel, SHUT_RDWR);
    CHECK(transport_receive(transport, buffer, &request) == RECEIVED_END);
    CHECK(transport_receive(transport, buffer, &request) == RECEIVED_END);
    signal(SIGPIPE, SIG_IGN); /* a socket's doing; /dev/fuse says ENODEV */
    transport_answer(transport, 41, 0, "late", 4);
}

int main(void) {
    int ends[2];
    CHECK(!socketpair(AF_UNIX, SOCK_SEQPACKET, 0, ends));
    kernel = ends[0];
    device = ends[1];
    transport = transport_new(device);
    buffer = malloc(transport_buffer_size());
    CHECK(transport && buffer);
    check_requests();
    check_answers();
    check_interrupts();
    check_end();
    transport_free(transport);
    free(buffer);
    puts("all as promised");
    return 0;
}
