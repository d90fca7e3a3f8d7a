/* Lives from the reserve until it is short, frees, and goes on: what gives back or stops is never refused.
 *
 * usage: spent MODEL.gguf */
#include "check.h"

#define MOST 4096

/* The allocator of this process, the library included: the C library's, until there is nothing left. */
static int spent;
void *__libc_malloc(size_t size);
void *__libc_calloc(size_t count, size_t size);
void *__libc_realloc(void *at, size_t size);
void *__libc_memalign(size_t align, size_t size);
void *malloc(size_t size) { return spent ? NULL : __libc_malloc(size); }
void *calloc(size_t count, size_t size) { return spent ? NULL : __libc_calloc(count, size); }
void *realloc(void *at, size_t size) { return spent ? NULL : __libc_realloc(at, size); }
void *aligned_alloc(size_t align, size_t size) { return spent ? NULL : __libc_memalign(align, size); }
int posix_memalign(void **at, size_t align, size_t size);
int posix_memalign(void **at, size_t align, size_t size) {
    *at = spent ? NULL : __libc_memalign(align, size);
    return *at ? 0 : 12;
}

int main(int argc, char **argv) {
    static loci_memory *memories[MOST];
    loci_model *model;
    loci_session *session;
    loci_session_options options;
    loci_error error;
    loci_status status;
    int n = 0;
    size_t length;
    CHECK(argc == 2);
    OK(loci_model_open(argv[1], NULL, &model));
    OK(loci_session_options_init(&options, sizeof options));
    options.threads = 1;
    OK(loci_session_new(model, &options, &session));
    OK(loci_session_prefill_text(session, "one", LOCI_NUL_TERMINATED, 0, NULL, NULL));
    /* A thread's first error takes something of the C library's, which ends the process where there is nothing. */
    IS(LOCI_INVALID_ARGUMENT, loci_session_len(NULL, &length));

    spent = 1;
    do status = loci_memory_create_as(model, NULL, NULL, &memories[n]);
    while (status == LOCI_OK && ++n < MOST);
    CHECK(status == LOCI_NOMEM && n > 10);
    CHECK(loci_session_len(session, &length) == LOCI_NOMEM);

    /* What stops, gives back or explains. */
    error.struct_size = sizeof error;
    OK(loci_last_error_details(&error));
    CHECK(error.status == LOCI_NOMEM && error.message[0]);
    OK(loci_session_cancel(session));
    OK(loci_session_trim(session));
    OK(loci_model_trim(model));
    while (n) loci_memory_free(memories[--n]);

    /* There is room again, for small things at first. */
    OK(loci_session_len(session, &length));
    OK(loci_memory_create_as(model, NULL, NULL, &memories[0]));
    loci_memory_free(memories[0]);
    spent = 0;
    OK(loci_session_prefill_text(session, " two", LOCI_NUL_TERMINATED, 0, NULL, NULL));
    loci_session_free(session);
    loci_model_free(model);
    return 0;
}
