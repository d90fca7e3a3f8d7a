/* Looking things up in more text than any window holds: a Focused Transformer of a million parameters and a memory on disk.
 *
 *   lookup write LOG TOKENS            writes a log of TOKENS tokens: prose, codes of hundreds of lockers, one pass key
 *   lookup remember MODEL LOG MEMORY   reads it into a memory file
 *   lookup ask MODEL LOG MEMORY        asks ten questions (fewer of a few pages) with the memory attached: a new process, nothing is read again
 *   lookup window MODEL LOG            asks the same without a memory, the end of the log in the window
 *
 * LOG.questions holds the questions and the right answers, for marking; the model never sees them. `make run-example` runs the four in
 * this order. One byte is one token of this model. The log has pages of 256 bytes, the model's window, and no sentence crosses their
 * ends, since each page is read by itself. */
#define PROGRAM "lookup"
#include "example.h"
#include <string.h>

#define SEED 20260301u
#define PAGE 256
#define QUESTIONS 10
/* Entries of the memory that each head attends to: as good as all of them (docs/fot.md), and far fewer bytes. */
#define BEST 128

/* ---- The log ---------------------------------------------------------------------------------------------------------------- */

#define PICK(list) (list)[random_below(state, sizeof(list) / sizeof *(list))]

/* A sentence of the language that the model was trained on. */
static void make_sentence(char *out, uint32_t *state) {
    static const char *const person[] = {"the keeper", "the captain", "the cook", "the pilot", "the carpenter", "the old sailor",
                                         "the young clerk", "the doctor", "the baker", "the teacher", "Anna", "Boris", "Clara", "David",
                                         "Elena", "Felix", "Greta", "Henry", "my neighbour", "the stranger", "the fisherman"};
    static const char *const thing[] = {"the lamp", "the rope", "a letter", "the ledger", "a barrel of salt", "two crates of apples",
                                        "the small boat", "the anchor", "a bag of flour", "the map", "an empty bottle", "the clock",
                                        "the window", "a pair of boots", "the net", "the kettle", "some firewood", "a brass bell"};
    static const char *const place[] = {"to the harbour", "to the north gate", "into the cellar", "to the lighthouse", "behind the church",
                                        "to the market", "over the bridge", "into the workshop", "down to the beach", "to the ferry"};
    static const char *const where[] = {"in the harbour", "near the north gate", "in the cellar", "at the lighthouse", "behind the church",
                                        "on the market", "under the bridge", "in the workshop", "on the beach", "on the ferry"};
    static const char *const carried[] = {"carried", "brought", "took", "moved", "sent", "dragged"};
    static const char *const did[] = {"repaired", "cleaned", "painted", "sold", "found", "lost", "forgot", "counted", "borrowed", "wanted"};
    static const char *const stayed[] = {"waited", "slept", "worked", "stood", "sat down", "sang", "read a book", "had supper"};
    static const char *const when[] = {"in the morning", "at noon", "in the evening", "before sunrise", "after the storm", "on Monday",
                                       "on Friday", "last night", "once again", "later"};
    static const char *const weather[] = {"The wind came from the west", "The sea was calm", "It rained all day", "Fog lay over the bay",
                                          "The sun was shining", "Snow fell on the roofs", "The tide was low", "The night was clear"};
    static const char *const rest[] = {"and nobody was seen", "and the gulls were loud", "so the boats stayed in", "and the air was cold",
                                       "but it was warm inside", "and the streets were empty", "and the day went by"};
    /* One pick a statement: in which order a call's arguments are picked is the compiler's affair, and the log must be the same everywhere. */
    const char *a, *b, *c, *d, *e;
    switch (random_below(state, 6)) {
    case 0:
        a = PICK(place), b = PICK(thing), c = PICK(carried), d = PICK(person), e = PICK(when);
        sprintf(out, "%s %s %s %s %s. ", e, d, c, b, a);
        break;
    case 1:
        a = PICK(when), b = PICK(thing), c = PICK(did), d = PICK(person);
        sprintf(out, "%s %s %s %s. ", d, c, b, a);
        break;
    case 2:
        a = PICK(where), b = PICK(stayed), c = PICK(person);
        sprintf(out, "%s %s %s. ", c, b, a);
        break;
    case 3:
        a = PICK(rest), b = PICK(weather);
        sprintf(out, "%s %s. ", b, a);
        break;
    case 4:
        a = PICK(thing), b = PICK(did), c = PICK(person), d = PICK(person);
        sprintf(out, "%s said that %s %s %s. ", d, c, b, a);
        break;
    default:
        a = PICK(when), b = PICK(where);
        sprintf(out, "Nothing happened %s %s. ", b, a);
        break;
    }
    if (out[0] >= 'a' && out[0] <= 'z') out[0] = (char)(out[0] - 'a' + 'A');
}

static void make_digits(char *out, int n, uint32_t *state) {
    for (; n > 0; n--) *out++ = (char)('0' + random_below(state, 10));
    *out = 0;
}

/* Four letters that were not there before. */
static void make_key(char *out, uint32_t *state) {
    static unsigned char used[26 * 26 * 26 * 26];
    uint32_t n;
    do n = random_below(state, sizeof used);
    while (used[n]);
    used[n] = 1;
    sprintf(out, "%c%c%c%c", 'A' + (int)(n / 17576), 'A' + (int)(n / 676 % 26), 'A' + (int)(n / 26 % 26), 'A' + (int)(n % 26));
}

static FILE *open_beside(const char *log_path, const char *mode) {
    char path[1024];
    FILE *file;
    if (strlen(log_path) > sizeof path - 16) exit(2);
    sprintf(path, "%s.questions", log_path);
    file = fopen(path, mode);
    if (file == NULL) {
        perror(path);
        exit(1);
    }
    return file;
}

static int write_log(const char *path, long tokens) {
    static const char *const told[] = {"The code of %s is %s. ", "Locker %s opens with %s. ", "The safe %s listens to %s. ",
                                       "Gate %s is shut by the number %s. ", "We marked barrel %s with %s. ", "To open %s, dial %s. "};
    static const char *const asked[] = {"What is the code of %s?", "Which number opens %s?", "Do you remember the digits for %s?",
                                        "Tell me the code of %s."};
    uint32_t generator = SEED, *state = &generator;
    long pages = tokens / PAGE, page, next_asked = 0, pass_page = pages / 3;
    unsigned codes = 0, questions = 0;
    FILE *out = fopen(path, "wb"), *q = open_beside(path, "w");
    if (out == NULL) {
        perror(path);
        return 1;
    }
    for (page = 0; page < pages; page++) {
        size_t used = 0, length;
        char text[512], key[8], value[8];
        int pass_told = page != pass_page;
        for (;;) {
            int is_code = pass_told && random_below(state, 3) == 0, is_pass = !pass_told;
            if (is_pass) {
                make_digits(value, 5, state);
                sprintf(text, "The pass key is %s. Remember it. ", value);
            } else if (is_code) {
                make_key(key, state);
                make_digits(value, 4, state);
                sprintf(text, PICK(told), key, value);
            } else {
                make_sentence(text, state);
            }
            length = strlen(text);
            if (used + length > PAGE) break;
            fwrite(text, 1, length, out);
            used += length;
            if (is_pass) {
                fprintf(q, "What is the pass key?\t%s\n", value);
                pass_told = 1;
                questions++;
            } else if (is_code) {
                codes++;
                if (page >= next_asked && questions < QUESTIONS) {
                    fprintf(q, PICK(asked), key);
                    fprintf(q, "\t%s\n", value);
                    questions++;
                    next_asked = (long)questions * pages / QUESTIONS + 1;
                }
            }
        }
        for (; used < PAGE; used++) fputc('\n', out);
    }
    printf("%s: %ld pages of %d tokens, %u codes and a pass key among prose; %u questions\n", path, pages, PAGE, codes, questions);
    return (fclose(out) | fclose(q)) != 0;
}

/* ---- The model -------------------------------------------------------------------------------------------------------------- */

typedef struct answer {
    char text[64];
    size_t length;
} answer;

static int32_t on_piece(void *user, const loci_piece *piece) {
    answer *a = user;
    size_t room = sizeof a->text - 1 - a->length, n = piece->text_len < room ? piece->text_len : room;
    memcpy(a->text + a->length, piece->text, n);
    a->length += n;
    a->text[a->length] = 0;
    return 0;
}

/* Asks all questions, `before` in front of each. Returns how many answers are right, of *asked; *read is what their tokens read of
 * memories. */
static unsigned ask_all(loci_session *session, const char *log_path, const char *before, unsigned *asked, uint64_t *read) {
    static const char *const stop[] = {"\n"};
    char line[256], prompt[1024];
    unsigned right = 0;
    FILE *q = open_beside(log_path, "r");
    *read = 0;
    *asked = 0;
    while (fgets(line, sizeof line, q) != NULL) {
        char *expected = strchr(line, '\t');
        answer a = {"", 0};
        loci_generate_options options;
        loci_finish finish;
        if (expected == NULL) continue;
        *expected++ = 0;
        expected[strcspn(expected, "\n")] = 0;
        check(loci_session_reset(session));
        sprintf(prompt, "%sQ: %s\nA: ", before, line);
        check(loci_session_prompt_text(session, prompt, strlen(prompt), 0, NULL, NULL));
        check(loci_generate_options_init(&options, sizeof options));
        options.max_tokens = 12;
        options.stop = stop;
        options.stop_count = 1;
        *read -= stats_of(session).memory_bytes_read;
        check(loci_session_generate(session, &options, on_piece, &a, &finish));
        *read += stats_of(session).memory_bytes_read;
        printf("  %-42s %-8s %s\n", line, a.text, strcmp(a.text, expected) == 0 ? "right" : "wrong");
        right += strcmp(a.text, expected) == 0;
        ++*asked;
    }
    fclose(q);
    return right;
}

/* ---- The verbs -------------------------------------------------------------------------------------------------------------- */

static int remember(const char *model_path, const char *log_path, const char *memory_path) {
    loci_model *model;
    loci_session *session;
    loci_memory *memory;
    loci_memory_stats held;
    loci_session_stats s;
    size_t length;
    int shown = 0;
    char *log = read_file(log_path, &length);
    check(loci_model_open(model_path, NULL, &model));
    if (loci_model_context_length(model) != PAGE || loci_model_memory_layer_count(model) == 0) {
        fprintf(stderr, "lookup: expected a Focused Transformer with a window of %d tokens\n", PAGE);
        return 1;
    }
    session = new_session(model, 0);
    check(loci_memory_create(model, memory_path, &memory));
    check(loci_session_remember_text(session, memory, log, length, 0, log_path, on_progress, &shown));
    check(loci_memory_commit(memory));
    held.struct_size = sizeof held;
    check(loci_memory_stats_get(memory, &held));
    s = stats_of(session);
    printf("%s, a window of %d tokens: remembered %lu tokens, %.0f tokens/s\n", loci_model_name(model), PAGE,
           (unsigned long)held.committed_tokens, per_second(s.prefill_tokens, s.prefill_seconds));
    printf("memory file %.1f MiB; RAM of this process %.1f MiB\n", mib(held.file_bytes), mib(s.resident_bytes));
    free(log);
    loci_memory_free(memory);
    loci_session_free(session);
    loci_model_free(model);
    return 0;
}

static int ask_memory(const char *model_path, const char *log_path, const char *memory_path) {
    loci_model *model;
    loci_session *session;
    loci_memory *memory;
    loci_session_stats s;
    uint64_t read;
    unsigned right, asked;
    check(loci_model_open(model_path, NULL, &model));
    session = new_session(model, BEST);
    check(loci_memory_open_read_only(model, memory_path, &memory));
    check(loci_session_attach_memory(session, memory, NULL));
    printf("\nwith the memory attached, in a new process, the best %d entries:\n", BEST);
    right = ask_all(session, log_path, "", &asked, &read);
    s = stats_of(session);
    printf("%u of %u right, from %lu remembered tokens\n", right, asked, (unsigned long)s.memory_tokens);
    printf("decode %.1f tokens/s, %.1f MiB of memory read for each token; RAM %.1f MiB: %.1f MiB of the process's own, the rest mapped\n"
           "files that the system may take back\n",
           per_second(s.decode_tokens, s.decode_seconds), mib(read) / (double)(s.decode_tokens ? s.decode_tokens : 1),
           mib(s.resident_bytes), mib(s.anonymous_bytes));
    loci_memory_free(memory);
    loci_session_free(session);
    loci_model_free(model);
    return asked == 0 || right < asked / 2; /* the model is small, it may miss some */
}

static int ask_window(const char *model_path, const char *log_path) {
    loci_model *model;
    loci_session *session;
    loci_session_stats s;
    unsigned right, asked;
    uint64_t read;
    size_t length;
    char *log = read_file(log_path, &length), end[PAGE];
    const size_t kept = PAGE - 96; /* the rest is for the question and its answer */
    check(loci_model_open(model_path, NULL, &model));
    session = new_session(model, 0);
    memcpy(end, log + length - kept, kept);
    end[kept] = 0;
    printf("\nthe same questions without memory, the last %lu of %lu tokens in the window:\n", (unsigned long)kept, (unsigned long)length);
    right = ask_all(session, log_path, end, &asked, &read);
    printf("%u of %u right", right, asked);
    s = stats_of(session);
    printf("; decode %.1f tokens/s, RAM %.1f MiB\n", per_second(s.decode_tokens, s.decode_seconds), mib(s.resident_bytes));
    free(log);
    loci_session_free(session);
    loci_model_free(model);
    return 0;
}

int main(int argc, char **argv) {
    if (argc == 4 && strcmp(argv[1], "write") == 0) return write_log(argv[2], atol(argv[3]));
    if (argc == 5 && strcmp(argv[1], "remember") == 0) return remember(argv[2], argv[3], argv[4]);
    if (argc == 5 && strcmp(argv[1], "ask") == 0) return ask_memory(argv[2], argv[3], argv[4]);
    if (argc == 4 && strcmp(argv[1], "window") == 0) return ask_window(argv[2], argv[3]);
    fprintf(stderr, "usage: lookup write LOG TOKENS | remember MODEL LOG MEMORY | ask MODEL LOG MEMORY | window MODEL LOG\n");
    return 2;
}
