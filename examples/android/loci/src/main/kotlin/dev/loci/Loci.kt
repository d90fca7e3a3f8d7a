package dev.loci

import java.util.concurrent.Executors
import kotlinx.coroutines.asCoroutineDispatcher
import kotlinx.coroutines.currentCoroutineContext
import kotlinx.coroutines.ensureActive
import kotlinx.coroutines.flow.Flow
import kotlinx.coroutines.flow.flow
import kotlinx.coroutines.flow.flowOn
import kotlinx.coroutines.suspendCancellableCoroutine
import kotlinx.coroutines.withContext

/** A GGUF model; its weights are mapped, not read. Close it when no new session is to be made of it: sessions keep what they need. */
class Model private constructor(internal val handle: Long) : AutoCloseable {
    constructor(path: String) : this(Native.modelOpen(path.toByteArray()))

    /** An asset that is not compressed, or any open file: the descriptor may be closed at once. */
    constructor(fd: Int, offset: Long = 0, length: Long = 0) : this(Native.modelOpenFd(fd, offset, length))

    fun tokenize(text: String, flags: Int = 0): IntArray = Native.tokenize(handle, text.toByteArray(), flags)

    /** A conversation as the model's chat template writes it. */
    fun chat(vararg messages: Pair<String, String>): String =
        String(
            Native.chat(
                handle,
                messages.map { it.first.toByteArray() }.toTypedArray(),
                messages.map { it.second.toByteArray() }.toTypedArray(),
                true,
            )
        )

    /** Bytes of RAM that a session takes with its context full. */
    fun estimate(contextLength: Int = 0, threads: Int = 0): Long = Native.modelEstimate(handle, contextLength, threads)

    /** For onTrimMemory: the pages of the weights leave the process until they are read again. */
    fun trim() = Native.modelTrim(handle)

    override fun close() = Native.modelFree(handle)
}

/** A memory on disk. */
class Memory private constructor(internal val handle: Long) : AutoCloseable {
    val length: Long get() = Native.memoryLength(handle)

    /** When it returns, no crash can take what was remembered. */
    fun commit() = Native.memoryCommit(handle)

    override fun close() = Native.memoryFree(handle)

    companion object {
        fun create(model: Model, path: String) = Memory(Native.memoryOpen(model.handle, path.toByteArray(), true, false))
        fun open(model: Model, path: String) = Memory(Native.memoryOpen(model.handle, path.toByteArray(), false, false))
        fun openReadOnly(model: Model, path: String) = Memory(Native.memoryOpen(model.handle, path.toByteArray(), false, true))
    }
}

/** How tokens are chosen; what is not said is as the library has it by itself. The stages run in the order of loci.h. */
data class Sampling(
    /** The same seed and history choose the same tokens: for other answers each time, set another each time. */
    val seed: Long = 0,
    /** 0: always the most probable token. */
    val temperature: Float = DEFAULTS[0],
    /** 0: off. */
    val topK: Int = DEFAULTS[1].toInt(),
    /** 1: off. */
    val topP: Float = DEFAULTS[2],
    /** 0: off. */
    val minP: Float = DEFAULTS[3],
    /** 1: off. */
    val repetitionPenalty: Float = DEFAULTS[4],
) {
    private companion object {
        val DEFAULTS: FloatArray = Native.samplerDefaults()
    }
}

/** Why an answer ended. */
enum class Finish(internal val code: Int) {
    /** It has not, or none has begun. */
    NONE(Native.FINISH_NONE),
    /** The model said so. */
    END_OF_TEXT(Native.FINISH_EOS),
    /** One of the stop strings came. */
    STOP(Native.FINISH_STOP),
    /** maxTokens were made, or the context is full. */
    LENGTH(Native.FINISH_LENGTH),
    CANCELLED(Native.FINISH_CANCELLED),
    /** The call threw. */
    ERROR(Native.FINISH_ERROR),
}

/** One conversation. Its work runs on a thread of its own; cancelling the coroutine or the collection cancels the work. */
class Session private constructor(private val handle: Long) : AutoCloseable {
    constructor(model: Model, contextLength: Int = 0, threads: Int = 0) : this(Native.sessionNew(model.handle, contextLength, threads))

    private val worker = Executors.newSingleThreadExecutor { Thread(it, "loci") }.asCoroutineDispatcher()

    /** The whole conversation so far; what is held already is not computed again. */
    suspend fun prompt(text: String, progress: Progress? = null) =
        cancelling(progress) { Native.sessionPrompt(handle, text.toByteArray(), Native.PARSE_SPECIAL, it) }

    /** How the tokens of later answers are chosen. */
    fun setSampling(sampling: Sampling) =
        with(sampling) { Native.sessionSetSampler(handle, seed, temperature, topK, topP, minP, repetitionPenalty) }

    /** The answer, in pieces of whole characters. It ends where one of stop would begin, too. */
    fun generate(maxTokens: Int = 256, stop: List<String> = emptyList()): Flow<String> =
        flow {
            Native.sessionStart(handle, maxTokens, stop.map { it.toByteArray() }.toTypedArray())
            val finish = IntArray(1)
            while (finish[0] == Native.FINISH_NONE) {
                currentCoroutineContext().ensureActive()
                val text = String(Native.sessionNext(handle, finish))
                if (text.isNotEmpty()) emit(text)
            }
        }.flowOn(worker)

    suspend fun remember(memory: Memory, text: String, source: String? = null, progress: Progress? = null) =
        cancelling(progress) { Native.sessionRemember(handle, memory.handle, text.toByteArray(), source?.toByteArray(), it) }

    /** Why the last answer ended. */
    val finish: Finish get() = Native.sessionFinish(handle).let { code -> Finish.entries.first { it.code == code } }

    /** The stretches of memory that were read for the last prompt and answer, most wanted first. */
    fun passages(): List<Passage> = Native.sessionPassages(handle).asList()

    /** Writes all of the session to a file, whole or not at all: in onStop, say. Session.restore reads it. */
    suspend fun save(path: String) = withContext(worker) { Native.sessionSave(handle, path.toByteArray()) }

    fun attach(memory: Memory) = Native.sessionAttach(handle, memory.handle)

    /** From any thread. */
    fun cancel() = Native.sessionCancel(handle)

    /** Forgets what it has read; attached memories stay. */
    fun reset() = Native.sessionReset(handle)

    /** Works for at most percent of the time, 1 to 100, and rests in between: for a device that gets hot. Between two calls. */
    fun setDuty(percent: Int) = Native.sessionSetDuty(handle, percent)

    /** For onTrimMemory, between two calls. */
    fun trim() = Native.sessionTrim(handle)

    override fun close() {
        Native.sessionFree(handle)
        worker.close()
    }

    /**
     * Runs a blocking call on the worker, and cancels it there when the coroutine is cancelled: at once while it computes, with its first
     * report if it was only about to.
     */
    private suspend fun cancelling(progress: Progress?, work: (Progress) -> Unit) =
        withContext(worker) {
            suspendCancellableCoroutine<Unit> { continuation ->
                continuation.invokeOnCancellation { Native.sessionCancel(handle) }
                val reported = Progress { done, total -> continuation.isActive && progress?.onProgress(done, total) != false }
                continuation.resumeWith(runCatching { work(reported) })
            }
        }

    companion object {
        /**
         * The session that was saved, which goes on as if nothing had been. Of the memories that it had attached, those that are not among
         * these are opened by their paths.
         */
        fun restore(model: Model, path: String, memories: List<Memory> = emptyList()) =
            Session(Native.sessionLoad(model.handle, path.toByteArray(), memories.map { it.handle }.toLongArray()))
    }
}
