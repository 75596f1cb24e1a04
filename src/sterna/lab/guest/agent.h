/*
 * What the parts of the guest's agent promise each other.
 *
 * Each workload is one thread that owns its state behind its own lock. A `*_set` function applies
 * an order and returns NULL, or the reason why it did not. A `*_report` function appends JSON
 * members, each with a leading comma. Nothing here allocates after start but the memory workload.
 */
#ifndef AGENT_H
#define AGENT_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "wire.h"

struct text {
    char bytes[4096];
    size_t length;
};

enum pattern { PATTERN_TOUCH, PATTERN_RANDOM, PATTERN_TEXT };
enum fill { FILL_NONE, FILL_RANDOM, FILL_TEXT, FILL_MIXED };

/* agent.c */
extern uint64_t boot_id;
uint64_t now_ns(void);
uint64_t mix(uint64_t a, uint64_t b);
void sleep_until(uint64_t mono_ns);
void append(struct text *out, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* init.c */
void init_system(void);
const char *init_option(const char *name, char *buffer, size_t size);
void init_network(void);
void init_shell(void);
void power_off(bool again);

/* beat.c */
void beat_start(void);
void beat_report(struct text *out);

/* memory.c */
void memory_start(void);
const char *memory_set(uint64_t mebibytes, uint64_t rate_mb, enum pattern, enum fill);
const char *memory_off(void);
const char *memory_verify(struct text *out);
const char *memory_spoil(void);
void memory_report(struct text *out);
uint64_t memory_writes(void);
uint64_t memory_dirtied(void);
uint64_t memory_bad(void);

/* disk.c */
void disk_start(void);
const char *disk_set(uint64_t rate, uint64_t span_mebibytes, uint64_t count, uint64_t burst);
const char *disk_off(void);
const char *disk_verify(struct text *out);
void disk_report(struct text *out);
uint64_t disk_durable(int number);

/* tpm.c */
const char *tpm_order(const char *hex, struct text *out);

/* console.c */
const char *console_order(char *line, struct text *out, bool *ends, bool *again);
void console_serve(void);

#endif
