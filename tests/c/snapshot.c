/* A session that is saved, and whose process dies, goes on from the file in another process.
 *
 *   snapshot save MODEL MEMORY STATE     reads a text into MEMORY, starts an answer with it attached, saves, prints the next 64 tokens,
 *                                        and then waits to be killed
 *   snapshot load MODEL STATE            prints the 64 tokens that come next
 *
 * The last line of both is the same. */
#include "check.h"

static void print_next(loci_session *session, int n) {
    loci_generate_options options;
    loci_piece piece;
    OK(loci_generate_options_init(&options, sizeof options));
    options.max_tokens = (uint32_t)n;
    options.ignore_eos = 1;
    OK(loci_session_start(session, &options));
    memset(&piece, 0, sizeof piece);
    piece.struct_size = sizeof piece;
    do {
        OK(loci_session_next(session, &piece));
        if (piece.token != LOCI_NO_TOKEN) printf(" %d", (int)piece.token);
    } while (piece.finish == LOCI_FINISH_NONE);
    CHECK(piece.finish == LOCI_FINISH_LENGTH);
    printf("\n");
    fflush(stdout);
}

static int save(const char *model_path, const char *memory_path, const char *state_path) {
    static const char text[] = "The key of the north gate hangs behind the door. The lamp is in the cellar. Nobody was seen last night. ";
    loci_model *model;
    loci_session *session;
    loci_memory *memory;
    loci_sampler_options sampler;
    int i;
    OK(loci_model_open(model_path, NULL, &model));
    OK(loci_session_new(model, NULL, &session));
    OK(loci_memory_create(model, memory_path, &memory));
    for (i = 0; i < 6; i++) OK(loci_session_remember_text(session, memory, text, strlen(text), 0, "notes", NULL, NULL));
    OK(loci_memory_commit(memory));
    OK(loci_session_attach_memory(session, memory, NULL));
    /* Sampled, so that the generator's state is part of it. */
    OK(loci_sampler_options_init(&sampler, sizeof sampler));
    sampler.temperature = 1.0f;
    sampler.seed = 7;
    OK(loci_session_set_sampler(session, &sampler));
    OK(loci_session_prompt_text(session, "Where is the key", LOCI_NUL_TERMINATED, LOCI_ADD_SPECIAL, NULL, NULL));
    print_next(session, 20);
    OK(loci_session_save(session, state_path));
    print_next(session, 64);
    /* Until a signal, or the parent's end of the pipe. */
    for (i = getchar(); i != EOF; i = getchar()) continue;
    return 1;
}

static int load(const char *model_path, const char *state_path) {
    loci_model *model;
    loci_session *session;
    OK(loci_model_open(model_path, NULL, &model));
    OK(loci_session_load(model, state_path, NULL, 0, &session));
    print_next(session, 64);
    loci_session_free(session);
    loci_model_free(model);
    return 0;
}

int main(int argc, char **argv) {
    CHECK((argc == 5 && strcmp(argv[1], "save") == 0) || (argc == 4 && strcmp(argv[1], "load") == 0));
    return argc == 5 ? save(argv[2], argv[3], argv[4]) : load(argv[2], argv[3]);
}
