/* The common job from open to close: sources, accessors, text, generation in both forms, memory. Everything that is computed is
 * computed a second way, or compared with what was read another way.
 *
 * usage: job MODEL.gguf PADDED OFFSET LENGTH DIR     PADDED holds the same model at OFFSET, among other bytes */
#define _POSIX_C_SOURCE 200809L
#include "check.h"
#include <fcntl.h>
#include <math.h>
#include <unistd.h>

static const char PROMPT[] = "the rain in the stone tower on the shore";

/* Collects an answer, and checks every piece. */
typedef struct {
    char text[4096];
    size_t len;
    int pieces, tokens, finishes;
    loci_finish finish;
    int stop_after; /* pieces; 0: never */
} answer;

static int32_t collect(void *user, const loci_piece *piece) {
    answer *a = (answer *)user;
    CHECK(piece->struct_size >= sizeof *piece);
    CHECK(is_utf8(piece->text, piece->text_len) && piece->text[piece->text_len] == 0);
    CHECK(a->len + piece->text_len < sizeof a->text);
    CHECK(a->finishes == 0);
    memcpy(a->text + a->len, piece->text, piece->text_len);
    a->len += piece->text_len;
    a->pieces++;
    if (piece->token != LOCI_NO_TOKEN) a->tokens++;
    if (piece->finish != LOCI_FINISH_NONE) {
        a->finishes++;
        a->finish = piece->finish;
    }
    return a->stop_after && a->pieces == a->stop_after;
}

static int32_t count_progress(void *user, uint64_t done, uint64_t total) {
    uint64_t *last = (uint64_t *)user;
    CHECK(done > *last || (done == 0 && *last == 0));
    CHECK(done <= total);
    *last = done;
    return 0;
}

static unsigned long metadata_number(const loci_model *model, const char *key) {
    char text[64];
    size_t len;
    OK(loci_model_metadata(model, key, text, sizeof text, &len));
    CHECK(strlen(text) == len && len > 0);
    return strtoul(text, NULL, 10);
}

static void accessors(const loci_model *model) {
    char key[128], *value;
    size_t len, need;
    uint64_t i;
    int seen = 0;
    CHECK(strcmp(loci_model_architecture(model), "llama") == 0);
    CHECK(strcmp(loci_model_name(model), "tiny") == 0);
    CHECK(loci_model_weight_type(model)[0] != 0);
    CHECK(loci_model_block_count(model) == metadata_number(model, "llama.block_count"));
    CHECK(loci_model_embedding_length(model) == metadata_number(model, "llama.embedding_length"));
    CHECK(loci_model_context_length(model) == metadata_number(model, "llama.context_length"));
    CHECK(loci_model_vocab_len(model) == metadata_number(model, "llama.vocab_size"));
    CHECK(loci_model_bos(model) == (loci_token)metadata_number(model, "tokenizer.ggml.bos_token_id"));
    CHECK(loci_model_eos(model) == (loci_token)metadata_number(model, "tokenizer.ggml.eos_token_id"));
    CHECK(loci_model_is_end_of_generation(model, loci_model_eos(model)) == 1);
    CHECK(loci_model_is_end_of_generation(model, loci_model_bos(model)) == 0);
    CHECK(loci_model_parameter_count(model) > 0 && loci_model_weight_bytes(model) >= loci_model_parameter_count(model));
    CHECK(strstr(loci_model_chat_template(model), "messages") != NULL);
    CHECK(loci_model_metadata_key(model, loci_model_metadata_count(model)) == NULL);
    for (i = 0; i < loci_model_metadata_count(model); i++) {
        snprintf(key, sizeof key, "%s", loci_model_metadata_key(model, i));
        seen += strcmp(key, "general.architecture") == 0;
        need = 0;
        IS(LOCI_BUFFER_TOO_SMALL, loci_model_metadata(model, key, NULL, 0, &need));
        value = (char *)malloc(need + 1);
        IS(LOCI_BUFFER_TOO_SMALL, loci_model_metadata(model, key, value, need, &len));
        OK(loci_model_metadata(model, key, value, need + 1, &len));
        CHECK(len == need && value[len] == 0);
        free(value);
    }
    CHECK(seen == 1);
    IS(LOCI_NOT_FOUND, loci_model_metadata(model, "no.such.key", key, sizeof key, &len));
}

static void text(const loci_model *model) {
    static const char *const roles[] = {"system", "user"};
    static const char *const contents[] = {"Be brief.", "Where is the key?"};
    const char euro[] = "the \xe2\x82\xac in \xf0\x9f\x8c\xa7";
    loci_token tokens[128], token;
    char back[256];
    unsigned char byte[8];
    size_t count, len, i, need;
    OK(loci_model_tokenize(model, euro, LOCI_NUL_TERMINATED, 0, tokens, 128, &count));
    OK(loci_model_detokenize(model, tokens, count, 0, back, sizeof back, &len));
    CHECK(strstr(back, "\xe2\x82\xac in \xf0\x9f\x8c\xa7") != NULL);
    IS(LOCI_BUFFER_TOO_SMALL, loci_model_tokenize(model, euro, sizeof euro - 1, 0, tokens, count - 1, &need));
    CHECK(need == count);
    IS(LOCI_BUFFER_TOO_SMALL, loci_model_detokenize(model, tokens, count, 0, back, len, &need));
    CHECK(need == len);
    /* With the begin of sequence there is one more, in front. */
    OK(loci_model_tokenize(model, euro, sizeof euro - 1, LOCI_ADD_SPECIAL, tokens, 128, &need));
    CHECK(need == count + 1 && tokens[0] == loci_model_bos(model));
    OK(loci_model_detokenize(model, tokens, 1, LOCI_PRINT_SPECIAL, back, sizeof back, &len));
    OK(loci_model_token_id(model, back, &token));
    CHECK(token == tokens[0]);
    /* A lone first byte of three is replaced in text, and kept in bytes. */
    OK(loci_model_token_id(model, "<0xE2>", &token));
    OK(loci_model_detokenize(model, &token, 1, 0, back, sizeof back, &len));
    CHECK(strcmp(back, "\xef\xbf\xbd") == 0);
    OK(loci_model_token_bytes(model, token, byte, sizeof byte, &len));
    CHECK(len == 1 && byte[0] == 0xe2);
    IS(LOCI_NOT_FOUND, loci_model_token_id(model, "<|no such token|>", &token));
    OK(loci_model_chat_render(model, roles, contents, 2, 1, back, sizeof back, &len));
    CHECK(strcmp(back, "<s>[system]Be brief.[user]Where is the key?[assistant]") == 0 && len == strlen(back));
    OK(loci_model_chat_render(model, roles, contents, 2, 0, back, sizeof back, &len));
    CHECK(strcmp(back, "<s>[system]Be brief.[user]Where is the key?") == 0);
    for (i = 0; i < 256; i++) {
        char one = (char)i;
        IS(LOCI_OK, loci_model_tokenize(model, &one, 1, 0, tokens, 128, &count));
    }
}

/* The logits of PROMPT, copied. */
static float *prompt_logits(loci_model *model, size_t *count) {
    loci_session *session;
    const float *logits;
    float *copy;
    OK(loci_session_new(model, NULL, &session));
    OK(loci_session_prefill_text(session, PROMPT, LOCI_NUL_TERMINATED, LOCI_ADD_SPECIAL, NULL, NULL));
    OK(loci_session_logits(session, &logits, count));
    copy = (float *)malloc(*count * sizeof *copy);
    memcpy(copy, logits, *count * sizeof *copy);
    loci_session_free(session);
    return copy;
}

static void sources(const char *path, const char *padded, uint64_t offset, uint64_t length) {
    loci_model *models[3];
    float *logits[3];
    size_t count[3], len, i;
    char *bytes;
    int fd = open(padded, O_RDONLY);
    CHECK(fd >= 0);
    OK(loci_model_open(path, NULL, &models[0]));
    OK(loci_model_open_fd(fd, offset, length, NULL, &models[1]));
    close(fd);
    bytes = read_file(path, &len);
    OK(loci_model_open_memory(bytes, len, NULL, &models[2]));
    memset(bytes, 0, len);
    free(bytes);
    for (i = 0; i < 3; i++) {
        logits[i] = prompt_logits(models[i], &count[i]);
        CHECK(count[i] == loci_model_vocab_len(models[i]));
        CHECK(memcmp(logits[i], logits[0], count[0] * sizeof(float)) == 0);
        loci_model_free(models[i]);
    }
    for (i = 0; i < 3; i++) free(logits[i]);
}

static void probabilities(loci_session *session) {
    loci_sampler_options greedy;
    const float *logits;
    size_t count, i, best = 0;
    loci_token token;
    double sum = 0;
    float value;
    OK(loci_sampler_options_init(&greedy, sizeof greedy));
    greedy.temperature = 0;
    OK(loci_session_set_sampler(session, &greedy));
    OK(loci_session_logits(session, &logits, &count));
    for (i = 0; i < count; i++)
        if (logits[i] > logits[best]) best = i;
    for (i = 0; i < count; i++) sum += exp((double)logits[i] - logits[best]);
    OK(loci_session_log_probability(session, (loci_token)best, &value));
    CHECK(fabs(value + log(sum)) < 1e-4);
    OK(loci_session_sample(session, &token));
    CHECK(token == (loci_token)best);
}

static void generation(loci_model *model) {
    loci_session_options options;
    loci_sampler_options sampler;
    loci_generate_options how;
    loci_session_stats stats;
    loci_session *session;
    loci_finish finish;
    loci_piece piece;
    loci_token tokens[128];
    const float *logits;
    answer pushed, pulled;
    uint64_t progress = 0;
    size_t prompt, length, i;
    OK(loci_session_options_init(&options, sizeof options));
    options.batch = 4;
    options.threads = 2;
    options.kv_codec = LOCI_KV_F32;
    OK(loci_session_new(model, &options, &session));
    OK(loci_session_prompt_text(session, PROMPT, LOCI_NUL_TERMINATED, LOCI_ADD_SPECIAL, count_progress, &progress));
    OK(loci_session_len(session, &prompt));
    CHECK(progress == prompt && prompt > 4);
    probabilities(session);

    OK(loci_sampler_options_init(&sampler, sizeof sampler));
    sampler.seed = 7;
    sampler.temperature = 1.5f;
    sampler.top_k = 0;
    OK(loci_session_set_sampler(session, &sampler));
    OK(loci_generate_options_init(&how, sizeof how));
    how.max_tokens = 40;
    how.ignore_eos = 1;
    how.log_probabilities = 3;
    memset(&pushed, 0, sizeof pushed);
    finish = LOCI_FINISH_NONE;
    OK(loci_session_generate(session, &how, collect, &pushed, &finish));
    CHECK(finish == LOCI_FINISH_LENGTH && pushed.finish == finish && pushed.finishes == 1 && pushed.tokens == 40);
    OK(loci_session_finish(session, &finish));
    CHECK(finish == LOCI_FINISH_LENGTH);

    /* The same prompt again costs nothing, and the same seed gives the same answer, pulled this time, with threads that come and go. */
    OK(loci_session_prompt_text(session, PROMPT, LOCI_NUL_TERMINATED, LOCI_ADD_SPECIAL, NULL, NULL));
    OK(loci_session_len(session, &length));
    CHECK(length == prompt);
    OK(loci_session_set_sampler(session, &sampler));
    OK(loci_session_start(session, &how));
    memset(&pulled, 0, sizeof pulled);
    do {
        memset(&piece, 0xa5, sizeof piece);
        piece.struct_size = sizeof piece;
        OK(loci_session_set_threads(session, 1 + (uint32_t)(pulled.pieces % 3)));
        OK(loci_session_next(session, &piece));
        CHECK(piece.token == LOCI_NO_TOKEN || piece.log_probability <= 0);
        CHECK(piece.token == LOCI_NO_TOKEN || piece.alternative_count == 3);
        for (i = 1; i < piece.alternative_count; i++)
            CHECK(piece.alternatives[i].log_probability <= piece.alternatives[i - 1].log_probability);
        collect(&pulled, &piece);
    } while (piece.finish == LOCI_FINISH_NONE);
    CHECK(pulled.len == pushed.len && memcmp(pulled.text, pushed.text, pulled.len) == 0);
    CHECK(pulled.tokens == 40 && pulled.finish == LOCI_FINISH_LENGTH);
    piece.struct_size = sizeof piece;
    CHECK(loci_session_next(session, &piece) < 0);
    OK(loci_session_finish(session, &finish));
    CHECK(finish == LOCI_FINISH_LENGTH);
    /* The last token of the answer is read when somebody asks what comes after it. */
    OK(loci_session_logits(session, &logits, &length));
    CHECK(length == loci_model_vocab_len(model));

    /* A callback that has enough. */
    memset(&pulled, 0, sizeof pulled);
    pulled.stop_after = 5;
    OK(loci_session_truncate(session, prompt));
    OK(loci_session_prompt_text(session, PROMPT, LOCI_NUL_TERMINATED, LOCI_ADD_SPECIAL, NULL, NULL));
    OK(loci_session_generate(session, &how, collect, &pulled, &finish));
    CHECK(finish == LOCI_FINISH_CALLBACK && pulled.pieces == 5);

    stats.struct_size = sizeof stats;
    OK(loci_session_stats_get(session, &stats));
    CHECK(stats.prefill_tokens >= prompt && stats.decode_tokens >= 80 && stats.reused_tokens >= prompt - 1);
    CHECK(stats.load_seconds > 0 && stats.prefill_seconds > 0 && stats.decode_seconds > 0);
    OK(loci_session_len(session, &length));
    CHECK(stats.local_tokens == length || stats.local_tokens + 1 == length);
    OK(loci_session_tokens(session, tokens, 128, &i));
    CHECK(i == length && tokens[0] == loci_model_bos(model));
    OK(loci_session_reset(session));
    OK(loci_session_len(session, &length));
    CHECK(length == 0);
    OK(loci_session_set_threads(session, 1));
    loci_session_free(session);
}

static size_t find(const char *text, size_t len, const char *what) {
    size_t n = strlen(what), i;
    for (i = 0; i + n <= len; i++)
        if (memcmp(text + i, what, n) == 0) return i;
    return len;
}

/* A stop string taken from the middle of an answer ends the same answer in front of it. */
static void stopping(loci_model *model) {
    loci_session *session;
    loci_sampler_options sampler;
    loci_generate_options how;
    loci_finish finish;
    answer whole, cut;
    char stop[16];
    const char *stops[2];
    size_t from, to;
    OK(loci_session_new(model, NULL, &session));
    OK(loci_sampler_options_init(&sampler, sizeof sampler));
    OK(loci_generate_options_init(&how, sizeof how));
    how.max_tokens = 60;
    how.ignore_eos = 1;
    do { /* until an answer has a stretch in its middle that can be a C string */
        sampler.seed++;
        CHECK(sampler.seed < 50);
        OK(loci_session_prompt_text(session, PROMPT, LOCI_NUL_TERMINATED, LOCI_ADD_SPECIAL, NULL, NULL));
        OK(loci_session_set_sampler(session, &sampler));
        memset(&whole, 0, sizeof whole);
        OK(loci_session_generate(session, &how, collect, &whole, &finish));
        for (from = whole.len / 2; from < whole.len && ((unsigned char)whole.text[from] & 0xc0) == 0x80;) from++;
        for (to = from + 4; to < whole.len && ((unsigned char)whole.text[to] & 0xc0) == 0x80;) to++;
    } while (to >= whole.len || memchr(whole.text + from, 0, to - from) != NULL);
    memcpy(stop, whole.text + from, to - from);
    stop[to - from] = 0;
    stops[0] = "a string that does not come";
    stops[1] = stop;
    how.stop = stops;
    how.stop_count = 2;
    OK(loci_session_prompt_text(session, PROMPT, LOCI_NUL_TERMINATED, LOCI_ADD_SPECIAL, NULL, NULL));
    OK(loci_session_set_sampler(session, &sampler));
    memset(&cut, 0, sizeof cut);
    OK(loci_session_generate(session, &how, collect, &cut, &finish));
    CHECK(finish == LOCI_FINISH_STOP && cut.finish == finish);
    CHECK(cut.len == find(whole.text, whole.len, stop) && memcmp(cut.text, whole.text, cut.len) == 0);
    loci_session_free(session);
}

static void memories(loci_model *model, const char *dir) {
    const char *path = in_dir(dir, "job.lmem");
    const char *story = "the stone tower is on the shore and the rain is in the garden where the lantern is hidden from the sea";
    loci_memory *memory, *reader, *ram;
    loci_memory_stats stats;
    loci_memory_options memory_options;
    loci_compact_options compact;
    loci_source source;
    loci_session *loaded;
    size_t sources;
    int32_t resumed = 9;
    const char *saved = in_dir(dir, "job.session");
    loci_session *session;
    loci_passage passage;
    loci_finish finish;
    loci_generate_options how;
    loci_token stored[256], tokens[256];
    uint64_t length, progress = 0;
    size_t count, passages, i;
    uint32_t index = 99;
    OK(loci_model_tokenize(model, story, LOCI_NUL_TERMINATED, LOCI_ADD_SPECIAL, tokens, 256, &count));
    OK(loci_session_new(model, NULL, &session));
    OK(loci_memory_create(model, path, &memory));
    IS(LOCI_IO, loci_memory_create(model, path, &ram));
    OK(loci_session_remember_text(session, memory, story, LOCI_NUL_TERMINATED, LOCI_ADD_SPECIAL, "story.txt", count_progress, &progress));
    CHECK(progress == count);
    OK(loci_memory_len(memory, &length));
    CHECK(length == count);
    OK(loci_memory_commit(memory));
    stats.struct_size = sizeof stats;
    OK(loci_memory_stats_get(memory, &stats));
    CHECK(stats.tokens == count && stats.committed_tokens == count && stats.file_bytes > 0);
    loci_memory_free(memory);

    OK(loci_memory_open_read_only(model, path, &reader));
    OK(loci_memory_len(reader, &length));
    CHECK(length == count);
    OK(loci_memory_tokens(reader, 0, count, stored));
    CHECK(memcmp(stored, tokens, count * sizeof *tokens) == 0);
    IS(LOCI_INVALID_ARGUMENT, loci_memory_tokens(reader, 1, count, stored));
    IS(LOCI_INVALID_ARGUMENT, loci_memory_tokens(reader, UINT64_MAX, 2, stored));
    OK(loci_memory_open(NULL, path, &memory));
    OK(loci_memory_options_init(&memory_options, sizeof memory_options));
    memory_options.codec = 99;
    IS(LOCI_INVALID_ARGUMENT, loci_memory_create_as(model, NULL, &memory_options, &ram));
    memory_options.codec = LOCI_MEMORY_K4V4; /* the heads of this model are too small for it */
    IS(LOCI_INVALID_ARGUMENT, loci_memory_create_as(model, NULL, &memory_options, &ram));
    memory_options.codec = LOCI_MEMORY_BF16;
    OK(loci_memory_create_as(model, NULL, &memory_options, &ram));
    loci_memory_free(ram);
    OK(loci_memory_in_ram(model, &ram));
    OK(loci_session_remember(session, ram, tokens, count, NULL, NULL, NULL));
    OK(loci_session_attach_memory(session, reader, &index));
    CHECK(index == 0);
    OK(loci_session_attach_memory(session, ram, &index));
    CHECK(index == 1);
    /* The session keeps what is attached to it. */
    loci_memory_free(reader);
    loci_memory_free(ram);
    OK(loci_session_prompt_text(session, PROMPT, LOCI_NUL_TERMINATED, LOCI_ADD_SPECIAL, NULL, NULL));
    OK(loci_generate_options_init(&how, sizeof how));
    how.max_tokens = 8;
    how.ignore_eos = 1;
    OK(loci_session_generate(session, &how, NULL, NULL, &finish));
    CHECK(finish == LOCI_FINISH_LENGTH);
    OK(loci_session_passages(session, &passages));
    for (i = 0; i < passages; i++) {
        passage.struct_size = sizeof passage;
        OK(loci_session_passage(session, i, &passage));
        CHECK(passage.memory < 2 && passage.first_token + passage.token_count <= count && passage.token_count > 0);
        CHECK(passage.memory == 0 ? strcmp(passage.source, "story.txt") == 0 : passage.source == NULL);
    }
    passage.struct_size = sizeof passage;
    IS(LOCI_NOT_FOUND, loci_session_passage(session, passages, &passage));
    OK(loci_session_detach_memories(session));
    OK(loci_session_remember(session, memory, tokens, count, "again", NULL, NULL));
    OK(loci_memory_commit(memory));
    OK(loci_memory_len(memory, &length));
    CHECK(length == 2 * count);

    /* Where tokens come from, what is forgotten, whether all is well. */
    OK(loci_memory_sources(memory, &sources));
    CHECK(sources == 2);
    source.struct_size = sizeof source;
    OK(loci_memory_source(memory, 1, &source));
    CHECK(strcmp(source.label, "again") == 0 && source.first_token == count && source.token_count == count);
    CHECK(source.text_start == 0 && source.text_end > source.text_start);
    IS(LOCI_NOT_FOUND, loci_memory_source(memory, 2, &source));
    OK(loci_memory_forget(memory, "again", &length));
    CHECK(length == count);
    OK(loci_memory_forget(memory, "nobody", &length));
    CHECK(length == 0);
    stats.struct_size = sizeof stats;
    OK(loci_memory_stats_get(memory, &stats));
    CHECK(stats.forgotten_tokens == count && stats.dropped_blocks == 0);
    CHECK(stats.damaged_sections == 0 && stats.damaged_pages == 0 && stats.lost_tokens == 0);
    OK(loci_memory_verify(memory, NULL, NULL, &length));
    CHECK(length == 0);
    OK(loci_session_repair(session, memory, NULL, NULL, &length));
    CHECK(length == 0);
    OK(loci_session_resume(session, memory, NULL, NULL, &resumed));
    CHECK(resumed == 0);
    IS(LOCI_BUSY, loci_memory_compact(path, NULL, NULL, NULL));

    /* A session in a file, with a memory attached; then the same answer from both. */
    OK(loci_session_attach_memory(session, memory, NULL));
    OK(loci_session_prompt_text(session, PROMPT, LOCI_NUL_TERMINATED, LOCI_ADD_SPECIAL, NULL, NULL));
    OK(loci_session_save(session, saved));
    IS(LOCI_FORMAT, loci_session_load(model, path, NULL, 0, &loaded)); /* a memory, not a snapshot */
    OK(loci_session_load(model, saved, &memory, 1, &loaded));
    OK(loci_session_generate(session, &how, NULL, NULL, &finish));
    OK(loci_session_generate(loaded, &how, NULL, NULL, &finish));
    OK(loci_session_tokens(session, stored, 256, &count));
    OK(loci_session_tokens(loaded, tokens, 256, &passages));
    CHECK(count == passages && memcmp(stored, tokens, count * sizeof *tokens) == 0);
    loci_session_free(loaded);
    loci_session_free(session);
    loci_memory_free(memory);

    OK(loci_compact_options_init(&compact, sizeof compact));
    compact.codec = LOCI_MEMORY_F32;
    OK(loci_memory_compact(path, &compact, NULL, NULL));
    OK(loci_memory_open(model, path, &memory));
    stats.struct_size = sizeof stats;
    OK(loci_memory_stats_get(memory, &stats));
    CHECK(stats.forgotten_tokens == 0 && stats.tokens > 0);
    loci_memory_free(memory);
}

int main(int argc, char **argv) {
    loci_model *model;
    CHECK(argc == 6);
    CHECK(strcmp(loci_version(), LOCI_VERSION) == 0 && loci_version_number() == LOCI_VERSION_NUMBER);
    CHECK(loci_version_number() == LOCI_VERSION_MAJOR * 1000000u + LOCI_VERSION_MINOR * 1000u + LOCI_VERSION_PATCH);
    CHECK(strstr(loci_system_info(), LOCI_VERSION) != NULL && strstr(loci_features(), "chat") != NULL);
    sources(argv[1], argv[2], strtoul(argv[3], NULL, 10), strtoul(argv[4], NULL, 10));
    OK(loci_model_open(argv[1], NULL, &model));
    accessors(model);
    text(model);
    generation(model);
    stopping(model);
    memories(model, argv[5]);
    loci_model_free(model);
    return 0;
}
