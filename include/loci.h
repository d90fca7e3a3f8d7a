/* SPDX-License-Identifier: MIT OR Apache-2.0
 *
 * loci.h - the C ABI of loci, a runtime for language models on CPUs with a memory on disk.
 *
 * A model is read from a GGUF file. A session reads tokens and writes answers. A memory is a file in which a session keeps what
 * it has read, beyond its context and beyond its life. This header is the manual; it compiles as C89 to C23 and C++98 to C++23.
 *
 *   #include <loci.h>
 *   #include <stdio.h>
 *
 *   static int32_t print(void *user, const loci_piece *piece) {
 *       (void)user;
 *       fwrite(piece->text, 1, piece->text_len, stdout);
 *       return 0;
 *   }
 *
 *   int main(int argc, char **argv) {
 *       const char *role = "user", *content = "Why is the sky blue?";
 *       char prompt[4096];
 *       size_t len = 0;
 *       loci_model *model = NULL;
 *       loci_session *session = NULL;
 *       loci_finish finish = LOCI_FINISH_NONE;
 *       int failed = argc < 2
 *           || loci_model_open(argv[1], NULL, &model)
 *           || loci_session_new(model, NULL, &session)
 *           || loci_model_chat_render(model, &role, &content, 1, 1, prompt, sizeof prompt, &len)
 *           || loci_session_prompt_text(session, prompt, len, LOCI_PARSE_SPECIAL, NULL, NULL)
 *           || loci_session_generate(session, NULL, print, NULL, &finish);
 *       if (failed) fprintf(stderr, "%s\n", loci_last_error());
 *       loci_session_free(session);
 *       loci_model_free(model);
 *       return failed;
 *   }
 *
 * CONVENTIONS
 *
 *   Results    A function that can fail returns a loci_status: LOCI_OK (0) or a negative code. loci_last_error() then says what was
 *              expected and what was found. Accessors that return their value directly return 0 or NULL on a bad handle.
 *   Outputs    Come last and are written on success only; there is no partial success. The one exception: where a buffer is too
 *              small, LOCI_BUFFER_TOO_SMALL is returned and the length needed is written. (NULL, 0) asks for the length.
 *   Text       UTF-8. A text with a length may hold NULs; LOCI_NUL_TERMINATED as the length means "up to the NUL". Text that is
 *              written to a buffer ends with a NUL, which the length does not count: the buffer must be one larger than the length.
 *   Handles    Opaque. free(NULL) does nothing, NULL elsewhere is LOCI_INVALID_ARGUMENT. A handle is a number that is never given
 *              out twice: one that was freed, or that is of another type, is recognised and answered with LOCI_INVALID_HANDLE;
 *              freeing it again does nothing. Handles may be freed in any order, also while another thread uses them: what is in
 *              use lives until that use ends.
 *   Options    A pointer to a struct whose first field is struct_size; NULL takes the defaults. Fill it with its _init function,
 *              then change fields. Fields are only ever appended: a shorter struct of an older header is accepted, a longer one
 *              of a newer header too if what this library does not know is zero (and refused with LOCI_INVALID_ARGUMENT if not).
 *              Structs that the library fills in need struct_size set before the call.
 *   Enums      int32_t and #defines. A value that is not defined here is LOCI_INVALID_ARGUMENT, as are unknown flags and reserved
 *              fields that are not 0.
 *   Threads    Everything may be called from any thread. A model may be used by many threads at once. A session serves one call
 *              at a time: a second concurrent call, or one from its own callback, returns LOCI_BUSY and does nothing.
 *              loci_session_cancel() and the free functions are the exceptions, they may be called at any time.
 *   Callbacks  A function and a void *user that is handed back. A result other than 0 stops the work. They run on the thread of
 *              the caller (log callbacks: on any thread), and never after the call that was given them has returned. They must
 *              not throw or longjmp.
 *   Lifetime   A pointer that the library returns says how long it is valid; what is not said to be static must be copied.
 *   Output     Nothing is ever written to stdout or stderr, and the process is never ended: a bug inside is LOCI_PANIC.
 *
 * CAVEATS
 *
 *   A wrong length beside a pointer to valid memory cannot be noticed: the library reads what it was told to read.
 *   A process that forks must open its models and sessions after the fork.
 *   While the file of a Focused Transformer's memory is mapped, the process's handler of SIGBUS is the library's, so that a file that is
 *   cut short or a failing disk is LOCI_CORRUPT and not the end of the process. What is not about such a file goes on to the handler
 *   that was there before, which comes back when the last of these files is closed.
 */
#ifndef LOCI_H
#define LOCI_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(_WIN32) && defined(LOCI_SHARED)
#define LOCI_API __declspec(dllimport)
#else
#define LOCI_API
#endif

/* ------------------------------------------------------------------------------------------------------------------------------
 * Version
 * --------------------------------------------------------------------------------------------------------------------------- */

/* The version of this header. The SONAME carries the major version (libloci.so.0). */
#define LOCI_VERSION_MAJOR 0
#define LOCI_VERSION_MINOR 1
#define LOCI_VERSION_PATCH 0
#define LOCI_VERSION "0.1.0"
/* major * 1000000 + minor * 1000 + patch */
#define LOCI_VERSION_NUMBER 1000

/* The version of the library that is linked, as LOCI_VERSION and LOCI_VERSION_NUMBER. Static. */
LOCI_API const char *loci_version(void);
LOCI_API uint32_t loci_version_number(void);

/* What this build can do beyond the core, as words separated by spaces, for example "chat". Static. */
LOCI_API const char *loci_features(void);

/* One line for bug reports: version, target, instruction set in use, threads by default, features. Static. */
LOCI_API const char *loci_system_info(void);

/* ------------------------------------------------------------------------------------------------------------------------------
 * Status and errors
 * --------------------------------------------------------------------------------------------------------------------------- */

/* 0 or a negative code. A code is never given a second meaning. */
typedef int32_t loci_status;

#define LOCI_OK 0
#define LOCI_INVALID_ARGUMENT (-1) /* an argument or option outside its range, or NULL */
#define LOCI_INVALID_HANDLE (-2)   /* not a handle of this type, or one that was freed */
#define LOCI_BUFFER_TOO_SMALL (-3) /* the length needed was written */
#define LOCI_IO (-4)               /* the operating system refused */
#define LOCI_FORMAT (-5)           /* a file is not what it should be; the offset is known */
#define LOCI_CORRUPT (-6)          /* a file was right once and is damaged; the offset is known */
#define LOCI_UNSUPPORTED (-7)      /* well-formed, but this build cannot serve it */
#define LOCI_BAD_MODEL (-8)        /* metadata and tensors of a model do not fit together */
#define LOCI_MISMATCH (-9)         /* two things do not belong together: a memory made by another model */
#define LOCI_LIMIT (-10)           /* a capacity is exhausted: the context window */
#define LOCI_NOMEM (-11)           /* the allocator said no, or lives from its reserve: free something, then go on */
#define LOCI_CANCELLED (-12)       /* cancelled, or stopped by a callback; the session is usable */
#define LOCI_BUSY (-13)            /* in use by another call: a session, a memory, the writer's lock of a memory file */
#define LOCI_PANIC (-14)           /* a bug in loci; what the call worked on answers LOCI_POISONED from now on */
#define LOCI_POISONED (-15)        /* unusable since a LOCI_PANIC: free it */
#define LOCI_NOT_FOUND (-16)       /* no such metadata key, token, chat template or passage */
#define LOCI_STATE (-17)           /* not now: logits before the first token, next without start */
#define LOCI_INTERNAL (-18)        /* an error this header has no code for; loci_last_error() says more */

/* The name of a code, for example "LOCI_MISMATCH"; "unknown" for anything else. Static. */
LOCI_API const char *loci_status_name(loci_status status);

/* What the last call of this thread that failed has to say, in one sentence; "" before the first. Valid until a call of this
 * thread fails again. */
LOCI_API const char *loci_last_error(void);

/* The same in parts. Strings are valid until a call of this thread fails again, and NULL where there is nothing to say. */
typedef struct loci_error {
    size_t struct_size;
    const char *message;  /* as loci_last_error() */
    const char *name;     /* the argument, option, metadata key, tensor or field that is to blame */
    const char *expected; /* what would have been right */
    const char *found;    /* what was there */
    uint64_t offset;      /* byte offset within the file, if has_offset */
    loci_status status;   /* the code that was returned; LOCI_OK before the first failure */
    int32_t has_offset;   /* 1 or 0 */
} loci_error;

LOCI_API loci_status loci_last_error_details(loci_error *out);

/* ------------------------------------------------------------------------------------------------------------------------------
 * Log: silent unless asked
 * --------------------------------------------------------------------------------------------------------------------------- */

typedef int32_t loci_log_level;

#define LOCI_LOG_OFF 0
#define LOCI_LOG_ERROR 1
#define LOCI_LOG_WARN 2
#define LOCI_LOG_INFO 3
#define LOCI_LOG_DEBUG 4
#define LOCI_LOG_TRACE 5

/* target names the part of the library that speaks. Both strings are valid until the callback returns. Called from any thread, by
 * several at once. A message that arises while a callback of the same thread runs is dropped. The callback must not call
 * loci_session_* or loci_memory_*: the library may hold, on this thread, the lock that they would wait for. */
typedef void (*loci_log_fn)(void *user, loci_log_level level, const char *target, const char *message);

/* Sends messages of this level and above to fn; a NULL fn, or LOCI_LOG_OFF, switches off. When it returns, no callback of the fn
 * that was set before runs or will run. From a log callback: LOCI_BUSY. */
LOCI_API loci_status loci_log_set(loci_log_level level, loci_log_fn fn, void *user);

/* ------------------------------------------------------------------------------------------------------------------------------
 * Model: immutable, reference-counted, shared by sessions and threads
 * --------------------------------------------------------------------------------------------------------------------------- */

typedef struct loci_model loci_model;

typedef struct loci_model_options {
    size_t struct_size;
    const char *pre_tokenizer; /* takes the place of the file's tokenizer.ggml.pre; NULL: as the file says */
} loci_model_options;

LOCI_API loci_status loci_model_options_init(loci_model_options *options, size_t struct_size);

/* Opens a GGUF file. The weights are mapped, not read: this takes milliseconds, and the file must not change while in use. */
LOCI_API loci_status loci_model_open(const char *path, const loci_model_options *options, loci_model **out);

/* The same from length bytes at offset of an open file (Android assets, content providers); length 0 takes the rest of the file.
 * The descriptor is duplicated: the caller keeps its own and may close it at once. Not on Windows. */
LOCI_API loci_status loci_model_open_fd(int fd, uint64_t offset, uint64_t length, const loci_model_options *options, loci_model **out);

/* The same from a whole file in memory. It is copied: the caller keeps its own and may free it at once. */
LOCI_API loci_status loci_model_open_memory(const void *bytes, size_t length, const loci_model_options *options, loci_model **out);

/* One more loci_model_free() is needed before the handle ends. Sessions and memories hold the model by themselves. */
LOCI_API loci_status loci_model_retain(loci_model *model);
LOCI_API void loci_model_free(loci_model *model);

/* Strings are valid until the handle ends. NULL on a bad handle, or where there is none (chat template). */
LOCI_API const char *loci_model_architecture(const loci_model *model);  /* general.architecture, for example "llama" */
LOCI_API const char *loci_model_name(const loci_model *model);          /* general.name, or the architecture */
LOCI_API const char *loci_model_weight_type(const loci_model *model);   /* what most weights are, for example "Q4_K" */
LOCI_API const char *loci_model_chat_template(const loci_model *model); /* the source of the template */

/* Figures; 0 on a bad handle. */
LOCI_API uint64_t loci_model_context_length(const loci_model *model); /* tokens it was trained for */
LOCI_API uint64_t loci_model_vocab_len(const loci_model *model);      /* tokens are 0 to this - 1 */
LOCI_API uint64_t loci_model_embedding_length(const loci_model *model);
LOCI_API uint64_t loci_model_block_count(const loci_model *model);
LOCI_API uint64_t loci_model_parameter_count(const loci_model *model);
LOCI_API uint64_t loci_model_weight_bytes(const loci_model *model);       /* of all tensors in the file */
LOCI_API uint64_t loci_model_memory_layer_count(const loci_model *model); /* Focused Transformer; 0: an ordinary model */

/* The metadata of the file. A value as text: strings as they are, numbers in decimal, true and false, arrays as [a, b, c] with
 * quoted strings. LOCI_NOT_FOUND if the key is not there. */
LOCI_API uint64_t loci_model_metadata_count(const loci_model *model);
LOCI_API const char *loci_model_metadata_key(const loci_model *model, uint64_t index); /* valid until the handle ends; or NULL */
LOCI_API loci_status loci_model_metadata(const loci_model *model, const char *key, char *buffer, size_t capacity, size_t *length);

/* ------------------------------------------------------------------------------------------------------------------------------
 * Text and tokens
 * --------------------------------------------------------------------------------------------------------------------------- */

/* 0 to loci_model_vocab_len() - 1. */
typedef int32_t loci_token;
#define LOCI_NO_TOKEN (-1)

/* As a length: the text ends at its NUL. */
#define LOCI_NUL_TERMINATED ((size_t)-1)

/* Flags of text functions. */
#define LOCI_ADD_SPECIAL 1u   /* tokenize: put the tokens around a text that the model was trained with (begin of sequence) */
#define LOCI_PARSE_SPECIAL 2u /* tokenize: "<|im_start|>" in the text is one token. Not for text you do not trust. */
#define LOCI_PRINT_SPECIAL 4u /* detokenize: write special tokens as their text instead of leaving them out */

/* Text to tokens. Bytes that are not UTF-8 are kept where the vocabulary can (as byte tokens). */
LOCI_API loci_status loci_model_tokenize(const loci_model *model, const char *text, size_t text_len, uint32_t flags,
                                         loci_token *tokens, size_t capacity, size_t *count);

/* Tokens to text: whole UTF-8, what is not becomes U+FFFD. */
LOCI_API loci_status loci_model_detokenize(const loci_model *model, const loci_token *tokens, size_t count, uint32_t flags,
                                           char *buffer, size_t capacity, size_t *length);

/* The bytes of one token as they are: a part of a character, often. No NUL is added. */
LOCI_API loci_status loci_model_token_bytes(const loci_model *model, loci_token token, void *buffer, size_t capacity, size_t *length);

/* The token with exactly this text ("<|im_end|>"); LOCI_NOT_FOUND. */
LOCI_API loci_status loci_model_token_id(const loci_model *model, const char *text, loci_token *out);

/* Begin of sequence, end of sequence; LOCI_NO_TOKEN if the model has none. */
LOCI_API loci_token loci_model_bos(const loci_model *model);
LOCI_API loci_token loci_model_eos(const loci_model *model);

/* 1 if a generation ends at this token, else 0. */
LOCI_API int32_t loci_model_is_end_of_generation(const loci_model *model, loci_token token);

/* Writes a conversation as the model's chat template wants it: message i has role roles[i] ("system", "user", "assistant") and
 * content contents[i]. With add_generation_prompt (1 or 0) the text ends where the assistant speaks. Tokenize the result with
 * LOCI_PARSE_SPECIAL and without LOCI_ADD_SPECIAL: a beginning-of-sequence token stands in the text where the model wants one.
 * LOCI_NOT_FOUND if the model has no template. */
LOCI_API loci_status loci_model_chat_render(const loci_model *model, const char *const *roles, const char *const *contents,
                                            size_t count, int32_t add_generation_prompt, char *buffer, size_t capacity,
                                            size_t *length);

/* ------------------------------------------------------------------------------------------------------------------------------
 * Session: one timeline over a model
 * --------------------------------------------------------------------------------------------------------------------------- */

typedef struct loci_session loci_session;

/* How keys and values of the context are encoded. */
typedef int32_t loci_kv_codec;
#define LOCI_KV_F32 0
#define LOCI_KV_F16 1
#define LOCI_KV_BF16 2
#define LOCI_KV_Q8_0 3 /* 8.5 bits an element; head sizes that are multiples of 32, as for LOCI_KV_Q4 */
#define LOCI_KV_Q4 4   /* 4.5 bits an element, rotated */

/* What happens when the context is full. */
typedef int32_t loci_overflow;
#define LOCI_OVERFLOW_DEFAULT 0  /* Focused Transformers and sessions with a memory slide, others end with LOCI_LIMIT */
#define LOCI_OVERFLOW_SLIDE 1    /* the oldest tokens leave in blocks of slide_block */
#define LOCI_OVERFLOW_DUMP_ALL 2 /* Focused Transformers: all tokens leave at once, as in the reference */

/* Position scaling that takes the place of what the file says. */
typedef int32_t loci_rope_scaling;
#define LOCI_ROPE_FILE 0 /* as the file says */
#define LOCI_ROPE_NONE 1
#define LOCI_ROPE_LINEAR 2
#define LOCI_ROPE_NTK 3
#define LOCI_ROPE_YARN 4
#define LOCI_ROPE_LONGROPE 5

typedef struct loci_session_options {
    size_t struct_size;
    uint32_t context_length;               /* tokens of local context; 0: the model's, at most 8192 */
    uint32_t batch;                        /* tokens computed at once in prefill; 512 unless set, 0 is refused */
    uint32_t threads;                      /* 0: one per big core this process may use */
    loci_kv_codec kv_codec;
    loci_overflow overflow;
    uint32_t slide_block;                  /* LOCI_OVERFLOW_SLIDE: tokens that leave at once; 0: a quarter */
    uint32_t last_context_length;          /* LOCI_OVERFLOW_DUMP_ALL: tokens of a prompt that stay local; 0: as the file says */
    uint32_t memory_top_k;                 /* Focused Transformers: keys each query reads from memory; 0: all */
    uint32_t retrieved_blocks;             /* ordinary models: blocks per layer that come back from memory; 0: what fits */
    loci_rope_scaling rope_scaling;
    float rope_factor;                     /* this and the rest: negative (or 0 for the length) is what the file says */
    uint32_t rope_original_context_length;
    float rope_freq_base;
    float rope_ext_factor;
    float rope_attn_factor;
    float rope_beta_fast;
    float rope_beta_slow;
    uint32_t reserved;
    uint64_t memory_budget_bytes;          /* ordinary models: RAM for retrieval; 0: 96 MiB */
    uint32_t reselect_tokens;              /* ordinary models: chooses anew what it reads after so many tokens of an answer; 32 unless set; 0: never */
    uint32_t reserved_more;
} loci_session_options;

typedef struct loci_logit_bias {
    loci_token token;
    float bias; /* added to its logit; -INFINITY bans it */
} loci_logit_bias;

/* How tokens are chosen; the stages run in this order: bias, penalties, top_k, typical_p, top_p, min_p, temperature. In brackets what
 * loci_sampler_options_init() sets. */
typedef struct loci_sampler_options {
    size_t struct_size;
    uint64_t seed; /* [0] the same seed, options and history choose the same tokens: for other answers each time, set another each time */
    const loci_logit_bias *logit_bias;
    size_t logit_bias_count;
    float temperature;        /* [0.8] 0: always the most probable token */
    uint32_t top_k;           /* [40] 0: off */
    float top_p;              /* [0.95] 1: off */
    float min_p;              /* [0.05] 0: off */
    float typical_p;          /* [1] 1: off */
    float repetition_penalty; /* [1] 1: off */
    float presence_penalty;   /* [0] 0: off */
    float frequency_penalty;  /* [0] 0: off */
    uint32_t penalty_last_n;  /* [64] tokens that the penalties look back at */
    uint32_t reserved;
} loci_sampler_options;

/* Why a generation ended; exactly one reason each. */
typedef int32_t loci_finish;
#define LOCI_FINISH_NONE 0      /* it has not ended */
#define LOCI_FINISH_EOS 1       /* the model said so */
#define LOCI_FINISH_STOP 2      /* a stop string appeared */
#define LOCI_FINISH_LENGTH 3    /* max_tokens were made, or the context is full */
#define LOCI_FINISH_CANCELLED 4 /* loci_session_cancel() */
#define LOCI_FINISH_CALLBACK 5  /* the callback said so */
#define LOCI_FINISH_ERROR 6     /* the call returned an error; only loci_session_finish() tells this one */

/* The name of a reason, for example "LOCI_FINISH_EOS"; "unknown" for anything else. Static. */
LOCI_API const char *loci_finish_name(loci_finish finish);

typedef struct loci_generate_options {
    size_t struct_size;
    const char *const *stop; /* strings that end the answer and are not part of it */
    size_t stop_count;
    uint32_t max_tokens;       /* 256 unless set: an answer that is longer ends there, with LOCI_FINISH_LENGTH */
    int32_t ignore_eos;        /* 1: go on past the end (benchmarks) */
    int32_t log_probabilities; /* -1: none; n >= 0: of the chosen token and of the n best alternatives */
    uint32_t reserved;
} loci_generate_options;

typedef struct loci_alternative {
    loci_token token;
    float log_probability;
} loci_alternative;

/* A step of a generation. The pointers are valid until the callback returns (loci_session_next: until the next call of the
 * session). In a callback, read only what struct_size covers if the library may be older than the header. */
typedef struct loci_piece {
    size_t struct_size;
    const char *text; /* text that has become certain: whole UTF-8, NUL-terminated, may be "" */
    size_t text_len;
    const loci_alternative *alternatives; /* best first; NULL if not asked for */
    size_t alternative_count;
    loci_token token;      /* the token of this step; LOCI_NO_TOKEN where only held-back text comes */
    float log_probability; /* of the token, natural logarithm; 0 if not asked for */
    loci_finish finish;    /* LOCI_FINISH_NONE but for the last piece */
    uint32_t reserved;
} loci_piece;

/* Figures of a session since it was made. */
typedef struct loci_session_stats {
    size_t struct_size;
    double load_seconds;        /* from opening the file to a ready model */
    double first_token_seconds; /* from the start of the last generation or its prefill to its first token */
    uint64_t prefill_tokens;
    double prefill_seconds;
    uint64_t decode_tokens;
    double decode_seconds;
    uint64_t reused_tokens;     /* tokens of prompts that needed no work */
    uint64_t local_tokens;      /* in the context now; the last token of a generation joins them with the next call */
    uint64_t memory_tokens;     /* in the attached memories now */
    uint64_t mapped_bytes;      /* files in the address space: the system may take their pages back */
    uint64_t anonymous_bytes;   /* context and scratch */
    uint64_t resident_bytes;    /* of the whole process, as the system counts; 0 where it does not say */
    uint64_t memory_bytes_read; /* of memories: blocks, keys that were compared, sketches of keys */
    double memory_bytes_per_token;  /* the same since the last prompt began, for each token computed one at a time since then */
    uint64_t memory_held_bytes;     /* what retrieval holds in RAM, of its budget */
    uint64_t memory_blocks_read;    /* each in all layers */
    uint64_t memory_block_hits;     /* blocks that were wanted and held already */
    uint64_t memory_blocks_damaged; /* left out */
    uint64_t memory_choices;        /* times that retrieval chose */
    double memory_unread_share;     /* of the last choice: the share of the votes that went to blocks which were not read */
    double resting_seconds;         /* of rest that loci_session_set_duty() asked for, within those of prefill and decode */
} loci_session_stats;

/* done of total tokens are computed; not 0 stops with LOCI_CANCELLED. Where done is total, prefill, prompt and remember are finished and
 * return LOCI_OK. */
typedef int32_t (*loci_progress_fn)(void *user, uint64_t done, uint64_t total);

/* A piece of an answer; not 0 stops with LOCI_FINISH_CALLBACK. */
typedef int32_t (*loci_piece_fn)(void *user, const loci_piece *piece);

LOCI_API loci_status loci_session_options_init(loci_session_options *options, size_t struct_size);
LOCI_API loci_status loci_sampler_options_init(loci_sampler_options *options, size_t struct_size);
LOCI_API loci_status loci_generate_options_init(loci_generate_options *options, size_t struct_size);

/* Bytes of RAM that a session takes with its context full and its largest batch computed. */
typedef struct loci_estimate {
    size_t struct_size;
    uint64_t file_bytes;    /* the model's file, mapped: the system may take its pages back; 0 for a model in memory */
    uint64_t model_bytes;   /* vocabulary, what a process takes anyway, and the bytes of a model in memory */
    uint64_t context_bytes; /* keys and values of a full context */
    uint64_t scratch_bytes; /* buffers of a batch */
    uint64_t memory_bytes;  /* what comes back from an attached memory */
    uint64_t total_bytes;   /* all of these */
} loci_estimate;

/* What a session with these options (NULL: the defaults) would take, with a memory attached (1) or without (0). Reads no weights: a model
 * is opened in milliseconds, asked this, and closed if it is too large. */
LOCI_API loci_status loci_model_estimate(const loci_model *model, const loci_session_options *options, int32_t with_memory,
                                         loci_estimate *out);

LOCI_API loci_status loci_session_new(loci_model *model, const loci_session_options *options, loci_session **out);

/* A call in progress in another thread is cancelled. */
LOCI_API void loci_session_free(loci_session *session);

/* Forgets the context. Attached memories stay attached. */
LOCI_API loci_status loci_session_reset(loci_session *session);

/* Goes back to the first length tokens; LOCI_INVALID_ARGUMENT if there are fewer, or if what follows them began too long ago. */
LOCI_API loci_status loci_session_truncate(loci_session *session, size_t length);

/* Tokens seen since the last reset, in order: how many, and which. Exact after errors and cancellation too. */
LOCI_API loci_status loci_session_len(loci_session *session, size_t *length);
LOCI_API loci_status loci_session_tokens(loci_session *session, loci_token *tokens, size_t capacity, size_t *count);

/* Reads tokens after what is there. progress may be NULL. When it fails or is cancelled, the tokens of whole batches stay read:
 * loci_session_len() says how many. */
LOCI_API loci_status loci_session_prefill(loci_session *session, const loci_token *tokens, size_t count, loci_progress_fn progress,
                                          void *user);
LOCI_API loci_status loci_session_prefill_text(loci_session *session, const char *text, size_t text_len, uint32_t flags,
                                               loci_progress_fn progress, void *user);

/* Reads a whole conversation so far: what the session holds already is kept and only the rest is computed. */
LOCI_API loci_status loci_session_prompt(loci_session *session, const loci_token *tokens, size_t count, loci_progress_fn progress,
                                         void *user);
LOCI_API loci_status loci_session_prompt_text(loci_session *session, const char *text, size_t text_len, uint32_t flags,
                                              loci_progress_fn progress, void *user);

/* The logits after the last token, loci_model_vocab_len() of them; valid until the next call of the session. LOCI_STATE before the
 * first token, after a truncation, and between two steps of a generation. */
LOCI_API loci_status loci_session_logits(loci_session *session, const float **logits, size_t *count);

/* Natural logarithm of the probability of token here, before any sampling option. LOCI_STATE as above. */
LOCI_API loci_status loci_session_log_probability(loci_session *session, loci_token token, float *out);

/* Chooses a token; reads nothing. To go on with it, prefill it. LOCI_STATE as above. */
LOCI_API loci_status loci_session_sample(loci_session *session, loci_token *out);

/* Answers: chooses and reads tokens until a reason to finish, handing out text. callback may be NULL. LOCI_OK with a reason in
 * finish, cancellation included, or an error; LOCI_STATE before the first token. options may be NULL. */
LOCI_API loci_status loci_session_generate(loci_session *session, const loci_generate_options *options, loci_piece_fn callback,
                                           void *user, loci_finish *finish);

/* The same, pulled: start, then next until piece->finish is not LOCI_FINISH_NONE. Anything that changes the context between two steps
 * ends the generation; loci_session_cancel() between two steps makes the next one the last. LOCI_STATE
 * where no generation runs. */
LOCI_API loci_status loci_session_start(loci_session *session, const loci_generate_options *options);
LOCI_API loci_status loci_session_next(loci_session *session, loci_piece *piece);

/* How the states of a text's tokens become one vector. */
typedef int32_t loci_pooling;
#define LOCI_POOLING_MEAN 0 /* their mean */
#define LOCI_POOLING_LAST 1 /* that of the last token, which has seen all others */

/* The embedding of a text: what the model makes of its tokens behind the last layer, pooled, of length 1;
 * loci_model_embedding_length() values. The context is reset before and after, and memories are not read. LOCI_LIMIT for more tokens
 * than the context holds. */
LOCI_API loci_status loci_session_embed(loci_session *session, const loci_token *tokens, size_t count, loci_pooling pooling,
                                        loci_progress_fn progress, void *user, float *values, size_t capacity, size_t *length);

/* For memory-pressure callbacks, between two calls: gives back buffers and unused room of the context; the next call allocates them
 * anew. What the session holds, its logits included, stays. */
LOCI_API loci_status loci_session_trim(loci_session *session);

/* The same for the weights: their pages leave this process and come back from the file as they are read again. At any time. */
LOCI_API loci_status loci_model_trim(const loci_model *model);

/* Why the last generation ended, in both forms: LOCI_FINISH_ERROR after one that returned an error, LOCI_FINISH_NONE while one runs
 * and before the first. */
LOCI_API loci_status loci_session_finish(loci_session *session, loci_finish *out);

/* Ends the call in progress, within a layer of the model; that call returns LOCI_CANCELLED, or LOCI_OK with LOCI_FINISH_CANCELLED.
 * Afterwards the session is usable. From any thread, at any time; without a call or a generation in progress it does nothing. */
LOCI_API loci_status loci_session_cancel(loci_session *session);

LOCI_API loci_status loci_session_set_sampler(loci_session *session, const loci_sampler_options *options); /* NULL: the defaults */
/* 0: the default. At any time between two calls, in the middle of an answer too: what is computed does not depend on threads. */
LOCI_API loci_status loci_session_set_threads(loci_session *session, uint32_t threads);
/* For devices that get hot: works for at most percent of the time, 1 to 100 (the default, without rests). After each pass, of a part of a
 * prompt or document or of a token, the call rests so long that this holds; loci_session_cancel() ends a rest. Between two calls. */
LOCI_API loci_status loci_session_set_duty(loci_session *session, uint32_t percent);
LOCI_API loci_status loci_session_stats_get(loci_session *session, loci_session_stats *out);

/* ------------------------------------------------------------------------------------------------------------------------------
 * Memory: what was read, kept in a file
 *
 * One process may write a memory file; any number may read it. A memory belongs to the model that wrote it: with another one it is
 * refused (LOCI_MISMATCH). A memory that another call is just using is LOCI_BUSY: call again.
 * --------------------------------------------------------------------------------------------------------------------------- */

typedef struct loci_memory loci_memory;

/* What a memory keeps keys and values as. Given when it is made; every reader reads all of them. */
typedef int32_t loci_memory_codec;
#define LOCI_MEMORY_DEFAULT 0 /* what a Focused Transformer's file says, else LOCI_MEMORY_F16 */
#define LOCI_MEMORY_F32 1
#define LOCI_MEMORY_F16 2
#define LOCI_MEMORY_BF16 3
#define LOCI_MEMORY_K8V4 4 /* keys in 8.5 bits an element, values in 4.5; head sizes that are multiples of 32, as for the next */
#define LOCI_MEMORY_K4V4 5 /* both in 4.5 bits an element, rotated */

typedef struct loci_memory_options {
    size_t struct_size;
    loci_memory_codec codec;
    uint32_t reserved;
} loci_memory_options;

typedef struct loci_memory_stats {
    size_t struct_size;
    uint64_t tokens;           /* held, those not yet committed included */
    uint64_t committed_tokens; /* those a crash cannot take */
    uint64_t file_bytes;       /* of the file; 0 for a memory without one */
    uint64_t forgotten_tokens; /* of those held: forgotten, not yet compacted away */
    uint64_t dropped_blocks;   /* blocks that were found damaged and are not read any more */
    uint64_t damaged_sections; /* lists of token ids, or of sources, of a commit that were found damaged and are done without */
    uint64_t damaged_pages;    /* of the chain of commits, found when the file was opened; most cost nothing, and repair brings them back */
    uint64_t lost_tokens;      /* of those held: with such a page that does not follow from the rest, what its commit held */
} loci_memory_stats;

/* Where some of a memory's tokens come from. */
typedef struct loci_source {
    size_t struct_size;
    const char *label;    /* what was given when it was remembered; valid until the sources are counted again */
    uint64_t first_token; /* within the memory */
    uint64_t token_count;
    uint64_t text_start;  /* which bytes of the source they are */
    uint64_t text_end;
} loci_source;

typedef struct loci_compact_options {
    size_t struct_size;
    loci_memory_codec codec; /* of the new file; LOCI_MEMORY_DEFAULT: that of the old one */
    int32_t drop_damaged;    /* 1: leave damaged blocks out; 0: they are LOCI_CORRUPT */
} loci_compact_options;

/* Not an attached memory: what left the session's own context when that was full. */
#define LOCI_MEMORY_OWN 0xffffffffu

/* A stretch of a memory that was read. */
typedef struct loci_passage {
    size_t struct_size;
    const char *source;   /* what was given when it was remembered, or NULL; valid until the next call of the session */
    uint64_t first_token; /* within the memory */
    uint64_t token_count;
    uint32_t memory;      /* which attached memory, as loci_session_attach_memory() numbered it, or LOCI_MEMORY_OWN */
    float score;          /* larger was wanted more */
} loci_passage;

/* A new memory for this model; LOCI_IO if the file exists and is not empty. */
LOCI_API loci_status loci_memory_create(const loci_model *model, const char *path, loci_memory **out);

/* The same with options (NULL: the defaults); with a path of NULL, without a file. */
LOCI_API loci_status loci_memory_options_init(loci_memory_options *options, size_t struct_size);
LOCI_API loci_status loci_memory_create_as(const loci_model *model, const char *path, const loci_memory_options *options,
                                           loci_memory **out);

/* A memory to read and add to: LOCI_BUSY if another process writes it. model may be NULL, then it is checked when attached. */
LOCI_API loci_status loci_memory_open(const loci_model *model, const char *path, loci_memory **out);
LOCI_API loci_status loci_memory_open_read_only(const loci_model *model, const char *path, loci_memory **out);

/* A memory without a file; it ends with the handle. */
LOCI_API loci_status loci_memory_in_ram(const loci_model *model, loci_memory **out);

/* Closes it. What was not committed is lost. Sessions that have it attached keep it (and the lock of its file) until they detach it
 * or are freed. */
LOCI_API void loci_memory_free(loci_memory *memory);

/* Makes what was remembered durable: when it returns LOCI_OK, a crash or a power cut cannot take it. */
LOCI_API loci_status loci_memory_commit(loci_memory *memory);

/* For a memory opened read-only: shows what its writer has committed since, to the sessions that have it attached too. more may be NULL;
 * 1 if there was something. */
LOCI_API loci_status loci_memory_refresh(loci_memory *memory, int32_t *more);

/* Tokens held: how many, and count of them from first on. */
LOCI_API loci_status loci_memory_len(loci_memory *memory, uint64_t *length);
LOCI_API loci_status loci_memory_tokens(loci_memory *memory, uint64_t first, size_t count, loci_token *tokens);
LOCI_API loci_status loci_memory_stats_get(loci_memory *memory, loci_memory_stats *out);

/* Where the tokens come from, in their order: how many entries, and one of them. A long text is several, one for each commit. They stay
 * as they are until they are counted again. */
LOCI_API loci_status loci_memory_sources(loci_memory *memory, size_t *count);
LOCI_API loci_status loci_memory_source(loci_memory *memory, size_t index, loci_source *out);

/* Forgets what was remembered under this label: nobody reads it any more, durably, and it leaves the file with the next
 * compaction. tokens (may be NULL) is how many that were. LOCI_CORRUPT if sources are damaged, so that some of it may be left: all that
 * could be found is forgotten then. */
LOCI_API loci_status loci_memory_forget(loci_memory *memory, const char *source, uint64_t *tokens);

/* Reads all that has a checksum and compares the two: damaged is the number of parts that are not as they were written. progress
 * (may be NULL) counts bytes. */
LOCI_API loci_status loci_memory_verify(loci_memory *memory, loci_progress_fn progress, void *user, uint64_t *damaged);

/* Writes a memory file anew without what was forgotten, its commits joined, and puts it in the place of the old one: a crash leaves
 * the old or the new. LOCI_BUSY while it is open for writing; readers go on with the old one until they open it again. options and
 * progress (it counts tokens) may be NULL. */
LOCI_API loci_status loci_compact_options_init(loci_compact_options *options, size_t struct_size);
LOCI_API loci_status loci_memory_compact(const char *path, const loci_compact_options *options, loci_progress_fn progress, void *user);

/* From now on the session reads this memory too. index (may be NULL) counts the attached ones from 0. */
LOCI_API loci_status loci_session_attach_memory(loci_session *session, loci_memory *memory, uint32_t *index);
LOCI_API loci_status loci_session_detach_memories(loci_session *session);

/* Reads tokens into a memory, attached or not. source (may be NULL) is a label that passages carry, a file's name. The context of
 * the session is reset before and after. Commit the memory to keep it. When it fails or is cancelled, loci_memory_len() says how
 * much was stored. */
LOCI_API loci_status loci_session_remember(loci_session *session, loci_memory *memory, const loci_token *tokens, size_t count,
                                           const char *source, loci_progress_fn progress, void *user);
LOCI_API loci_status loci_session_remember_text(loci_session *session, loci_memory *memory, const char *text, size_t text_len,
                                                uint32_t flags, const char *source, loci_progress_fn progress, void *user);

/* Goes on with the text whose reading into this memory a crash has interrupted: its tokens were durable before the first of them was
 * read. resumed (may be NULL) is 1, or 0 if there was none. */
LOCI_API loci_status loci_session_resume(loci_session *session, loci_memory *memory, loci_progress_fn progress, void *user,
                                         int32_t *resumed);

/* Brings back what loci_memory_verify() finds damaged, by reading texts again where that is needed; lost is the number of parts that
 * it could not bring back. The memory must be open for writing. The context of the session is reset before and after. */
LOCI_API loci_status loci_session_repair(loci_session *session, loci_memory *memory, loci_progress_fn progress, void *user,
                                         uint64_t *lost);

/* Which stretches of memory were read for the last prompt and answer, most wanted first: count them, then look at each. They stay
 * as they are until they are counted again. */
LOCI_API loci_status loci_session_passages(loci_session *session, size_t *count);
LOCI_API loci_status loci_session_passage(loci_session *session, size_t index, loci_passage *out);

/* ------------------------------------------------------------------------------------------------------------------------------
 * Snapshots and forks: a session in a file, and twice
 * --------------------------------------------------------------------------------------------------------------------------- */

/* Saves the whole session to a file, in the place of what is there: a crash leaves the old file or the new. A generation that is under
 * way is not part of it; start another one after loading, it goes on from the same token. Memories on files are named in it, not
 * copied: LOCI_INVALID_ARGUMENT if one of them has tokens that are not committed. LOCI_BUSY while somebody else saves to this path. */
LOCI_API loci_status loci_session_save(loci_session *session, const char *path);

/* The session that was saved, of the same model; it goes on as the one that was saved would have. The memories that it had attached are
 * taken from the count given, if they are among them, and else opened by their paths, for reading; LOCI_MISMATCH if another memory
 * stands there. memories may be NULL if count is 0. */
LOCI_API loci_status loci_session_load(loci_model *model, const char *path, loci_memory *const *memories, size_t count,
                                       loci_session **out);

/* Another session that goes on from here, to answer the same text in two ways: what each of the two reads from now on is its own.
 * Attached memories are shared. */
LOCI_API loci_status loci_session_fork(loci_session *session, loci_session **out);

#ifdef __cplusplus
}
#endif

#endif /* LOCI_H */
