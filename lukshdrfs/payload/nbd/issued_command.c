/* See issued_command.h. */
#include "payload/nbd/issued_command.h"

#include <errno.h>

int errno_of_server(int error) { return error == ENOSPC || error == ENOMEM || error == EPERM ? error : EIO; }

void issued_command_settle(const struct issued_command *issued, struct nbd_session *session) {
    const struct nbd_command *command = &issued->command;
    if (issued->keep)
        unflushed_writes_keep(&session->unflushed, command->data, command->size, command->offset);
    if (command->kind == NBD_FLUSH)
        unflushed_writes_forget(&session->unflushed, issued->mark);
}

int issued_command_run(struct issued_command *issued, struct nbd_session *session) {
    struct nbd_connection *connection;
    while ((connection = nbd_session_enter(session, issued->command.size, issued->command.until))) {
        int error = nbd_connection_run(connection, &issued->command);
        if (error == 0)
            issued_command_settle(issued, session);
        nbd_session_leave(session, connection, error < 0);
        if (error >= 0)
            return error ? errno_of_server(error) : 0;
    }
    return NBD_NO_ANSWER;
}
