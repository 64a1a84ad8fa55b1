#define _GNU_SOURCE
#include "queue/counts.h"

#include <dirent.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

/* The file, in the machine's byte order. Its name is <process id>-<time>. As long as a process that counts in it lives,
 * it is locked by flock(). */
struct file {
    _Atomic uint64_t magic;
    uint32_t version;
    uint32_t classes;
    uint64_t started_ns; /* CLOCK_REALTIME */
    uint64_t process;
    struct gp_counts counts[GP_CLASSES];
};

#define MAGIC UINT64_C(0x73746e756f437067) /* "gpCounts" */
#define VERSION 2u

static struct gp_counts own[GP_CLASSES];
static _Atomic(struct gp_counts *) counts = own;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static const char *wanted;

struct gp_counts *gp_counts_of(uint32_t class_index)
{
    return &atomic_load_explicit(&counts, memory_order_acquire)[class_index];
}

/* Whether nobody counts in it any more. Without its magic number it may be about to be locked. */
static int is_over(int descriptor)
{
    uint64_t magic = 0;

    return pread(descriptor, &magic, sizeof(magic), 0) == sizeof(magic) && magic == MAGIC
           && flock(descriptor, LOCK_EX | LOCK_NB) == 0;
}

/* Every program that ran here left a file: the directory must not grow for ever. */
static void remove_ended(void)
{
    DIR *directory = opendir(wanted);
    const struct dirent *entry;

    while (directory != NULL && (entry = readdir(directory)) != NULL) {
        int descriptor = openat(dirfd(directory), entry->d_name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);

        if (descriptor < 0)
            continue;
        if (is_over(descriptor))
            (void)unlinkat(dirfd(directory), entry->d_name, 0);
        close(descriptor);
    }
    if (directory != NULL)
        closedir(directory);
}

static void publish(void)
{
    struct file *file = MAP_FAILED;
    struct timespec now;
    uint64_t started_ns;
    char path[4096];
    int descriptor;

    remove_ended();
    clock_gettime(CLOCK_REALTIME, &now);
    started_ns = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
    if (snprintf(path, sizeof(path), "%s/%ld-%" PRIu64, wanted, (long)getpid(), started_ns) >= (int)sizeof(path))
        return;
    descriptor = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0644);
    if (descriptor < 0)
        return;
    /* The descriptor stays open for the lock, which children share. */
    if (flock(descriptor, LOCK_EX | LOCK_NB) == 0 && posix_fallocate(descriptor, 0, sizeof(*file)) == 0)
        file = mmap(NULL, sizeof(*file), PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
    if (file == MAP_FAILED) {
        unlink(path);
        close(descriptor);
        return;
    }
    file->version = VERSION;
    file->classes = GP_CLASSES;
    file->started_ns = started_ns;
    file->process = (uint64_t)getpid();
    atomic_store_explicit(&file->magic, MAGIC, memory_order_release); /* it is complete */
    atomic_store_explicit(&counts, file->counts, memory_order_release);
}

void gp_counts_publish(const char *directory)
{
    if (directory[0] != '/') /* relative to where? */
        return;
    wanted = directory;
    pthread_once(&once, publish);
}
