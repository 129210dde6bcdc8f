/* A program that runs beside us and can open nothing but what it is given: Landlock, a seccomp filter, another user. */
#ifndef LUKSHDRFS_CONFINED_PROCESS_H
#define LUKSHDRFS_CONFINED_PROCESS_H

enum { CONFINED_NO_ACCESS, CONFINED_READS, CONFINED_WRITES };

struct confined_process {
    const char *program;        /* its path */
    char *const *arguments;     /* all of them, its name first; then NULL */
    char *const *environment;   /* NAME=VALUE; then NULL */
    int error_output;           /* what it has as standard error */
    int descriptor_count;
    const int *descriptors;     /* what it has as descriptors 3, 4, ... */
    const int *accesses;        /* what it may do to each of them when it opens it by /proc/self/fd */
    long long user, group;      /* whom it runs as, with no other group; -1: as we do */
    int reads_all;              /* where it is Landlock that decides, the user's permissions need not, for reading */
};

/* The kernel's version of Landlock; 0 where it has none, or it is switched off. */
int confined_process_landlock(void);

/* Start it, in a session of its own; it gets SIGTERM when the calling thread ends. Returns its pid, or -errno with the
 * step that failed in `step`, a static string. */
int confined_process_start(const struct confined_process *wanted, const char **step);

/* Open a path as a user with these groups would; as root. Returns a descriptor, or -errno. For a thread that ends after
 * it: it stays that user's, as far as files are concerned. */
int confined_open(const char *path, int flags, long long user, long long group, int group_count,
                  const unsigned *groups);

#endif
