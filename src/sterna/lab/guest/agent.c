/*
 * The lab guest's only program, PID 1: brings the machine up, starts the workloads that the kernel
 * command line asks for, says that it is ready, and then obeys the serial console.
 *
 * Options on the kernel's command line (all may be left out):
 *   sterna.ip=A.B.C.D/PLEN                    address of eth0
 *   sterna.client=A.B.C.D:PORT                where beats go
 *   sterna.mem=SIZE_MB:RATE_MB:PATTERN[:FILL] memory workload from the start
 *   sterna.disk=RATE[:SPAN_MB[:DISKS[:BURST]]] disk workload from the start, blocks a second each
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <sys/sysinfo.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

#include "agent.h"

uint64_t boot_id;

uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

void sleep_until(uint64_t mono_ns)
{
    struct timespec at = {(time_t)(mono_ns / 1000000000u), (long)(mono_ns % 1000000000u)};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, NULL))
        ;
}

/* splitmix64's finaliser over two numbers: cheap, and no two pages or blocks look alike. */
uint64_t mix(uint64_t a, uint64_t b)
{
    uint64_t z = a * 0x9e3779b97f4a7c15u + b + 0x632be59bd9b4e019u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

void append(struct text *out, const char *format, ...)
{
    va_list list;
    size_t room = sizeof out->bytes - out->length;
    va_start(list, format);
    int wrote = vsnprintf(out->bytes + out->length, room, format, list);
    va_end(list);
    if (wrote > 0)
        out->length += (size_t)wrote < room ? (size_t)wrote : room - 1;
}

/* Never waits for entropy: a lab guest must boot fast, and the clocks below make up for it. */
static void choose_boot_id(void)
{
    struct timespec wall;
    uint64_t chance = 0;
    clock_gettime(CLOCK_REALTIME, &wall);
    if (getrandom(&chance, sizeof chance, GRND_INSECURE) < 0)
        chance = now_ns();
    boot_id = mix(chance, mix((uint64_t)wall.tv_sec, (uint64_t)wall.tv_nsec ^ __builtin_ia32_rdtsc()));
    boot_id = boot_id ? boot_id : 1;
}

/* Runs one order as if it had come over the console; only a refusal is worth a word. */
static void obey(char *line)
{
    struct text out = {.length = 0};
    bool ends = false, again = false;
    const char *refusal = console_order(line, &out, &ends, &again);
    if (refusal)
        printf("STERNA {\"event\":\"refused\",\"reason\":\"%s\"}\n", refusal);
}

static void start_workloads(void)
{
    char text[128], line[512], *part[4] = {"", "0", "touch", NULL};
    if (init_option("sterna.mem", text, sizeof text)) {
        char *rest = text;
        for (int i = 0; i < 4 && rest; i++)
            part[i] = strsep(&rest, ":");
        snprintf(line, sizeof line, "mem size_mb=%s rate_mb=%s pattern=%s%s%s", part[0], part[1],
                 part[2], part[3] ? " fill=" : "", part[3] ? part[3] : "");
        obey(line);
    }
    if (init_option("sterna.disk", text, sizeof text)) {
        static const char *const keys[] = {"rate", "span_mb", "disks", "burst"};
        int length = snprintf(line, sizeof line, "disk");
        char *rest = text;
        for (int i = 0; i < 4 && rest; i++)
            length += snprintf(line + length, sizeof line - (size_t)length, " %s=%s", keys[i],
                               strsep(&rest, ":"));
        obey(line);
    }
}

int main(void)
{
    struct utsname kernel;
    struct sysinfo memory;
    setvbuf(stdout, NULL, _IOLBF, 0);
    init_system();
    choose_boot_id();
    init_network();
    beat_start();
    memory_start();
    disk_start();
    start_workloads();
    uname(&kernel);
    sysinfo(&memory);
    printf("STERNA {\"event\":\"ready\",\"boot_id\":\"%016llx\",\"uptime_ms\":%llu,\"kernel\":\"%s\","
           "\"memory_mb\":%llu,\"cpus\":%ld,\"disk\":%s,\"network\":%s}\n",
           (unsigned long long)boot_id, (unsigned long long)(now_ns() / 1000000), kernel.release,
           (unsigned long long)memory.totalram * memory.mem_unit >> 20, sysconf(_SC_NPROCESSORS_ONLN),
           access("/dev/vda", F_OK) ? "false" : "true",
           access("/sys/class/net/eth0", F_OK) ? "false" : "true");
    console_serve();
}
