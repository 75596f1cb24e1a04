/*
 * One command to the TPM and its answer, both in hexadecimal: what they mean is the asker's business.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "agent.h"

#define DEVICE "/dev/tpm0"
#define MOST 1024

const char *tpm_order(const char *hex, struct text *out)
{
    uint8_t bytes[MOST];
    size_t length = 0;
    unsigned int byte;
    for (int used = 0; hex && sscanf(hex, "%2x%n", &byte, &used) == 1 && used == 2; hex += 2) {
        if (length == MOST)
            return "the command is too long";
        bytes[length++] = (uint8_t)byte;
    }
    if (!length || *hex)
        return "a command in hexadecimal was expected";
    int tpm = open(DEVICE, O_RDWR | O_CLOEXEC);
    if (tpm < 0)
        return "there is no TPM";
    ssize_t answered = -1;
    if (write(tpm, bytes, length) == (ssize_t)length)
        answered = read(tpm, bytes, MOST);
    close(tpm);
    if (answered <= 0)
        return "the TPM does not answer";
    append(out, ",\"tpm\":\"");
    for (ssize_t i = 0; i < answered; i++)
        append(out, "%02x", bytes[i]);
    append(out, "\"");
    return NULL;
}
