/*
 * Orders over the serial console, one a line, each answered by one line `STERNA {json}`.
 *
 * Promises an answer to every line that is not empty, an error in words for one it cannot obey,
 * and that an order with `id=N` at its end is carried out once: the same id again gets the same
 * answer. An order with `id=N.LENGTH` of which bytes were lost is not answered: its sender will say
 * it again. The power button is obeyed from here too.
 */
#define _GNU_SOURCE
#include <cpuid.h>
#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <linux/input.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <termios.h>
#include <unistd.h>

#include "agent.h"

#define LINE_BYTES 2560
#define BUTTONS 8
#define HELP                                                                                      \
    "status | mem size_mb=N rate_mb=N pattern=touch|random|text [fill=none|random|text|mixed] | " \
    "mem off | mem spoil | verify | disk rate=N [span_mb=N] [disks=N] [burst=N] | disk off | " \
    "diskverify | cpu | tpm HEX | poweroff | reboot | help; any order may end in id=N"

struct option {
    const char *key;
    const char *value; /* NULL if the order does not have it */
};

static const char *parse(char *rest, struct option *options, size_t count)
{
    for (char *word; (word = strsep(&rest, " \t"));) {
        char *value = strchr(word, '=');
        size_t i = 0;
        if (!*word)
            continue;
        if (!value)
            return "expected key=value";
        *value++ = 0;
        while (i < count && strcmp(options[i].key, word))
            i++;
        if (i == count)
            return "unknown key in the order, see help";
        options[i].value = value;
    }
    return NULL;
}

static const char *number(struct option option, uint64_t otherwise, uint64_t *out)
{
    char *end;
    if (!option.value) {
        *out = otherwise;
        return NULL;
    }
    errno = 0;
    *out = strtoull(option.value, &end, 10);
    if (errno || *end || option.value[0] < '0' || option.value[0] > '9')
        return "a number was expected";
    return NULL;
}

static int choice(struct option option, int otherwise, const char *const *names)
{
    if (!option.value)
        return otherwise;
    for (int i = 0; names[i]; i++)
        if (!strcmp(names[i], option.value))
            return i;
    return -1;
}

static const char *order_memory(char *rest)
{
    static const char *const patterns[] = {"touch", "random", "text", NULL};
    static const char *const fills[] = {"none", "random", "text", "mixed", NULL};
    static const int usual[] = {FILL_MIXED, FILL_RANDOM, FILL_TEXT};
    struct option options[] = {{"size_mb", 0}, {"rate_mb", 0}, {"pattern", 0}, {"fill", 0}};
    uint64_t size, rate;
    const char *refusal;
    if (rest && !strcmp(rest, "off"))
        return memory_off();
    if (rest && !strcmp(rest, "spoil"))
        return memory_spoil();
    if ((refusal = parse(rest, options, 4)) || (refusal = number(options[0], 0, &size))
        || (refusal = number(options[1], 0, &rate)))
        return refusal;
    int pattern = choice(options[2], PATTERN_TOUCH, patterns);
    if (pattern < 0)
        return "pattern must be touch, random or text";
    int fill = choice(options[3], usual[pattern], fills);
    if (fill < 0)
        return "fill must be none, random, text or mixed";
    return memory_set(size, rate, (enum pattern)pattern, (enum fill)fill);
}

static const char *order_disk(char *rest)
{
    struct option options[] = {{"rate", 0}, {"span_mb", 0}, {"disks", 0}, {"burst", 0}};
    uint64_t rate, span, count, burst;
    const char *refusal;
    if (rest && !strcmp(rest, "off"))
        return disk_off();
    if ((refusal = parse(rest, options, 4)) || (refusal = number(options[0], 0, &rate))
        || (refusal = number(options[1], 0, &span)) || (refusal = number(options[2], 0, &count))
        || (refusal = number(options[3], 1, &burst)))
        return refusal;
    return disk_set(rate, span, count, burst);
}

/* What the processor says of itself now; a move to another one changes that under the kernel. */
static void cpu_report(struct text *out)
{
    static const char *const known[] = {"ssse3", "aes", "avx", "avx2", "sha-ni"};
    unsigned int a, b, c, d, b7, vendor[3];
    __cpuid(0, a, vendor[0], vendor[2], vendor[1]);
    __cpuid(1, a, b, c, d);
    __cpuid_count(7, 0, a, b7, d, d);
    const bool has[] = {c & bit_SSSE3, c & bit_AES, c & bit_AVX, b7 & bit_AVX2, b7 & bit_SHA};
    append(out, ",\"vendor\":\"%.12s\",\"cpu\":{", (const char *)vendor);
    for (size_t i = 0; i < sizeof has / sizeof *has; i++)
        append(out, "%s\"%s\":%s", i ? "," : "", known[i], has[i] ? "true" : "false");
    append(out, "}");
}

/* Carries out one order. Appends members of the answer, or returns why it was refused. */
const char *console_order(char *line, struct text *out, bool *ends, bool *again)
{
    char *name = strsep(&line, " \t");
    if (!strcmp(name, "status")) {
        append(out, ",\"boot_id\":\"%016lx\",\"uptime_ms\":%lu", boot_id, now_ns() / 1000000);
        beat_report(out), memory_report(out), disk_report(out);
        return NULL;
    }
    if (!strcmp(name, "mem"))
        return order_memory(line);
    if (!strcmp(name, "verify"))
        return memory_verify(out);
    if (!strcmp(name, "disk"))
        return order_disk(line);
    if (!strcmp(name, "diskverify"))
        return disk_verify(out);
    if (!strcmp(name, "cpu")) {
        cpu_report(out);
        return NULL;
    }
    if (!strcmp(name, "tpm"))
        return tpm_order(line, out);
    if (!strcmp(name, "help")) {
        append(out, ",\"help\":\"%s\"", HELP);
        return NULL;
    }
    *again = !strcmp(name, "reboot");
    *ends = *again || !strcmp(name, "poweroff");
    return *ends ? NULL : "unknown order, see help";
}

/*
 * Cuts ` id=N.LENGTH` off the end of the line, LENGTH being that of the order before it; NULL if
 * there is none. A serial port that is being opened loses bytes: `*whole` is false if it did.
 */
static char *cut_id(char *line, bool *whole)
{
    char *at = strstr(line, " id="), *end;
    size_t digits = at ? strspn(at + 4, "0123456789") : 0;
    *whole = true;
    if (!digits || digits > 18)
        return NULL;
    end = at + 4 + digits;
    if (*end == '.')
        *whole = strtoul(end + 1, &end, 10) == (unsigned long)(at - line);
    if (*end)
        return NULL;
    *at = 0;
    return strndup(at + 4, digits); /* only digits, so it can be echoed */
}

static void send_line(const struct text *out)
{
    for (size_t done = 0; done < out->length;) {
        ssize_t wrote = write(STDOUT_FILENO, out->bytes + done, out->length - done);
        if (wrote < 0 && errno != EINTR)
            return;
        done += wrote > 0 ? (size_t)wrote : 0;
    }
}

static void answer(char *line)
{
    static char last_id[24];
    static struct text last;
    struct text out = {.length = 0}, members = {.length = 0};
    bool ends = false, again = false, whole;
    char *id = cut_id(line, &whole);
    if (!whole || (id && !strcmp(id, last_id))) {
        if (whole)
            send_line(&last);
        free(id);
        return;
    }
    const char *refusal = console_order(line, &members, &ends, &again);
    append(&out, "STERNA {\"ok\":%s", refusal ? "false" : "true");
    if (id)
        append(&out, ",\"id\":%s", id);
    if (refusal)
        append(&out, ",\"error\":\"%s\"", refusal);
    append(&out, "%s}\n", members.bytes);
    if (id) {
        snprintf(last_id, sizeof last_id, "%s", id);
        last = out;
    }
    free(id);
    send_line(&out);
    if (ends) {
        tcdrain(STDOUT_FILENO);
        power_off(again);
    }
}

static int open_buttons(struct pollfd *polled)
{
    glob_t found;
    int count = 0;
    if (glob("/dev/input/event*", 0, NULL, &found))
        return 0;
    for (size_t i = 0; i < found.gl_pathc && count < BUTTONS; i++) {
        int fd = open(found.gl_pathv[i], O_RDONLY | O_NONBLOCK | O_CLOEXEC);
        if (fd >= 0)
            polled[count++] = (struct pollfd){.fd = fd, .events = POLLIN};
    }
    globfree(&found);
    return count;
}

static void take_presses(int fd)
{
    struct input_event event;
    while (read(fd, &event, sizeof event) == sizeof event)
        if (event.type == EV_KEY && event.code == KEY_POWER && event.value == 1)
            power_off(false);
}

static void take_bytes(void)
{
    static char line[LINE_BYTES];
    static size_t length;
    char bytes[256];
    ssize_t got = read(STDIN_FILENO, bytes, sizeof bytes);
    for (ssize_t i = 0; i < got; i++) {
        if (bytes[i] != '\n' && bytes[i] != '\r') {
            if (length < sizeof line - 1)
                line[length++] = bytes[i];
            continue;
        }
        line[length] = 0;
        if (length)
            answer(line);
        length = 0;
    }
}

void console_serve(void)
{
    struct pollfd polled[1 + BUTTONS] = {{.fd = STDIN_FILENO, .events = POLLIN}};
    struct termios raw;
    int count = 1 + open_buttons(polled + 1);
    if (!tcgetattr(STDIN_FILENO, &raw)) {
        cfmakeraw(&raw);
        tcsetattr(STDIN_FILENO, TCSANOW, &raw);
    }
    for (;;) {
        init_shell();
        if (poll(polled, (nfds_t)count, 1000) <= 0)
            continue;
        if (polled[0].revents & POLLIN)
            take_bytes();
        else if (polled[0].revents)
            polled[0].fd = -1; /* a machine without a console still beats */
        for (int i = 1; i < count; i++)
            if (polled[i].revents)
                take_presses(polled[i].fd);
    }
}
