/* See confinement.h. seccomp(2); a filter, and PR_SET_NO_NEW_PRIVS, which it takes, are the thread's alone. */
#define _GNU_SOURCE
#include "threads/confinement.h"

#include <errno.h>
#include <pthread.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#if defined(__x86_64__)
#define ARCHITECTURE AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define ARCHITECTURE AUDIT_ARCH_AARCH64
#endif

#ifdef ARCHITECTURE

#define LOAD(field) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, field))
#define IF_NOT(value, skip) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (value), 0, (skip))
#define RETURN(what) BPF_STMT(BPF_RET | BPF_K, (what))
#define REFUSE RETURN(SECCOMP_RET_ERRNO | EPERM)
#define PERMIT RETURN(SECCOMP_RET_ALLOW)

/* All begin with the call's number loaded, and leave it so where it is another one. Of an argument they look at the lower
 * half; both architectures have that first. */
#define ALLOW(name) IF_NOT(__NR_##name, 1), PERMIT
#define DENY(name) IF_NOT(__NR_##name, 1), REFUSE
#define ALLOW_EQUAL(name, argument, value) IF_NOT(__NR_##name, 4), LOAD(args[argument]), IF_NOT((value), 1), PERMIT, REFUSE
#define ALLOW_WITHOUT(name, argument, bits)                                                                            \
    IF_NOT(__NR_##name, 4), LOAD(args[argument]), BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, (bits), 1, 0), PERMIT, REFUSE
#define ALLOW_WITH(name, argument, bits)                                                                               \
    IF_NOT(__NR_##name, 4), LOAD(args[argument]), BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, (bits), 0, 1), PERMIT, REFUSE
#define ALLOW_NULL(name, argument)                                                                                     \
    IF_NOT(__NR_##name, 6), LOAD(args[argument]), IF_NOT(0, 3),                                                        \
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[argument]) + 4), IF_NOT(0, 1), PERMIT, REFUSE

#define CHECK_ARCHITECTURE LOAD(arch), BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ARCHITECTURE, 1, 0), REFUSE, LOAD(nr)

static int install(struct sock_filter *filter, size_t length) {
    struct sock_fprog program = {.len = (unsigned short)length, .filter = filter};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program, 0, 0))
        return errno;
    return 0;
}

int confine_thread(void) {
    const unsigned own = (unsigned)getpid();
    struct sock_filter filter[] = {
        CHECK_ARCHITECTURE,
        /* descriptors that are open; a message goes to who is at the other end */
        ALLOW(read), ALLOW(write), ALLOW(readv), ALLOW(writev), ALLOW(pread64), ALLOW(pwrite64), ALLOW(preadv),
        ALLOW(pwritev), ALLOW(preadv2), ALLOW(pwritev2), ALLOW(fdatasync), ALLOW(sync_file_range), ALLOW(fallocate),
        ALLOW(ppoll), ALLOW_NULL(sendto, 4), ALLOW(sendmsg), ALLOW(recvfrom), ALLOW(recvmsg), ALLOW(shutdown),
        ALLOW(close),
#ifdef __NR_poll
        ALLOW(poll),
#endif
        /* what the C library needs for mutexes, memory, time and the thread's end */
        ALLOW(futex), ALLOW(nanosleep), ALLOW(clock_nanosleep), ALLOW(clock_gettime), ALLOW(sched_yield),
        ALLOW_WITHOUT(mmap, 2, PROT_EXEC), ALLOW_WITHOUT(mprotect, 2, PROT_EXEC), ALLOW(munmap), ALLOW(mremap),
        ALLOW(madvise), ALLOW(brk), ALLOW(getrandom), ALLOW(rt_sigprocmask), ALLOW(rt_sigreturn),
        ALLOW(restart_syscall), ALLOW(exit), ALLOW(exit_group),
#ifdef __NR_rseq
        ALLOW(rseq),
#endif
#ifdef __SANITIZE_ADDRESS__
        ALLOW(sigaltstack), /* by the sanitizer, at a thread's end */
#endif
        /* abort(), for a message that says why: a signal to this process, and to no other one */
        ALLOW(getpid), ALLOW(gettid), ALLOW_EQUAL(tgkill, 0, own), ALLOW_EQUAL(rt_sigaction, 0, SIGABRT),
        REFUSE,
    };
    return install(filter, sizeof filter / sizeof filter[0]);
}

/* Calls that are older than some architectures. */
#ifdef __NR_open
#define DENY_OLD                                                                                                       \
    ALLOW_WITHOUT(open, 1, WRITING), DENY(creat), DENY(fork), DENY(vfork), DENY(unlink), DENY(rename), DENY(link),     \
        DENY(symlink), DENY(mkdir), DENY(rmdir), DENY(mknod), DENY(chmod), DENY(chown), DENY(lchown), DENY(utime),     \
        DENY(utimes), DENY(futimesat),
#else
#define DENY_OLD
#endif
#define WRITING (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC)

int confine_connecting_thread(void) {
    const unsigned own = (unsigned)getpid();
    struct sock_filter filter[] = {
        CHECK_ARCHITECTURE,
#ifdef __x86_64__
        BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, 0x40000000, 0, 1), REFUSE, /* x32: the same calls by other numbers */
#endif
        /* programs and processes; a thread is none */
        DENY(execve), DENY(execveat), ALLOW_WITH(clone, 0, CLONE_THREAD),
        IF_NOT(__NR_clone3, 1), RETURN(SECCOMP_RET_ERRNO | ENOSYS), /* its flags cannot be seen; clone() comes next */
        DENY(kill), DENY(tkill), ALLOW_EQUAL(tgkill, 0, own), DENY(rt_sigqueueinfo), DENY(rt_tgsigqueueinfo),
        DENY(ptrace), DENY(process_vm_readv), DENY(process_vm_writev),
#ifdef __NR_pidfd_open
        DENY(pidfd_open), DENY(pidfd_send_signal), DENY(pidfd_getfd),
#endif
        /* files: they are read, for names and certificates */
        ALLOW_WITHOUT(openat, 2, WRITING), DENY_OLD
#ifdef __NR_openat2
        DENY(openat2),
#endif
        DENY(unlinkat), DENY(renameat2), DENY(linkat), DENY(symlinkat), DENY(mkdirat), DENY(mknodat), DENY(truncate),
        DENY(fchmod), DENY(fchmodat), DENY(fchown), DENY(fchownat), DENY(utimensat), DENY(setxattr), DENY(lsetxattr),
        DENY(fsetxattr), DENY(removexattr), DENY(lremovexattr), DENY(fremovexattr), DENY(open_by_handle_at),
#ifdef __NR_renameat
        DENY(renameat),
#endif
        /* the system, and what would go round a filter */
        DENY(mount), DENY(umount2), DENY(pivot_root), DENY(chroot), DENY(setns), DENY(unshare), DENY(swapon),
        DENY(swapoff), DENY(reboot), DENY(init_module), DENY(finit_module), DENY(delete_module), DENY(kexec_load),
        DENY(bpf), DENY(perf_event_open), DENY(userfaultfd), DENY(add_key), DENY(request_key), DENY(keyctl),
        DENY(acct), DENY(quotactl), DENY(setuid), DENY(setgid), DENY(setresuid), DENY(setresgid), DENY(capset),
#ifdef __NR_io_uring_setup
        DENY(io_uring_setup), DENY(io_uring_enter), DENY(io_uring_register),
#endif
#ifdef __NR_fsopen
        DENY(fsopen), DENY(open_tree), DENY(move_mount),
#endif
        PERMIT,
    };
    return install(filter, sizeof filter / sizeof filter[0]);
}

#else

int confine_thread(void) { return ENOSYS; }
int confine_connecting_thread(void) { return ENOSYS; }

#endif

void begin_confined(const char *name, int confined) {
    pthread_setname_np(pthread_self(), name);
    if (confined)
        (void)confine_thread();
}
