import Foundation
import Loci
import XCTest

/// LOCI_MODEL names a GGUF file with a chat template. `make swift` runs this on Linux.
final class LociTests: XCTestCase {
    private var directory = URL(fileURLWithPath: "/")

    override func setUpWithError() throws {
        directory = FileManager.default.temporaryDirectory.appendingPathComponent(UUID().uuidString)
        try FileManager.default.createDirectory(at: directory, withIntermediateDirectories: true)
    }

    override func tearDownWithError() throws { try FileManager.default.removeItem(at: directory) }

    private func path(_ name: String) -> String { directory.appendingPathComponent(name).path }

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

    func testAPartOfAnOpenFileIsAModel() throws {
        let path = try XCTUnwrap(ProcessInfo.processInfo.environment["LOCI_MODEL"])
        let file = try XCTUnwrap(FileHandle(forReadingAtPath: path))
        let model = try Model(fileDescriptor: file.fileDescriptor)
        try file.close()
        XCTAssertEqual(try model.tokenize("the key"), try Model(path: path).tokenize("the key"))
        XCTAssertEqual(try model.tokenize(""), [])
        XCTAssertGreaterThan(try model.estimate(contextLength: 64), 0)
    }

    func testTheSamePromptHasTheSameAnswer() async throws {
        let model = try model()
        let session = try Session(model, contextLength: 256)
        let prompt = try model.chat([(role: "user", content: "Name a colour. 🎨")])
        XCTAssertTrue(prompt.contains("🎨"))
        try await session.prompt(prompt)
        let first = try await text(session.generate(maxTokens: 12))
        XCTAssertFalse(first.isEmpty)
        try await session.reset()
        try await session.prompt(prompt)
        for try await _ in session.generate(maxTokens: 12) { break }
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

    func testHowTokensAreChosenAndWhyAnAnswerEnds() async throws {
        let model = try model()
        let session = try Session(model, contextLength: 256)
        let before = try await session.finish()
        XCTAssertEqual(before, .none)
        var sampling = Sampling()
        XCTAssertGreaterThan(sampling.temperature, 0)
        sampling.temperature = 0
        try await session.setSampling(sampling)
        try await session.prompt("the key is under the stone")
        let greedy = try await text(session.generate(maxTokens: 3))
        let finish = try await session.finish()
        XCTAssertTrue(finish == .length || finish == .endOfText, "\(finish)")
        // Nothing may stand before a stop string that is the answer's beginning.
        let first = try XCTUnwrap(greedy.first)
        try await session.reset()
        try await session.prompt("the key is under the stone")
        let stopped = try await text(session.generate(maxTokens: 3, stop: ["no such text", String(first)]))
        XCTAssertEqual(stopped, "")
        let reason = try await session.finish()
        XCTAssertEqual(reason, .stop)
        sampling.temperature = -1
        do {
            try await session.setSampling(sampling)
            XCTFail("a temperature below 0 was taken")
        } catch is LociError {}
    }

    func testWhatWasRememberedIsThereWhenItIsOpenedAgain() async throws {
        let model = try model()
        let reader = try Session(model, contextLength: 64)
        let memory = try Memory.create(model, path: path("notes.lmem"))
        let text = String(repeating: "the key is under the stone. ", count: 40)
        try await reader.remember(text, in: memory, source: "notes 🗝")
        try memory.commit()
        let length = try memory.length()
        XCTAssertGreaterThan(length, 0)
        memory.close()
        memory.close()
        XCTAssertThrowsError(try memory.length())

        let again = try Memory.openReadOnly(model, path: path("notes.lmem"))
        XCTAssertEqual(try again.length(), length)
        let session = try Session(model, contextLength: 256)
        try await session.attach(again)
        try await session.prompt("where is the key")
        for try await _ in session.generate(maxTokens: 2) {}
        let passages = try await session.passages()
        XCTAssertFalse(passages.isEmpty)
        for passage in passages {
            XCTAssertEqual(passage.source, "notes 🗝")
            XCTAssertEqual(passage.memory, 0)
            XCTAssertLessThanOrEqual(passage.firstToken + passage.tokenCount, length)
        }
    }

    func testASavedSessionGoesOn() async throws {
        let model = try model()
        let session = try Session(model, contextLength: 256)
        try await session.prompt("the key is under")
        for try await _ in session.generate(maxTokens: 4) {}
        try await session.save(to: path("session"))
        let there = try await text(session.generate(maxTokens: 8))
        session.close()
        let restored = try Session(restoring: path("session"), model: model)
        let here = try await text(restored.generate(maxTokens: 8))
        XCTAssertEqual(here, there)
        XCTAssertThrowsError(try Session(restoring: path("none"), model: model)) { XCTAssertTrue($0 is LociError) }
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

    func testProgressIsToldAndCanStop() async throws {
        let session = try Session(try model(), contextLength: 2048)
        let told = Counter()
        do {
            try await session.prompt(String(repeating: "the key is under the stone. ", count: 100)) { done, total in
                told.add()
                return done > total
            }
            XCTFail("it was not stopped")
        } catch let error as LociError {
            XCTAssertTrue(error.isCancellation, error.description)
        }
        XCTAssertEqual(told.count, 1)
    }
}

private final class Counter: @unchecked Sendable {
    private let lock = NSLock()
    private var counted = 0

    func add() { lock.withLock { counted += 1 } }

    var count: Int { lock.withLock { counted } }
}
