/* The native side of dev.loci.Native, over loci.h.
 *
 * Text crosses as byte[] in UTF-8: JNI's own strings are "modified UTF-8", which is something else for NUL and beyond the first plane.
 * Handles cross as long. A status that is not LOCI_OK becomes a dev.loci.LociException; an exception of a callback stops the call and
 * goes on when it has returned. Plain C99, so that the desktop's JVM can check it (-Xcheck:jni). */
#include <jni.h>
#include <loci.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define NATIVE(result, name) JNIEXPORT result JNICALL Java_dev_loci_Native_##name
#define MODEL(handle) ((loci_model *)(intptr_t)(handle))
#define SESSION(handle) ((loci_session *)(intptr_t)(handle))
#define MEMORY(handle) ((loci_memory *)(intptr_t)(handle))

static jbyteArray bytes_of(JNIEnv *env, const char *text, size_t len) {
    jbyteArray array = (*env)->NewByteArray(env, (jsize)len);
    if (array != NULL) (*env)->SetByteArrayRegion(env, array, 0, (jsize)len, (const jbyte *)text);
    return array;
}

/* Raises a LociException with what loci_last_error() says; leaves an exception that is on its way already. */
static void raise(JNIEnv *env, loci_status status) {
    const char *message = loci_last_error();
    jclass class;
    jmethodID make;
    jbyteArray text;
    jobject exception;
    if ((*env)->ExceptionCheck(env)) return;
    class = (*env)->FindClass(env, "dev/loci/LociException");
    if (class == NULL) return;
    make = (*env)->GetMethodID(env, class, "<init>", "(I[B)V");
    text = make == NULL ? NULL : bytes_of(env, message, strlen(message));
    exception = text == NULL ? NULL : (*env)->NewObject(env, class, make, (jint)status, text);
    if (exception != NULL) (*env)->Throw(env, (jthrowable)exception);
}

static void out_of_memory(JNIEnv *env) {
    jclass class = (*env)->FindClass(env, "java/lang/OutOfMemoryError");
    if (class != NULL) (*env)->ThrowNew(env, class, "native");
}

/* A copy of an array with a NUL behind it, to be freed; NULL with an exception raised, or for a null array. */
static char *copy(JNIEnv *env, jbyteArray array, size_t *len) {
    jsize n;
    char *text;
    *len = 0;
    if (array == NULL) return NULL;
    n = (*env)->GetArrayLength(env, array);
    text = malloc((size_t)n + 1);
    if (text == NULL) {
        out_of_memory(env);
        return NULL;
    }
    (*env)->GetByteArrayRegion(env, array, 0, n, (jbyte *)text);
    text[n] = 0;
    *len = (size_t)n;
    return text;
}

/* Copies of the n arrays in `from` into texts, which has room for them; stops where one raises an exception. */
static void copies(JNIEnv *env, jobjectArray from, jsize n, char **texts) {
    size_t ignored;
    jsize i;
    for (i = 0; i < n && !(*env)->ExceptionCheck(env); i++) {
        jobject array = (*env)->GetObjectArrayElement(env, from, i);
        if (!(*env)->ExceptionCheck(env)) texts[i] = copy(env, (jbyteArray)array, &ignored);
        if (array != NULL) (*env)->DeleteLocalRef(env, array);
    }
}

static void free_all(char **texts, jsize n) {
    jsize i;
    for (i = 0; texts != NULL && i < n; i++) free(texts[i]);
    free(texts);
}

/* --- errors and the library itself --- */

NATIVE(jbyteArray, systemInfo)(JNIEnv *env, jclass class) {
    (void)class;
    return bytes_of(env, loci_system_info(), strlen(loci_system_info()));
}

NATIVE(jbyteArray, statusName)(JNIEnv *env, jclass class, jint status) {
    (void)class;
    return bytes_of(env, loci_status_name(status), strlen(loci_status_name(status)));
}

/* --- models --- */

NATIVE(jlong, modelOpen)(JNIEnv *env, jclass class, jbyteArray path) {
    size_t len;
    char *name = copy(env, path, &len);
    loci_model *model = NULL;
    loci_status status;
    (void)class;
    if ((*env)->ExceptionCheck(env)) return 0;
    status = loci_model_open(name, NULL, &model);
    free(name);
    if (status != LOCI_OK) raise(env, status);
    return (jlong)(intptr_t)model;
}

NATIVE(jlong, modelOpenFd)(JNIEnv *env, jclass class, jint fd, jlong offset, jlong length) {
    loci_model *model = NULL;
    loci_status status = loci_model_open_fd(fd, (uint64_t)offset, (uint64_t)length, NULL, &model);
    (void)class;
    if (status != LOCI_OK) raise(env, status);
    return (jlong)(intptr_t)model;
}

NATIVE(void, modelFree)(JNIEnv *env, jclass class, jlong model) {
    (void)env, (void)class;
    loci_model_free(MODEL(model));
}

NATIVE(void, modelTrim)(JNIEnv *env, jclass class, jlong model) {
    loci_status status = loci_model_trim(MODEL(model));
    (void)class;
    if (status != LOCI_OK) raise(env, status);
}

NATIVE(jlong, modelEstimate)(JNIEnv *env, jclass class, jlong model, jint context, jint threads) {
    loci_session_options options;
    loci_estimate estimate;
    loci_status status = loci_session_options_init(&options, sizeof options);
    (void)class;
    memset(&estimate, 0, sizeof estimate);
    estimate.struct_size = sizeof estimate;
    options.context_length = (uint32_t)context;
    options.threads = (uint32_t)threads;
    if (status == LOCI_OK) status = loci_model_estimate(MODEL(model), &options, 0, &estimate);
    if (status != LOCI_OK) raise(env, status);
    return (jlong)estimate.total_bytes;
}

NATIVE(jintArray, tokenize)(JNIEnv *env, jclass class, jlong model, jbyteArray text, jint flags) {
    size_t len, count = 0;
    char *utf8 = copy(env, text, &len);
    loci_token *tokens = NULL;
    jintArray array = NULL;
    loci_status status;
    (void)class;
    if ((*env)->ExceptionCheck(env)) return NULL;
    status = loci_model_tokenize(MODEL(model), utf8, len, (uint32_t)flags, NULL, 0, &count);
    if (status == LOCI_BUFFER_TOO_SMALL) {
        tokens = malloc(count * sizeof *tokens);
        status = tokens == NULL ? LOCI_NOMEM : loci_model_tokenize(MODEL(model), utf8, len, (uint32_t)flags, tokens, count, &count);
    }
    free(utf8);
    if (status != LOCI_OK) {
        raise(env, status);
    } else {
        array = (*env)->NewIntArray(env, (jsize)count);
        if (array != NULL && count > 0) (*env)->SetIntArrayRegion(env, array, 0, (jsize)count, (const jint *)tokens);
    }
    free(tokens);
    return array;
}

NATIVE(jbyteArray, chat)(JNIEnv *env, jclass class, jlong model, jobjectArray roles, jobjectArray contents, jboolean prompt) {
    const jsize n = (*env)->GetArrayLength(env, roles);
    /* Roles, then contents. */
    char **texts = calloc(2 * (size_t)n + 1, sizeof *texts);
    char *buffer = NULL;
    size_t len = 0;
    jbyteArray out = NULL;
    loci_status status;
    (void)class;
    if (texts == NULL) {
        out_of_memory(env);
        return NULL;
    }
    copies(env, roles, n, texts);
    if (!(*env)->ExceptionCheck(env)) copies(env, contents, n, texts + n);
    if (!(*env)->ExceptionCheck(env)) {
        const char *const *role = (const char *const *)texts, *const *content = role + n;
        status = loci_model_chat_render(MODEL(model), role, content, (size_t)n, prompt ? 1 : 0, NULL, 0, &len);
        if (status == LOCI_BUFFER_TOO_SMALL || status == LOCI_OK) {
            buffer = malloc(len + 1);
            status = buffer == NULL ? LOCI_NOMEM
                                    : loci_model_chat_render(MODEL(model), role, content, (size_t)n, prompt ? 1 : 0, buffer, len + 1, &len);
        }
        if (status != LOCI_OK) raise(env, status);
        else out = bytes_of(env, buffer, len);
    }
    free_all(texts, 2 * n);
    free(buffer);
    return out;
}

/* --- sessions --- */

/* A dev.loci.Progress while a call lasts. */
typedef struct {
    JNIEnv *env;
    jobject object;
    jmethodID method;
} upcall;

static int32_t on_progress(void *user, uint64_t done, uint64_t total) {
    upcall *up = user;
    jboolean go_on = (*up->env)->CallBooleanMethod(up->env, up->object, up->method, (jlong)done, (jlong)total);
    return (*up->env)->ExceptionCheck(up->env) || !go_on;
}

/* NULL for a null object, or with an exception raised. */
static loci_progress_fn progress_of(JNIEnv *env, jobject progress, upcall *up) {
    jclass class;
    if (progress == NULL) return NULL;
    class = (*env)->GetObjectClass(env, progress);
    up->env = env;
    up->object = progress;
    up->method = (*env)->GetMethodID(env, class, "onProgress", "(JJ)Z");
    (*env)->DeleteLocalRef(env, class);
    return up->method == NULL ? NULL : on_progress;
}

NATIVE(jlong, sessionNew)(JNIEnv *env, jclass class, jlong model, jint context, jint threads) {
    loci_session_options options;
    loci_session *session = NULL;
    loci_status status = loci_session_options_init(&options, sizeof options);
    (void)class;
    options.context_length = (uint32_t)context;
    options.threads = (uint32_t)threads;
    if (status == LOCI_OK) status = loci_session_new(MODEL(model), &options, &session);
    if (status != LOCI_OK) raise(env, status);
    return (jlong)(intptr_t)session;
}

NATIVE(void, sessionFree)(JNIEnv *env, jclass class, jlong session) {
    (void)env, (void)class;
    loci_session_free(SESSION(session));
}

NATIVE(void, sessionReset)(JNIEnv *env, jclass class, jlong session) {
    loci_status status = loci_session_reset(SESSION(session));
    (void)class;
    if (status != LOCI_OK) raise(env, status);
}

NATIVE(void, sessionSetDuty)(JNIEnv *env, jclass class, jlong session, jint percent) {
    loci_status status = loci_session_set_duty(SESSION(session), (uint32_t)percent);
    (void)class;
    if (status != LOCI_OK) raise(env, status);
}

NATIVE(void, sessionTrim)(JNIEnv *env, jclass class, jlong session) {
    loci_status status = loci_session_trim(SESSION(session));
    (void)class;
    if (status != LOCI_OK) raise(env, status);
}

NATIVE(jlong, sessionLength)(JNIEnv *env, jclass class, jlong session) {
    size_t length = 0;
    loci_status status = loci_session_len(SESSION(session), &length);
    (void)class;
    if (status != LOCI_OK) raise(env, status);
    return (jlong)length;
}

NATIVE(void, sessionPrompt)(JNIEnv *env, jclass class, jlong session, jbyteArray text, jint flags, jobject progress) {
    size_t len;
    upcall up = {NULL, NULL, NULL};
    loci_progress_fn fn = progress_of(env, progress, &up);
    char *utf8 = (*env)->ExceptionCheck(env) ? NULL : copy(env, text, &len);
    loci_status status;
    (void)class;
    if ((*env)->ExceptionCheck(env)) return;
    status = loci_session_prompt_text(SESSION(session), utf8, len, (uint32_t)flags, fn, &up);
    free(utf8);
    if (status != LOCI_OK) raise(env, status);
}

/* Temperature, top_k, top_p, min_p, repetition penalty. */
NATIVE(jfloatArray, samplerDefaults)(JNIEnv *env, jclass class) {
    loci_sampler_options options;
    jfloatArray array;
    jfloat values[5];
    loci_status status = loci_sampler_options_init(&options, sizeof options);
    (void)class;
    if (status != LOCI_OK) {
        raise(env, status);
        return NULL;
    }
    values[0] = options.temperature;
    values[1] = (jfloat)options.top_k;
    values[2] = options.top_p;
    values[3] = options.min_p;
    values[4] = options.repetition_penalty;
    array = (*env)->NewFloatArray(env, 5);
    if (array != NULL) (*env)->SetFloatArrayRegion(env, array, 0, 5, values);
    return array;
}

NATIVE(void, sessionSetSampler)
(JNIEnv *env, jclass class, jlong session, jlong seed, jfloat temperature, jint top_k, jfloat top_p, jfloat min_p, jfloat repetition) {
    loci_sampler_options options;
    loci_status status = loci_sampler_options_init(&options, sizeof options);
    (void)class;
    options.seed = (uint64_t)seed;
    options.temperature = temperature;
    options.top_k = (uint32_t)top_k;
    options.top_p = top_p;
    options.min_p = min_p;
    options.repetition_penalty = repetition;
    if (status == LOCI_OK) status = loci_session_set_sampler(SESSION(session), &options);
    if (status != LOCI_OK) raise(env, status);
}

NATIVE(void, sessionStart)(JNIEnv *env, jclass class, jlong session, jint max_tokens, jobjectArray stop) {
    const jsize n = stop == NULL ? 0 : (*env)->GetArrayLength(env, stop);
    char **texts = calloc((size_t)n + 1, sizeof *texts);
    loci_generate_options options;
    loci_status status = loci_generate_options_init(&options, sizeof options);
    (void)class;
    if (texts == NULL) {
        out_of_memory(env);
        return;
    }
    copies(env, stop, n, texts);
    options.max_tokens = (uint32_t)max_tokens;
    options.stop = (const char *const *)texts;
    options.stop_count = (size_t)n;
    if (!(*env)->ExceptionCheck(env)) {
        if (status == LOCI_OK) status = loci_session_start(SESSION(session), &options);
        if (status != LOCI_OK) raise(env, status);
    }
    free_all(texts, n);
}

NATIVE(jint, sessionFinish)(JNIEnv *env, jclass class, jlong session) {
    loci_finish finish = LOCI_FINISH_NONE;
    loci_status status = loci_session_finish(SESSION(session), &finish);
    (void)class;
    if (status != LOCI_OK) raise(env, status);
    return finish;
}

/* The text of the next step; the reason is in finish[0]. */
NATIVE(jbyteArray, sessionNext)(JNIEnv *env, jclass class, jlong session, jintArray finish) {
    loci_piece piece;
    loci_status status;
    jint reason;
    (void)class;
    memset(&piece, 0, sizeof piece);
    piece.struct_size = sizeof piece;
    status = loci_session_next(SESSION(session), &piece);
    if (status != LOCI_OK) {
        raise(env, status);
        return NULL;
    }
    reason = piece.finish;
    (*env)->SetIntArrayRegion(env, finish, 0, 1, &reason);
    return (*env)->ExceptionCheck(env) ? NULL : bytes_of(env, piece.text, piece.text_len);
}

NATIVE(void, sessionCancel)(JNIEnv *env, jclass class, jlong session) {
    (void)env, (void)class;
    loci_session_cancel(SESSION(session));
}

/* --- memories --- */

NATIVE(jlong, memoryOpen)(JNIEnv *env, jclass class, jlong model, jbyteArray path, jboolean create, jboolean read_only) {
    size_t len;
    char *name = copy(env, path, &len);
    loci_memory *memory = NULL;
    loci_status status;
    (void)class;
    if ((*env)->ExceptionCheck(env)) return 0;
    if (create) status = loci_memory_create(MODEL(model), name, &memory);
    else if (read_only) status = loci_memory_open_read_only(MODEL(model), name, &memory);
    else status = loci_memory_open(MODEL(model), name, &memory);
    free(name);
    if (status != LOCI_OK) raise(env, status);
    return (jlong)(intptr_t)memory;
}

NATIVE(void, memoryFree)(JNIEnv *env, jclass class, jlong memory) {
    (void)env, (void)class;
    loci_memory_free(MEMORY(memory));
}

NATIVE(void, memoryCommit)(JNIEnv *env, jclass class, jlong memory) {
    loci_status status = loci_memory_commit(MEMORY(memory));
    (void)class;
    if (status != LOCI_OK) raise(env, status);
}

NATIVE(jlong, memoryLength)(JNIEnv *env, jclass class, jlong memory) {
    uint64_t length = 0;
    loci_status status = loci_memory_len(MEMORY(memory), &length);
    (void)class;
    if (status != LOCI_OK) raise(env, status);
    return (jlong)length;
}

NATIVE(void, sessionAttach)(JNIEnv *env, jclass class, jlong session, jlong memory) {
    loci_status status = loci_session_attach_memory(SESSION(session), MEMORY(memory), NULL);
    (void)class;
    if (status != LOCI_OK) raise(env, status);
}

NATIVE(void, sessionRemember)(JNIEnv *env, jclass class, jlong session, jlong memory, jbyteArray text, jbyteArray source, jobject progress) {
    size_t len, ignored;
    upcall up = {NULL, NULL, NULL};
    loci_progress_fn fn = progress_of(env, progress, &up);
    char *utf8 = (*env)->ExceptionCheck(env) ? NULL : copy(env, text, &len);
    char *label = (*env)->ExceptionCheck(env) ? NULL : copy(env, source, &ignored);
    loci_status status = LOCI_OK;
    (void)class;
    if (!(*env)->ExceptionCheck(env))
        status = loci_session_remember_text(SESSION(session), MEMORY(memory), utf8, len, 0, label, fn, &up);
    free(utf8);
    free(label);
    if (status != LOCI_OK) raise(env, status);
}

NATIVE(jobjectArray, sessionPassages)(JNIEnv *env, jclass class, jlong session) {
    size_t count = 0, i;
    jclass of = (*env)->FindClass(env, "dev/loci/Passage");
    jmethodID make = of == NULL ? NULL : (*env)->GetMethodID(env, of, "<init>", "([BJJIF)V");
    jobjectArray all = NULL;
    loci_status status;
    (void)class;
    if (make == NULL) return NULL;
    status = loci_session_passages(SESSION(session), &count);
    if (status == LOCI_OK) all = (*env)->NewObjectArray(env, (jsize)count, of, NULL);
    for (i = 0; i < count && status == LOCI_OK && all != NULL; i++) {
        loci_passage passage;
        jbyteArray source = NULL;
        jobject made;
        memset(&passage, 0, sizeof passage);
        passage.struct_size = sizeof passage;
        status = loci_session_passage(SESSION(session), i, &passage);
        if (status != LOCI_OK) break;
        if (passage.source != NULL) source = bytes_of(env, passage.source, strlen(passage.source));
        made = (*env)->ExceptionCheck(env) ? NULL
                                           : (*env)->NewObject(env, of, make, source, (jlong)passage.first_token, (jlong)passage.token_count,
                                                               (jint)passage.memory, passage.score);
        if (made == NULL) return NULL;
        (*env)->SetObjectArrayElement(env, all, (jsize)i, made);
        (*env)->DeleteLocalRef(env, made);
        if (source != NULL) (*env)->DeleteLocalRef(env, source);
    }
    if (status != LOCI_OK) raise(env, status);
    return all;
}

/* --- snapshots --- */

NATIVE(void, sessionSave)(JNIEnv *env, jclass class, jlong session, jbyteArray path) {
    size_t len;
    char *name = copy(env, path, &len);
    loci_status status;
    (void)class;
    if ((*env)->ExceptionCheck(env)) return;
    status = loci_session_save(SESSION(session), name);
    free(name);
    if (status != LOCI_OK) raise(env, status);
}

NATIVE(jlong, sessionLoad)(JNIEnv *env, jclass class, jlong model, jbyteArray path, jlongArray memories) {
    const jsize n = (*env)->GetArrayLength(env, memories);
    size_t len;
    char *name = copy(env, path, &len);
    jlong *handles = (*env)->ExceptionCheck(env) ? NULL : (*env)->GetLongArrayElements(env, memories, NULL);
    loci_memory **attached = calloc((size_t)n + 1, sizeof *attached);
    loci_session *session = NULL;
    loci_status status;
    jsize i;
    (void)class;
    if (handles != NULL && attached != NULL) {
        for (i = 0; i < n; i++) attached[i] = MEMORY(handles[i]);
        status = loci_session_load(MODEL(model), name, attached, (size_t)n, &session);
        if (status != LOCI_OK) raise(env, status);
    } else if (!(*env)->ExceptionCheck(env)) {
        out_of_memory(env);
    }
    if (handles != NULL) (*env)->ReleaseLongArrayElements(env, memories, handles, JNI_ABORT);
    free(attached);
    free(name);
    return (jlong)(intptr_t)session;
}
