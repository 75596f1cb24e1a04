/*
 * The memory workload: pages written at a chosen rate, every one of which can be checked later.
 *
 * Each page has a generation, kept apart from it, that grows by one with each write; the page's
 * content follows from its number and its generation. Patterns: `touch` writes 8 bytes of the
 * page, `random` and `text` all of it. What a page holds before its first write is the fill.
 * Promises that the pace is kept in slices of 10 ms without catching up after a pause, and that a
 * page is looked at before it is written again, so corruption shows even if nobody asks.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sysinfo.h>

#include "agent.h"

#define SLICE_NS 10000000u
#define WORDS (PAGE_BYTES / 8)
#define BATCH 64            /* pages written or checked under one hold of the lock */
#define SPARE_BYTES (24u << 20) /* left to the kernel: PID 1 running out of memory is a panic */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static uint64_t *region;
static uint32_t *generations;
static uint64_t pages, rate_pages, cursor;
static enum pattern pattern;
static enum fill fill;
static atomic_ullong writes, dirtied, bad;

static const char words[64][9] = {
    "the     ", "packet  ", "move    ", "memory  ", "storage ", "virtual ", "machine ", "network ",
    "switch  ", "channel ", "live    ", "migrate ", "source  ", "target  ", "address ", "session ",
    "request ", "answer  ", "server  ", "client  ", "record  ", "number  ", "version ", "content ",
    "header  ", "length  ", "status  ", "message ", "warning ", "success ", "failure ", "timeout ",
    "GET     ", "POST    ", "HTTP/1.1", "200 OK  ", "accept: ", "text/   ", "html    ", "json    ",
    "{\"id\":  ", "\"name\": ", "\"value\":", "null,   ", "true,   ", "false,  ", "],      ", "},      ",
    "select  ", "from    ", "where   ", "order by", "insert  ", "into    ", "values  ", "commit  ",
    "ERROR   ", "INFO    ", "DEBUG   ", "started ", "stopped ", "running ", "waiting ", "ready   ",
};

static void random_page(uint64_t *page, uint64_t seed)
{
    for (int i = 0; i < WORDS; i++) {
        seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
        page[i] = seed;
    }
}

/* Lines of seven words and a number, so that it compresses about as well as a log file. */
static void text_page(uint64_t *page, uint64_t seed)
{
    for (int line = 0; line < WORDS; line += 8) {
        uint64_t bits, number = 0;
        seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
        bits = seed;
        for (int i = 0; i < 7; i++, bits >>= 6)
            memcpy(&page[line + i], words[bits & 63], 8);
        for (int i = 0; i < 7; i++, bits >>= 3)
            number = number << 8 | ('0' + (bits & 7));
        page[line + 7] = number << 8 | '\n';
    }
}

static void filled(uint64_t *page, uint64_t number)
{
    uint64_t seed = mix(number, 0) | 1;
    if (fill == FILL_NONE)
        memset(page, 0, PAGE_BYTES);
    else if (fill == FILL_RANDOM || (fill == FILL_MIXED && number % 2))
        random_page(page, seed);
    else
        text_page(page, seed);
}

/* What page `number` must hold now, built in `page`. */
static void expected(uint64_t *page, uint64_t number)
{
    uint64_t generation = generations[number];
    if (!generation || pattern == PATTERN_TOUCH)
        filled(page, number);
    else if (pattern == PATTERN_RANDOM)
        random_page(page, mix(number, generation) | 1);
    else
        text_page(page, mix(number, generation) | 1);
    if (generation)
        page[0] = mix(number, generation);
}

static void write_page(uint64_t number)
{
    uint64_t *page = region + number * WORDS, generation = generations[number];
    if (generation && page[0] != mix(number, generation))
        bad++;
    generations[number]++;
    if (pattern == PATTERN_TOUCH)
        page[0] = mix(number, generation + 1);
    else
        expected(page, number);
}

static void write_slice(uint64_t count)
{
    while (count) {
        pthread_mutex_lock(&lock);
        for (uint64_t i = 0; i < BATCH && count && pages; i++, count--) {
            write_page(cursor);
            cursor = cursor + 1 < pages ? cursor + 1 : 0;
            writes++;
            dirtied += PAGE_BYTES;
        }
        if (!pages || !rate_pages)
            count = 0;
        pthread_mutex_unlock(&lock);
    }
}

static void *memory_run(void *unused)
{
    uint64_t owed = 0; /* in pages times slices a second, so that slow rates are exact */
    (void)unused;
    for (uint64_t next = now_ns();;) {
        uint64_t now;
        next += SLICE_NS;
        sleep_until(next);
        now = now_ns();
        if (now - next >= SLICE_NS)
            next += (now - next) / SLICE_NS * SLICE_NS;
        pthread_mutex_lock(&lock);
        owed += pages ? rate_pages : 0;
        pthread_mutex_unlock(&lock);
        write_slice(owed / (1000000000u / SLICE_NS));
        owed %= 1000000000u / SLICE_NS;
    }
    return NULL;
}

static void release(void)
{
    if (region)
        munmap(region, pages * PAGE_BYTES);
    if (generations)
        munmap(generations, pages * sizeof *generations);
    region = NULL, generations = NULL, pages = rate_pages = cursor = 0, dirtied = 0;
}

static void *take(uint64_t bytes)
{
    void *got = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (got == MAP_FAILED)
        return NULL;
    madvise(got, bytes, MADV_HUGEPAGE);
    memset(got, 0, bytes); /* every page is really there before the workload starts */
    return got;
}

const char *memory_set(uint64_t mebibytes, uint64_t rate_mb, enum pattern how, enum fill before)
{
    struct sysinfo system;
    const char *refusal = NULL;
    uint64_t bytes = mebibytes << 20;
    if (!mebibytes || mebibytes > 1u << 20)
        return "size_mb must be between 1 and 1048576";
    pthread_mutex_lock(&lock);
    release();
    sysinfo(&system);
    if (bytes + bytes / 1024 + SPARE_BYTES > (uint64_t)system.freeram * system.mem_unit) {
        refusal = "the guest has not that much free memory";
    } else {
        region = take(bytes);
        generations = take(bytes / PAGE_BYTES * sizeof *generations);
        if (!region || !generations)
            refusal = "the kernel refused the memory";
        pages = bytes / PAGE_BYTES;
        pattern = how, fill = before;
        for (uint64_t i = 0; !refusal && fill != FILL_NONE && i < pages; i++)
            filled(region + i * WORDS, i);
        rate_pages = (rate_mb << 20) / PAGE_BYTES;
        if (refusal)
            release();
    }
    pthread_mutex_unlock(&lock);
    return refusal;
}

const char *memory_off(void)
{
    pthread_mutex_lock(&lock);
    release();
    pthread_mutex_unlock(&lock);
    return NULL;
}

const char *memory_verify(struct text *out)
{
    uint64_t wrong = 0, total = 0, first = 0, at = 0;
    uint64_t page[WORDS];
    for (bool more = true; more;) {
        pthread_mutex_lock(&lock);
        for (int i = 0; i < BATCH && at < pages; i++, at++) {
            expected(page, at);
            total += generations[at];
            if (memcmp(page, region + at * WORDS, PAGE_BYTES) && !wrong++)
                first = at;
        }
        more = at < pages;
        pthread_mutex_unlock(&lock);
    }
    bad += wrong;
    append(out, ",\"pages\":%lu,\"good\":%lu,\"bad\":%lu,\"generations\":%lu", at, at - wrong, wrong,
           total);
    if (wrong)
        append(out, ",\"first_bad\":%lu", first);
    return NULL;
}

/* Damages one page, so that a test can see that damage is found. */
const char *memory_spoil(void)
{
    const char *refusal = "there is no memory workload";
    pthread_mutex_lock(&lock);
    if (pages) {
        region[pages / 2 * WORDS + WORDS / 2] ^= 1;
        refusal = NULL;
    }
    pthread_mutex_unlock(&lock);
    return refusal;
}

void memory_report(struct text *out)
{
    static const char *names[] = {"touch", "random", "text"};
    append(out, ",\"mem\":{\"size_mb\":%lu,\"rate_mb\":%lu,\"pattern\":\"%s\",\"writes\":%llu,"
           "\"dirtied_bytes\":%llu,\"bad\":%llu}", pages * PAGE_BYTES >> 20,
           rate_pages * PAGE_BYTES >> 20, pages ? names[pattern] : "off", writes, dirtied, bad);
}

void memory_start(void)
{
    pthread_t thread;
    pthread_create(&thread, NULL, memory_run, NULL);
}

uint64_t memory_writes(void) { return writes; }
uint64_t memory_dirtied(void) { return dirtied; }
uint64_t memory_bad(void) { return bad; }
