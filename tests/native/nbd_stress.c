/* Uses an NBD client from many threads at once while the server is in trouble, and checks every byte.
 *
 *   nbd_stress SOCKET SEED THREADS ROUNDS MINIMUM_BLOCK IMPATIENT
 *
 * The server is a thread of this program that speaks the protocol by itself (proto.md): it answers in any order, in
 * pieces of any size, drops its connections again and again, and forgets what it was not told to flush when it does.
 * Each thread owns places of the export and knows what must be in them. With IMPATIENT, the client is told again and again
 * not to wait, and what fails then is done once more. Built with sanitizers by test_nbd_client.py. */
#define _GNU_SOURCE
#include <endian.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "payload/nbd/client.h"

#define UNIT 512
#define UNITS 64 /* of each thread */
#define MAX_THREADS 16
#define QUEUE 16

static uint8_t durable[MAX_THREADS * UNITS * UNIT], cached[sizeof durable];
static pthread_mutex_t store = PTHREAD_MUTEX_INITIALIZER;
static atomic_int generation, over, crashes;
static unsigned threads, rounds, block, impatient;
static size_t size;

#define CHECK(condition) ((condition) ? (void)0 : fail(#condition, __LINE__))

static void fail(const char *what, int line) {
    fprintf(stderr, "nbd_stress.c:%d: %s is not so (%s)\n", line, what, strerror(errno));
    _exit(1);
}

static uint32_t rnd(uint64_t *state, uint32_t below) {
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(*state >> 33) % below;
}

/* --- the server ---------------------------------------------------------------------------------------------------- */

static int read_all(int socket, void *data, size_t count) {
    for (uint8_t *at = data; count;) {
        ssize_t got = recv(socket, at, count, 0);
        if (got <= 0)
            return -1;
        at += got;
        count -= (size_t)got;
    }
    return 0;
}

static int write_all(int socket, const void *data, size_t count, uint64_t *state) {
    for (const uint8_t *at = data; count;) {
        size_t piece = rnd(state, 4) ? count : 1 + rnd(state, (uint32_t)count);
        ssize_t sent = send(socket, at, piece, MSG_NOSIGNAL);
        if (sent <= 0)
            return -1;
        at += sent;
        count -= (size_t)sent;
    }
    return 0;
}

static void put(uint8_t *at, uint64_t value, size_t count) {
    uint64_t big = htobe64(value << (64 - 8 * count));
    memcpy(at, &big, count);
}

static uint64_t get(const uint8_t *at, size_t count) {
    uint64_t big = 0;
    memcpy(&big, at, count);
    return be64toh(big) >> (64 - 8 * count);
}

static int reply_to_option(int socket, uint32_t option, uint32_t type, const void *data, size_t count, uint64_t *state) {
    uint8_t reply[20];
    put(reply, 0x3e889045565a9, 8);
    put(reply + 8, option, 4);
    put(reply + 12, type, 4);
    put(reply + 16, count, 4);
    return write_all(socket, reply, sizeof reply, state) < 0 || write_all(socket, data, count, state) < 0 ? -1 : 0;
}

/* The handshake, up to NBD_OPT_GO: flags say flush, FUA and several connections. */
static int shake_hands(int socket, uint64_t *state) {
    uint8_t hello[18], head[16], data[512], info[14];
    memcpy(hello, "NBDMAGICIHAVEOPT", 16);
    put(hello + 16, 3, 2);
    if (write_all(socket, hello, sizeof hello, state) < 0 || read_all(socket, data, 4) < 0)
        return -1;
    for (;;) {
        if (read_all(socket, head, sizeof head) < 0)
            return -1;
        uint32_t option = (uint32_t)get(head + 8, 4), count = (uint32_t)get(head + 12, 4);
        if (count > sizeof data || read_all(socket, data, count) < 0)
            return -1;
        if (option != 7) { /* NBD_OPT_GO */
            if (reply_to_option(socket, option, 0x80000001u, NULL, 0, state) < 0)
                return -1;
            continue;
        }
        put(info, 0, 2);
        put(info + 2, size, 8);
        put(info + 10, 1 | 4 | 8 | 256, 2);
        if (reply_to_option(socket, option, 3, info, 12, state) < 0)
            return -1;
        put(info, 3, 2);
        put(info + 2, block, 4);
        put(info + 6, 4096, 4);
        put(info + 10, 1 << 25, 4);
        return reply_to_option(socket, option, 3, info, 14, state) < 0 ? -1
                                                                       : reply_to_option(socket, option, 1, NULL, 0, state);
    }
}

struct asked {
    uint8_t head[28];
    uint8_t *data;
};

/* A server that has crashed does nothing any more: that is asked and done in one. */
static int answer(int socket, struct asked *asked, int run, uint64_t *state) {
    uint64_t kind = get(asked->head + 6, 2), offset = get(asked->head + 16, 8), count = get(asked->head + 24, 4);
    uint8_t *reply = calloc(1, 16 + (kind ? 0 : count));
    put(reply, 0x67446698, 4);
    memcpy(reply + 8, asked->head + 8, 8);
    pthread_mutex_lock(&store);
    int dead = run != atomic_load(&generation);
    if (dead)
        ;
    else if (kind == 0)
        memcpy(reply + 16, cached + offset, count);
    else if (kind == 1)
        memcpy(cached + offset, asked->data, count);
    else
        memcpy(durable, cached, sizeof durable);
    pthread_mutex_unlock(&store);
    free(asked->data);
    int sent = dead ? -1 : write_all(socket, reply, 16 + (kind ? 0 : count), state);
    free(reply);
    return sent;
}

struct accepted {
    int socket, generation;
    uint64_t state;
};

static void *serve(void *argument) {
    struct accepted accepted = *(struct accepted *)argument;
    struct asked queue[QUEUE];
    unsigned waiting = 0;
    free(argument);
    if (shake_hands(accepted.socket, &accepted.state) < 0)
        goto end;
    while (accepted.generation == atomic_load(&generation)) {
        struct pollfd there = {.fd = accepted.socket, .events = POLLIN};
        if (waiting < QUEUE && poll(&there, 1, waiting ? 0 : 20) > 0) {
            struct asked *asked = &queue[waiting];
            asked->data = NULL;
            if (read_all(accepted.socket, asked->head, sizeof asked->head) < 0)
                break;
            CHECK(get(asked->head, 4) == 0x25609513);
            uint64_t kind = get(asked->head + 6, 2), offset = get(asked->head + 16, 8), count = get(asked->head + 24, 4);
            if (kind == 2)
                break;
            CHECK(kind == 0 || kind == 1 || kind == 3);
            CHECK(kind == 3 || (offset % block == 0 && count % block == 0 && count && offset + count <= size));
            if (kind == 1) {
                asked->data = malloc(count);
                if (read_all(accepted.socket, asked->data, count) < 0) {
                    free(asked->data);
                    break;
                }
            }
            waiting++;
        } else if (waiting) {
            unsigned which = rnd(&accepted.state, waiting); /* any of them */
            struct asked asked = queue[which];
            queue[which] = queue[--waiting];
            if (answer(accepted.socket, &asked, accepted.generation, &accepted.state) < 0)
                break;
        }
    }
end:
    while (waiting)
        free(queue[--waiting].data);
    close(accepted.socket);
    return NULL;
}

static void *listen_for(void *argument) {
    int listener = *(int *)argument;
    uint64_t state = 99;
    while (!atomic_load(&over)) {
        struct pollfd there = {.fd = listener, .events = POLLIN};
        if (poll(&there, 1, 20) <= 0)
            continue;
        struct accepted *accepted = malloc(sizeof *accepted);
        *accepted = (struct accepted){accept(listener, NULL, NULL), atomic_load(&generation), state++};
        pthread_t thread;
        CHECK(pthread_create(&thread, NULL, serve, accepted) == 0);
        pthread_detach(thread);
    }
    return NULL;
}

/* A crash: the connections end, and what was not flushed is gone. */
static void *crash(void *argument) {
    uint64_t state = *(uint64_t *)argument;
    while (!atomic_load(&over)) {
        struct timespec pause = {.tv_nsec = 1000000L * (3 + rnd(&state, 25))};
        nanosleep(&pause, NULL);
        pthread_mutex_lock(&store);
        atomic_fetch_add(&generation, 1);
        memcpy(cached, durable, sizeof cached);
        pthread_mutex_unlock(&store);
        atomic_fetch_add(&crashes, 1);
    }
    return NULL;
}

/* --- the client's users -------------------------------------------------------------------------------------------- */

struct user {
    struct nbd_client *client;
    unsigned number;
    uint64_t state;
    pthread_t thread;
    uint8_t model[UNITS][UNIT];
    pthread_mutex_t mutex;
    pthread_cond_t called;
    int done, error;
};

struct transfer {
    struct payload_request request; /* first: it is given back */
    struct user *user;
};

static void finished(struct payload_request *request, int error) {
    struct user *user = ((struct transfer *)request)->user;
    pthread_mutex_lock(&user->mutex);
    user->done = 1;
    user->error = error;
    pthread_cond_signal(&user->called);
    pthread_mutex_unlock(&user->mutex);
}

/* By one of the two ways. Units of one thread lie between those of others, so that they share blocks. */
static int transfer_once(struct user *user, int writing, uint8_t *data, size_t count, uint64_t offset) {
    struct payload *payload = nbd_client_payload(user->client);
    struct transfer transfer = {
        .request = {.writing = writing, .data = data, .size = count, .offset = offset, .finished = finished},
        .user = user};
    user->done = 0;
    if (rnd(&user->state, 2) && payload->operations->start(payload, &transfer.request)) {
        pthread_mutex_lock(&user->mutex);
        while (!user->done)
            pthread_cond_wait(&user->called, &user->mutex);
        pthread_mutex_unlock(&user->mutex);
        return user->error;
    }
    return writing ? nbd_client_write(user->client, data, count, offset, !rnd(&user->state, 8))
                   : nbd_client_read(user->client, data, count, offset);
}

static int transfer(struct user *user, int writing, uint8_t *data, size_t count, uint64_t offset) {
    int error = transfer_once(user, writing, data, count, offset);
    while (error == EIO && impatient)
        error = transfer_once(user, writing, data, count, offset);
    return error;
}

static int flush(struct nbd_client *client) {
    int error = nbd_client_flush(client, 1);
    while (error == EIO && impatient)
        error = nbd_client_flush(client, 1);
    return error;
}

static void *lose_patience(void *argument) {
    uint64_t state = 17;
    while (!atomic_load(&over)) {
        for (int patient = 0; patient < 2; patient++) {
            struct timespec pause = {.tv_nsec = 1000000L * (1 + rnd(&state, patient ? 15 : 3))};
            if (patient)
                nbd_client_wait_again(argument);
            else
                nbd_client_fail_waiting(argument);
            nanosleep(&pause, NULL);
        }
    }
    return NULL;
}

static void *use(void *argument) {
    struct user *user = argument;
    uint8_t data[UNIT];
    for (unsigned round = 0; round < rounds; round++) {
        unsigned unit = rnd(&user->state, UNITS);
        uint64_t offset = ((uint64_t)unit * threads + user->number) * UNIT;
        switch (rnd(&user->state, 8)) {
        case 0:
            CHECK(flush(user->client) == 0);
            break;
        case 1:
        case 2:
        case 3:
            CHECK(transfer(user, 0, data, UNIT, offset) == 0);
            CHECK(memcmp(data, user->model[unit], UNIT) == 0);
            break;
        default:
            memset(user->model[unit], (int)rnd(&user->state, 256), UNIT);
            memcpy(data, user->model[unit], UNIT);
            CHECK(transfer(user, 1, data, UNIT, offset) == 0);
        }
    }
    return NULL;
}

static void on_event(void *context, int event, const char *detail) {
    (void)context;
    CHECK(event == NBD_CLIENT_LOST || event == NBD_CLIENT_BACK);
    CHECK(detail != NULL);
}

int main(int count, char **arguments) {
    CHECK(count == 7);
    uint64_t seed = strtoull(arguments[2], NULL, 10);
    threads = (unsigned)atoi(arguments[3]);
    rounds = (unsigned)atoi(arguments[4]);
    block = (unsigned)atoi(arguments[5]);
    impatient = (unsigned)atoi(arguments[6]);
    size = (size_t)threads * UNITS * UNIT;
    CHECK(threads <= MAX_THREADS);
    struct sockaddr_un place = {.sun_family = AF_UNIX};
    strncpy(place.sun_path, arguments[1], sizeof place.sun_path - 1);
    int listener = socket(AF_UNIX, SOCK_STREAM, 0);
    CHECK(bind(listener, (struct sockaddr *)&place, sizeof place) == 0 && listen(listener, 16) == 0);
    pthread_t listening, crashing, losing;
    CHECK(pthread_create(&listening, NULL, listen_for, &listener) == 0);

    char uri[256], words[256] = "";
    snprintf(uri, sizeof uri, "nbd+unix:///?socket=%s", arguments[1]);
    struct nbd_client_config config = {.uri = uri, .connections = 4, .patience_ms = 30000, .kept_size = 64 << 10,
                                       .on_event = on_event};
    int trouble;
    struct nbd_client *client = nbd_client_open(&config, &trouble, words, sizeof words);
    if (!client)
        fprintf(stderr, "%d %s\n", trouble, words);
    CHECK(client != NULL);
    CHECK(pthread_create(&crashing, NULL, crash, &seed) == 0);
    if (impatient)
        CHECK(pthread_create(&losing, NULL, lose_patience, client) == 0);
    struct user *users = calloc(threads, sizeof *users);
    for (unsigned i = 0; i < threads; i++) {
        users[i].client = client;
        users[i].number = i;
        users[i].state = seed * 100 + i;
        pthread_mutex_init(&users[i].mutex, NULL);
        pthread_cond_init(&users[i].called, NULL);
        CHECK(pthread_create(&users[i].thread, NULL, use, &users[i]) == 0);
    }
    for (unsigned i = 0; i < threads; i++)
        pthread_join(users[i].thread, NULL);
    CHECK(flush(client) == 0);
    atomic_store(&over, 1);
    pthread_join(crashing, NULL);
    if (impatient)
        pthread_join(losing, NULL);
    nbd_client_close(client);
    pthread_join(listening, NULL);
    pthread_mutex_lock(&store);
    for (unsigned i = 0; i < threads; i++)
        for (unsigned unit = 0; unit < UNITS; unit++)
            CHECK(memcmp(durable + ((size_t)unit * threads + i) * UNIT, users[i].model[unit], UNIT) == 0);
    pthread_mutex_unlock(&store);
    free(users);
    CHECK(atomic_load(&crashes) > 1);
    puts("all as expected");
    fflush(stdout);
    _exit(0); /* the server's last threads may still be at it */
}
