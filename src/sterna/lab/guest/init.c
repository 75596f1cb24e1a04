/*
 * The duties of PID 1: mounts, kernel modules, the address of the one network card, a shell on the
 * screen if there is one, and the end of the machine.
 *
 * Promises never to fail because of a missing device: a guest without a disk, a card or a screen
 * comes up all the same.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <glob.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/klog.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "agent.h"

static char command_line[4096];

static void read_file(const char *path, char *buffer, size_t size)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t got = fd < 0 ? 0 : read(fd, buffer, size - 1);
    buffer[got > 0 ? got : 0] = 0;
    if (fd >= 0)
        close(fd);
}

/* The modules lie in the order in which they must be loaded; one line of the list names one. */
static void load_modules(void)
{
    static char order[8192];
    read_file("/modules/order", order, sizeof order);
    for (char *rest = order, *name; (name = strsep(&rest, "\n"));) {
        char path[256];
        if (!*name)
            continue;
        snprintf(path, sizeof path, "/modules/%s", name);
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0 || syscall(SYS_finit_module, fd, "", 0))
            fprintf(stderr, "module %s: %m\n", name);
        if (fd >= 0)
            close(fd);
    }
}

void init_system(void)
{
    mkdir("/dev", 0755), mkdir("/proc", 0755), mkdir("/sys", 0755), mkdir("/tmp", 01777);
    mount("dev", "/dev", "devtmpfs", 0, NULL);
    mount("proc", "/proc", "proc", 0, NULL);
    mount("sys", "/sys", "sysfs", 0, NULL);
    klogctl(8, NULL, 1); /* only emergencies on the console, which is our command channel */
    read_file("/proc/cmdline", command_line, sizeof command_line);
    load_modules();
}

/* The value of `name=value` on the kernel's command line, or NULL. */
const char *init_option(const char *name, char *buffer, size_t size)
{
    size_t length = strlen(name);
    for (const char *at = command_line; (at = strstr(at, name)); at += length) {
        if ((at == command_line || at[-1] == ' ') && at[length] == '=') {
            snprintf(buffer, size, "%.*s", (int)strcspn(at + length + 1, " \n"), at + length + 1);
            return buffer;
        }
    }
    return NULL;
}

static void set_up(int fd, const char *card, bool addressed, struct in_addr address, int bits)
{
    struct ifreq request = {0};
    struct sockaddr_in *in = (struct sockaddr_in *)&request.ifr_addr;
    snprintf(request.ifr_name, sizeof request.ifr_name, "%s", card);
    if (addressed) {
        in->sin_family = AF_INET;
        in->sin_addr = address;
        if (ioctl(fd, SIOCSIFADDR, &request))
            fprintf(stderr, "address of %s: %m\n", card);
        in->sin_addr.s_addr = htonl(bits ? 0xffffffffu << (32 - bits) : 0);
        ioctl(fd, SIOCSIFNETMASK, &request);
    }
    ioctl(fd, SIOCGIFFLAGS, &request);
    request.ifr_flags |= IFF_UP;
    if (ioctl(fd, SIOCSIFFLAGS, &request))
        fprintf(stderr, "start of %s: %m\n", card);
}

void init_network(void)
{
    char text[64];
    struct in_addr address = {0};
    int bits = 24, fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    bool addressed = false;
    if (init_option("sterna.ip", text, sizeof text)) {
        char *slash = strchr(text, '/');
        if (slash)
            *slash = 0, bits = atoi(slash + 1);
        addressed = inet_aton(text, &address) && bits >= 0 && bits <= 32;
    }
    set_up(fd, "lo", false, address, 0);
    if (!access("/sys/class/net/eth0", F_OK))
        set_up(fd, "eth0", addressed, address, bits);
    close(fd);
}

static bool has_screen(void)
{
    glob_t found;
    bool screen = false;
    if (glob("/sys/bus/pci/devices/*/class", 0, NULL, &found))
        return false;
    for (size_t i = 0; i < found.gl_pathc && !screen; i++) {
        char class[16];
        read_file(found.gl_pathv[i], class, sizeof class);
        screen = !strncmp(class, "0x03", 4);
    }
    globfree(&found);
    return screen;
}

/* Collects ended children, and keeps a shell on the screen: somebody may sit before it. */
void init_shell(void)
{
    static pid_t shell;
    static int screen = -1;
    for (pid_t gone; (gone = waitpid(-1, NULL, WNOHANG)) > 0;)
        if (gone == shell)
            shell = 0;
    if (screen < 0)
        screen = has_screen() && !access("/bin/busybox", X_OK);
    if (!screen || shell)
        return;
    shell = fork();
    if (shell)
        return;
    setsid();
    int tty = open("/dev/tty1", O_RDWR);
    if (tty < 0)
        _exit(1);
    ioctl(tty, TIOCSCTTY, 1);
    dup2(tty, 0), dup2(tty, 1), dup2(tty, 2);
    setenv("PATH", "/bin", 1), setenv("HOME", "/", 1), setenv("TERM", "linux", 1);
    setenv("PS1", "sterna guest # ", 1);
    execl("/bin/busybox", "sh", NULL);
    _exit(1);
}

/*
 * The card goes down first: Debian's kernel 6.1.192 breaks the queues of virtio devices on shutdown,
 * and a beat that is being sent then spins in start_xmit for ever (seen: soft lockup, no power-off).
 */
static void network_down(void)
{
    struct ifreq request = {.ifr_name = "eth0"};
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (!ioctl(fd, SIOCGIFFLAGS, &request)) {
        request.ifr_flags &= ~IFF_UP;
        ioctl(fd, SIOCSIFFLAGS, &request);
    }
    close(fd);
}

void power_off(bool again)
{
    disk_off();
    sync();
    network_down();
    reboot(again ? RB_AUTOBOOT : RB_POWER_OFF);
}
