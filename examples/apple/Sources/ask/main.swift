import Loci

// swift run ask MODEL.gguf "Why is the sky blue?" [MEMORY.lmem]
let arguments = CommandLine.arguments
guard arguments.count > 2 else { fatalError("usage: ask MODEL.gguf QUESTION [MEMORY.lmem]") }
let model = try Model(path: arguments[1])
let session = try Session(model)
if arguments.count > 3 { try await session.attach(Memory.openReadOnly(model, path: arguments[3])) }
try await session.prompt(model.chat([(role: "user", content: arguments[2])]))
for try await text in session.generate() { print(text, terminator: "") }
print()
session.close()
