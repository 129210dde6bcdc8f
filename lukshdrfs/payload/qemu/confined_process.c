/*
 * See confined_process.h. Between fork and exec there are system calls alone: other threads may have held any lock.
 *
 * Landlock (Documentation/userspace-api/landlock.rst) says which files can be opened, by whatever call: libraries, for
 * reading, and the files of the descriptors. The filter refuses what makes connections or reaches other processes; of
 * Landlock's newer versions, the rules for those are taken as well.
 */
#define _GNU_SOURCE
#include "payload/qemu/confined_process.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <linux/securebits.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/fsuid.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

/* linux/landlock.h: what older headers do not have is written out */
#ifndef __NR_landlock_create_ruleset
#define __NR_landlock_create_ruleset 444
#define __NR_landlock_add_rule 445
#define __NR_landlock_restrict_self 446
#endif
/* Newer than some distributions' headers; the same numbers on all architectures. */
#ifndef __NR_fchmodat2
#define __NR_fchmodat2 452
#endif
#ifndef __NR_setxattrat
#define __NR_setxattrat 463
#define __NR_removexattrat 466
#endif
#ifndef __NR_close_range
#define __NR_close_range 436
#endif
#define VERSION_FLAG 1
#define RULE_PATH_BENEATH 1
#define EXECUTE (1u << 0)
#define WRITE_FILE (1u << 1)
#define READ_FILE (1u << 2)
#define READ_DIR (1u << 3)
#define FIRST_RIGHTS ((1u << 13) - 1) /* version 1 */
#define REFER (1u << 13)              /* version 2 */
#define TRUNCATE (1u << 14)           /* version 3 */
#define NET_BIND_AND_CONNECT 3u       /* version 4 */
#define SCOPED 3u                     /* version 6: abstract sockets, signals */

struct ruleset {
    uint64_t files, network, scoped;
};

struct beneath {
    uint64_t rights;
    int32_t descriptor;
} __attribute__((packed));

static const struct {
    const char *path;
    unsigned rights;
} LIBRARIES[] = {
    {"/lib", EXECUTE | READ_FILE},
    {"/lib32", EXECUTE | READ_FILE},
    {"/lib64", EXECUTE | READ_FILE},
    {"/usr/lib", EXECUTE | READ_FILE},
    {"/usr/lib32", EXECUTE | READ_FILE},
    {"/usr/lib64", EXECUTE | READ_FILE},
    {"/usr/local/lib", EXECUTE | READ_FILE},
    {"/etc/ld.so.cache", READ_FILE},
    {"/etc/ld.so.preload", READ_FILE},
    {"/dev/null", READ_FILE | WRITE_FILE},
    {"/dev/urandom", READ_FILE},
    {"/sys/devices/system/cpu", READ_FILE | READ_DIR}, /* how many processors there are */
};
#define COUNT(array) (sizeof(array) / sizeof *(array))

int confined_process_landlock(void) {
    long version = syscall(__NR_landlock_create_ruleset, NULL, 0, VERSION_FLAG);
    return version > 0 ? (int)version : 0;
}

static int allow(int ruleset, int descriptor, uint64_t rights) {
    struct beneath rule = {.rights = rights, .descriptor = descriptor};
    return (int)syscall(__NR_landlock_add_rule, ruleset, RULE_PATH_BENEATH, &rule, 0);
}

static int allow_path(int ruleset, const char *path, uint64_t rights) {
    int descriptor = open(path, O_PATH | O_CLOEXEC);
    if (descriptor < 0)
        return errno == ENOENT || errno == EACCES ? 0 : -1;
    int result = allow(ruleset, descriptor, rights);
    close(descriptor);
    return result;
}

/* Let this process open libraries and the files of its descriptors. Where there is no Landlock, nothing is done. */
static int restrict_files(const struct confined_process *wanted) {
    int version = confined_process_landlock();
    if (!version)
        return 0;
    struct ruleset rules = {.files = FIRST_RIGHTS};
    size_t size = sizeof rules.files;
    uint64_t truncate = version >= 3 ? TRUNCATE : 0;
    rules.files |= truncate | (version >= 2 ? REFER : 0);
    if (version >= 4) {
        rules.network = NET_BIND_AND_CONNECT;
        size += sizeof rules.network;
    }
    if (version >= 6) {
        rules.scoped = SCOPED;
        size += sizeof rules.scoped;
    }
    int ruleset = (int)syscall(__NR_landlock_create_ruleset, &rules, size, 0);
    if (ruleset < 0)
        return -1;
    for (size_t n = 0; n < COUNT(LIBRARIES); n++)
        if (allow_path(ruleset, LIBRARIES[n].path, LIBRARIES[n].rights))
            return -1;
    if (allow_path(ruleset, wanted->program, EXECUTE | READ_FILE))
        return -1;
    for (int n = 0; n < wanted->descriptor_count; n++) {
        int access = wanted->accesses[n];
        if (access != CONFINED_NO_ACCESS &&
            allow(ruleset, 3 + n, READ_FILE | (access == CONFINED_WRITES ? WRITE_FILE | truncate : 0)))
            return -1;
    }
    return (int)syscall(__NR_landlock_restrict_self, ruleset, 0) || close(ruleset) ? -1 : 0;
}

#if defined(__x86_64__)
#define ARCHITECTURE AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define ARCHITECTURE AUDIT_ARCH_AARCH64
#endif

/* Refuse what would reach something that is no file (servers, other processes, keys), and what changes a file by its
 * name without opening it, which Landlock does not look at (truncating: before version 3). */
static int restrict_calls(int allow_io_uring) {
#ifdef ARCHITECTURE
#define LOAD(field) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, field))
#define REFUSED BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EACCES)
#define REFUSE(name) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_##name, 0, 1), REFUSED
    struct sock_filter filter[] = {
        LOAD(arch),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ARCHITECTURE, 1, 0),
        REFUSED,
        LOAD(nr),
#ifdef __x86_64__
        BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, 0x40000000, 0, 1), /* x32: the same calls under other numbers */
        REFUSED,
#endif
        REFUSE(socket), REFUSE(connect), REFUSE(bind), REFUSE(open_by_handle_at), REFUSE(ptrace),
        REFUSE(process_vm_readv), REFUSE(process_vm_writev), REFUSE(kill), REFUSE(add_key), REFUSE(request_key),
        REFUSE(keyctl), REFUSE(bpf), REFUSE(perf_event_open), REFUSE(userfaultfd), REFUSE(mount), REFUSE(umount2),
        REFUSE(unshare), REFUSE(setns), REFUSE(chroot), REFUSE(pivot_root), REFUSE(truncate), REFUSE(fchmod),
        REFUSE(fchmodat), REFUSE(fchown), REFUSE(fchownat), REFUSE(setxattr), REFUSE(lsetxattr), REFUSE(fsetxattr),
        REFUSE(removexattr), REFUSE(lremovexattr), REFUSE(fremovexattr), REFUSE(utimensat), REFUSE(tkill),
        REFUSE(rt_sigqueueinfo), REFUSE(rt_tgsigqueueinfo), REFUSE(pidfd_send_signal), REFUSE(fchmodat2),
        REFUSE(setxattrat), REFUSE(removexattrat),
#ifdef __NR_chmod
        REFUSE(chmod), REFUSE(chown), REFUSE(lchown), REFUSE(utime), REFUSE(utimes), REFUSE(futimesat),
#endif
#ifdef __NR_pidfd_getfd
        REFUSE(pidfd_getfd),
#endif
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_filter without_io_uring[] = {LOAD(nr), REFUSE(io_uring_setup),
                                             BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
    struct sock_fprog program = {.len = COUNT(filter), .filter = filter};
    struct sock_fprog more = {.len = COUNT(without_io_uring), .filter = without_io_uring};
    /* what is asked for by io_uring passes by every filter */
    if (!allow_io_uring && prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &more, 0, 0) && errno != EINVAL && errno != ENOSYS)
        return -1;
    return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program, 0, 0) && errno != EINVAL && errno != ENOSYS;
#else
    (void)allow_io_uring;
    return 0;
#endif
}

/* Become the user, and let go of every capability but, where it is asked for, that of reading. By bare system calls:
 * the C library's functions would have other threads do the same. */
static int become(const struct confined_process *wanted) {
    if (wanted->user < 0)
        return 0;
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct none[2] = {{0}, {0}};
    int reads_all = wanted->reads_all && confined_process_landlock();
    /* root's files are its owner's as anybody's are; refused where we are the root of a container alone */
    prctl(PR_SET_SECUREBITS, SECBIT_NOROOT | SECBIT_NOROOT_LOCKED, 0, 0, 0);
    if (reads_all && prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0))
        return -1;
    /* the root of a container may not know the user, or be nobody who can change to another: Landlock does without */
    int steps[] = {
        syscall(__NR_setgroups, 0, NULL) ? errno : 0,
        syscall(__NR_setresgid, wanted->group, wanted->group, wanted->group) ? errno : 0,
        syscall(__NR_setresuid, wanted->user, wanted->user, wanted->user) ? errno : 0,
    };
    for (size_t i = 0; i < COUNT(steps); i++)
        if (steps[i] && ((steps[i] != EINVAL && steps[i] != EPERM) || !confined_process_landlock())) {
            errno = steps[i];
            return -1;
        }
    if (reads_all) {
        none[0].permitted = none[0].inheritable = 1u << CAP_DAC_READ_SEARCH;
        if (!syscall(__NR_capset, &header, none) &&
            !prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_DAC_READ_SEARCH, 0, 0))
            return 0;
        none[0].permitted = none[0].inheritable = 0;
    }
    return (int)syscall(__NR_capset, &header, none);
}

/* Give the descriptors their numbers: first all of them above, for some may have another's number. */
static int place_descriptors(const struct confined_process *wanted, int *report) {
    int above = 3 + wanted->descriptor_count;
    int error_output = fcntl(wanted->error_output, F_DUPFD_CLOEXEC, above);
    int reported = fcntl(*report, F_DUPFD_CLOEXEC, above);
    int moved[wanted->descriptor_count + 1];
    for (int n = 0; n < wanted->descriptor_count; n++)
        if ((moved[n] = fcntl(wanted->descriptors[n], F_DUPFD_CLOEXEC, above)) < 0)
            return -1;
    int nothing = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (error_output < 0 || reported < 0 || nothing < 0)
        return -1;
    *report = reported;
    nothing = fcntl(nothing, F_DUPFD_CLOEXEC, above);
    if (dup2(nothing, 0) < 0 || dup2(nothing, 1) < 0 || dup2(error_output, 2) < 0)
        return -1;
    for (int n = 0; n < wanted->descriptor_count; n++)
        if (dup2(moved[n], 3 + n) < 0)
            return -1;
    if (dup2(reported, above) < 0 || fcntl(above, F_SETFD, FD_CLOEXEC))
        return -1;
    *report = above;
    return (int)syscall(__NR_close_range, above + 1, ~0u, 0);
}

static const char *const STEPS[] = {"starting", "giving it its files", "changing to the image's owner",
                                    "restricting it to its files", "restricting what it calls", "executing"};

static void signals_as_usual(void) {
    struct sigaction usual = {.sa_handler = SIG_DFL};
    for (int number = 1; number < NSIG; number++)
        sigaction(number, &usual, NULL);
    signal(SIGXFSZ, SIG_IGN); /* a write past the limit of a file's size fails, and ends nobody */
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
}

static void run(const struct confined_process *wanted, pid_t parent, int report) {
    int failed[2] = {0, 0};
    signals_as_usual();
    setsid();
    umask(077);
    if (chdir("/") || place_descriptors(wanted, &report))
        failed[0] = 1;
    else if (become(wanted))
        failed[0] = 2;
    else if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || restrict_files(wanted))
        failed[0] = 3;
    else if (restrict_calls(wanted->user <= 0))
        failed[0] = 4;
    if (!failed[0]) {
        prctl(PR_SET_PDEATHSIG, SIGTERM, 0, 0, 0); /* a change of user would have cleared it */
        if (getppid() != parent) /* whoever was killed before the kernel knew that must not leave it behind */
            _exit(1);
        execve(wanted->program, wanted->arguments, wanted->environment);
        failed[0] = 5;
    }
    failed[1] = errno;
    if (write(report, failed, sizeof failed) < 0)
        _exit(2);
    _exit(1);
}

int confined_process_start(const struct confined_process *wanted, const char **step) {
    int ends[2], failed[2];
    *step = STEPS[0];
    if (pipe2(ends, O_CLOEXEC))
        return -errno;
    pid_t parent = getpid(), pid = fork();
    if (pid == 0)
        run(wanted, parent, ends[1]);
    int error = errno;
    close(ends[1]);
    if (pid < 0) {
        close(ends[0]);
        return -error;
    }
    ssize_t count;
    while ((count = read(ends[0], failed, sizeof failed)) < 0 && errno == EINTR)
        ;
    close(ends[0]);
    if (count != (ssize_t)sizeof failed)
        return pid;
    while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
        ;
    *step = STEPS[failed[0]];
    return -failed[1];
}

int confined_open(const char *path, int flags, long long user, long long group, int group_count,
                  const unsigned *groups) {
    int dumpable = prctl(PR_GET_DUMPABLE, 0, 0, 0, 0);
    /* of files only: whom signals come from, and who may trace us, does not change */
    if (syscall(__NR_setgroups, group_count, groups))
        return -errno;
    setfsgid((gid_t)group);
    setfsuid((uid_t)user);
    if (prctl(PR_SET_DUMPABLE, dumpable == 1, 0, 0, 0)) /* which the kernel has changed to what the system says */
        return -errno;
    if (setfsuid((uid_t)-1) != (int)(uid_t)user || setfsgid((gid_t)-1) != (int)(gid_t)group)
        return -EPERM;
    int descriptor = open(path, flags);
    return descriptor < 0 ? -errno : descriptor;
}
