/* Threads that read and write what is open already, and can do nothing else. */
#ifndef LUKSHDRFS_CONFINEMENT_H
#define LUKSHDRFS_CONFINEMENT_H

/* From now on this thread can open, connect, start and signal nothing: such calls fail with EPERM. It may use its
 * descriptors and memory, wait and end. Returns 0, or an errno where the kernel has no seccomp filters. */
int confine_thread(void);

#endif
