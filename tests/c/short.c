/* Opens a model, remembers a text in a file and answers from it, whatever the model is. Ends with 1 at the first status that is not
 * LOCI_OK, after the status and what was said about it. tests/faults.rs takes its memory away.
 *
 * usage: short MODEL.gguf DIR */
#include "check.h"

static const char TEXT[] = "The lighthouse keeper hid the brass key under the third step. ";

int main(int argc, char **argv) {
    static char story[64 * sizeof TEXT], answer[64];
    static loci_token tokens[4096];
    const char *saved;
    loci_model *model;
    loci_session *session;
    loci_session_options options;
    loci_generate_options how;
    loci_memory *memory;
    loci_finish finish;
    size_t i, count, passages;
    CHECK(argc == 3);
    saved = in_dir(argv[2], "short.session");
    for (i = 0; i < 64; i++) strcat(story, TEXT);
    OK(loci_model_open(argv[1], NULL, &model));
    OK(loci_model_tokenize(model, story, LOCI_NUL_TERMINATED, LOCI_ADD_SPECIAL, tokens, 4096, &count));
    OK(loci_model_detokenize(model, tokens + 1, 8, 0, answer, sizeof answer, &i));
    OK(loci_session_options_init(&options, sizeof options));
    options.context_length = 512;
    options.batch = 64;
    options.threads = 2;
    OK(loci_session_new(model, &options, &session));
    OK(loci_memory_create(model, in_dir(argv[2], "short.lmem"), &memory));
    OK(loci_session_remember(session, memory, tokens, 256, "story", NULL, NULL));
    OK(loci_memory_commit(memory));
    OK(loci_session_attach_memory(session, memory, NULL));
    OK(loci_session_prompt_text(session, "Where is the key of the lighthouse?", LOCI_NUL_TERMINATED, LOCI_ADD_SPECIAL, NULL, NULL));
    OK(loci_generate_options_init(&how, sizeof how));
    how.max_tokens = 6;
    OK(loci_session_generate(session, &how, NULL, NULL, &finish));
    OK(loci_session_passages(session, &passages));
    OK(loci_session_save(session, saved));
    OK(loci_session_detach_memories(session));
    loci_session_free(session);
    loci_memory_free(memory);
    loci_model_free(model);
    return 0;
}
