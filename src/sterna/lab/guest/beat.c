/*
 * The heartbeat: one numbered datagram to the client every PERIOD_NS, and what comes back.
 *
 * Promises that `seq` counts beats really handed to the network, so a number missing at the client
 * was lost on the way; and that a guest that was paused goes on with the next beat, never with a
 * burst of those it missed.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "agent.h"

static int sock = -1;
static atomic_ullong sent, acked, skipped, unsent;

static void take_echoes(void)
{
    struct wire_echo echo;
    while (recv(sock, &echo, sizeof echo, MSG_DONTWAIT) == sizeof echo)
        if (echo.magic == WIRE_MAGIC && echo.version == WIRE_VERSION && echo.kind == WIRE_ECHO
            && echo.boot_id == boot_id && echo.seq > acked)
            acked = echo.seq;
}

static void send_beat(void)
{
    struct wire_beat beat = {
        .magic = WIRE_MAGIC,
        .version = WIRE_VERSION,
        .kind = WIRE_BEAT,
        .boot_id = boot_id,
        .seq = sent + 1,
        .mono_ns = now_ns(),
        .acked = acked,
        .mem_writes = memory_writes(),
        .mem_dirtied_bytes = memory_dirtied(),
        .mem_bad = memory_bad(),
        .durable_vda = disk_durable(0),
        .durable_vdb = disk_durable(1),
        .durable_vdc = disk_durable(2),
        .durable_vdd = disk_durable(3),
    };
    if (send(sock, &beat, sizeof beat, MSG_DONTWAIT) == sizeof beat)
        sent++;
    else
        unsent++;
}

static void *beat_run(void *unused)
{
    (void)unused;
    for (uint64_t next = now_ns();;) {
        uint64_t now;
        next += PERIOD_NS;
        sleep_until(next);
        now = now_ns();
        if (now - next >= PERIOD_NS) {
            uint64_t missed = (now - next) / PERIOD_NS;
            skipped += missed;
            next += missed * PERIOD_NS;
        }
        take_echoes();
        send_beat();
    }
    return NULL;
}

void beat_start(void)
{
    char text[64], *colon;
    struct sockaddr_in client = {.sin_family = AF_INET};
    /* Ahead of the workloads: a busy guest is not a paused one. */
    struct sched_param first = {.sched_priority = 50};
    pthread_t thread;
    if (!init_option("sterna.client", text, sizeof text) || !(colon = strchr(text, ':')))
        return;
    *colon = 0;
    client.sin_port = htons((uint16_t)atoi(colon + 1));
    if (!inet_aton(text, &client.sin_addr))
        return;
    sock = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (connect(sock, (struct sockaddr *)&client, sizeof client)) {
        close(sock);
        sock = -1;
        return;
    }
    pthread_create(&thread, NULL, beat_run, NULL);
    pthread_setschedparam(thread, SCHED_FIFO, &first);
}

void beat_report(struct text *out)
{
    append(out, ",\"beats\":{\"on\":%s,\"sent\":%llu,\"acked\":%llu,\"skipped\":%llu,\"unsent\":%llu}",
           sock < 0 ? "false" : "true", sent, acked, skipped, unsent);
}
