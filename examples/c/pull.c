/* An answer inside a loop that must not wait: one step of the generation in each turn, the way a program with a window calls the library
 * when it is idle. Between two steps the loop is free to draw, to take input, or to stop the answer.
 *
 *   cc pull.c -lloci && ./a.out model.gguf "Why is the sky blue?" [TURNS]      stops after TURNS turns, as a user who presses a key does
 *
 * A step takes as long as the model needs for a token. Where that is longer than a frame may be, run this loop on a thread of its own and
 * hand the text over; loci_session_cancel may be called from the other one. */
#include <loci.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What the loop would do beside: drawing, events. Says whether the user wants the answer to end. */
static int draw_and_take_input(long turn, long turns) { return turns > 0 && turn >= turns; }

int main(int argc, char **argv) {
    const char *role = "user", *content = argc > 2 ? argv[2] : "Why is the sky blue?";
    const long turns = argc > 3 ? strtol(argv[3], NULL, 10) : 0;
    loci_model *model = NULL;
    loci_session *session = NULL;
    loci_generate_options options;
    loci_piece piece;
    char prompt[4096];
    size_t len = 0;
    long turn = 0;
    loci_status failed;

    if (argc < 2) {
        fprintf(stderr, "usage: %s MODEL.gguf [QUESTION] [TURNS]\n", argv[0]);
        return 2;
    }
    memset(&piece, 0, sizeof piece);
    piece.struct_size = sizeof piece;
    failed = loci_generate_options_init(&options, sizeof options);
    options.max_tokens = 200;
    if (!failed) failed = loci_model_open(argv[1], NULL, &model);
    if (!failed) failed = loci_session_new(model, NULL, &session);
    if (!failed) failed = loci_model_chat_render(model, &role, &content, 1, 1, prompt, sizeof prompt, &len);
    if (!failed) failed = loci_session_prompt_text(session, prompt, len, LOCI_PARSE_SPECIAL, NULL, NULL);
    if (!failed) failed = loci_session_start(session, &options);
    while (!failed && piece.finish == LOCI_FINISH_NONE) {
        if (draw_and_take_input(turn++, turns)) loci_session_cancel(session);
        failed = loci_session_next(session, &piece);
        if (!failed) fwrite(piece.text, 1, piece.text_len, stdout);
        fflush(stdout);
    }
    if (failed) fprintf(stderr, "%s\n", loci_last_error());
    else fprintf(stderr, "\n[%s after %ld turns]\n", loci_finish_name(piece.finish), turn);
    loci_session_free(session);
    loci_model_free(model);
    return failed != LOCI_OK;
}
