/* Many threads call everything with everything: live handles, freed ones, handles of other types, NULL, wrong sizes, while others free
 * and cancel. Nothing may crash or hang, and every status must be one that the header documents for a caller's mistakes.
 *
 * usage: hammer MODEL.gguf DIR THREADS CALLS SEED */
#define _POSIX_C_SOURCE 200809L
#include "check.h"
#include <pthread.h>
#include <unistd.h>

#define SLOTS 12
#define TOKENS 24
#define PIECES 6

/* Handles that all threads share; what is in a slot may have been freed by anybody. */
static loci_model *models[SLOTS];
static loci_session *sessions[SLOTS];
static loci_memory *memories[SLOTS];
static const char *model_path, *dir;
static unsigned long counts[64];
static int calls;

typedef struct {
    uint64_t state;
    int number;
} worker;

/* splitmix64 */
static uint64_t next(worker *w) {
    uint64_t z = (w->state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static unsigned below(worker *w, unsigned n) { return (unsigned)(next(w) % n); }

static loci_status note(loci_status status) {
    CHECK(strcmp(loci_status_name(status), "unknown") != 0);
    CHECK(status != LOCI_PANIC && status != LOCI_POISONED && status != LOCI_INTERNAL);
    __atomic_fetch_add(&counts[-status], 1, __ATOMIC_RELAXED);
    return status;
}

/* Any pointer but a good one: NULL, a number, an address, a handle of another type. */
static void *wrong(worker *w) {
    static int here;
    switch (below(w, 6)) {
    case 0: return NULL;
    case 1: return (void *)(uintptr_t)below(w, 4096);
    case 2: return (void *)(uintptr_t)next(w);
    case 3: return &here;
    case 4: return __atomic_load_n(&models[below(w, SLOTS)], __ATOMIC_RELAXED);
    default: return __atomic_load_n(&sessions[below(w, SLOTS)], __ATOMIC_RELAXED);
    }
}

static loci_model *a_model(worker *w) {
    return below(w, 50) ? __atomic_load_n(&models[below(w, SLOTS)], __ATOMIC_RELAXED) : (loci_model *)wrong(w);
}

static loci_session *a_session(worker *w) {
    return below(w, 50) ? __atomic_load_n(&sessions[below(w, SLOTS)], __ATOMIC_RELAXED) : (loci_session *)wrong(w);
}

static loci_memory *a_memory(worker *w) {
    return below(w, 50) ? __atomic_load_n(&memories[below(w, SLOTS)], __ATOMIC_RELAXED) : (loci_memory *)wrong(w);
}

static int32_t sometimes(void *user, uint64_t done, uint64_t total) {
    worker *w = (worker *)user;
    CHECK(done <= total);
    return below(w, 8) == 0;
}

static int32_t piece(void *user, const loci_piece *p) {
    worker *w = (worker *)user;
    size_t len;
    CHECK(is_utf8(p->text, p->text_len));
    if (below(w, 4) == 0) note(loci_session_len(a_session(w), &len));
    if (below(w, 16) == 0) note(loci_session_cancel(a_session(w)));
    if (below(w, 64) == 0) loci_session_free(a_session(w));
    return below(w, 12) == 0;
}

/* A random length, the right one more often than not. */
static size_t a_size(worker *w, size_t right) {
    static const size_t sizes[] = {0, 1, 7, 8, 16, 4096, 4097, SIZE_MAX, SIZE_MAX / 2, SIZE_MAX - 7};
    return below(w, 3) ? right : sizes[below(w, sizeof sizes / sizeof *sizes)];
}

/* Options in a place that is large enough for any size that the library follows. */
typedef union {
    loci_session_options session;
    loci_generate_options generate;
    loci_sampler_options sampler;
    loci_session_stats stats;
    loci_memory_stats memory_stats;
    loci_piece piece;
    loci_passage passage;
    loci_error error;
    unsigned char bytes[8192];
} any;

static void open_something(worker *w, any *o) {
    loci_model *model = NULL;
    loci_session *session = NULL;
    loci_memory *memory = NULL;
    char name[64];
    unsigned slot = below(w, SLOTS);
    switch (below(w, 4)) {
    case 0:
        if (note(loci_model_open(model_path, NULL, &model)) == LOCI_OK) {
            if (below(w, 4) == 0) note(loci_model_retain(model)), loci_model_free(model);
            loci_model_free(__atomic_exchange_n(&models[slot], model, __ATOMIC_RELAXED));
        }
        break;
    case 1:
        if (note(loci_session_options_init(&o->session, sizeof o->session)) == LOCI_OK) {
            o->session.threads = 1 + (below(w, 8) == 0);
            o->session.batch = 4;
            o->session.context_length = 64;
            if (below(w, 4) == 0) o->session.overflow = (int32_t)below(w, 4);
            if (below(w, 8) == 0) o->session.kv_codec = (int32_t)next(w);
            if (below(w, 8) == 0) o->session.struct_size = a_size(w, sizeof o->session);
        }
        if (note(loci_session_new(a_model(w), &o->session, &session)) == LOCI_OK)
            loci_session_free(__atomic_exchange_n(&sessions[slot], session, __ATOMIC_RELAXED));
        break;
    case 2:
        if (note(loci_memory_in_ram(a_model(w), &memory)) == LOCI_OK)
            loci_memory_free(__atomic_exchange_n(&memories[slot], memory, __ATOMIC_RELAXED));
        break;
    default:
        snprintf(name, sizeof name, "hammer-%u.lmem", below(w, 8));
        if (note(below(w, 2)   ? loci_memory_create(a_model(w), in_dir(dir, "none/x"), &memory)
                 : below(w, 2) ? loci_memory_open(a_model(w), model_path, &memory)
                               : loci_memory_open_read_only(NULL, dir, &memory)) == LOCI_OK)
            loci_memory_free(memory);
    }
}

static void one_call(worker *w) {
    any o;
    loci_token tokens[TOKENS], token;
    loci_finish finish;
    const float *logits;
    float value;
    char buffer[256];
    size_t len, i;
    uint64_t length;
    uint32_t index;
    memset(&o, 0, sizeof o);
    for (i = 0; i < TOKENS; i++) tokens[i] = (loci_token)(3 + below(w, 250));
    if (below(w, 40) == 0) tokens[below(w, TOKENS)] = (loci_token)next(w);
    switch (below(w, 36)) {
    case 0:
    case 1:
    case 2: open_something(w, &o); break;
    case 3: loci_session_free(a_session(w)); break;
    case 4: loci_memory_free(a_memory(w)); break;
    case 5: if (below(w, 4) == 0) loci_model_free(a_model(w)); break;
    case 6:
    case 7: note(loci_session_cancel(a_session(w))); break;
    case 8: note(loci_session_prefill(a_session(w), tokens, below(w, TOKENS + 1), sometimes, w)); break;
    case 9: note(loci_session_prompt(a_session(w), tokens, below(w, TOKENS + 1), NULL, NULL)); break;
    case 10: note(loci_session_prompt(a_session(w), tokens, below(w, 2) ? SIZE_MAX : SIZE_MAX / 2, NULL, NULL)); break;
    case 11: note(loci_session_prompt_text(a_session(w), "the rain", below(w, 9), below(w, 9), sometimes, w)); break;
    case 12: note(loci_session_prefill_text(a_session(w), NULL, a_size(w, 0), below(w, 4), NULL, NULL)); break;
    case 13:
    case 14:
        note(loci_generate_options_init(&o.generate, a_size(w, sizeof o.generate) & 4095));
        o.generate.max_tokens = PIECES;
        note(loci_session_generate(a_session(w), &o.generate, piece, w, &finish));
        break;
    case 15:
        note(loci_generate_options_init(&o.generate, sizeof o.generate));
        o.generate.max_tokens = below(w, PIECES);
        note(loci_session_start(a_session(w), &o.generate));
        break;
    case 16:
    case 17:
    case 18:
        /* The text of the piece may be gone already: another thread has the session. */
        o.piece.struct_size = a_size(w, sizeof o.piece);
        note(loci_session_next(a_session(w), &o.piece));
        break;
    case 19: note(loci_session_logits(a_session(w), &logits, &len)); break;
    case 20: note(loci_session_log_probability(a_session(w), tokens[0], &value)); break;
    case 21: note(loci_session_sample(a_session(w), &token)); break;
    case 22: note(loci_session_reset(a_session(w))); break;
    case 23: note(loci_session_truncate(a_session(w), below(w, 32))); break;
    case 24:
        o.stats.struct_size = a_size(w, sizeof o.stats);
        note(loci_session_stats_get(a_session(w), &o.stats));
        break;
    case 25:
        note(loci_sampler_options_init(&o.sampler, sizeof o.sampler));
        o.sampler.temperature = (float)below(w, 3) - 0.5f;
        o.sampler.struct_size = a_size(w, sizeof o.sampler);
        note(loci_session_set_sampler(a_session(w), &o.sampler));
        break;
    case 26: note(loci_session_attach_memory(a_session(w), a_memory(w), &index)); break;
    case 27: note(loci_session_detach_memories(a_session(w))); break;
    case 28: note(loci_session_remember(a_session(w), a_memory(w), tokens, below(w, TOKENS), "hammer", sometimes, w)); break;
    case 29: note(loci_memory_commit(a_memory(w))); break;
    case 30: note(loci_memory_len(a_memory(w), &length)); break;
    case 31: note(loci_memory_tokens(a_memory(w), below(w, 8), below(w, TOKENS), tokens)); break;
    case 32:
        o.memory_stats.struct_size = a_size(w, sizeof o.memory_stats);
        note(loci_memory_stats_get(a_memory(w), &o.memory_stats));
        if (note(loci_session_passages(a_session(w), &len)) == LOCI_OK) {
            o.passage.struct_size = a_size(w, sizeof o.passage);
            note(loci_session_passage(a_session(w), below(w, 3), &o.passage));
        }
        break;
    case 33:
        note(loci_model_tokenize(a_model(w), "the rain in the garden", LOCI_NUL_TERMINATED, below(w, 9), tokens, below(w, TOKENS), &len));
        note(loci_model_detokenize(a_model(w), tokens, below(w, TOKENS), below(w, 9), buffer, below(w, sizeof buffer), &len));
        note(loci_model_token_bytes(a_model(w), tokens[0], buffer, below(w, 9), &len));
        break;
    case 34:
        loci_model_vocab_len(a_model(w));
        loci_model_metadata_key(a_model(w), next(w));
        loci_model_is_end_of_generation(a_model(w), (loci_token)next(w));
        note(loci_model_metadata(a_model(w), below(w, 2) ? "general.name" : "x", buffer, below(w, sizeof buffer), &len));
        break;
    default:
        o.error.struct_size = a_size(w, sizeof o.error);
        note(loci_last_error_details(&o.error));
        CHECK(strlen(loci_last_error()) < 4096);
        note(loci_session_finish(a_session(w), &finish));
        note(loci_session_set_threads(a_session(w), below(w, 3) ? 1 : (uint32_t)next(w) | 1u << 20));
    }
}

static void *work(void *user) {
    worker *w = (worker *)user;
    int i;
    for (i = 0; i < calls; i++) one_call(w);
    return NULL;
}

int main(int argc, char **argv) {
    pthread_t *threads;
    worker *workers, main_worker;
    any o;
    int n, i;
    CHECK(argc == 6);
    alarm(600); /* whoever waits for ever is ended by it */
    model_path = argv[1];
    dir = argv[2];
    n = atoi(argv[3]);
    calls = atoi(argv[4]);
    memset(&o, 0, sizeof o);
    main_worker.state = strtoul(argv[5], NULL, 10);
    main_worker.number = -1;
    for (i = 0; i < SLOTS; i++) {
        OK(loci_model_open(model_path, NULL, &models[i]));
        OK(loci_session_options_init(&o.session, sizeof o.session));
        o.session.threads = 1;
        OK(loci_session_new(models[i], &o.session, &sessions[i]));
        OK(loci_memory_in_ram(models[i], &memories[i]));
    }
    threads = (pthread_t *)calloc((size_t)n, sizeof *threads);
    workers = (worker *)calloc((size_t)n, sizeof *workers);
    for (i = 0; i < n; i++) {
        workers[i].state = next(&main_worker);
        workers[i].number = i;
        CHECK(pthread_create(&threads[i], NULL, work, &workers[i]) == 0);
    }
    for (i = 0; i < n; i++) pthread_join(threads[i], NULL);
    for (i = 0; i < SLOTS; i++) {
        loci_model_free(models[i]);
        loci_session_free(sessions[i]);
        loci_memory_free(memories[i]);
    }
    /* What was meant to be met was met: otherwise this program tests less than it says. */
    CHECK(counts[-LOCI_OK] && counts[-LOCI_INVALID_ARGUMENT] && counts[-LOCI_INVALID_HANDLE] && counts[-LOCI_BUSY]);
    CHECK(counts[-LOCI_BUFFER_TOO_SMALL] && counts[-LOCI_CANCELLED] && counts[-LOCI_STATE]);
    for (i = 0; i < 64; i++)
        if (counts[i]) printf("%-24s %lu\n", loci_status_name(-i), counts[i]);
    free(threads);
    free(workers);
    return 0;
}
