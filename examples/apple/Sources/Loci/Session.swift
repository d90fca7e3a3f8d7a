import CLoci
import Dispatch

/// The thread of a session: its calls take long, and may not hold up those that all tasks share.
private final class Worker: SerialExecutor {
    private let queue = DispatchQueue(label: "dev.loci.session", qos: .userInitiated)

    func enqueue(_ job: UnownedJob) {
        queue.async { job.runSynchronously(on: self.asUnownedSerialExecutor()) }
    }

    func asUnownedSerialExecutor() -> UnownedSerialExecutor { UnownedSerialExecutor(ordinary: self) }
}

/// One conversation. Cancelling the task that waits for it cancels the work; afterwards the session goes on.
public actor Session {
    private let worker = Worker()
    private let handle: Handle

    public nonisolated var unownedExecutor: UnownedSerialExecutor { worker.asUnownedSerialExecutor() }

    public init(_ model: Model, contextLength: UInt32 = 0, threads: UInt32 = 0) throws {
        var options = loci_session_options()
        try check(loci_session_options_init(&options, MemoryLayout<loci_session_options>.size))
        options.context_length = contextLength
        options.threads = threads
        handle = try Handle { loci_session_new(model.handle.pointer, &options, &$0) }
    }

    /// The session that was saved, which goes on as if nothing had been. Of the memories that it had attached, those that are not among
    /// `memories` are opened by their paths.
    public init(restoring path: String, model: Model, memories: [Memory] = []) throws {
        let pointers = memories.map { Optional($0.handle.pointer) }
        handle = try Handle { loci_session_load(model.handle.pointer, path, pointers, pointers.count, &$0) }
    }

    deinit { loci_session_free(handle.pointer) }

    /// Frees what it holds, now: a call under way is cancelled, later ones are refused.
    public nonisolated func close() { loci_session_free(handle.pointer) }

    /// From any thread.
    public nonisolated func cancel() { loci_session_cancel(handle.pointer) }

    /// Forgets the conversation; attached memories stay.
    public func reset() throws { try check(loci_session_reset(handle.pointer)) }

    /// Works for at most so many percent of the time, 1 to 100, and rests in between: for a device that gets hot.
    public func setDuty(_ percent: UInt32) throws { try check(loci_session_set_duty(handle.pointer, percent)) }

    /// For memory warnings, between two calls.
    public func trim() throws { try check(loci_session_trim(handle.pointer)) }

    /// Tokens held.
    public func length() throws -> Int {
        var length = 0
        try check(loci_session_len(handle.pointer, &length))
        return length
    }

    /// How the tokens of later answers are chosen.
    public func setSampling(_ sampling: Sampling) throws {
        var options = try Sampling.defaults()
        options.seed = sampling.seed
        options.temperature = sampling.temperature
        options.top_k = sampling.topK
        options.top_p = sampling.topP
        options.min_p = sampling.minP
        options.repetition_penalty = sampling.repetitionPenalty
        try check(loci_session_set_sampler(handle.pointer, &options))
    }

    public func attach(_ memory: Memory) throws { try check(loci_session_attach_memory(handle.pointer, memory.handle.pointer, nil)) }

    /// The stretches of memory that were read for the last prompt and answer, most wanted first.
    public func passages() throws -> [Passage] {
        var count = 0
        try check(loci_session_passages(handle.pointer, &count))
        return try (0..<count).map { index in
            var passage = loci_passage()
            passage.struct_size = MemoryLayout<loci_passage>.size
            try check(loci_session_passage(handle.pointer, index, &passage))
            return Passage(
                source: passage.source.map { String(cString: $0) }, firstToken: passage.first_token, tokenCount: passage.token_count,
                memory: passage.memory == LOCI_MEMORY_OWN ? nil : passage.memory, score: passage.score)
        }
    }

    /// Writes all of the session to a file, whole or not at all: before the app goes to the background, say. `init(restoring:)` reads it.
    public func save(to path: String) throws { try check(loci_session_save(handle.pointer, path)) }

    /// Why the last answer ended.
    public func finish() throws -> Finish {
        var finish: loci_finish = 0
        try check(loci_session_finish(handle.pointer, &finish))
        return Finish(rawValue: finish) ?? .error
    }

    /// The whole conversation so far; what is held already is not computed again.
    public func prompt(_ text: String, progress: (@Sendable (UInt64, UInt64) -> Bool)? = nil) async throws {
        try await cancelling { pointer in
            withText(text) { start, count in
                withProgress(progress) { loci_session_prompt_text(pointer, start, count, LOCI_PARSE_SPECIAL, $0, $1) }
            }
        }
    }

    /// Reads a text into a memory. Commit the memory to keep it.
    public func remember(
        _ text: String, in memory: Memory, source: String? = nil, progress: (@Sendable (UInt64, UInt64) -> Bool)? = nil
    ) async throws {
        try await cancelling { pointer in
            withText(text) { start, count in
                withProgress(progress) {
                    loci_session_remember_text(pointer, memory.handle.pointer, start, count, 0, source, $0, $1)
                }
            }
        }
    }

    /// The answer, in pieces of whole characters, computed as they are asked for. It ends where one of `stop` would begin, too. Leaving the
    /// loop ends it.
    public nonisolated func generate(maxTokens: UInt32 = 256, stop: [String] = []) -> Pieces {
        Pieces(session: self, maxTokens: maxTokens, stop: stop)
    }

    fileprivate func start(maxTokens: UInt32, stop: [String]) throws {
        try withPointers(to: stop) { pointers in
            var options = loci_generate_options()
            try check(loci_generate_options_init(&options, MemoryLayout<loci_generate_options>.size))
            options.max_tokens = maxTokens
            options.stop = pointers
            options.stop_count = stop.count
            try check(loci_session_start(handle.pointer, &options))
        }
    }

    /// The next text that is not empty, and whether it is the last.
    fileprivate func next() throws -> (text: String, last: Bool) {
        var piece = loci_piece()
        piece.struct_size = MemoryLayout<loci_piece>.size
        while true {
            try check(loci_session_next(handle.pointer, &piece))
            let last = piece.finish != LOCI_FINISH_NONE
            if piece.text_len > 0 || last {
                return (String(decoding: UnsafeRawBufferPointer(start: piece.text, count: piece.text_len), as: UTF8.self), last)
            }
        }
    }

    /// A call that takes long, on the worker; the task's cancellation becomes the library's.
    private func cancelling(_ call: (OpaquePointer) -> loci_status) async throws {
        let handle = self.handle
        try await withTaskCancellationHandler {
            try Task.checkCancellation()
            do {
                try check(call(handle.pointer))
            } catch let error as LociError where error.isCancellation && Task.isCancelled {
                throw CancellationError()
            }
        } onCancel: {
            loci_session_cancel(handle.pointer)
        }
    }
}

/// The text of an answer.
public struct Pieces: AsyncSequence, Sendable {
    public typealias Element = String
    let session: Session
    let maxTokens: UInt32
    let stop: [String]

    public func makeAsyncIterator() -> Iterator { Iterator(self) }

    public struct Iterator: AsyncIteratorProtocol {
        private let asked: Pieces
        private var started = false
        private var finished = false

        fileprivate init(_ asked: Pieces) { self.asked = asked }

        public mutating func next() async throws -> String? {
            guard !finished else { return nil }
            try Task.checkCancellation()
            if !started {
                started = true
                try await asked.session.start(maxTokens: asked.maxTokens, stop: asked.stop)
            }
            let piece = try await asked.session.next()
            finished = piece.last
            return piece.last && piece.text.isEmpty ? nil : piece.text
        }
    }
}
