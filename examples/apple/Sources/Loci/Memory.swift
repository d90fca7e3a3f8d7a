import CLoci

/// A memory on disk.
public final class Memory: Sendable {
    let handle: Handle

    private init(_ handle: Handle) { self.handle = handle }

    public static func create(_ model: Model, path: String) throws -> Memory {
        Memory(try Handle { loci_memory_create(model.handle.pointer, path, &$0) })
    }

    /// To read and to add to.
    public static func open(_ model: Model, path: String) throws -> Memory {
        Memory(try Handle { loci_memory_open(model.handle.pointer, path, &$0) })
    }

    public static func openReadOnly(_ model: Model, path: String) throws -> Memory {
        Memory(try Handle { loci_memory_open_read_only(model.handle.pointer, path, &$0) })
    }

    deinit { close() }

    /// What was not committed is lost; closing twice is nothing.
    public func close() { loci_memory_free(handle.pointer) }

    /// When it returns, no crash can take what was remembered.
    public func commit() throws { try check(loci_memory_commit(handle.pointer)) }

    /// Tokens held.
    public func length() throws -> UInt64 {
        var length: UInt64 = 0
        try check(loci_memory_len(handle.pointer, &length))
        return length
    }
}
