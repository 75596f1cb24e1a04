/*
 * The disk workload: numbered, checksummed blocks written in a circle at a chosen rate.
 *
 * Promises that `durable` is the number of a block whose write, with O_DIRECT and O_DSYNC, has
 * returned; and that numbering goes on after the highest block found, across boots. The layout is
 * in wire.py. An error ends the workload and is reported, never retried.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "agent.h"

#define DEFAULT_SPAN_MB 64 /* enough to matter, little enough to scan at start */
#define SCAN_BLOCKS 64

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int disk = -1;
static uint64_t slots, first, rate, written, slowest_ns;
static int failure;
static atomic_ullong durable;
static uint32_t table[256];

static uint32_t crc32_of(const uint8_t *bytes, size_t length)
{
    uint32_t crc = ~0u;
    while (length--)
        crc = table[(crc ^ *bytes++) & 255] ^ crc >> 8;
    return ~crc;
}

static void make_block(uint8_t *block, uint64_t seq)
{
    struct wire_block *header = (struct wire_block *)block;
    uint64_t body[BLOCK_BYTES / 8], value = mix(seq, boot_id) | 1;
    for (size_t i = 0; i < BLOCK_BYTES / 8; i++) {
        value ^= value << 13, value ^= value >> 7, value ^= value << 17;
        body[i] = value;
    }
    memcpy(block, body, BLOCK_BYTES);
    *header = (struct wire_block){.magic = WIRE_BLOCK_MAGIC, .boot_id = boot_id, .seq = seq,
                                  .slots = slots, .first = first, .version = WIRE_VERSION};
    header->crc = crc32_of(block, BLOCK_BYTES);
}

/* The number of a good block in its slot; 0 if nothing was ever written; -1 if it is damaged. */
static int64_t check_block(uint8_t *block, uint64_t slot)
{
    struct wire_block *header = (struct wire_block *)block;
    uint32_t crc = header->crc;
    if (!header->magic)
        return 0;
    header->crc = 0;
    if (header->magic != WIRE_BLOCK_MAGIC || crc32_of(block, BLOCK_BYTES) != crc)
        return -1;
    if (!header->slots || (header->seq - 1) % header->slots != slot)
        return -1;
    return (int64_t)header->seq;
}

/* `highest` and `first` are of the log of this size; `newest` counts older sizes of it too. */
struct scan {
    uint64_t highest, first, newest, good, bad;
};

static void look(struct scan *found, uint8_t *block, uint64_t slot)
{
    const struct wire_block *header = (const struct wire_block *)block;
    int64_t seq = check_block(block, slot);
    if (seq < 0)
        found->bad++;
    if (seq > 0 && (uint64_t)seq > found->newest)
        found->newest = (uint64_t)seq;
    if (seq <= 0 || header->slots != slots)
        return;
    found->good++;
    if ((uint64_t)seq > found->highest)
        found->highest = (uint64_t)seq, found->first = header->first;
}

/* Caller holds the lock. */
static int scan_disk(struct scan *found)
{
    static uint8_t blocks[SCAN_BLOCKS * BLOCK_BYTES] __attribute__((aligned(4096)));
    for (uint64_t slot = 0; slot < slots; slot += SCAN_BLOCKS) {
        ssize_t got = pread(disk, blocks, sizeof blocks, (off_t)(slot * BLOCK_BYTES));
        if (got < 0)
            return errno;
        for (uint64_t i = 0; i < (uint64_t)got / BLOCK_BYTES && slot + i < slots; i++)
            look(found, blocks + i * BLOCK_BYTES, slot + i);
    }
    return 0;
}

static void write_next(void)
{
    static uint8_t block[BLOCK_BYTES] __attribute__((aligned(4096)));
    uint64_t seq = durable + 1, start = now_ns();
    make_block(block, seq);
    if (pwrite(disk, block, BLOCK_BYTES, (off_t)((seq - 1) % slots * BLOCK_BYTES)) != BLOCK_BYTES) {
        failure = errno ? errno : EIO;
        rate = 0;
        return;
    }
    durable = seq;
    written++;
    if (now_ns() - start > slowest_ns)
        slowest_ns = now_ns() - start;
}

static void *disk_run(void *unused)
{
    (void)unused;
    for (uint64_t next = now_ns();;) {
        uint64_t now, period;
        pthread_mutex_lock(&lock);
        period = rate ? 1000000000u / rate : 50000000u;
        if (rate)
            write_next();
        pthread_mutex_unlock(&lock);
        next += period;
        now = now_ns();
        if (now > next)
            next = now; /* no catching up */
        sleep_until(next);
    }
    return NULL;
}

static const char *open_disk(uint64_t span_mebibytes)
{
    uint64_t size = 0, wanted;
    if (disk < 0)
        disk = open("/dev/vda", O_RDWR | O_DIRECT | O_DSYNC | O_CLOEXEC);
    if (disk < 0)
        return "the guest has no disk /dev/vda that it may write";
    if (ioctl(disk, BLKGETSIZE64, &size) || size < BLOCK_BYTES)
        return "the disk is too small";
    wanted = (span_mebibytes ? span_mebibytes : DEFAULT_SPAN_MB) << 20;
    slots = (wanted < size ? wanted : size) / BLOCK_BYTES;
    return NULL;
}

const char *disk_set(uint64_t blocks_per_second, uint64_t span_mebibytes)
{
    struct scan found = {0};
    const char *refusal = NULL;
    if (!blocks_per_second || blocks_per_second > 100000)
        return "rate must be between 1 and 100000 blocks a second";
    pthread_mutex_lock(&lock);
    if (!slots || span_mebibytes) {
        refusal = open_disk(span_mebibytes);
        if (!refusal && scan_disk(&found))
            refusal = "the disk cannot be read";
        if (found.newest > durable)
            durable = found.newest;
        first = found.highest && found.highest == durable ? found.first : durable + 1;
    }
    if (refusal)
        slots = 0;
    rate = refusal ? 0 : blocks_per_second;
    failure = 0;
    pthread_mutex_unlock(&lock);
    return refusal;
}

const char *disk_off(void)
{
    pthread_mutex_lock(&lock); /* no write is in flight once we have the lock */
    rate = 0;
    pthread_mutex_unlock(&lock);
    return NULL;
}

const char *disk_verify(struct text *out)
{
    struct scan found = {0};
    const char *refusal = NULL;
    pthread_mutex_lock(&lock);
    if (!slots)
        refusal = open_disk(0);
    if (!refusal && scan_disk(&found))
        refusal = "the disk cannot be read";
    if (!refusal) {
        uint64_t numbers = found.highest ? found.highest - found.first + 1 : 0;
        uint64_t should = numbers < slots ? numbers : slots;
        append(out, ",\"slots\":%lu,\"good\":%lu,\"bad\":%lu,\"missing\":%lu,\"highest\":%lu,"
               "\"durable\":%llu", slots, found.good, found.bad,
               should > found.good ? should - found.good : 0, found.highest, durable);
    }
    pthread_mutex_unlock(&lock);
    return refusal;
}

void disk_report(struct text *out)
{
    append(out, ",\"disk\":{\"rate\":%lu,\"slots\":%lu,\"written\":%lu,\"durable\":%llu,"
           "\"slowest_ms\":%lu,\"error\":%s%s%s}", rate, slots, written, durable,
           slowest_ns / 1000000, failure ? "\"" : "", failure ? strerror(failure) : "null",
           failure ? "\"" : "");
}

void disk_start(void)
{
    pthread_t thread;
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t crc = i;
        for (int bit = 0; bit < 8; bit++)
            crc = crc & 1 ? 0xedb88320u ^ crc >> 1 : crc >> 1;
        table[i] = crc;
    }
    pthread_create(&thread, NULL, disk_run, NULL);
}

uint64_t disk_durable(void) { return durable; }
