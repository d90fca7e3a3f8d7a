/* A memory that outlives the window and the process.
 *
 *   recall write LOG TOKENS           writes a log of about TOKENS tokens with twelve facts hidden in it
 *   recall remember MODEL LOG MEMORY  reads the log into a memory file
 *   recall ask MODEL MEMORY           asks for the facts with the memory attached: a new process, nothing read again
 *   recall window MODEL LOG           asks the same with the end of the log in the prompt, as much as the window holds
 *
 * `make run-chat` runs the four in this order. */
#define PROGRAM "recall"
#include "example.h"
#include <ctype.h>
#include <string.h>

#define SEED 20260301u
#define ANSWER_TOKENS 32

/* ---- The log ---------------------------------------------------------------------------------------------------------------- */

/* A fact: its sentence with %s for what is asked, the question, and what may be asked for (NULL: a number of four digits). */
typedef struct fact {
    const char *sentence;
    const char *question;
    const char *values[6];
} fact;

static const fact FACTS[] = {
    {"The access code of the north gate is %s.", "What is the access code of the north gate?", {NULL}},
    {"The new apprentice in the workshop is called %s.", "What is the new apprentice in the workshop called?",
     {"Ottokar", "Philippa", "Casimir", "Rosalind", "Ludmilla", "Barnaby"}},
    {"The spare key of the boat house hangs behind the %s.", "Where does the spare key of the boat house hang?",
     {"barometer", "accordion", "mirror", "calendar", "umbrella", "ladder"}},
    {"The serial number of the old water pump is %s.", "What is the serial number of the old water pump?", {NULL}},
    {"The password of the weather station is %s.", "What is the password of the weather station?",
     {"marmalade", "porcupine", "saxophone", "cinnamon", "trombone", "lavender"}},
    {"Grandmother keeps the old letters in the %s.", "Where does grandmother keep the old letters?",
     {"piano", "pantry", "chapel", "cellar", "attic", "greenhouse"}},
    {"The telephone number of the vet ends in %s.", "In which digits does the telephone number of the vet end?", {NULL}},
    {"The black cat of the lighthouse keeper is named %s.", "What is the black cat of the lighthouse keeper named?",
     {"Pompom", "Admiral", "Biscuit", "Nutmeg", "Pirate", "Duchess"}},
    {"The combination of the blue safe is %s.", "What is the combination of the blue safe?", {NULL}},
    {"The secret ingredient of the miller's soup is %s.", "What is the secret ingredient of the miller's soup?",
     {"nutmeg", "ginger", "vinegar", "honey", "mustard", "saffron"}},
    {"The violin teacher moved here from %s.", "From where did the violin teacher move here?",
     {"Lisbon", "Tallinn", "Dublin", "Ankara", "Helsinki", "Palermo"}},
    {"The locker of the harbour pilot has the number %s.", "Which number does the locker of the harbour pilot have?", {NULL}},
};
#define FACT_COUNT (sizeof FACTS / sizeof *FACTS)

/* What the facts say in this log. */
typedef struct values {
    char text[FACT_COUNT][16];
} values;

static values choose_values(void) {
    values v;
    uint32_t state = SEED;
    size_t i;
    for (i = 0; i < FACT_COUNT; i++) {
        if (FACTS[i].values[0] == NULL) {
            sprintf(v.text[i], "%u", 1000 + (unsigned)random_below(&state, 9000));
        } else {
            strcpy(v.text[i], FACTS[i].values[random_below(&state, 6)]);
        }
    }
    return v;
}

#define PICK(list) (list)[random_below(state, sizeof(list) / sizeof *(list))]

static void write_sentence(FILE *out, uint32_t *state) {
    static const char *const who[] = {"Anna", "Old Peter", "the carpenter", "my neighbour", "the postman", "Marten", "the two cousins",
                                      "Henrietta", "the gardener", "our landlord", "Sofia", "the night watchman", "Jonas", "the baker"};
    static const char *const did[] = {"mended the fence", "counted the sheep", "cleaned the chimney", "carried firewood", "painted a bench",
                                      "read the newspaper aloud", "repaired a bicycle", "picked plums", "sharpened the tools",
                                      "walked the dog", "sorted apples", "played chess", "wrote a long letter", "polished the bell"};
    static const char *const where[] = {"behind the barn", "by the river", "in the orchard", "at the market", "near the old bridge",
                                        "on the hill", "under the oak", "in the courtyard", "at the mill pond", "along the dike",
                                        "outside the chapel", "at the railway crossing"};
    static const char *const weather[] = {"a thin fog lay over the meadows", "it rained without a pause", "the wind turned to the east",
                                          "the sun came out for an hour", "there was frost on the windows", "the sky stayed grey",
                                          "a warm breeze came up from the sea", "hail fell on the roof", "the air smelled of hay"};
    static const char *const thing[] = {"a broken lantern", "three jars of pickles", "a wooden spoon", "an unopened parcel", "a rusty hinge",
                                        "a pair of gloves", "a cracked teapot", "a roll of wire", "some candle ends", "a sack of oats"};
    static const char *const mood[] = {"nobody knew why", "which pleased everyone", "as every year", "although it was late",
                                       "without saying a word", "and then went home", "before the others woke", "to the sound of the radio"};
    unsigned hour = 5 + random_below(state, 17), minute = random_below(state, 60), count = 2 + random_below(state, 40);
    switch (random_below(state, 7)) {
    case 0: fprintf(out, "In the morning %s. ", PICK(weather)); break;
    case 1: fprintf(out, "At %u:%02u %s %s %s, %s. ", hour, minute, PICK(who), PICK(did), PICK(where), PICK(mood)); break;
    case 2: fprintf(out, "We found %s %s. ", PICK(thing), PICK(where)); break;
    case 3: fprintf(out, "Someone said that %s %s, %s. ", PICK(who), PICK(did), PICK(mood)); break;
    case 4: fprintf(out, "There were %u crows %s and %s. ", count, PICK(where), PICK(weather)); break;
    case 5: fprintf(out, "I gave %s to a stranger, %s. ", PICK(thing), PICK(mood)); break;
    default: fprintf(out, "While %s, someone %s %s. ", PICK(weather), PICK(did), PICK(where)); break;
    }
}

static int write_log(const char *path, long tokens) {
    static const char *const months[] = {"January", "February", "March",     "April",   "May",      "June",
                                         "July",    "August",   "September", "October", "November", "December"};
    static const char *const weekdays[] = {"Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"};
    const values v = choose_values();
    uint32_t generator = SEED ^ 0x9e3779b9u, *state = &generator;
    /* About 4.3 characters of such prose make a token. The facts stand at even distances, the first and the last not at an end. */
    const long length = (long)((double)tokens * 4.3);
    size_t told = 0;
    unsigned day = 0;
    FILE *out = fopen(path, "w");
    if (out == NULL) {
        perror(path);
        return 1;
    }
    while (ftell(out) < length) {
        unsigned sentences = 6 + random_below(state, 5), i;
        fprintf(out, "%s, %u %s. ", weekdays[day % 7], day % 28 + 1, months[day / 28 % 12]);
        for (i = 0; i < sentences; i++) {
            write_sentence(out, state);
            if (told < FACT_COUNT && ftell(out) >= (long)((double)length * ((double)told + 0.5) / (double)FACT_COUNT)) {
                fprintf(out, FACTS[told].sentence, v.text[told]);
                fputc(' ', out);
                told++;
            }
        }
        fprintf(out, "\n\n");
        day++;
    }
    printf("%s: %ld bytes, %u days, %u facts\n", path, ftell(out), day, (unsigned)told);
    return fclose(out) != 0;
}

/* ---- The model -------------------------------------------------------------------------------------------------------------- */

/* What a generation leaves: the answer's text, as far as it is looked at. */
typedef struct answer {
    char text[1024];
    size_t length;
} answer;

static int32_t on_piece(void *user, const loci_piece *piece) {
    answer *a = user;
    size_t room = sizeof a->text - 1 - a->length, n = piece->text_len < room ? piece->text_len : room;
    memcpy(a->text + a->length, piece->text, n);
    a->length += n;
    a->text[a->length] = 0;
    fwrite(piece->text, 1, piece->text_len, stdout);
    fflush(stdout);
    return 0;
}

static int contains(const char *text, const char *word) {
    size_t i, length = strlen(word);
    for (; *text; text++) {
        for (i = 0; i < length && tolower((unsigned char)text[i]) == tolower((unsigned char)word[i]); i++) {
        }
        if (i == length) return 1;
    }
    return 0;
}

/* Asks one question, the log's end before it if there is one; the answer appears as it is made. Its beginning is given, as the log
 * would put it: a model this small needs to be led to the point. */
static int ask(const loci_model *model, loci_session *session, size_t question, const char *log_end) {
    const char *roles[2], *contents[2];
    static const char *const stop[] = {".", "\n"};
    const values v = choose_values();
    loci_generate_options options;
    loci_finish finish;
    answer a = {"", 0};
    size_t length = 0, capacity;
    char *prompt, *user;
    char begin[128];
    int found;

    strcpy(begin, FACTS[question].sentence);
    strcpy(strstr(begin, " %s"), "");
    user = allocate((log_end ? strlen(log_end) : 0) + 512);
    sprintf(user, "%s%s%s", log_end ? log_end : "", log_end ? "\n\n" : "", FACTS[question].question);
    roles[0] = "system";
    contents[0] = "You answer questions about a log. Use only what the log says.";
    roles[1] = "user";
    contents[1] = user;
    loci_model_chat_render(model, roles, contents, 2, 1, NULL, 0, &length); /* BUFFER_TOO_SMALL, and the length */
    capacity = length + 1;
    prompt = allocate(capacity + sizeof begin);
    check(loci_model_chat_render(model, roles, contents, 2, 1, prompt, capacity, &length));
    strcpy(prompt + length, begin);
    length += strlen(begin);
    check(loci_session_prompt_text(session, prompt, length, LOCI_PARSE_SPECIAL, NULL, NULL));
    free(prompt);
    free(user);

    printf("\nasked   %s\nanswer  %s", FACTS[question].question, begin);
    fflush(stdout);
    check(loci_generate_options_init(&options, sizeof options));
    options.max_tokens = ANSWER_TOKENS;
    options.stop = stop;
    options.stop_count = sizeof stop / sizeof *stop;
    check(loci_session_generate(session, &options, on_piece, &a, &finish));
    found = contains(a.text, v.text[question]);
    printf("\n        %s: the log says %s\n", found ? "FOUND" : "not found", v.text[question]);
    return found;
}

/* ---- The four verbs --------------------------------------------------------------------------------------------------------- */

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
    session = new_session(model, 0);
    check(loci_memory_create(model, memory_path, &memory));
    check(loci_session_remember_text(session, memory, log, length, LOCI_ADD_SPECIAL, log_path, on_progress, &shown));
    check(loci_memory_commit(memory));
    held.struct_size = sizeof held;
    check(loci_memory_stats_get(memory, &held));
    s = stats_of(session);
    printf("%s, a window of %lu tokens: remembered %lu tokens, %.0f tokens/s\n", loci_model_name(model),
           (unsigned long)loci_model_context_length(model), (unsigned long)held.committed_tokens,
           per_second(s.prefill_tokens, s.prefill_seconds));
    printf("memory file %.1f MiB; RAM of this process %.1f MiB, of which the window and scratch %.1f MiB\n", mib(held.file_bytes),
           mib(s.resident_bytes), mib(s.anonymous_bytes));
    free(log);
    loci_memory_free(memory);
    loci_session_free(session);
    loci_model_free(model);
    return 0;
}

/* The beginning of the passage that was wanted most, in the memory's own tokens. */
static void print_passage(const loci_model *model, loci_session *session, loci_memory *memory) {
    loci_passage p;
    loci_token tokens[32];
    char text[512];
    size_t count, length, n, i;
    check(loci_session_passages(session, &count));
    if (count == 0) return;
    p.struct_size = sizeof p;
    check(loci_session_passage(session, 0, &p));
    if (p.memory == LOCI_MEMORY_OWN) return; /* the session's own words: they are in no file */
    n = p.token_count < 32 ? (size_t)p.token_count : 32;
    check(loci_memory_tokens(memory, p.first_token, n, tokens));
    check(loci_model_detokenize(model, tokens, n, 0, text, sizeof text, &length));
    for (i = 0; i < length; i++) {
        if (text[i] == '\n') text[i] = ' ';
    }
    printf("        read    %s, tokens %lu to %lu and %lu more passages: \"%s\"\n", p.source ? p.source : "?",
           (unsigned long)p.first_token, (unsigned long)(p.first_token + p.token_count), (unsigned long)(count - 1), text);
}

static int ask_memory(const char *model_path, const char *memory_path) {
    loci_model *model;
    loci_session *session;
    loci_memory *memory;
    loci_session_stats s;
    uint64_t read_before = 0;
    double first_token = 0;
    unsigned found = 0;
    size_t i;
    check(loci_model_open(model_path, NULL, &model));
    session = new_session(model, 0);
    check(loci_memory_open_read_only(model, memory_path, &memory));
    check(loci_session_attach_memory(session, memory, NULL));
    for (i = 0; i < FACT_COUNT; i++) {
        check(loci_session_reset(session));
        found += (unsigned)ask(model, session, i, NULL);
        print_passage(model, session, memory);
        s = stats_of(session);
        printf("        first token after %.2f s, %.1f MiB of memory read\n", s.first_token_seconds,
               mib(s.memory_bytes_read - read_before));
        read_before = s.memory_bytes_read;
        first_token += s.first_token_seconds / (double)FACT_COUNT;
    }
    s = stats_of(session);
    printf("\nwith memory: %u of %u facts found, from %lu remembered tokens\n", found, (unsigned)FACT_COUNT,
           (unsigned long)s.memory_tokens);
    printf("first token after %.2f s on average, decode %.1f tokens/s, %.1f MiB of memory read in all\n", first_token,
           per_second(s.decode_tokens, s.decode_seconds), mib(s.memory_bytes_read));
    printf("RAM %.1f MiB: window and scratch %.1f MiB, the rest mapped files that the system may take back\n", mib(s.resident_bytes),
           mib(s.anonymous_bytes));
    loci_memory_free(memory);
    loci_session_free(session);
    loci_model_free(model);
    return 0;
}

static int ask_window(const char *model_path, const char *log_path) {
    loci_model *model;
    loci_session *session;
    loci_session_stats s;
    loci_token *tokens;
    double first_token = 0;
    unsigned found = 0;
    size_t length, count, fits, i;
    char *log = read_file(log_path, &length), *end;
    check(loci_model_open(model_path, NULL, &model));
    session = new_session(model, 0);
    /* A token is at least a byte, so there are never more tokens than bytes. */
    tokens = allocate(length * sizeof *tokens);
    check(loci_model_tokenize(model, log, length, 0, tokens, length, &count));
    fits = loci_model_context_length(model) < 8192 ? (size_t)loci_model_context_length(model) : 8192;
    fits -= ANSWER_TOKENS + 224; /* the question, and what the template adds */
    if (fits > count) fits = count;
    end = allocate(length + 1);
    check(loci_model_detokenize(model, tokens + (count - fits), fits, 0, end, length + 1, &i));
    printf("\nthe same questions without memory: the last %lu of %lu tokens in the prompt\n", (unsigned long)fits, (unsigned long)count);
    for (i = 0; i < FACT_COUNT; i++) {
        found += (unsigned)ask(model, session, i, end);
        s = stats_of(session);
        printf("        first token after %.2f s\n", s.first_token_seconds);
        first_token += s.first_token_seconds / (double)FACT_COUNT;
    }
    s = stats_of(session);
    printf("\nwindow only: %u of %u facts found, from the last %lu of %lu tokens\n", found, (unsigned)FACT_COUNT, (unsigned long)fits,
           (unsigned long)count);
    printf("first token after %.2f s on average, decode %.1f tokens/s; RAM %.1f MiB\n", first_token,
           per_second(s.decode_tokens, s.decode_seconds), mib(s.resident_bytes));
    free(end);
    free(tokens);
    free(log);
    loci_session_free(session);
    loci_model_free(model);
    return 0;
}

int main(int argc, char **argv) {
    if (argc == 4 && strcmp(argv[1], "write") == 0) return write_log(argv[2], atol(argv[3]));
    if (argc == 5 && strcmp(argv[1], "remember") == 0) return remember(argv[2], argv[3], argv[4]);
    if (argc == 4 && strcmp(argv[1], "ask") == 0) return ask_memory(argv[2], argv[3]);
    if (argc == 4 && strcmp(argv[1], "window") == 0) return ask_window(argv[2], argv[3]);
    fprintf(stderr, "usage: recall write LOG TOKENS | remember MODEL LOG MEMORY | ask MODEL MEMORY | window MODEL LOG\n");
    return 2;
}
