/* What the examples with a log have in common. A program defines PROGRAM, its name, before it includes this. */
#include <loci.h>
#include <stdio.h>
#include <stdlib.h>

/* The same numbers on every machine (xorshift, Marsaglia 2003). */
static uint32_t random_below(uint32_t *state, uint32_t n) {
    *state ^= *state << 13;
    *state ^= *state >> 17;
    *state ^= *state << 5;
    return *state % n;
}

static void check(loci_status status) {
    if (status != LOCI_OK) {
        fprintf(stderr, "\n" PROGRAM ": %s: %s\n", loci_status_name(status), loci_last_error());
        exit(1);
    }
}

static void *allocate(size_t bytes) {
    void *p = malloc(bytes);
    if (p == NULL) {
        fprintf(stderr, PROGRAM ": out of memory\n");
        exit(1);
    }
    return p;
}

static char *read_file(const char *path, size_t *length) {
    FILE *in = fopen(path, "rb");
    char *text;
    long size;
    if (in == NULL || fseek(in, 0, SEEK_END) != 0 || (size = ftell(in)) < 0) {
        perror(path);
        exit(1);
    }
    rewind(in);
    text = allocate((size_t)size + 1);
    *length = fread(text, 1, (size_t)size, in);
    text[*length] = 0;
    fclose(in);
    return text;
}

static double mib(uint64_t bytes) {
    return (double)bytes / (1024.0 * 1024.0);
}

static double per_second(uint64_t tokens, double seconds) {
    return seconds > 0 ? (double)tokens / seconds : 0;
}

static loci_session_stats stats_of(loci_session *session) {
    loci_session_stats s;
    s.struct_size = sizeof s;
    check(loci_session_stats_get(session, &s));
    return s;
}

/* A session that always takes the most probable token: the same answers every time. A Focused Transformer attends to the
 * `memory_top_k` entries of its memories that fit best; 0: all. */
static loci_session *new_session(loci_model *model, uint32_t memory_top_k) {
    loci_session_options options;
    loci_sampler_options sampler;
    loci_session *session;
    check(loci_session_options_init(&options, sizeof options));
    options.memory_top_k = memory_top_k;
    check(loci_session_new(model, &options, &session));
    check(loci_sampler_options_init(&sampler, sizeof sampler));
    sampler.temperature = 0;
    check(loci_session_set_sampler(session, &sampler));
    return session;
}

static int32_t on_progress(void *user, uint64_t done, uint64_t total) {
    int *shown = user, percent = (int)(done * 100 / (total ? total : 1));
    if (percent / 10 != *shown) {
        *shown = percent / 10;
        fprintf(stderr, "  %3d %% of %lu tokens\n", percent, (unsigned long)total);
    }
    return 0;
}
