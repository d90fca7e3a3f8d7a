import CLoci

/// A call of the library that failed, with what it expected and found.
public struct LociError: Error, CustomStringConvertible, Sendable {
    /// One of the negative codes of loci.h.
    public let status: Int32
    public let description: String

    public var isCancellation: Bool { status == LOCI_CANCELLED }
}

/// Throws what the last call of this thread has to say: to be called on the thread of the call, before any other.
func check(_ status: loci_status) throws {
    guard status != LOCI_OK else { return }
    throw LociError(status: status, description: String(cString: loci_last_error()))
}

/// A handle of the library. Handles may cross threads, and one that was freed is refused, not followed.
struct Handle: @unchecked Sendable {
    let pointer: OpaquePointer

    /// What `make` puts into its argument.
    init(_ make: (inout OpaquePointer?) -> loci_status) throws {
        var pointer: OpaquePointer?
        try check(make(&pointer))
        guard let pointer else { throw LociError(status: LOCI_INTERNAL, description: "no handle") }
        self.pointer = pointer
    }
}

/// A progress callback, for the time of a call: `true` goes on.
public typealias Progress = (_ done: UInt64, _ total: UInt64) -> Bool

func withProgress(_ progress: Progress?, _ call: (loci_progress_fn?, UnsafeMutableRawPointer?) -> loci_status) -> loci_status {
    // A task that was cancelled before the call began ends it with its first report.
    var reported: Progress = { done, total in !Task.isCancelled && progress?(done, total) != false }
    return withUnsafeMutablePointer(to: &reported) { pointer in
        call({ user, done, total in
            guard let user else { return 1 }
            return user.assumingMemoryBound(to: Progress.self).pointee(done, total) ? 0 : 1
        }, UnsafeMutableRawPointer(pointer))
    }
}
