/* Preloaded by tests/faults.rs: makes the N-th call of one function of the C library fail.
 *
 *   LOCI_FAULT=function:N:errno     N counts from 1; 0 lets all succeed
 *   LOCI_FAULT=memory:N:errno       the same for malloc, calloc, realloc and posix_memalign, counted together
 *   LOCI_FAULT_LASTING=1            every call from the N-th on fails
 *   LOCI_FAULT_COUNT=FILE           how many calls there were is written there at the end
 *
 * Only calls from libloci.so count, and none for standard streams, /proc and /sys. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/types.h>
#include <unistd.h>

static char wanted[32];
static long fail_at;
static int fail_with, lasting;
static atomic_long calls;
static uintptr_t loci_from, loci_to;

/* Where libloci.so lies: it is mapped before any constructor runs. */
static int find_loci(struct dl_phdr_info *object, size_t size, void *user) {
    (void)size, (void)user;
    if (strstr(object->dlpi_name, "libloci") == NULL) return 0;
    loci_from = UINTPTR_MAX;
    for (int i = 0; i < object->dlpi_phnum; i++) {
        uintptr_t from = object->dlpi_addr + object->dlpi_phdr[i].p_vaddr, to = from + object->dlpi_phdr[i].p_memsz;
        if (object->dlpi_phdr[i].p_type != PT_LOAD) continue;
        if (from < loci_from) loci_from = from;
        if (to > loci_to) loci_to = to;
    }
    return 1;
}

__attribute__((constructor)) static void start(void) {
    const char *fault = getenv("LOCI_FAULT");
    lasting = getenv("LOCI_FAULT_LASTING") != NULL;
    dl_iterate_phdr(find_loci, NULL);
    if (fault != NULL && sscanf(fault, "%31[^:]:%ld:%d", wanted, &fail_at, &fail_with) != 3) _exit(99);
}

__attribute__((destructor)) static void end(void) {
    const char *path = getenv("LOCI_FAULT_COUNT");
    FILE *file = path == NULL ? NULL : fopen(path, "w");
    if (file != NULL) {
        fprintf(file, "%ld", atomic_load(&calls));
        fclose(file);
    }
}

/* True if this call, which returns to caller, is to fail. */
static int fails_at(const char *function, const void *caller) {
    long call;
    if ((uintptr_t)caller < loci_from || (uintptr_t)caller >= loci_to || strcmp(function, wanted) != 0) return 0;
    call = atomic_fetch_add(&calls, 1) + 1;
    if (lasting ? fail_at == 0 || call < fail_at : call != fail_at) return 0;
    errno = fail_with;
    return 1;
}

#define fails(function) fails_at(function, __builtin_return_address(0))

static int system_path(const char *path) {
    return strncmp(path, "/proc/", 6) == 0 || strncmp(path, "/sys/", 5) == 0 || strncmp(path, "/dev/", 5) == 0 || strncmp(path, "/etc/", 5) == 0;
}

#define REAL(name) \
    static __typeof__(&name) real; \
    if (real == NULL) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

int open64(const char *path, int flags, ...) {
    va_list list;
    mode_t mode;
    REAL(open64);
    va_start(list, flags);
    mode = (flags & (O_CREAT | O_TMPFILE)) != 0 ? va_arg(list, mode_t) : 0;
    va_end(list);
    return !system_path(path) && fails("open") ? -1 : real(path, flags, mode);
}
int open(const char *path, int flags, ...) {
    va_list list;
    mode_t mode;
    REAL(open);
    va_start(list, flags);
    mode = (flags & (O_CREAT | O_TMPFILE)) != 0 ? va_arg(list, mode_t) : 0;
    va_end(list);
    return !system_path(path) && fails("open") ? -1 : real(path, flags, mode);
}
void *mmap64(void *at, size_t len, int protection, int flags, int fd, off64_t offset) {
    REAL(mmap64);
    return fd >= 0 && fails("mmap") ? MAP_FAILED : real(at, len, protection, flags, fd, offset);
}
void *mmap(void *at, size_t len, int protection, int flags, int fd, off_t offset) {
    REAL(mmap);
    return fd >= 0 && fails("mmap") ? MAP_FAILED : real(at, len, protection, flags, fd, offset);
}
ssize_t pread64(int fd, void *to, size_t len, off64_t offset) {
    REAL(pread64);
    return fails("pread") ? -1 : real(fd, to, len, offset);
}
ssize_t pwrite64(int fd, const void *from, size_t len, off64_t offset) {
    REAL(pwrite64);
    return fails("pwrite") ? -1 : real(fd, from, len, offset);
}
ssize_t write(int fd, const void *from, size_t len) {
    REAL(write);
    return fd > 2 && fails("write") ? -1 : real(fd, from, len);
}
int fdatasync(int fd) {
    REAL(fdatasync);
    return fails("fdatasync") ? -1 : real(fd);
}
int fsync(int fd) {
    REAL(fsync);
    return fails("fsync") ? -1 : real(fd);
}
int ftruncate64(int fd, off64_t len) {
    REAL(ftruncate64);
    return fails("ftruncate") ? -1 : real(fd, len);
}
int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*run)(void *), void *user) {
    REAL(pthread_create);
    return fails("pthread_create") ? fail_with : real(thread, attributes, run, user);
}

/* dlsym may allocate: these ask the C library by its own second names, or once before anything is counted. */
extern void *__libc_malloc(size_t len);
extern void *__libc_calloc(size_t count, size_t len);
extern void *__libc_realloc(void *old, size_t len);
void *malloc(size_t len) { return fails("memory") ? NULL : __libc_malloc(len); }
void *calloc(size_t count, size_t len) { return fails("memory") ? NULL : __libc_calloc(count, len); }
void *realloc(void *old, size_t len) { return fails("memory") ? NULL : __libc_realloc(old, len); }
int posix_memalign(void **out, size_t align, size_t len) {
    REAL(posix_memalign);
    return fails("memory") ? fail_with : real(out, align, len);
}
