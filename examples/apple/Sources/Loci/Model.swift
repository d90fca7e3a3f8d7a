import CLoci

/// A GGUF model; its weights are mapped, not read. Sessions and memories keep what they need of it after `close()`.
public final class Model: Sendable {
    let handle: Handle

    public init(path: String) throws {
        handle = try Handle { loci_model_open(path, nil, &$0) }
    }

    /// A part of an open file, which may be closed at once; length 0 takes the rest.
    public init(fileDescriptor: Int32, offset: UInt64 = 0, length: UInt64 = 0) throws {
        handle = try Handle { loci_model_open_fd(fileDescriptor, offset, length, nil, &$0) }
    }

    deinit { close() }

    /// No new session can be made of it; closing twice is nothing.
    public func close() { loci_model_free(handle.pointer) }

    public func tokenize(_ text: String, addSpecial: Bool = false) throws -> [Int32] {
        try withText(text) { start, bytes in
            // A buffer that is too small says how large it has to be.
            var tokens = [Int32](repeating: 0, count: bytes + 2)
            while true {
                var count = 0
                let flags: UInt32 = addSpecial ? LOCI_ADD_SPECIAL : 0
                let status = loci_model_tokenize(handle.pointer, start, bytes, flags, &tokens, tokens.count, &count)
                if status == LOCI_BUFFER_TOO_SMALL {
                    tokens = [Int32](repeating: 0, count: count)
                    continue
                }
                try check(status)
                return Array(tokens.prefix(count))
            }
        }
    }

    /// A conversation as the model's chat template writes it, up to where the assistant speaks.
    public func chat(_ messages: [(role: String, content: String)]) throws -> String {
        try withPointers(to: messages.map(\.role)) { roles in
            try withPointers(to: messages.map(\.content)) { contents in
                var text = [CChar](repeating: 0, count: 4096)
                while true {
                    var length = 0
                    let status = loci_model_chat_render(handle.pointer, roles, contents, messages.count, 1, &text, text.count, &length)
                    if status == LOCI_BUFFER_TOO_SMALL {
                        text = [CChar](repeating: 0, count: length + 1)
                        continue
                    }
                    try check(status)
                    return text.withUnsafeBytes { String(decoding: $0.prefix(length), as: UTF8.self) }
                }
            }
        }
    }

    /// Bytes of RAM that a session takes with its context full.
    public func estimate(contextLength: UInt32 = 0, threads: UInt32 = 0) throws -> UInt64 {
        var options = loci_session_options()
        try check(loci_session_options_init(&options, MemoryLayout<loci_session_options>.size))
        options.context_length = contextLength
        options.threads = threads
        var estimate = loci_estimate()
        estimate.struct_size = MemoryLayout<loci_estimate>.size
        try check(loci_model_estimate(handle.pointer, &options, 0, &estimate))
        return estimate.total_bytes
    }

    /// For memory warnings: the pages of the weights leave the process until they are read again.
    public func trim() throws { try check(loci_model_trim(handle.pointer)) }
}
