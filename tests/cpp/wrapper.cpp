// What include/loci.hpp promises: errors, exceptions through callbacks, moved handles, both forms of generation, a memory.
// Arguments: MODEL.gguf DIRECTORY. Says nothing and ends with 0, or names the line.
#include <loci.hpp>

#include <cstdio>
#include <cstdlib>
#include <type_traits>

#define CHECK(condition)                                                                                                               \
    do {                                                                                                                               \
        if (!(condition)) {                                                                                                            \
            std::fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition);                                               \
            std::exit(1);                                                                                                              \
        }                                                                                                                              \
    } while (0)

static_assert(!std::is_copy_constructible<loci::Model>::value && std::is_nothrow_move_constructible<loci::Model>::value, "");
static_assert(!std::is_copy_assignable<loci::Session>::value && std::is_nothrow_move_assignable<loci::Session>::value, "");

struct Mine {
    int value;
};

static void errors_are_exceptions(const loci::Model &model, const std::string &dir) {
    bool thrown = false;
    try {
        loci::Model missing(dir + "/missing.gguf");
    } catch (const loci::Error &error) {
        thrown = error.status() == LOCI_IO && std::string(error.what()).find("missing.gguf") != std::string::npos;
    }
    CHECK(thrown);
    thrown = false;
    try {
        model.metadata("no.such.key");
    } catch (const loci::Error &error) {
        thrown = error.status() == LOCI_NOT_FOUND;
    }
    CHECK(thrown);
}

static void text_and_tokens(const loci::Model &model) {
    CHECK(model.metadata("general.architecture") == "llama");
    std::vector<loci_token> tokens = model.tokenize("the key is here");
    CHECK(!tokens.empty());
    CHECK(model.detokenize(tokens).find("the key is here") != std::string::npos);
    CHECK(model.tokenize(std::string_view()).empty());
    CHECK(model.detokenize({}).empty());
    CHECK(model.chat({{"user", "hello"}}) == "<s>[user]hello[assistant]");
}

static void generation(const loci::Model &model, const std::string &dir) {
    loci::Session session(model);
    loci::GenerateOptions options;
    options.max_tokens = 12;
    options.ignore_eos = 1;
    const std::vector<loci_token> prompt = model.tokenize("the key is");
    session.prompt(prompt);
    std::string pushed;
    CHECK(session.generate(
              [&](std::string_view text) {
                  pushed += text;
                  return true;
              },
              options) == LOCI_FINISH_LENGTH);

    session.reset();
    session.prompt(prompt);
    session.start(options);
    std::string pulled;
    loci_piece piece;
    do {
        piece = session.next();
        pulled.append(piece.text, piece.text_len);
    } while (piece.finish == LOCI_FINISH_NONE);
    CHECK(piece.finish == LOCI_FINISH_LENGTH && pulled == pushed);

    session.truncate(prompt.size());
    session.prompt(prompt);
    CHECK(session.generate([](std::string_view) { return false; }, options) == LOCI_FINISH_CALLBACK);

    // What a callback throws comes out of the call, and the session goes on.
    session.reset();
    session.prompt(prompt);
    int caught = 0;
    try {
        session.generate([](std::string_view) -> bool { throw Mine{7}; }, options);
    } catch (const Mine &mine) {
        caught = mine.value;
    }
    CHECK(caught == 7);
    session.reset();
    try {
        session.prefill("the key is here and there", 0, [](std::uint64_t, std::uint64_t) -> bool { throw Mine{8}; });
    } catch (const Mine &mine) {
        caught = mine.value;
    }
    CHECK(caught == 8);
    session.reset();
    session.prompt(prompt);
    CHECK(session.size() == prompt.size() && session.stats().prefill_tokens > 0);

    CHECK(session.embed(prompt).size() == loci_model_embedding_length(model.get()));
    session.prompt(prompt);
    session.trim();
    CHECK(session.size() == prompt.size() && model.estimate().total_bytes > 0);

    // A fork and a saved session answer as the first one does.
    const auto answer = [&](loci::Session &s) {
        std::string text;
        s.generate(
            [&](std::string_view piece) {
                text += piece;
                return true;
            },
            options);
        return text;
    };
    const std::string saved = dir + "/wrapper.session";
    session.save(saved);
    loci::Session forked = session.fork(), loaded = loci::Session::load(model, saved);
    const std::string first = answer(session);
    CHECK(answer(forked) == first && answer(loaded) == first);
    session.truncate(prompt.size());

    loci::Session other(model);
    other = std::move(session);
    CHECK(session.get() == nullptr && other.size() == prompt.size());
}

static void memory(const loci::Model &model, const std::string &dir) {
    const std::string path = dir + "/wrapper.lmem";
    {
        loci::Memory memory = loci::Memory::create(model, path);
        loci::Session session(model);
        std::uint64_t last = 0;
        session.remember(memory, "the key is under the stone. the stone is by the river.", "notes", 0, [&](std::uint64_t done, std::uint64_t) {
            last = done;
            return true;
        });
        memory.commit();
        CHECK(last > 0 && memory.size() == last);
    }
    const loci::Memory memory = loci::Memory::open_read_only(model, path);
    loci::Session session(model);
    CHECK(session.attach(memory) == 0 && session.stats().memory_tokens == memory.size());
    session.detach_memories();
    CHECK(session.stats().memory_tokens == 0);
}

int main(int argc, char **argv) {
    CHECK(argc == 3);
    loci::Model model(argv[1]);
    errors_are_exceptions(model, argv[2]);
    text_and_tokens(model);
    generation(model, argv[2]);
    memory(model, argv[2]);
    // The session keeps the model, whichever ends first.
    loci::Session session(model);
    model = loci::Model(argv[1]);
    session.prefill("the key");
    return 0;
}
