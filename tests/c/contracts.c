/* The contracts of the header: NULL, lengths, versions of structs, handles that are not, one caller at a time, cancellation, log.
 *
 * usage: contracts MODEL.gguf OTHER.gguf DIR */
#define _POSIX_C_SOURCE 200809L
#include "check.h"
#include <pthread.h>
#include <unistd.h>

#define TOKENS 96

static loci_token tokens[TOKENS];

static void nulls(loci_model *model, loci_session *session, loci_memory *memory) {
    char buffer[16];
    loci_token token = 5;
    size_t len = 77;
    uint64_t length = 77;
    float value;
    loci_estimate estimate;
    const float *logits;
    const char *one[1] = {"user"};
    const char *none[1] = {NULL};
    loci_finish finish = 77;
    loci_piece piece;
    loci_model *model_out = NULL;
    loci_session *session_out = NULL;
    loci_memory *memory_out = NULL;

    estimate.struct_size = sizeof estimate;
    loci_model_free(NULL);
    loci_session_free(NULL);
    loci_memory_free(NULL);
    IS(LOCI_INVALID_ARGUMENT, loci_last_error_details(NULL));
    IS(LOCI_INVALID_ARGUMENT, loci_model_options_init(NULL, sizeof(loci_model_options)));
    IS(LOCI_INVALID_ARGUMENT, loci_session_options_init(NULL, sizeof(loci_session_options)));
    IS(LOCI_INVALID_ARGUMENT, loci_memory_options_init(NULL, sizeof(loci_memory_options)));
    IS(LOCI_INVALID_ARGUMENT, loci_memory_create_as(NULL, NULL, NULL, &memory_out));
    IS(LOCI_INVALID_ARGUMENT, loci_sampler_options_init(NULL, sizeof(loci_sampler_options)));
    IS(LOCI_INVALID_ARGUMENT, loci_generate_options_init(NULL, sizeof(loci_generate_options)));
    IS(LOCI_INVALID_ARGUMENT, loci_model_open(NULL, NULL, &model_out));
    IS(LOCI_INVALID_ARGUMENT, loci_model_open("x", NULL, NULL));
    IS(LOCI_INVALID_ARGUMENT, loci_model_open_fd(-1, 0, 0, NULL, &model_out));
    IS(LOCI_IO, loci_model_open_fd(1 << 20, 0, 0, NULL, &model_out));
    IS(LOCI_INVALID_ARGUMENT, loci_model_open_memory(NULL, 5, NULL, &model_out));
    CHECK(loci_model_open_memory(NULL, 0, NULL, &model_out) < 0);
    CHECK(loci_model_open_memory("GGUF", 4, NULL, &model_out) < 0);
    IS(LOCI_INVALID_ARGUMENT, loci_model_retain(NULL));
    CHECK(loci_model_architecture(NULL) == NULL && loci_model_name(NULL) == NULL && loci_model_weight_type(NULL) == NULL);
    CHECK(loci_model_chat_template(NULL) == NULL && loci_model_context_length(NULL) == 0 && loci_model_vocab_len(NULL) == 0);
    CHECK(loci_model_embedding_length(NULL) == 0 && loci_model_block_count(NULL) == 0 && loci_model_parameter_count(NULL) == 0);
    CHECK(loci_model_weight_bytes(NULL) == 0 && loci_model_memory_layer_count(NULL) == 0 && loci_model_metadata_count(NULL) == 0);
    CHECK(loci_model_metadata_key(NULL, 0) == NULL && loci_model_bos(NULL) == LOCI_NO_TOKEN && loci_model_eos(NULL) == LOCI_NO_TOKEN);
    CHECK(loci_model_is_end_of_generation(NULL, 2) == 0);
    IS(LOCI_INVALID_ARGUMENT, loci_model_metadata(model, NULL, buffer, 16, &len));
    IS(LOCI_INVALID_ARGUMENT, loci_model_metadata(model, "general.name", NULL, 16, &len));
    IS(LOCI_INVALID_ARGUMENT, loci_model_metadata(model, "general.name", buffer, 16, NULL));
    IS(LOCI_INVALID_ARGUMENT, loci_model_tokenize(model, NULL, 3, 0, tokens, 4, &len));
    IS(LOCI_INVALID_ARGUMENT, loci_model_tokenize(model, NULL, LOCI_NUL_TERMINATED, 0, tokens, 4, &len));
    IS(LOCI_INVALID_ARGUMENT, loci_model_tokenize(model, "x", 1, 0, NULL, 4, &len));
    IS(LOCI_INVALID_ARGUMENT, loci_model_tokenize(model, "x", 1, 0, tokens, 4, NULL));
    IS(LOCI_INVALID_ARGUMENT, loci_model_tokenize(model, "x", SIZE_MAX - 1, 0, tokens, 4, &len));
    IS(LOCI_INVALID_ARGUMENT, loci_model_tokenize(model, "x", 1, 8, tokens, 4, &len));
    IS(LOCI_INVALID_ARGUMENT, loci_model_detokenize(model, NULL, 1, 0, buffer, 16, &len));
    IS(LOCI_INVALID_ARGUMENT, loci_model_detokenize(model, &token, SIZE_MAX, 0, buffer, 16, &len));
    IS(LOCI_INVALID_ARGUMENT, loci_model_detokenize(model, &token, 1, LOCI_ADD_SPECIAL, buffer, 16, &len));
    token = -1;
    IS(LOCI_INVALID_ARGUMENT, loci_model_detokenize(model, &token, 1, 0, buffer, 16, &len));
    IS(LOCI_INVALID_ARGUMENT, loci_model_token_bytes(model, -1, buffer, 16, &len));
    IS(LOCI_INVALID_ARGUMENT, loci_model_token_bytes(model, INT32_MAX, buffer, 16, &len));
    IS(LOCI_INVALID_ARGUMENT, loci_model_token_id(model, NULL, &token));
    IS(LOCI_INVALID_ARGUMENT, loci_model_token_id(model, "x", NULL));
    IS(LOCI_INVALID_ARGUMENT, loci_model_chat_render(model, NULL, one, 1, 1, buffer, 16, &len));
    IS(LOCI_INVALID_ARGUMENT, loci_model_chat_render(model, one, none, 1, 1, buffer, 16, &len));
    IS(LOCI_INVALID_ARGUMENT, loci_model_chat_render(model, one, one, 1, 2, buffer, 16, &len));
    one[0] = "not \xff UTF-8";
    IS(LOCI_INVALID_ARGUMENT, loci_model_chat_render(model, one, one, 1, 1, buffer, 16, &len));
    IS(LOCI_INVALID_ARGUMENT, loci_session_new(NULL, NULL, &session_out));
    IS(LOCI_INVALID_ARGUMENT, loci_session_new(model, NULL, NULL));
    IS(LOCI_INVALID_ARGUMENT, loci_session_reset(NULL));
    IS(LOCI_INVALID_ARGUMENT, loci_session_truncate(NULL, 0));
    IS(LOCI_INVALID_ARGUMENT, loci_session_len(NULL, &len));
    IS(LOCI_INVALID_ARGUMENT, loci_session_len(session, NULL));
    IS(LOCI_INVALID_ARGUMENT, loci_session_tokens(session, tokens, 4, NULL));
    IS(LOCI_INVALID_ARGUMENT, loci_session_prefill(NULL, tokens, 4, NULL, NULL));
    IS(LOCI_INVALID_ARGUMENT, loci_session_prefill(session, NULL, 4, NULL, NULL));
    IS(LOCI_INVALID_ARGUMENT, loci_session_prefill(session, &token, 1, NULL, NULL));
    IS(LOCI_INVALID_ARGUMENT, loci_session_prompt(session, NULL, 4, NULL, NULL));
    IS(LOCI_INVALID_ARGUMENT, loci_session_prompt(session, &token, 1, NULL, NULL));
    IS(LOCI_INVALID_ARGUMENT, loci_session_prefill_text(session, NULL, LOCI_NUL_TERMINATED, 0, NULL, NULL));
    IS(LOCI_INVALID_ARGUMENT, loci_session_prompt_text(session, NULL, 3, 0, NULL, NULL));
    IS(LOCI_INVALID_ARGUMENT, loci_session_prompt_text(session, "x", 1, 4, NULL, NULL));
    IS(LOCI_STATE, loci_session_logits(session, &logits, &len));
    IS(LOCI_INVALID_ARGUMENT, loci_session_logits(session, NULL, &len));
    IS(LOCI_STATE, loci_session_log_probability(session, 5, &value));
    IS(LOCI_STATE, loci_session_sample(session, &token));
    IS(LOCI_INVALID_ARGUMENT, loci_session_sample(session, NULL));
    IS(LOCI_INVALID_ARGUMENT, loci_session_generate(session, NULL, NULL, NULL, NULL));
    IS(LOCI_STATE, loci_session_generate(session, NULL, NULL, NULL, &finish));
    IS(LOCI_STATE, loci_session_start(session, NULL));
    piece.struct_size = sizeof piece;
    IS(LOCI_STATE, loci_session_next(session, &piece));
    IS(LOCI_INVALID_ARGUMENT, loci_session_start(NULL, NULL));
    IS(LOCI_INVALID_ARGUMENT, loci_session_next(session, NULL));
    IS(LOCI_INVALID_ARGUMENT, loci_session_finish(session, NULL));
    IS(LOCI_INVALID_ARGUMENT, loci_session_cancel(NULL));
    IS(LOCI_INVALID_ARGUMENT, loci_session_set_sampler(NULL, NULL));
    IS(LOCI_INVALID_ARGUMENT, loci_session_fork(NULL, &session_out));
    IS(LOCI_INVALID_ARGUMENT, loci_session_fork(session, NULL));
    IS(LOCI_INVALID_ARGUMENT, loci_session_trim(NULL));
    IS(LOCI_INVALID_ARGUMENT, loci_model_trim(NULL));
    IS(LOCI_INVALID_ARGUMENT, loci_model_estimate(NULL, NULL, 0, &estimate));
    IS(LOCI_INVALID_ARGUMENT, loci_model_estimate(model, NULL, 0, NULL));
    IS(LOCI_INVALID_ARGUMENT, loci_model_estimate(model, NULL, 2, &estimate));
    IS(LOCI_INVALID_ARGUMENT, loci_session_embed(session, NULL, 3, LOCI_POOLING_MEAN, NULL, NULL, NULL, 0, &len));
    IS(LOCI_INVALID_ARGUMENT, loci_session_embed(session, &token, 1, 2, NULL, NULL, NULL, 0, &len));
    IS(LOCI_INVALID_ARGUMENT, loci_session_embed(session, &token, 1, LOCI_POOLING_MEAN, NULL, NULL, NULL, 0, NULL));
    IS(LOCI_INVALID_ARGUMENT, loci_session_embed(session, &token, 1, LOCI_POOLING_MEAN, NULL, NULL, NULL, 5, &len));
    IS(LOCI_INVALID_ARGUMENT, loci_session_set_threads(NULL, 1));
    IS(LOCI_INVALID_ARGUMENT, loci_session_set_threads(session, 1u << 30));
    IS(LOCI_INVALID_ARGUMENT, loci_session_stats_get(session, NULL));
    IS(LOCI_INVALID_ARGUMENT, loci_memory_create(NULL, "x", &memory_out));
    IS(LOCI_INVALID_ARGUMENT, loci_memory_create(model, NULL, &memory_out));
    IS(LOCI_INVALID_ARGUMENT, loci_memory_open(model, "x", NULL));
    IS(LOCI_INVALID_ARGUMENT, loci_memory_open(model, NULL, &memory_out));
    IS(LOCI_INVALID_ARGUMENT, loci_memory_open_read_only(NULL, NULL, &memory_out));
    IS(LOCI_INVALID_ARGUMENT, loci_memory_in_ram(NULL, &memory_out));
    IS(LOCI_INVALID_ARGUMENT, loci_memory_commit(NULL));
    IS(LOCI_INVALID_ARGUMENT, loci_memory_refresh(NULL, NULL));
    IS(LOCI_INVALID_ARGUMENT, loci_memory_len(memory, NULL));
    IS(LOCI_INVALID_ARGUMENT, loci_memory_len(NULL, &length));
    IS(LOCI_INVALID_ARGUMENT, loci_memory_tokens(memory, 0, 1, NULL));
    IS(LOCI_INVALID_ARGUMENT, loci_memory_stats_get(memory, NULL));
    IS(LOCI_INVALID_ARGUMENT, loci_session_attach_memory(session, NULL, NULL));
    IS(LOCI_INVALID_ARGUMENT, loci_session_detach_memories(NULL));
    IS(LOCI_INVALID_ARGUMENT, loci_session_remember(session, NULL, tokens, 4, NULL, NULL, NULL));
    IS(LOCI_INVALID_ARGUMENT, loci_session_remember(session, memory, NULL, 4, NULL, NULL, NULL));
    IS(LOCI_INVALID_ARGUMENT, loci_session_remember(session, memory, tokens, 4, "\xff", NULL, NULL));
    IS(LOCI_INVALID_ARGUMENT, loci_session_remember_text(session, memory, NULL, 4, 0, NULL, NULL, NULL));
    IS(LOCI_INVALID_ARGUMENT, loci_session_passages(session, NULL));
    IS(LOCI_INVALID_ARGUMENT, loci_session_passage(session, 0, NULL));
    IS(LOCI_INVALID_ARGUMENT, loci_log_set(9, NULL, NULL));
    /* Nothing was written by what failed. */
    CHECK(len == 77 && length == 77 && finish == 77 && !model_out && !session_out && !memory_out);
}

static void errors(void) {
    loci_error e;
    loci_model *model;
    char bad[64] = "GGUX";
    IS(LOCI_FORMAT, loci_model_open_memory(bad, sizeof bad, NULL, &model));
    e.struct_size = sizeof e;
    OK(loci_last_error_details(&e));
    CHECK(e.status == LOCI_FORMAT && e.has_offset == 1 && e.offset == 0);
    CHECK(e.name && e.expected && e.found && strcmp(e.message, loci_last_error()) == 0);
    IS(LOCI_IO, loci_model_open("/no/such/file.gguf", NULL, &model));
    CHECK(strstr(loci_last_error(), "/no/such/file.gguf") != NULL);
    CHECK(strcmp(loci_status_name(LOCI_IO), "LOCI_IO") == 0 && strcmp(loci_status_name(12345), "unknown") == 0);
    CHECK(strcmp(loci_finish_name(LOCI_FINISH_EOS), "LOCI_FINISH_EOS") == 0);
}

static void *another_thread(void *user) {
    (void)user;
    CHECK(loci_last_error()[0] == 0);
    CHECK(loci_model_vocab_len(NULL) == 0);
    CHECK(strstr(loci_last_error(), "model") != NULL);
    return NULL;
}

static void versions(loci_model *model) {
    /* A caller of the future: the same struct with a field that this library does not know. */
    struct {
        loci_session_options known;
        uint64_t unknown;
    } newer;
    loci_session_options options;
    loci_session *session;
    loci_session_stats stats;
    loci_generate_options how;
    loci_sampler_options sampler;
    loci_error error;
    union {
        loci_session_options options;
        unsigned char bytes[sizeof(loci_session_options)];
    } older;
    size_t i;

    OK(loci_session_options_init((loci_session_options *)&newer, sizeof newer));
    CHECK(newer.known.struct_size == sizeof newer && newer.unknown == 0 && newer.known.rope_factor < 0);
    OK(loci_session_new(model, &newer.known, &session));
    loci_session_free(session);
    newer.unknown = 1;
    IS(LOCI_INVALID_ARGUMENT, loci_session_new(model, &newer.known, &session));

    /* A caller of the past: what comes after its last field is not looked at, nor written. */
    memset(older.bytes, 0xff, sizeof older);
    OK(loci_session_options_init(&older.options, offsetof(loci_session_options, rope_scaling)));
    for (i = offsetof(loci_session_options, rope_scaling); i < sizeof older; i++) CHECK(older.bytes[i] == 0xff);
    older.options.threads = 1;
    OK(loci_session_new(model, &older.options, &session));
    memset(&stats, 0xff, sizeof stats);
    stats.struct_size = offsetof(loci_session_stats, prefill_tokens);
    OK(loci_session_stats_get(session, &stats));
    CHECK(stats.struct_size == offsetof(loci_session_stats, prefill_tokens) && stats.load_seconds > 0);
    CHECK(stats.prefill_tokens == UINT64_MAX && stats.memory_bytes_read == UINT64_MAX);

    /* Sizes that are mistakes. */
    IS(LOCI_INVALID_ARGUMENT, loci_session_options_init(&options, sizeof(void *)));
    IS(LOCI_INVALID_ARGUMENT, loci_session_options_init(&options, sizeof options - 1));
    IS(LOCI_INVALID_ARGUMENT, loci_session_options_init(&options, 0));
    IS(LOCI_INVALID_ARGUMENT, loci_session_options_init(&options, SIZE_MAX));
    OK(loci_session_options_init(&options, sizeof options));
    options.struct_size = 3;
    IS(LOCI_INVALID_ARGUMENT, loci_session_new(model, &options, &session));
    options.struct_size = SIZE_MAX;
    IS(LOCI_INVALID_ARGUMENT, loci_session_new(model, &options, &session));
    error.struct_size = 0;
    IS(LOCI_INVALID_ARGUMENT, loci_last_error_details(&error));

    /* Values that are not defined. */
    OK(loci_session_options_init(&options, sizeof options));
    options.kv_codec = 99;
    IS(LOCI_INVALID_ARGUMENT, loci_session_new(model, &options, &session));
    error.struct_size = sizeof error;
    OK(loci_last_error_details(&error));
    CHECK(strcmp(error.name, "kv_codec") == 0 && strcmp(error.found, "99") == 0 && error.has_offset == 0);
    OK(loci_session_options_init(&options, sizeof options));
    options.overflow = -1;
    IS(LOCI_INVALID_ARGUMENT, loci_session_new(model, &options, &session));
    OK(loci_session_options_init(&options, sizeof options));
    options.rope_scaling = 6;
    IS(LOCI_INVALID_ARGUMENT, loci_session_new(model, &options, &session));
    OK(loci_session_options_init(&options, sizeof options));
    options.reserved = 1;
    IS(LOCI_INVALID_ARGUMENT, loci_session_new(model, &options, &session));
    OK(loci_generate_options_init(&how, sizeof how));
    how.log_probabilities = -2;
    IS(LOCI_INVALID_ARGUMENT, loci_session_start(session, &how));
    OK(loci_generate_options_init(&how, sizeof how));
    how.ignore_eos = 2;
    IS(LOCI_INVALID_ARGUMENT, loci_session_start(session, &how));
    OK(loci_generate_options_init(&how, sizeof how));
    how.stop_count = 1;
    IS(LOCI_INVALID_ARGUMENT, loci_session_start(session, &how));
    OK(loci_sampler_options_init(&sampler, sizeof sampler));
    sampler.temperature = -1;
    IS(LOCI_INVALID_ARGUMENT, loci_session_set_sampler(session, &sampler));
    OK(loci_sampler_options_init(&sampler, sizeof sampler));
    sampler.logit_bias_count = 2;
    IS(LOCI_INVALID_ARGUMENT, loci_session_set_sampler(session, &sampler));
    OK(loci_session_set_sampler(session, NULL));

    /* Rests are asked for at any time, and counted. */
    IS(LOCI_INVALID_ARGUMENT, loci_session_set_duty(session, 0));
    IS(LOCI_INVALID_ARGUMENT, loci_session_set_duty(session, 101));
    OK(loci_session_set_duty(session, 90));
    OK(loci_session_prefill_text(session, "the rain", LOCI_NUL_TERMINATED, 0, NULL, NULL));
    stats.struct_size = sizeof stats;
    OK(loci_session_stats_get(session, &stats));
    CHECK(stats.resting_seconds > 0 && stats.resting_seconds < stats.prefill_seconds);
    loci_session_free(session);
}

/* A full context: an ordinary model says so before it computes anything, a Focused Transformer goes on. */
static void limits(loci_model *model) {
    loci_session_options options;
    loci_session *session;
    loci_error error;
    size_t len;
    OK(loci_session_options_init(&options, sizeof options));
    options.context_length = 64;
    OK(loci_session_new(model, &options, &session));
    if (loci_model_memory_layer_count(model) == 0) {
        IS(LOCI_LIMIT, loci_session_prefill(session, tokens, 65, NULL, NULL));
        error.struct_size = sizeof error;
        OK(loci_last_error_details(&error));
        CHECK(error.status == LOCI_LIMIT && strcmp(error.found, "65") == 0 && strstr(error.expected, "64") != NULL);
        OK(loci_session_len(session, &len));
        CHECK(len == 0);
        OK(loci_session_prefill(session, tokens, 64, NULL, NULL));
    } else {
        OK(loci_session_prefill(session, tokens, TOKENS, NULL, NULL));
        OK(loci_session_len(session, &len));
        CHECK(len == TOKENS);
    }
    loci_session_free(session);
}

/* RAM foretold and given back, and embeddings: what a session holds stays as it was. */
static void footprint(loci_model *model) {
    loci_session *session = NULL;
    loci_session_options options;
    loci_estimate small, large;
    loci_session_stats before, after;
    float values[256], again[256], total = 0;
    const float *logits;
    float *kept;
    size_t width = (size_t)loci_model_embedding_length(model), length = 0, count = 0, i;

    OK(loci_session_options_init(&options, sizeof options));
    small.struct_size = large.struct_size = sizeof small;
    options.context_length = 64;
    OK(loci_model_estimate(model, &options, 0, &small));
    options.context_length = 128;
    OK(loci_model_estimate(model, &options, 1, &large));
    CHECK(large.context_bytes == 2 * small.context_bytes && large.file_bytes == small.file_bytes && small.file_bytes > 0);
    CHECK(small.memory_bytes == 0 && (large.memory_bytes > 0) == (loci_model_memory_layer_count(model) == 0));
    CHECK(large.total_bytes == large.file_bytes + large.model_bytes + large.context_bytes + large.scratch_bytes + large.memory_bytes);
    options.threads = 1u << 30;
    IS(LOCI_INVALID_ARGUMENT, loci_model_estimate(model, &options, 0, &small));

    OK(loci_session_new(model, NULL, &session));
    IS(LOCI_BUFFER_TOO_SMALL, loci_session_embed(session, tokens, 8, LOCI_POOLING_MEAN, NULL, NULL, values, width - 1, &length));
    CHECK(length == width && width <= 256);
    OK(loci_session_embed(session, tokens, 8, LOCI_POOLING_MEAN, NULL, NULL, values, width, &length));
    for (i = 0; i < width; i++) total += values[i] * values[i];
    CHECK(total > 0.999f && total < 1.001f);
    OK(loci_session_prefill(session, tokens, 20, NULL, NULL));
    OK(loci_session_embed(session, tokens, 8, LOCI_POOLING_LAST, NULL, NULL, again, 256, &length));
    CHECK(memcmp(values, again, width * sizeof *values) != 0);
    OK(loci_session_embed(session, tokens, 8, LOCI_POOLING_MEAN, NULL, NULL, again, 256, &length));
    CHECK(memcmp(values, again, width * sizeof *values) == 0);
    OK(loci_session_len(session, &count));
    CHECK(count == 0);

    OK(loci_session_prefill(session, tokens, 20, NULL, NULL));
    OK(loci_session_logits(session, &logits, &count));
    kept = (float *)malloc(count * sizeof *kept);
    CHECK(kept != NULL);
    memcpy(kept, logits, count * sizeof *kept);
    before.struct_size = after.struct_size = sizeof before;
    OK(loci_session_stats_get(session, &before));
    OK(loci_session_trim(session));
    OK(loci_model_trim(model));
    OK(loci_session_stats_get(session, &after));
    CHECK(after.anonymous_bytes < before.anonymous_bytes && after.local_tokens == 20);
    OK(loci_session_logits(session, &logits, &count));
    CHECK(memcmp(kept, logits, count * sizeof *kept) == 0);
    OK(loci_session_truncate(session, 19));
    OK(loci_session_prefill(session, tokens + 19, 1, NULL, NULL));
    OK(loci_session_logits(session, &logits, &count));
    CHECK(memcmp(kept, logits, count * sizeof *kept) == 0);
    free(kept);
    loci_session_free(session);
}

static void handles(const char *path) {
    loci_model *model, *gone;
    loci_session *session;
    loci_memory *memory;
    size_t len;
    uint64_t length;
    int here = 0;
    OK(loci_model_open(path, NULL, &model));
    OK(loci_model_retain(model));
    loci_model_free(model);
    CHECK(loci_model_vocab_len(model) > 0);
    OK(loci_session_new(model, NULL, &session));
    OK(loci_memory_in_ram(model, &memory));
    /* The model's handle ends; session and memory live on. */
    loci_model_free(model);
    CHECK(loci_model_vocab_len(model) == 0);
    IS(LOCI_INVALID_HANDLE, loci_model_retain(model));
    loci_model_free(model);
    gone = model;
    OK(loci_session_prefill(session, tokens, 8, NULL, NULL));
    OK(loci_session_remember(session, memory, tokens, 8, NULL, NULL, NULL));
    OK(loci_session_attach_memory(session, memory, NULL));
    loci_memory_free(memory);
    IS(LOCI_INVALID_HANDLE, loci_memory_len(memory, &length));
    loci_memory_free(memory);
    OK(loci_session_prefill(session, tokens, 8, NULL, NULL));
    /* Handles of another type, and pointers that are none. */
    IS(LOCI_INVALID_HANDLE, loci_session_len((loci_session *)(void *)gone, &len));
    IS(LOCI_INVALID_HANDLE, loci_model_retain((loci_model *)(void *)session));
    loci_model_free((loci_model *)(void *)session);
    IS(LOCI_INVALID_HANDLE, loci_session_cancel((loci_session *)(void *)&here));
    IS(LOCI_INVALID_HANDLE, loci_session_cancel((loci_session *)(uintptr_t)-1));
    loci_session_free((loci_session *)(void *)&here);
    loci_session_free(session);
    IS(LOCI_INVALID_HANDLE, loci_session_len(session, &len));
    loci_session_free(session);
    /* A new handle is never an old one. */
    OK(loci_model_open(path, NULL, &model));
    CHECK(model != gone);
    loci_model_free(model);
}

static void buffers(loci_model *model) {
    char buffer[8];
    size_t len = 0;
    memset(buffer, 'x', sizeof buffer);
    IS(LOCI_BUFFER_TOO_SMALL, loci_model_metadata(model, "general.architecture", buffer, 5, &len));
    CHECK(len == 5 && buffer[0] == 'x');
    OK(loci_model_metadata(model, "general.architecture", buffer, 6, &len));
    CHECK(strcmp(buffer, "llama") == 0 && buffer[6] == 'x');
    IS(LOCI_BUFFER_TOO_SMALL, loci_model_detokenize(model, NULL, 0, 0, NULL, 0, &len));
    CHECK(len == 0);
    OK(loci_model_detokenize(model, NULL, 0, 0, buffer, 1, &len));
    CHECK(buffer[0] == 0);
    OK(loci_model_tokenize(model, "", 0, 0, NULL, 0, &len));
    CHECK(len == 0);
}

/* From its own callback a session is busy, whatever is asked of it. */
typedef struct {
    loci_session *session;
    loci_memory *memory;
    int calls;
} nested;

static void busy_calls(nested *n) {
    size_t len;
    loci_finish finish;
    loci_piece piece;
    loci_session_stats stats;
    const float *logits;
    piece.struct_size = sizeof piece;
    stats.struct_size = sizeof stats;
    n->calls++;
    IS(LOCI_BUSY, loci_session_len(n->session, &len));
    IS(LOCI_BUSY, loci_session_reset(n->session));
    IS(LOCI_BUSY, loci_session_prefill(n->session, tokens, 4, NULL, NULL));
    IS(LOCI_BUSY, loci_session_generate(n->session, NULL, NULL, NULL, &finish));
    IS(LOCI_BUSY, loci_session_start(n->session, NULL));
    IS(LOCI_BUSY, loci_session_next(n->session, &piece));
    IS(LOCI_BUSY, loci_session_logits(n->session, &logits, &len));
    IS(LOCI_BUSY, loci_session_stats_get(n->session, &stats));
    IS(LOCI_BUSY, loci_session_set_sampler(n->session, NULL));
    IS(LOCI_BUSY, loci_session_remember(n->session, n->memory, tokens, 4, NULL, NULL, NULL));
}

static int32_t busy_piece(void *user, const loci_piece *piece) {
    (void)piece;
    busy_calls((nested *)user);
    return 0;
}

static int32_t busy_progress(void *user, uint64_t done, uint64_t total) {
    (void)done;
    (void)total;
    busy_calls((nested *)user);
    return 0;
}

static int32_t use_memory(void *user, uint64_t done, uint64_t total) {
    nested *n = (nested *)user;
    loci_memory_stats stats;
    uint64_t length;
    loci_status status;
    (void)done;
    (void)total;
    n->calls++;
    /* Whether the memory is free between two chunks is not promised; that nothing hangs is. */
    status = loci_memory_len(n->memory, &length);
    CHECK(status == LOCI_OK || status == LOCI_BUSY);
    stats.struct_size = sizeof stats;
    status = loci_memory_stats_get(n->memory, &stats);
    CHECK(status == LOCI_OK || status == LOCI_BUSY);
    status = loci_memory_commit(n->memory);
    CHECK(status == LOCI_OK || status == LOCI_BUSY);
    return 0;
}

static int32_t free_itself(void *user, const loci_piece *piece) {
    (void)piece;
    loci_session_free((loci_session *)user);
    return 0;
}

static void one_caller(loci_model *model) {
    nested n;
    loci_session *session;
    loci_finish finish;
    loci_generate_options how;
    n.calls = 0;
    OK(loci_session_new(model, NULL, &n.session));
    OK(loci_memory_in_ram(model, &n.memory));
    OK(loci_session_prefill(n.session, tokens, 16, busy_progress, &n));
    CHECK(n.calls > 0);
    n.calls = 0;
    OK(loci_generate_options_init(&how, sizeof how));
    how.max_tokens = 3;
    how.ignore_eos = 1;
    OK(loci_session_generate(n.session, &how, busy_piece, &n, &finish));
    CHECK(n.calls >= 3 && finish == LOCI_FINISH_LENGTH);
    n.calls = 0;
    OK(loci_session_remember(n.session, n.memory, tokens, TOKENS, NULL, use_memory, &n));
    CHECK(n.calls > 0);
    loci_memory_free(n.memory);
    loci_session_free(n.session);
    /* A session that is freed in its own callback ends, and is gone when the call returns. */
    OK(loci_session_new(model, NULL, &session));
    OK(loci_session_prefill(session, tokens, 8, NULL, NULL));
    how.max_tokens = 50;
    OK(loci_session_generate(session, &how, free_itself, session, &finish));
    CHECK(finish == LOCI_FINISH_CANCELLED);
    IS(LOCI_INVALID_HANDLE, loci_session_reset(session));
}

/* Cancels when told to, from its own thread. */
typedef struct {
    loci_session *session;
    pthread_mutex_t mutex;
    pthread_cond_t cond;
    int asked, done;
} canceller;

static void *cancel_thread(void *user) {
    canceller *c = (canceller *)user;
    pthread_mutex_lock(&c->mutex);
    while (!c->asked) pthread_cond_wait(&c->cond, &c->mutex);
    OK(loci_session_cancel(c->session));
    c->done = 1;
    pthread_cond_signal(&c->cond);
    pthread_mutex_unlock(&c->mutex);
    return NULL;
}

static void ask(canceller *c) {
    pthread_mutex_lock(&c->mutex);
    c->asked = 1;
    pthread_cond_signal(&c->cond);
    while (!c->done) pthread_cond_wait(&c->cond, &c->mutex);
    pthread_mutex_unlock(&c->mutex);
}

static int32_t ask_progress(void *user, uint64_t done, uint64_t total) {
    (void)total;
    if (done > 0 && !((canceller *)user)->done) ask((canceller *)user);
    return 0;
}

static int32_t ask_piece(void *user, const loci_piece *piece) {
    (void)piece;
    if (!((canceller *)user)->done) ask((canceller *)user);
    return 0;
}

static int32_t stop_progress(void *user, uint64_t done, uint64_t total) {
    (void)user;
    (void)total;
    return done >= 8;
}

static void cancellation(loci_model *model) {
    canceller c;
    pthread_t thread;
    loci_session_options options;
    loci_generate_options how;
    loci_finish finish;
    loci_memory *memory;
    loci_piece piece;
    size_t len, after;
    uint64_t stored;
    OK(loci_session_options_init(&options, sizeof options));
    options.batch = 8;
    OK(loci_session_new(model, &options, &c.session));
    pthread_mutex_init(&c.mutex, NULL);
    pthread_cond_init(&c.cond, NULL);

    /* During prefill: the call says so, the session says how much it holds, and goes on. */
    c.asked = c.done = 0;
    CHECK(pthread_create(&thread, NULL, cancel_thread, &c) == 0);
    IS(LOCI_CANCELLED, loci_session_prefill(c.session, tokens, TOKENS, ask_progress, &c));
    pthread_join(thread, NULL);
    OK(loci_session_len(c.session, &len));
    CHECK(len >= 8 && len < TOKENS);
    OK(loci_session_prefill(c.session, tokens + len, 8, NULL, NULL));
    OK(loci_session_len(c.session, &after));
    CHECK(after == len + 8);

    /* The same from the callback's result. */
    OK(loci_session_reset(c.session));
    IS(LOCI_CANCELLED, loci_session_prefill(c.session, tokens, TOKENS, stop_progress, NULL));
    OK(loci_session_len(c.session, &len));
    CHECK(len >= 8 && len < TOKENS);

    /* During generation: one reason, and the next one runs to its end. */
    OK(loci_session_reset(c.session));
    OK(loci_session_prefill(c.session, tokens, 8, NULL, NULL));
    OK(loci_generate_options_init(&how, sizeof how));
    how.max_tokens = 60;
    how.ignore_eos = 1;
    c.asked = c.done = 0;
    CHECK(pthread_create(&thread, NULL, cancel_thread, &c) == 0);
    OK(loci_session_generate(c.session, &how, ask_piece, &c, &finish));
    pthread_join(thread, NULL);
    CHECK(finish == LOCI_FINISH_CANCELLED);
    how.max_tokens = 4;
    OK(loci_session_generate(c.session, &how, NULL, NULL, &finish));
    CHECK(finish == LOCI_FINISH_LENGTH);

    /* Pulled. */
    how.max_tokens = 20;
    OK(loci_session_start(c.session, &how));
    piece.struct_size = sizeof piece;
    OK(loci_session_next(c.session, &piece));
    OK(loci_session_cancel(c.session));
    while (piece.finish == LOCI_FINISH_NONE) OK(loci_session_next(c.session, &piece));
    CHECK(piece.finish == LOCI_FINISH_CANCELLED);

    /* While remembering: what is stored is stored. */
    OK(loci_memory_in_ram(model, &memory));
    IS(LOCI_CANCELLED, loci_session_remember(c.session, memory, tokens, TOKENS, "half", stop_progress, NULL));
    OK(loci_memory_len(memory, &stored));
    CHECK(stored >= 8 && stored < TOKENS);
    OK(loci_session_remember(c.session, memory, tokens + stored, TOKENS - (size_t)stored, "half", NULL, NULL));
    OK(loci_memory_len(memory, &stored));
    CHECK(stored == TOKENS);
    loci_memory_free(memory);
    loci_session_free(c.session);
    pthread_mutex_destroy(&c.mutex);
    pthread_cond_destroy(&c.cond);
}

static void mismatch(loci_model *model, loci_model *other, const char *dir) {
    const char *path = in_dir(dir, "contracts.lmem");
    loci_memory *memory, *wrong = NULL;
    loci_session *session, *other_session;
    OK(loci_session_new(model, NULL, &session));
    OK(loci_session_new(other, NULL, &other_session));
    OK(loci_memory_create(model, path, &memory));
    OK(loci_session_remember(session, memory, tokens, 32, NULL, NULL, NULL));
    OK(loci_memory_commit(memory));
    IS(LOCI_MISMATCH, loci_session_attach_memory(other_session, memory, NULL));
    IS(LOCI_MISMATCH, loci_session_remember(other_session, memory, tokens, 8, NULL, NULL, NULL));
    IS(LOCI_BUSY, loci_memory_open(model, path, &wrong));
    loci_memory_free(memory);
    IS(LOCI_MISMATCH, loci_memory_open(other, path, &wrong));
    IS(LOCI_MISMATCH, loci_memory_open_read_only(other, path, &wrong));
    CHECK(wrong == NULL);
    loci_session_free(session);
    loci_session_free(other_session);
}

typedef struct {
    loci_session *session;
    loci_memory *memory;
    int calls;
} rememberer;

/* Wants the memory that is being verified. */
static int remember_meanwhile(void *user, uint64_t done, uint64_t total) {
    rememberer *r = (rememberer *)user;
    CHECK(done <= total);
    if (r->calls++ == 0) OK(loci_session_remember(r->session, r->memory, tokens, 8, "meanwhile", NULL, NULL));
    return 0;
}

static void readers(loci_model *model, const char *dir) {
    const char *path = in_dir(dir, "readers.lmem");
    loci_memory *writer, *reader;
    loci_session *session;
    rememberer r = {NULL, NULL, 0};
    uint64_t length, damaged;
    int32_t more;
    OK(loci_session_new(model, NULL, &session));
    OK(loci_memory_create(model, path, &writer));
    OK(loci_session_remember(session, writer, tokens, 32, "one", NULL, NULL));
    OK(loci_memory_commit(writer));
    OK(loci_memory_open_read_only(model, path, &reader));
    OK(loci_memory_refresh(reader, &more));
    CHECK(more == 0);
    OK(loci_session_remember(session, writer, tokens, 16, "two", NULL, NULL));
    OK(loci_memory_commit(writer));
    OK(loci_memory_len(reader, &length));
    CHECK(length == 32);
    OK(loci_memory_refresh(reader, &more));
    OK(loci_memory_len(reader, &length));
    CHECK(more == 1 && length == 48);
    OK(loci_memory_refresh(writer, &more));
    CHECK(more == 0);
    r.session = session;
    r.memory = writer;
    OK(loci_memory_verify(writer, remember_meanwhile, &r, &damaged));
    CHECK(r.calls > 0 && damaged == 0);
    OK(loci_memory_len(writer, &length));
    CHECK(length == 56);
    loci_memory_free(reader);
    loci_memory_free(writer);
    loci_session_free(session);
}

/* What a session that is not where a call wants it says, and what a fork inherits. */
static void states(loci_model *model) {
    loci_session *session, *forked;
    loci_generate_options how;
    loci_piece piece;
    loci_finish finish;
    const float *logits;
    loci_token ours, theirs;
    size_t count;
    OK(loci_session_new(model, NULL, &session));
    OK(loci_generate_options_init(&how, sizeof how));
    how.max_tokens = 3;
    how.ignore_eos = 1;
    piece.struct_size = sizeof piece;
    IS(LOCI_STATE, loci_session_next(session, &piece));
    OK(loci_session_finish(session, &finish));
    CHECK(finish == LOCI_FINISH_NONE);
    OK(loci_session_prefill(session, tokens, 8, NULL, NULL));
    OK(loci_session_truncate(session, 4));
    IS(LOCI_STATE, loci_session_logits(session, &logits, &count));
    IS(LOCI_STATE, loci_session_generate(session, &how, NULL, NULL, &finish));
    IS(LOCI_STATE, loci_session_start(session, &how));
    OK(loci_session_prefill(session, tokens, 4, NULL, NULL));
    OK(loci_session_generate(session, &how, NULL, NULL, &finish));
    OK(loci_session_fork(session, &forked));
    OK(loci_session_sample(forked, &theirs));
    OK(loci_session_sample(session, &ours));
    CHECK(ours == theirs);
    loci_session_free(forked);
    loci_session_free(session);
}

static void count_log(void *user, loci_log_level level, const char *target, const char *message) {
    CHECK(level >= LOCI_LOG_ERROR && level <= LOCI_LOG_TRACE && target && message);
    IS(LOCI_BUSY, loci_log_set(LOCI_LOG_OFF, NULL, NULL));
    __atomic_fetch_add((int *)user, 1, __ATOMIC_SEQ_CST);
}

static void logging(const char *path) {
    loci_model *model;
    loci_session *session;
    int count = 0, before;
    OK(loci_log_set(LOCI_LOG_TRACE, count_log, &count));
    OK(loci_model_open(path, NULL, &model));
    OK(loci_session_new(model, NULL, &session));
    OK(loci_session_prefill(session, tokens, 8, NULL, NULL));
    OK(loci_log_set(LOCI_LOG_OFF, NULL, NULL));
    CHECK(count > 0);
    before = count;
    OK(loci_session_prefill(session, tokens, 8, NULL, NULL));
    loci_session_free(session);
    loci_model_free(model);
    CHECK(count == before);
}

int main(int argc, char **argv) {
    loci_model *model, *other;
    loci_session *session;
    loci_memory *memory;
    pthread_t thread;
    int i;
    CHECK(argc == 4);
    for (i = 0; i < TOKENS; i++) tokens[i] = i == 0 ? 1 : 3 + (i * 37) % 200;
    CHECK(loci_last_error()[0] == 0);
    OK(loci_model_open(argv[1], NULL, &model));
    OK(loci_model_open(argv[2], NULL, &other));
    OK(loci_session_new(model, NULL, &session));
    OK(loci_memory_in_ram(model, &memory));
    nulls(model, session, memory);
    loci_session_free(session);
    loci_memory_free(memory);
    errors();
    CHECK(pthread_create(&thread, NULL, another_thread, NULL) == 0);
    pthread_join(thread, NULL);
    CHECK(strstr(loci_last_error(), "/no/such/file.gguf") != NULL);
    versions(model);
    handles(argv[1]);
    buffers(model);
    limits(model);
    footprint(model);
    one_caller(model);
    cancellation(model);
    mismatch(model, other, argv[3]);
    readers(model, argv[3]);
    states(model);
    logging(argv[1]);
    loci_model_free(model);
    loci_model_free(other);
    return 0;
}
