/* See libnbd.h. */
#include "payload/nbd/libnbd.h"

#include <dlfcn.h>
#include <string.h>

/* POSIX has function pointers come from dlsym() as pointers to data. */
static int find(void *library, const char *name, void *pointer) {
    void *found = dlsym(library, name);
    memcpy(pointer, &found, sizeof found);
    return found != NULL;
}

const struct nbd_library *nbd_library_load(void) {
    static struct nbd_library functions;
    static int complete;
    if (complete)
        return &functions;
    void *library = dlopen("libnbd.so.0", RTLD_NOW | RTLD_LOCAL);
    if (!library)
        return NULL;
    complete = 1;
#define NBD_FIND(result, name, parameters) complete &= find(library, "nbd_" #name, &functions.name);
    NBD_FUNCTIONS(NBD_FIND)
#undef NBD_FIND
    (void)find(library, "nbd_set_pread_initialize", &functions.set_pread_initialize);
    return complete ? &functions : NULL;
}
