import CLoci

/// How tokens are chosen. One that is made has the library's defaults; the stages run in the order of loci.h.
public struct Sampling: Sendable {
    /// The same seed and history choose the same tokens: for other answers each time, set another each time.
    public var seed: UInt64
    /// 0: always the most probable token.
    public var temperature: Float
    /// 0: off.
    public var topK: UInt32
    /// 1: off.
    public var topP: Float
    /// 0: off.
    public var minP: Float
    /// 1: off.
    public var repetitionPenalty: Float

    public init() {
        // The library fills in its own structure: it cannot fail.
        let defaults = (try? Sampling.defaults()) ?? loci_sampler_options()
        seed = defaults.seed
        temperature = defaults.temperature
        topK = defaults.top_k
        topP = defaults.top_p
        minP = defaults.min_p
        repetitionPenalty = defaults.repetition_penalty
    }

    static func defaults() throws -> loci_sampler_options {
        var options = loci_sampler_options()
        try check(loci_sampler_options_init(&options, MemoryLayout<loci_sampler_options>.size))
        return options
    }
}

/// Why an answer ended.
public enum Finish: Int32, Sendable {
    /// It has not, or none has begun.
    case none = 0
    /// The model said so.
    case endOfText = 1
    /// One of the stop strings came.
    case stop = 2
    /// `maxTokens` were made, or the context is full.
    case length = 3
    case cancelled = 4
    /// The call threw.
    case error = 6
}

/// A stretch of memory that was read for an answer.
public struct Passage: Sendable {
    /// What was given when it was remembered.
    public let source: String?
    /// Within the memory.
    public let firstToken: UInt64
    public let tokenCount: UInt64
    /// Which attached memory, in their order; nil: what left the session's own window.
    public let memory: UInt32?
    /// Larger was wanted more.
    public let score: Float
}
