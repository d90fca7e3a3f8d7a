/* Checks of the C test programs: the first that does not hold is said on stderr, and ends the program. */
#ifndef CHECK_H
#define CHECK_H

#include "loci.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(condition)                                                                                                          \
    do {                                                                                                                          \
        if (!(condition)) {                                                                                                       \
            fprintf(stderr, "%s:%d: does not hold: %s (last error: %s)\n", __FILE__, __LINE__, #condition, loci_last_error());    \
            exit(1);                                                                                                              \
        }                                                                                                                         \
    } while (0)

/* call returns expected. */
#define IS(expected, call)                                                                                                        \
    do {                                                                                                                          \
        loci_status is_status = (call);                                                                                           \
        if (is_status != (expected)) {                                                                                            \
            fprintf(stderr, "%s:%d: %s is %s, not %s (last error: %s)\n", __FILE__, __LINE__, #call, loci_status_name(is_status), \
                    #expected, loci_last_error());                                                                                \
            exit(1);                                                                                                              \
        }                                                                                                                         \
    } while (0)

#define OK(call) IS(LOCI_OK, call)

/* Whether the bytes are whole, shortest-form UTF-8 without surrogates. */
static inline int is_utf8(const char *text, size_t len) {
    const unsigned char *s = (const unsigned char *)text;
    size_t i = 0;
    while (i < len) {
        unsigned c = s[i];
        size_t more = c < 0x80 ? 0 : c >= 0xc2 && c < 0xe0 ? 1 : c >= 0xe0 && c < 0xf0 ? 2 : c >= 0xf0 && c < 0xf5 ? 3 : 9;
        size_t k;
        if (more == 9 || more > len - i - 1) return 0;
        for (k = 1; k <= more; k++)
            if ((s[i + k] & 0xc0) != 0x80) return 0;
        if ((c == 0xe0 && s[i + 1] < 0xa0) || (c == 0xed && s[i + 1] > 0x9f) || (c == 0xf0 && s[i + 1] < 0x90) ||
            (c == 0xf4 && s[i + 1] > 0x8f))
            return 0;
        i += more + 1;
    }
    return 1;
}

/* dir/name, in one of a few buffers of this thread. */
static inline const char *in_dir(const char *dir, const char *name) {
    static __thread char paths[4][1024];
    static __thread unsigned turn;
    char *path = paths[turn++ % 4];
    CHECK(snprintf(path, sizeof paths[0], "%s/%s", dir, name) < (int)sizeof paths[0]);
    return path;
}

/* A whole file; free() it. */
static inline char *read_file(const char *path, size_t *len) {
    FILE *f = fopen(path, "rb");
    char *bytes;
    long size;
    CHECK(f != NULL);
    CHECK(fseek(f, 0, SEEK_END) == 0);
    size = ftell(f);
    CHECK(size > 0 && fseek(f, 0, SEEK_SET) == 0);
    bytes = (char *)malloc((size_t)size);
    CHECK(bytes != NULL && fread(bytes, 1, (size_t)size, f) == (size_t)size);
    fclose(f);
    *len = (size_t)size;
    return bytes;
}

#endif
