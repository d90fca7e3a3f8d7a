import Foundation
import Loci
import XCTest

/// LOCI_MODEL names a GGUF file with a chat template.
final class LociTests: XCTestCase {
    private func model() throws -> Model {
        guard let path = ProcessInfo.processInfo.environment["LOCI_MODEL"] else { throw XCTSkip("LOCI_MODEL is not set") }
        return try Model(path: path)
    }

    private func text(_ pieces: Pieces) async throws -> String {
        var all = ""
        for try await piece in pieces { all += piece }
        return all
    }

    func testAMissingFileIsAnError() {
        XCTAssertThrowsError(try Model(path: "/no/such/file.gguf")) { XCTAssertTrue($0 is LociError) }
    }

    func testTheSamePromptHasTheSameAnswer() async throws {
        let model = try model()
        let session = try Session(model, contextLength: 256)
        let prompt = try model.chat([(role: "user", content: "Name a colour. 🎨")])
        try await session.prompt(prompt)
        let first = try await text(session.generate(maxTokens: 12))
        XCTAssertFalse(first.isEmpty)
        try await session.reset()
        try await session.prompt(prompt)
        var pieces = 0
        for try await _ in session.generate(maxTokens: 12) {
            pieces += 1
            if pieces == 2 { break }
        }
        try await session.reset()
        try await session.prompt(prompt)
        let again = try await text(session.generate(maxTokens: 12))
        XCTAssertEqual(first, again)
        session.close()
        session.close()
        do {
            try await session.reset()
            XCTFail("a closed session answered")
        } catch is LociError {}
    }

    func testACancelledTaskCancelsTheWork() async throws {
        let session = try Session(try model(), contextLength: 2048)
        let task = Task { try await session.prompt(String(repeating: "the key is under the stone. ", count: 200)) }
        task.cancel()
        do {
            try await task.value
            XCTFail("it was not cancelled")
        } catch is CancellationError {}
        try await session.reset()
        try await session.prompt("the key")
        let length = try await session.length()
        XCTAssertGreaterThan(length, 0)
    }
}
