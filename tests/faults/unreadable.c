/*
 * Preloaded into a host's daemon, and so into its QEMUs and qemu-img: while the file named by
 * STERNA_UNREADABLE exists, every read of a file below one of the folders that it lists fails with
 * EIO, as that of a dying disk does. For machines whose kernel has no device mapper.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

static int is_bad(int fd)
{
    char list[PATH_MAX] = "", link[64], path[PATH_MAX];
    const char *flag = getenv("STERNA_UNREADABLE");
    ssize_t got;
    int saved = errno, file, bad = 0;
    if (!flag || (file = open(flag, O_RDONLY | O_CLOEXEC)) < 0) {
        errno = saved;
        return 0;
    }
    static ssize_t (*real)(int, void *, size_t);
    if (!real)
        real = (ssize_t (*)(int, void *, size_t))dlsym(RTLD_NEXT, "read");
    got = real(file, list, sizeof list - 1);
    close(file);
    list[got > 0 ? got : 0] = 0;
    list[strcspn(list, "\n")] = 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    got = readlink(link, path, sizeof path - 1);
    if (got > 0 && *list) {
        path[got] = 0;
        bad = !strncmp(path, list, strlen(list));
    }
    errno = saved;
    return bad;
}

#define REFUSE(fd)                                                                                 \
    if (is_bad(fd)) {                                                                              \
        errno = EIO;                                                                               \
        return -1;                                                                                 \
    }
#define REAL(name, ...)                                                                            \
    static ssize_t (*real)(__VA_ARGS__);                                                           \
    if (!real)                                                                                     \
        real = (ssize_t (*)(__VA_ARGS__))dlsym(RTLD_NEXT, name);

ssize_t pread(int fd, void *to, size_t size, off_t at)
{
    REAL("pread", int, void *, size_t, off_t)
    REFUSE(fd)
    return real(fd, to, size, at);
}

ssize_t pread64(int fd, void *to, size_t size, off64_t at)
{
    REAL("pread64", int, void *, size_t, off64_t)
    REFUSE(fd)
    return real(fd, to, size, at);
}

ssize_t preadv(int fd, const struct iovec *to, int count, off_t at)
{
    REAL("preadv", int, const struct iovec *, int, off_t)
    REFUSE(fd)
    return real(fd, to, count, at);
}

ssize_t preadv64(int fd, const struct iovec *to, int count, off64_t at)
{
    REAL("preadv64", int, const struct iovec *, int, off64_t)
    REFUSE(fd)
    return real(fd, to, count, at);
}

ssize_t read(int fd, void *to, size_t size)
{
    REAL("read", int, void *, size_t)
    if (fd > 2)
        REFUSE(fd)
    return real(fd, to, size);
}
