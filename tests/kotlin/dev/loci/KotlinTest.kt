package dev.loci

import java.io.File
import kotlinx.coroutines.CancellationException
import kotlinx.coroutines.flow.onEach
import kotlinx.coroutines.flow.take
import kotlinx.coroutines.flow.toList
import kotlinx.coroutines.launch
import kotlinx.coroutines.runBlocking

/** What the Kotlin API promises. Arguments: MODEL.gguf DIRECTORY. Says nothing and ends with 0. */
fun main(args: Array<String>) = runBlocking {
    val model = Model(args[0])
    check(model.chat("user" to "h\u00e9\ud83d\ude00") == "<s>[user]h\u00e9\ud83d\ude00[assistant]")
    check(model.tokenize("the key").isNotEmpty() && model.estimate(64, 1) > 0)
    check(runCatching { Model("/no/such/file.gguf") }.exceptionOrNull() is LociException)

    val session = Session(model, contextLength = 128, threads = 2)
    val seen = mutableListOf<Pair<Long, Long>>()
    session.prompt("the key is") { done, total -> seen.add(done to total) }
    check(seen.last().first == seen.last().second) { seen.toString() }
    val answer = session.generate(12).toList().joinToString("")
    check(answer.isNotEmpty())

    // The same from a session of its own, one collector after the other.
    val other = Session(model, contextLength = 128, threads = 1)
    other.prompt("the key is")
    check(other.generate(12).toList().joinToString("") == answer)

    // A collector that has enough ends the work, and the session goes on.
    session.reset()
    session.prompt("the key is")
    check(session.generate(12).take(2).toList().size == 2)
    session.reset()
    session.prompt("the key is")
    check(session.generate(12).toList().joinToString("") == answer)

    // So does a coroutine that is cancelled while it collects, or while it reads.
    session.reset()
    session.prompt("the key is")
    var pieces = 0
    launch { session.generate(100).onEach { if (++pieces == 3) throw CancellationException("enough") }.toList() }.join()
    check(pieces == 3)
    session.reset()
    var batches = 0
    val reading = launch {
        try {
            session.prompt("the key is ".repeat(8)) { _, _ ->
                batches++
                coroutineContext[kotlinx.coroutines.Job]!!.cancel()
                true
            }
        } catch (e: CancellationException) {
            batches += 100
            throw e
        }
    }
    reading.join()
    check(reading.isCancelled && batches > 100) { batches.toString() }
    session.reset()
    session.prompt("the key is")
    check(session.generate(12).toList().joinToString("") == answer)

    // How tokens are chosen, and what ends an answer.
    check(Sampling().temperature > 0 && Sampling().topK > 0)
    session.setSampling(Sampling(temperature = 0f))
    session.reset()
    session.prompt("the key is")
    val greedy = session.generate(12).toList().joinToString("")
    check(session.finish == Finish.LENGTH || session.finish == Finish.END_OF_TEXT) { session.finish }
    session.reset()
    session.prompt("the key is")
    val first = greedy.substring(0, greedy.offsetByCodePoints(0, 1))
    check(session.generate(12, stop = listOf(first)).toList().isEmpty() && session.finish == Finish.STOP) { session.finish }

    // Saved, it goes on.
    session.reset()
    session.prompt("the key is")
    val snapshot = File(args[1], "kotlin.session").path
    session.save(snapshot)
    Session.restore(model, snapshot).use { check(it.generate(12).toList().joinToString("") == greedy) }
    check(session.generate(12).toList().joinToString("") == greedy)

    // A memory outlives what wrote it.
    val path = File(args[1], "kotlin.lmem").path
    Memory.create(model, path).use { memory ->
        session.remember(memory, "The key of the north gate hangs behind the door. ".repeat(8), "notes")
        memory.commit()
        check(memory.length > 0)
    }
    Memory.openReadOnly(model, path).use { memory ->
        other.reset()
        other.attach(memory)
        other.prompt("Where is the key?")
        other.generate(4).toList()
        val passages = other.passages()
        check(passages.isNotEmpty() && passages.all { it.source == "notes" && it.memory == 0 })
    }
    session.trim()
    model.trim()
    session.close()
    // What is closed says so, and closing again is nothing.
    check(runCatching { session.prompt("x") }.exceptionOrNull() != null)
    session.close()
    model.close()
    check(other.generate(4).toList().size <= 4)
    other.close()
}
