/* Threads that can do little but what they are for.
 *
 * It is for mistakes in what reads untrusted bytes, and keeps their reach small. It is no wall inside a process: all
 * threads share its memory, and whoever can change that at will can change what another thread does. */
#ifndef LUKSHDRFS_CONFINEMENT_H
#define LUKSHDRFS_CONFINEMENT_H

/* From now on this thread can open, connect and start nothing, make no memory executable, and signal no other process:
 * such calls fail with EPERM. It may use the process's descriptors and memory, wait and end. Returns 0, or an errno where
 * the kernel has no seccomp filters. */
int confine_thread(void);

/* Confines a thread that connects and looks up names: it can start no program, signal no other process, change no file by
 * name and open none for writing. Threads that it starts are like it. */
int confine_connecting_thread(void);

/* What a thread of ours begins with: its name, and if `confined`, confine_thread(). A kernel that cannot do it serves as
 * well. */
void begin_confined(const char *name, int confined);

#endif
