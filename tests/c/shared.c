/* Several sessions read the same two memories, attached in different orders and twice, while others add to them: nobody waits for
 * ever, and what was added is there.
 *
 * usage: shared MODEL.gguf ROUNDS */
#define _POSIX_C_SOURCE 200809L
#include "check.h"
#include <pthread.h>
#include <unistd.h>

#define THREADS 8
#define TOKENS 12

static loci_model *model;
static loci_memory *memories[2];
static loci_token tokens[TOKENS];
static int rounds;

static void *read_or_write(void *user) {
    int number = *(int *)user, i;
    loci_session_options options;
    loci_session *session;
    loci_status status;
    size_t count;
    uint64_t length;
    OK(loci_session_options_init(&options, sizeof options));
    options.threads = 1;
    options.context_length = 64;
    OK(loci_session_new(model, &options, &session));
    if (number % 2 == 0) {
        OK(loci_session_attach_memory(session, memories[number / 2 % 2], NULL));
        OK(loci_session_attach_memory(session, memories[(number / 2 + 1) % 2], NULL));
        OK(loci_session_attach_memory(session, memories[number / 2 % 2], NULL));
    }
    for (i = 0; i < rounds; i++) {
        if (number % 2 == 0) {
            OK(loci_session_prompt(session, tokens, TOKENS, NULL, NULL));
            OK(loci_session_passages(session, &count));
            OK(loci_session_reset(session));
        } else {
            OK(loci_session_remember(session, memories[number / 2 % 2], tokens, TOKENS, "shared", NULL, NULL));
            status = loci_memory_len(memories[0], &length);
            CHECK(status == LOCI_OK || status == LOCI_BUSY);
        }
    }
    loci_session_free(session);
    return NULL;
}

int main(int argc, char **argv) {
    pthread_t threads[THREADS];
    int numbers[THREADS], i;
    uint64_t length;
    CHECK(argc == 3);
    rounds = atoi(argv[2]);
    alarm(300); /* whoever waits for ever is ended by it */
    for (i = 0; i < TOKENS; i++) tokens[i] = 3 + i;
    OK(loci_model_open(argv[1], NULL, &model));
    for (i = 0; i < 2; i++) OK(loci_memory_in_ram(model, &memories[i]));
    for (i = 0; i < THREADS; i++) {
        numbers[i] = i;
        CHECK(pthread_create(&threads[i], NULL, read_or_write, &numbers[i]) == 0);
    }
    for (i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
    for (i = 0; i < 2; i++) {
        OK(loci_memory_len(memories[i], &length));
        CHECK(length == (uint64_t)rounds * TOKENS * THREADS / 4);
        loci_memory_free(memories[i]);
    }
    loci_model_free(model);
    return 0;
}
