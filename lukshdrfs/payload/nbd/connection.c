/* See connection.h.
 *
 * Whoever has a command sends it, as far as the socket takes it at once; the connection's thread, the receiver, does the
 * rest: it sends what is left, receives answers, and tells of them. All calls of libnbd are under the mutex. */
#define _GNU_SOURCE
#include "payload/nbd/connection.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "threads/confinement.h"

#define LOOK_MS 1000 /* how often the receiver looks at the clock while commands are under way */
#define CONNECT_LOOK_MS 100 /* how often who connects looks whether that is still wanted */
#define FAREWELL_MS 1000

/* --- the socket ---------------------------------------------------------------------------------------------------- */

static void wake_up(struct nbd_connection *connection) {
    uint64_t one = 1;
    (void)!write(connection->wakeup, &one, sizeof one);
}

/* Waits for the socket, in either direction that libnbd wants, or the wakeup. Returns what poll() says of the socket. */
static short wait_for_socket(int socket, unsigned direction, int wakeup, int wait_ms) {
    short wanted = (short)((direction & NBD_DIRECTION_READ ? POLLIN : 0) | (direction & NBD_DIRECTION_WRITE ? POLLOUT : 0));
    struct pollfd places[2] = {{.fd = socket, .events = wanted}, {.fd = wakeup, .events = POLLIN}};
    if (poll(places, 2, wait_ms) <= 0)
        return 0;
    if (places[1].revents) {
        uint64_t count;
        (void)!read(wakeup, &count, sizeof count);
    }
    return places[0].revents;
}

/* Has libnbd send and receive what the socket lets it. */
static void proceed_by_libnbd(struct nbd_connection *connection, short events) {
    const struct nbd_library *library = connection->library;
    unsigned direction = library->aio_get_direction(connection->handle);
    if (events & (POLLIN | POLLHUP | POLLERR) && direction & NBD_DIRECTION_READ)
        (void)library->aio_notify_read(connection->handle);
    else if (events & (POLLOUT | POLLHUP | POLLERR) && direction & NBD_DIRECTION_WRITE)
        (void)library->aio_notify_write(connection->handle);
}

static int is_over(const struct nbd_connection *connection) {
    return connection->library->aio_is_dead(connection->handle) ||
           connection->library->aio_is_closed(connection->handle);
}

/* Sends what is left and receives answers, on the socket itself or through libnbd. */
static void proceed(struct nbd_connection *connection, short events) {
    if (connection->by_libnbd) {
        proceed_by_libnbd(connection, events);
        connection->broken |= is_over(connection);
        return;
    }
    struct nbd_transmission *transmission = &connection->transmission;
    int failed = transmission->first_outgoing && nbd_transmission_send_rest(transmission) < 0;
    /* answers that are there already count, even if nobody listens to us any more */
    if (events & (POLLIN | POLLHUP | POLLERR))
        failed |= nbd_transmission_receive(transmission, connection->commands) < 0;
    connection->broken |= failed;
}

/* What is to be waited for. */
static unsigned direction(const struct nbd_connection *connection) {
    if (connection->by_libnbd)
        return connection->library->aio_get_direction(connection->handle);
    return NBD_DIRECTION_READ | (connection->transmission.first_outgoing ? NBD_DIRECTION_WRITE : 0);
}

/* --- the receiver ------------------------------------------------------------------------------------------------- */

/* Takes the commands that are over out of the list, and returns them. */
static struct nbd_command *take_finished(struct nbd_connection *connection) {
    struct nbd_command *finished = NULL, **at = &connection->commands;
    int64_t now = now_ms();
    for (struct nbd_command *each = connection->commands; each; each = each->next)
        connection->broken |= each->answered ? each->result == ESHUTDOWN : each->until <= now;
    while (*at) {
        struct nbd_command *command = *at;
        if (!command->answered && !connection->broken) {
            at = &command->next;
            continue;
        }
        *at = command->next;
        if (!command->answered || (connection->broken && command->result)) /* the latter is libnbd's word for that */
            command->result = NBD_NO_ANSWER;
        command->next = finished;
        finished = command;
    }
    return finished;
}

/* Tells whoever issued them that commands are over. The mutex is released while their functions are called. */
static void finish(struct nbd_connection *connection, struct nbd_command *finished) {
    struct nbd_command *started = NULL;
    while (finished) {
        struct nbd_command *command = finished;
        finished = command->next;
        if (command->finished) {
            command->next = started;
            started = command;
        } else {
            command->over = 1;
            pthread_cond_signal(&command->called);
        }
    }
    if (!started)
        return;
    pthread_mutex_unlock(&connection->mutex);
    while (started) {
        struct nbd_command *command = started;
        started = command->next;
        command->finished(command, command->result);
    }
    pthread_mutex_lock(&connection->mutex);
}

static void *run_receiver(void *argument) {
    struct nbd_connection *connection = argument;
    const struct nbd_library *library = connection->library;
    (void)confine_thread();
    pthread_mutex_lock(&connection->mutex);
    while (!connection->ending) {
        if (!connection->is_open) {
            pthread_cond_wait(&connection->changed, &connection->mutex);
            continue;
        }
        int socket = library->aio_get_fd(connection->handle);
        unsigned wanted = direction(connection);
        if (connection->broken) {
            socket = -1; /* poll() leaves it out */
            connection->asleep = 1;
        }
        int wait_ms = connection->asleep ? -1 : LOOK_MS;
        pthread_mutex_unlock(&connection->mutex);
        short events = wait_for_socket(socket, wanted, connection->wakeup, wait_ms);
        pthread_mutex_lock(&connection->mutex);
        if (events && !connection->broken)
            proceed(connection, events);
        connection->asleep = !connection->commands && !events;
        /* under TLS, libnbd may have found out while somebody sent */
        connection->broken |= connection->by_libnbd && is_over(connection);
        finish(connection, take_finished(connection));
        if (connection->closing && !connection->commands) {
            connection->is_open = connection->closing = 0;
            pthread_cond_broadcast(&connection->changed);
        }
    }
    pthread_mutex_unlock(&connection->mutex);
    return NULL;
}

/* --- opening and closing ------------------------------------------------------------------------------------------- */

int nbd_connection_init(struct nbd_connection *connection, const struct nbd_library *library) {
    *connection = (struct nbd_connection){.library = library, .wakeup = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
    connection->transmission.socket = -1;
    if (connection->wakeup < 0)
        return errno;
    pthread_mutex_init(&connection->mutex, NULL);
    pthread_cond_init(&connection->changed, NULL);
    return 0;
}

void nbd_connection_destroy(struct nbd_connection *connection) {
    nbd_connection_close(connection);
    pthread_mutex_lock(&connection->mutex);
    connection->ending = 1;
    pthread_cond_broadcast(&connection->changed);
    pthread_mutex_unlock(&connection->mutex);
    ready_thread_join(&connection->receiver);
    pthread_cond_destroy(&connection->changed);
    pthread_mutex_destroy(&connection->mutex);
    close(connection->wakeup);
}

/* Returns an error's words. */
static const char *connect_handle(struct nbd_connection *connection, const char *uri, int64_t until,
                                  const atomic_int *ending) {
    const struct nbd_library *library = connection->library;
    struct nbd_handle *handle = connection->handle = library->create();
    if (!handle)
        return library->get_error();
    (void)library->set_uri_allow_local_file(handle, true); /* certificates and keys for TLS */
    (void)library->set_request_structured_replies(handle, false); /* they take one system call more to receive */
    if (library->set_pread_initialize)
        (void)library->set_pread_initialize(handle, false); /* what is not read is not looked at */
    if (library->aio_connect_uri(handle, uri) < 0)
        return library->get_error();
    while (!library->aio_is_ready(handle)) {
        int64_t left = until - now_ms();
        if (is_over(connection))
            return library->get_error();
        if (left <= 0 || atomic_load(ending))
            return "the server does not answer";
        proceed_by_libnbd(connection, wait_for_socket(library->aio_get_fd(handle), library->aio_get_direction(handle),
                                           connection->wakeup, left < CONNECT_LOOK_MS ? (int)left : CONNECT_LOOK_MS));
    }
    return NULL;
}

/* Says that there will be no more commands, and waits a while until the server has no more of them either: what it carries
 * out of an old connection later could come after what a new one brings. */
static void take_leave(struct nbd_connection *connection) {
    int socket = connection->transmission.socket;
    char ignored[4096];
    if (!connection->by_libnbd) /* under TLS, the end of the stream says it */
        nbd_transmission_end(&connection->transmission);
    connection->transmission.socket = -1;
    if (shutdown(socket, SHUT_WR) < 0)
        return; /* the server is gone */
    for (int64_t until = now_ms() + FAREWELL_MS; now_ms() < until;) {
        struct pollfd there = {.fd = socket, .events = POLLIN};
        if (poll(&there, 1, (int)(until - now_ms())) <= 0 || recv(socket, ignored, sizeof ignored, MSG_DONTWAIT) <= 0)
            return;
    }
}

static void close_handle(struct nbd_connection *connection) {
    if (connection->handle && connection->transmission.socket >= 0)
        take_leave(connection);
    if (connection->handle)
        connection->library->close(connection->handle);
    connection->handle = NULL;
    connection->broken = 0;
}

int nbd_connection_open(struct nbd_connection *connection, const char *uri, int64_t until, const atomic_int *ending,
                        char *problem, size_t room) {
    nbd_connection_close(connection);
    pthread_mutex_lock(&connection->mutex);
    const char *error = connect_handle(connection, uri, until, ending);
    if (!error && !connection->receiver.is_started &&
        ready_thread_start(&connection->receiver, NBD_STACK_SIZE, 0, run_receiver, connection) != 0)
        error = "a thread cannot be started";
    if (error || !connection->handle) {
        snprintf(problem, room, "%s", error ? error : "libnbd gives no reason");
        close_handle(connection);
    } else {
        connection->by_libnbd = connection->library->get_tls_negotiated(connection->handle) != 0;
        nbd_transmission_begin(&connection->transmission, connection->library->aio_get_fd(connection->handle));
        connection->is_open = 1;
        pthread_cond_broadcast(&connection->changed);
    }
    int opened = connection->is_open;
    pthread_mutex_unlock(&connection->mutex);
    return opened ? 0 : -1;
}

void nbd_connection_break(struct nbd_connection *connection) {
    pthread_mutex_lock(&connection->mutex);
    connection->broken = 1;
    wake_up(connection);
    pthread_mutex_unlock(&connection->mutex);
}

void nbd_connection_close(struct nbd_connection *connection) {
    pthread_mutex_lock(&connection->mutex);
    if (connection->is_open) {
        connection->broken = connection->closing = 1;
        wake_up(connection);
        while (connection->is_open)
            pthread_cond_wait(&connection->changed, &connection->mutex);
    }
    close_handle(connection);
    pthread_mutex_unlock(&connection->mutex);
}

/* --- commands ------------------------------------------------------------------------------------------------------ */

/* libnbd calls it with the mutex held, for whoever is in libnbd holds it. Returning 1 retires the command. */
static int answer(void *argument, int *error) {
    struct nbd_command *command = argument;
    command->answered = 1;
    command->result = *error;
    return 1;
}

static int send_by_libnbd(struct nbd_connection *connection, struct nbd_command *command) {
    const struct nbd_library *library = connection->library;
    nbd_completion_callback then = {.callback = answer, .user_data = command};
    int64_t cookie;
    if (command->kind == NBD_READ)
        cookie = library->aio_pread(connection->handle, command->data, command->size, command->offset, then, 0);
    else if (command->kind == NBD_WRITE)
        cookie = library->aio_pwrite(connection->handle, command->data, command->size, command->offset, then,
                                     command->flags);
    else
        cookie = library->aio_flush(connection->handle, then, 0);
    if (cookie < 0) {
        command->answered = 1;
        command->result = library->get_errno();
    }
    return is_over(connection) ? -1 : 0;
}

/* Call with the mutex held. */
static void start(struct nbd_connection *connection, struct nbd_command *command) {
    command->connection = connection;
    command->answered = command->over = 0;
    command->next = connection->commands;
    connection->commands = command;
    command->sent = 0;
    int usable = connection->is_open && !connection->broken;
    if (usable && connection->by_libnbd)
        connection->broken |= send_by_libnbd(connection, command) < 0;
    else if (usable)
        connection->broken |= nbd_transmission_send(&connection->transmission, command) < 0;
    if (connection->broken || command->answered || connection->asleep || direction(connection) & NBD_DIRECTION_WRITE) {
        connection->asleep = 0;
        wake_up(connection);
    }
}

void nbd_connection_start(struct nbd_connection *connection, struct nbd_command *command) {
    pthread_mutex_lock(&connection->mutex);
    start(connection, command);
    pthread_mutex_unlock(&connection->mutex);
}

int nbd_connection_run(struct nbd_connection *connection, struct nbd_command *command) {
    pthread_cond_init(&command->called, NULL);
    command->finished = NULL;
    pthread_mutex_lock(&connection->mutex);
    start(connection, command);
    while (!command->over)
        pthread_cond_wait(&command->called, &connection->mutex);
    pthread_mutex_unlock(&connection->mutex);
    pthread_cond_destroy(&command->called);
    return command->result;
}
