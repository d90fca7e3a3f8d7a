/// The bytes of a text, good for the call.
func withText<Result>(_ text: String, _ body: (UnsafePointer<CChar>?, Int) throws -> Result) rethrows -> Result {
    var text = text
    return try text.withUTF8 { try body(UnsafeRawPointer($0.baseAddress)?.assumingMemoryBound(to: CChar.self), $0.count) }
}

/// Calls `body` with pointers to the NUL-terminated forms of `strings`, good for the call.
func withPointers<Result>(
    to strings: [String], _ body: (UnsafePointer<UnsafePointer<CChar>?>) throws -> Result
) rethrows -> Result {
    var pointers: [UnsafePointer<CChar>?] = []
    func next(_ rest: ArraySlice<String>) throws -> Result {
        guard let first = rest.first else {
            // Never an empty array: its pointer may be anything.
            return try (pointers + [nil]).withUnsafeBufferPointer { try body($0.baseAddress!) }
        }
        return try first.withCString {
            pointers.append($0)
            return try next(rest.dropFirst())
        }
    }
    return try next(strings[...])
}
