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

    public func attach(_ memory: Memory) throws { try check(loci_session_attach_memory(handle.pointer, memory.handle.pointer, nil)) }

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

    /// The answer, in pieces of whole characters, computed as they are asked for. Leaving the loop ends it.
    public nonisolated func generate(maxTokens: UInt32 = 256) -> Pieces { Pieces(session: self, maxTokens: maxTokens) }

    fileprivate func start(maxTokens: UInt32) throws {
        var options = loci_generate_options()
        try check(loci_generate_options_init(&options, MemoryLayout<loci_generate_options>.size))
        options.max_tokens = maxTokens
        try check(loci_session_start(handle.pointer, &options))
    }

    /// The next text that is not empty, and whether it is the last.
    fileprivate func next() throws -> (text: String, last: Bool) {
        var piece = loci_piece()
        piece.struct_size = MemoryLayout<loci_piece>.size
        while true {
            try check(loci_session_next(handle.pointer, &piece))
            let last = piece.finish != LOCI_FINISH_NONE
            if piece.text_len > 0 || last { return (String(cString: piece.text), last) }
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

    public func makeAsyncIterator() -> Iterator { Iterator(session: session, maxTokens: maxTokens) }

    public struct Iterator: AsyncIteratorProtocol {
        let session: Session
        let maxTokens: UInt32
        private var started = false
        private var finished = false

        init(session: Session, maxTokens: UInt32) {
            self.session = session
            self.maxTokens = maxTokens
        }

        public mutating func next() async throws -> String? {
            guard !finished else { return nil }
            try Task.checkCancellation()
            if !started {
                started = true
                try await session.start(maxTokens: maxTokens)
            }
            let piece = try await session.next()
            finished = piece.last
            return piece.last && piece.text.isEmpty ? nil : piece.text
        }
    }
}

/// The bytes of a text, good for the call.
private func withText(_ text: String, _ body: (UnsafePointer<CChar>?, Int) -> loci_status) -> loci_status {
    var text = text
    return text.withUTF8 { body(UnsafeRawPointer($0.baseAddress)?.assumingMemoryBound(to: CChar.self), $0.count) }
}
