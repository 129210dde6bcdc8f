/* See answers.h. */
#include "fuse/lane/answers.h"

void answers_written(const struct answers *answers, uint64_t unique, int direct, int error, uint64_t offset,
                     uint64_t count) {
    struct {
        struct fuse_out_header header;
        struct fuse_write_out written;
    } message = {.header = {.len = error ? sizeof message.header : sizeof message, .error = -error, .unique = unique},
                 .written = {.size = (uint32_t)count}};
    if (direct)
        coherence_answer(answers->coherence, offset, count, &message, message.header.len);
    else
        transport_send(answers->transport, &message, message.header.len);
}

void answers_allocated(const struct answers *answers, uint64_t unique, uint64_t node, int error, uint64_t offset,
                       uint64_t zeroed) {
    struct fuse_out_header message = {.len = sizeof message, .error = -error, .unique = unique};
    if (error && zeroed)
        coherence_drop_and_answer(answers->coherence, node, offset, zeroed, &message, sizeof message);
    else
        transport_send(answers->transport, &message, sizeof message);
}
