/* An RSA key on stdin, for programs that tests start: n e p q dp dq qinv in hex. */
#ifndef KEY_ON_STDIN_H
#define KEY_ON_STDIN_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels.h"

enum { N, E, P, Q, DP, DQ, QINV };
static uint8_t bytes[7][512];
static gpk_number numbers[7];

static void read_key(void)
{
    char hex[2048];

    for (int i = 0; i < 7; i++) {
        if (scanf("%2000s", hex) != 1)
            exit(2);
        const size_t length = strlen(hex);
        for (size_t j = 0; j < length; j++) {
            const char digit[2] = {hex[length - 1 - j], 0};
            bytes[i][j / 2] |= (uint8_t)(strtoul(digit, NULL, 16) << j % 2 * 4);
        }
        numbers[i] = {bytes[i], (length + 1) / 2};
    }
}

#endif
