/*
 * The disk workload: on each disk, numbered, checksummed blocks written in a circle at a rate.
 *
 * Promises that `durable` is the number of a block whose write, with O_DIRECT and O_DSYNC, has
 * returned; that each disk has numbers of its own, and a disk that hangs holds up no other; and that
 * numbering goes on after the highest block found, across boots. The layout is in wire.py. An error
 * ends the workload on its disk and is reported, never retried.
 *
 * A burst writes several blocks at once: the way to tens of MB/s under emulation, where a write
 * takes most of a millisecond whatever its length. A crash in the middle of one may leave any of
 * its blocks, so a guest that is to be killed writes them one by one.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "agent.h"

#define DEFAULT_SPAN_MB 64 /* enough to matter, little enough to scan at start */
#define SCAN_BLOCKS 64
#define BURST_BLOCKS 256 /* 1 MiB: more takes longer than is fair to call one write */

struct disk {
    pthread_mutex_t lock;
    int number, fd;
    char name[4], path[16];
    uint64_t slots, first, rate, burst, written, slowest_ns;
    int failure;
    atomic_ullong durable;
    uint8_t blocks[BURST_BLOCKS * BLOCK_BYTES] __attribute__((aligned(4096)));
    uint8_t scanned[SCAN_BLOCKS * BLOCK_BYTES] __attribute__((aligned(4096)));
};

static struct disk disks[DISKS];
static uint32_t tables[8][256];

/* Of whole words of 8 bytes, a word at a time: emulated, this is what a block costs most. */
static uint32_t crc32_of(const uint8_t *bytes, size_t length)
{
    uint64_t crc = ~0u, word;
    for (; length >= 8; length -= 8, bytes += 8) {
        memcpy(&word, bytes, 8);
        word ^= crc;
        crc = 0;
        for (int i = 0; i < 8; i++)
            crc ^= tables[7 - i][word >> 8 * i & 255];
    }
    return ~(uint32_t)crc;
}

static void make_block(const struct disk *disk, uint8_t *block, uint64_t seq)
{
    struct wire_block *header = (struct wire_block *)block;
    uint64_t body[BLOCK_BYTES / 8], value = mix(seq, boot_id ^ (uint64_t)disk->number) | 1;
    for (size_t i = 0; i < BLOCK_BYTES / 8; i++) {
        value ^= value << 13, value ^= value >> 7, value ^= value << 17;
        body[i] = value;
    }
    memcpy(block, body, BLOCK_BYTES);
    *header = (struct wire_block){.magic = WIRE_BLOCK_MAGIC, .boot_id = boot_id, .seq = seq,
                                  .slots = disk->slots, .first = disk->first,
                                  .version = WIRE_VERSION, .disk = (uint16_t)disk->number};
    header->crc = crc32_of(block, BLOCK_BYTES);
}

/* The number of a good block in its slot; 0 if nothing was ever written; -1 if it is damaged. */
static int64_t check_block(const struct disk *disk, uint8_t *block, uint64_t slot)
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
    return header->disk == disk->number ? (int64_t)header->seq : -1;
}

/* `highest` and `first` are of the log of this size; `newest` counts older sizes of it too. */
struct scan {
    uint64_t highest, first, newest, good, bad;
};

static void look(const struct disk *disk, struct scan *found, uint8_t *block, uint64_t slot)
{
    const struct wire_block *header = (const struct wire_block *)block;
    int64_t seq = check_block(disk, block, slot);
    if (seq < 0)
        found->bad++;
    if (seq > 0 && (uint64_t)seq > found->newest)
        found->newest = (uint64_t)seq;
    if (seq <= 0 || header->slots != disk->slots)
        return;
    found->good++;
    if ((uint64_t)seq > found->highest)
        found->highest = (uint64_t)seq, found->first = header->first;
}

/* Caller holds the disk's lock, here and below. */
static int scan_disk(struct disk *disk, struct scan *found)
{
    for (uint64_t slot = 0; slot < disk->slots; slot += SCAN_BLOCKS) {
        ssize_t got = pread(disk->fd, disk->scanned, sizeof disk->scanned, (off_t)(slot * BLOCK_BYTES));
        if (got < 0)
            return errno;
        for (uint64_t i = 0; i < (uint64_t)got / BLOCK_BYTES && slot + i < disk->slots; i++)
            look(disk, found, disk->scanned + i * BLOCK_BYTES, slot + i);
    }
    return 0;
}

/* The next block, or a burst of them up to the end of the circle; how many. */
static uint64_t write_next(struct disk *disk)
{
    uint64_t seq = disk->durable + 1, slot = (seq - 1) % disk->slots, start;
    uint64_t count = slot + disk->burst > disk->slots ? disk->slots - slot : disk->burst;
    ssize_t length = (ssize_t)(count * BLOCK_BYTES);
    for (uint64_t i = 0; i < count; i++)
        make_block(disk, disk->blocks + i * BLOCK_BYTES, seq + i);
    start = now_ns();
    if (pwrite(disk->fd, disk->blocks, (size_t)length, (off_t)(slot * BLOCK_BYTES)) != length) {
        disk->failure = errno ? errno : EIO;
        disk->rate = 0;
        return 0;
    }
    disk->durable = seq + count - 1;
    disk->written += count;
    if (now_ns() - start > disk->slowest_ns)
        disk->slowest_ns = now_ns() - start;
    return count;
}

static void *disk_run(void *of)
{
    struct disk *disk = of;
    for (uint64_t next = now_ns();;) {
        uint64_t now, period = 50000000u, rate;
        pthread_mutex_lock(&disk->lock);
        rate = disk->rate;
        if (rate)
            period = write_next(disk) * 1000000000u / rate;
        pthread_mutex_unlock(&disk->lock);
        next += period;
        now = now_ns();
        if (now > next)
            next = now; /* no catching up */
        sleep_until(next);
    }
    return NULL;
}

static const char *open_disk(struct disk *disk, uint64_t span_mebibytes)
{
    uint64_t size = 0, wanted;
    if (disk->fd < 0)
        disk->fd = open(disk->path, O_RDWR | O_DIRECT | O_DSYNC | O_CLOEXEC);
    if (disk->fd < 0)
        return "the guest has no such disk that it may write";
    if (ioctl(disk->fd, BLKGETSIZE64, &size) || size < BLOCK_BYTES)
        return "the disk is too small";
    wanted = (span_mebibytes ? span_mebibytes : DEFAULT_SPAN_MB) << 20;
    disk->slots = (wanted < size ? wanted : size) / BLOCK_BYTES;
    return NULL;
}

static const char *set_one(struct disk *disk, uint64_t blocks_per_second, uint64_t span_mebibytes,
                           uint64_t burst_blocks)
{
    struct scan found = {0};
    const char *refusal = NULL;
    pthread_mutex_lock(&disk->lock);
    if (!disk->slots || span_mebibytes) {
        refusal = open_disk(disk, span_mebibytes);
        if (!refusal && scan_disk(disk, &found))
            refusal = "the disk cannot be read";
        if (found.newest > disk->durable)
            disk->durable = found.newest;
        disk->first = found.highest && found.highest == disk->durable ? found.first : disk->durable + 1;
    }
    if (refusal)
        disk->slots = 0;
    disk->rate = refusal ? 0 : blocks_per_second;
    disk->burst = burst_blocks;
    disk->failure = 0;
    disk->slowest_ns = 0; /* of this order */
    pthread_mutex_unlock(&disk->lock);
    return refusal;
}

/* `count` of 0: the disks that are there, up to the first that is not, and at least one. */
const char *disk_set(uint64_t blocks_per_second, uint64_t span_mebibytes, uint64_t count,
                     uint64_t burst_blocks)
{
    const char *refusal = NULL;
    if (!blocks_per_second || blocks_per_second > 100000)
        return "rate must be between 1 and 100000 blocks a second";
    if (count > DISKS)
        return "there are not so many disks";
    if (!burst_blocks || burst_blocks > BURST_BLOCKS)
        return "burst must be between 1 and 256 blocks";
    for (uint64_t i = 0; i < DISKS && !refusal; i++)
        if (count ? i < count : !i || !access(disks[i].path, F_OK))
            refusal = set_one(&disks[i], blocks_per_second, span_mebibytes, burst_blocks);
        else
            break;
    return refusal;
}

const char *disk_off(void)
{
    for (int i = 0; i < DISKS; i++) {
        pthread_mutex_lock(&disks[i].lock); /* no write is in flight once we have the lock */
        disks[i].rate = 0;
        pthread_mutex_unlock(&disks[i].lock);
    }
    return NULL;
}

static const char *verify_one(struct disk *disk, struct text *out, uint64_t sums[4])
{
    struct scan found = {0};
    const char *refusal = NULL;
    pthread_mutex_lock(&disk->lock);
    if (!disk->slots)
        refusal = open_disk(disk, 0);
    if (!refusal && scan_disk(disk, &found))
        refusal = "the disk cannot be read";
    if (!refusal) {
        uint64_t numbers = found.highest ? found.highest - found.first + 1 : 0;
        uint64_t should = numbers < disk->slots ? numbers : disk->slots;
        uint64_t missing = should > found.good ? should - found.good : 0;
        append(out, "%s\"%s\":{\"bad\":%lu,\"missing\":%lu,\"highest\":%lu,\"durable\":%llu}",
               disk->number ? "," : "", disk->name, found.bad, missing, found.highest, disk->durable);
        sums[0] += disk->slots, sums[1] += found.good, sums[2] += found.bad, sums[3] += missing;
    }
    pthread_mutex_unlock(&disk->lock);
    return refusal;
}

/* Of the disks that were ever set to work, or of the first. The sums first, then each. */
const char *disk_verify(struct text *out)
{
    uint64_t sums[4] = {0};
    const char *refusal = NULL;
    append(out, ",\"disks\":{");
    for (int i = 0; i < DISKS && !refusal; i++)
        if (!i || disks[i].slots)
            refusal = verify_one(&disks[i], out, sums);
    append(out, "},\"slots\":%lu,\"good\":%lu,\"bad\":%lu,\"missing\":%lu", sums[0], sums[1], sums[2],
           sums[3]);
    return refusal;
}

/* `disk` is what holds for all of them together: `durable` and `rate` are the lowest of any. */
void disk_report(struct text *out)
{
    uint64_t written = 0, slots = 0, slowest = 0, rate = disks[0].rate;
    uint64_t lowest = disks[0].durable;
    int failure = 0;
    append(out, ",\"disks\":{");
    for (int i = 0; i < DISKS; i++) {
        const struct disk *disk = &disks[i];
        if (i && !disk->slots)
            continue;
        append(out, "%s\"%s\":{\"durable\":%llu,\"error\":%s%s%s}", i ? "," : "", disk->name,
               disk->durable, disk->failure ? "\"" : "",
               disk->failure ? strerror(disk->failure) : "null", disk->failure ? "\"" : "");
        written += disk->written, slots += disk->slots;
        slowest = disk->slowest_ns > slowest ? disk->slowest_ns : slowest;
        rate = disk->rate < rate ? disk->rate : rate;
        lowest = disk->durable < lowest ? disk->durable : lowest;
        failure = failure ? failure : disk->failure;
    }
    append(out, "},\"disk\":{\"rate\":%lu,\"slots\":%lu,\"written\":%lu,\"durable\":%lu,"
           "\"slowest_ms\":%lu,\"error\":%s%s%s}", rate, slots, written, lowest, slowest / 1000000,
           failure ? "\"" : "", failure ? strerror(failure) : "null", failure ? "\"" : "");
}

void disk_start(void)
{
    pthread_t thread;
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t crc = i;
        for (int bit = 0; bit < 8; bit++)
            crc = crc & 1 ? 0xedb88320u ^ crc >> 1 : crc >> 1;
        tables[0][i] = crc;
    }
    for (uint32_t i = 0; i < 256; i++)
        for (int j = 1; j < 8; j++)
            tables[j][i] = tables[0][tables[j - 1][i] & 255] ^ tables[j - 1][i] >> 8;
    for (int i = 0; i < DISKS; i++) {
        struct disk *disk = &disks[i];
        pthread_mutex_init(&disk->lock, NULL);
        disk->number = i;
        disk->fd = -1;
        snprintf(disk->name, sizeof disk->name, "vd%c", 'a' + i);
        snprintf(disk->path, sizeof disk->path, "/dev/%s", disk->name);
        pthread_create(&thread, NULL, disk_run, disk);
    }
}

uint64_t disk_durable(int number) { return disks[number].durable; }
