/* What a confined thread can do, and what it cannot; prints a line for each. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include "threads/confinement.h"

static int file;
static char lines[4096];
static int socket_pair[2];
static void *page;
static const struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = "/tmp/confinement-probe"};

static void *wait_for_nothing(void *argument) { return argument; }

static void tell(const char *what, int done) {
    snprintf(lines + strlen(lines), sizeof lines - strlen(lines), "%s: %s\n", what,
             done ? "yes" : errno == EPERM ? "EPERM" : strerror(errno));
}

static void *probe(void *argument) {
    char byte = 'x', *program[] = {"/bin/true", NULL};
    int confined = confine_thread();
    if (confined) {
        snprintf(lines, sizeof lines, "not confined: %s\n", strerror(confined));
        return argument;
    }
    tell("read", pread(file, &byte, 1, 0) == 1);
    tell("write", pwrite(file, &byte, 1, 0) == 1);
    tell("sync", fdatasync(file) == 0);
    tell("allocate", fallocate(file, 0, 0, 4096) == 0);
    tell("memory", mmap(NULL, 1 << 24, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) != MAP_FAILED);
    tell("open", open("/etc/passwd", O_RDONLY) >= 0);
    tell("create", open("/tmp/confinement-probe", O_CREAT | O_RDWR, 0600) >= 0);
    tell("unlink", unlink("/tmp/confinement-probe") == 0);
    tell("change mode", fchmod(file, 0644) == 0);
    tell("socket", socket(AF_INET, SOCK_STREAM, 0) >= 0);
    tell("start", syscall(SYS_execve, program[0], program, NULL) >= 0);
    tell("fork", syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0) >= 0);
    tell("trace", syscall(SYS_ptrace, 0, 0, 0, 0) == 0);
    tell("kill", syscall(SYS_kill, getpid(), 0) == 0);
    tell("signal another process", syscall(SYS_tgkill, getppid(), getppid(), 0) == 0);
    tell("signal itself", syscall(SYS_tgkill, getpid(), syscall(SYS_gettid), 0) == 0);
    tell("send to an address", sendto(socket_pair[0], "x", 1, 0, (struct sockaddr *)&address, sizeof address) == 1);
    tell("send", send(socket_pair[0], "x", 1, 0) == 1);
    tell("make code", mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) != MAP_FAILED);
    tell("make memory code", mprotect(page, 4096, PROT_READ | PROT_EXEC) == 0);
    tell("change a signal's action", signal(SIGTERM, SIG_IGN) != SIG_ERR);
    return argument;
}

static void *probe_connecting(void *argument) {
    char *program[] = {"/bin/true", NULL};
    pthread_t thread;
    if (confine_connecting_thread())
        return argument;
    int descriptor = socket(AF_INET, SOCK_STREAM, 0);
    tell("connecting, socket", descriptor >= 0);
    tell("connecting, open for reading", open("/etc/passwd", O_RDONLY) >= 0);
    tell("connecting, open for writing", open("/dev/null", O_WRONLY) >= 0);
    tell("connecting, unlink", unlink("/tmp/confinement-probe") == 0);
    tell("connecting, start", syscall(SYS_execve, program[0], program, NULL) >= 0);
    tell("connecting, fork", syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0) >= 0);
    tell("connecting, kill", syscall(SYS_kill, getpid(), 0) == 0);
    tell("connecting, signal another process", syscall(SYS_tgkill, getppid(), getppid(), 0) == 0);
    tell("connecting, thread", pthread_create(&thread, NULL, wait_for_nothing, NULL) == 0 && !pthread_join(thread, NULL));
    return argument;
}

int main(int count, char **arguments) {
    pthread_t thread;
    char byte;
    if (count != 2 || (file = open(arguments[1], O_RDWR | O_CREAT, 0600)) < 0 || pwrite(file, "a", 1, 0) != 1)
        return 2;
    page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED || socketpair(AF_UNIX, SOCK_DGRAM, 0, socket_pair))
        return 2;
    pthread_create(&thread, NULL, probe, NULL);
    pthread_join(thread, NULL);
    pthread_create(&thread, NULL, probe_connecting, NULL);
    pthread_join(thread, NULL);
    tell("another thread opens", open("/etc/passwd", O_RDONLY) >= 0);
    fputs(lines, stdout);
    return pread(file, &byte, 1, 0) == 1 && byte == 'a' ? 0 : 1;
}
