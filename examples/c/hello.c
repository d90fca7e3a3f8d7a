/* cc hello.c -lloci && ./a.out model.gguf "Why is the sky blue?" */
#include <loci.h>
#include <stdio.h>

static int32_t print(void *user, const loci_piece *piece) { return fwrite(piece->text, 1, piece->text_len, (FILE *)user) != piece->text_len; }

int main(int argc, char **argv) {
    const char *role = "user", *question = argc > 2 ? argv[2] : "Why is the sky blue?";
    char prompt[4096];
    size_t len;
    loci_model *model = NULL;
    loci_session *session = NULL;
    loci_finish finish;
    int failed = argc < 2 || loci_model_open(argv[1], NULL, &model) || loci_session_new(model, NULL, &session)
        || loci_model_chat_render(model, &role, &question, 1, 1, prompt, sizeof prompt, &len)
        || loci_session_prompt_text(session, prompt, len, LOCI_PARSE_SPECIAL, NULL, NULL)
        || loci_session_generate(session, NULL, print, stdout, &finish);
    if (failed) fprintf(stderr, "%s\n", argc < 2 ? "usage: hello MODEL.gguf [QUESTION]" : loci_last_error());
    loci_session_free(session);
    loci_model_free(model);
    return failed;
}
