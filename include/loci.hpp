// SPDX-License-Identifier: MIT OR Apache-2.0
//
// loci.hpp - loci.h for C++17: handles that free themselves, errors as exceptions, text as strings. Header only; nothing here does more
// than call loci.h, which remains the manual. What is not wrapped is reached by get().
//
//   #include <loci.hpp>
//   #include <iostream>
//
//   int main(int, char **argv) {
//       loci::Model model(argv[1]);
//       loci::Session session(model);
//       session.prompt(model.chat({{"user", "Why is the sky blue?"}}), LOCI_PARSE_SPECIAL);
//       session.generate([](std::string_view text) { std::cout << text << std::flush; return true; });
//   }
//
// Every function may throw loci::Error, destructors excepted. Callbacks may throw: the call is ended first and the exception comes out of
// the function that was given the callback. Objects can be moved, not copied; a moved-from one may only be destroyed or assigned to.
// Threads: as loci.h says.
#ifndef LOCI_HPP
#define LOCI_HPP

#include "loci.h"

#include <cstdint>
#include <exception>
#include <functional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace loci {

// A status that is not LOCI_OK, with what loci_last_error() said.
class Error : public std::runtime_error {
public:
    explicit Error(loci_status status) : std::runtime_error(loci_last_error()), status_(status) {}
    loci_status status() const noexcept { return status_; }

private:
    loci_status status_;
};

inline void check(loci_status status) {
    if (status != LOCI_OK) throw Error(status);
}

namespace detail {

// A handle and the function that frees it.
template <typename T, void (*Free)(T *)>
class Handle {
public:
    Handle() noexcept = default;
    explicit Handle(T *handle) noexcept : handle_(handle) {}
    Handle(Handle &&other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
    Handle &operator=(Handle &&other) noexcept {
        if (this != &other) {
            Free(handle_);
            handle_ = std::exchange(other.handle_, nullptr);
        }
        return *this;
    }
    Handle(const Handle &) = delete;
    Handle &operator=(const Handle &) = delete;
    ~Handle() { Free(handle_); }
    T *get() const noexcept { return handle_; }

private:
    T *handle_ = nullptr;
};

// loci.h takes no NULL for a text, an empty std::string_view may have one.
inline const char *data(std::string_view text) noexcept { return text.data() ? text.data() : ""; }

// What a function writes to a buffer: asked for its length first.
template <typename Write>
std::string text(Write write) {
    std::size_t length = 0;
    loci_status status = write(nullptr, 0, &length);
    if (status != LOCI_BUFFER_TOO_SMALL) check(status);
    std::string out(length, '\0');
    // One more than size() may be written: the NUL that std::string ends with.
    check(write(out.data(), length + 1, &length));
    out.resize(length);
    return out;
}

// A callback that must not throw through C, and the exception that it threw.
template <typename F>
struct Guarded {
    const F &call;
    std::exception_ptr thrown;

    template <typename... Args>
    std::int32_t operator()(Args &&...args) noexcept {
        try {
            return call(std::forward<Args>(args)...) ? 0 : 1;
        } catch (...) {
            thrown = std::current_exception();
            return 1;
        }
    }
    void rethrow() const {
        if (thrown) std::rethrow_exception(thrown);
    }
};

} // namespace detail

// false stops the work, which then throws Error with LOCI_CANCELLED, unless that was its last report.
using Progress = std::function<bool(std::uint64_t done, std::uint64_t total)>;
// false ends the answer with LOCI_FINISH_CALLBACK.
using OnText = std::function<bool(std::string_view text)>;
using OnPiece = std::function<bool(const loci_piece &piece)>;

struct Message {
    std::string role;
    std::string content;
};

// Options with their defaults: change fields, then hand them over.
struct ModelOptions : loci_model_options {
    ModelOptions() { check(loci_model_options_init(this, sizeof(loci_model_options))); }
};
struct SessionOptions : loci_session_options {
    SessionOptions() { check(loci_session_options_init(this, sizeof(loci_session_options))); }
};
struct SamplerOptions : loci_sampler_options {
    SamplerOptions() { check(loci_sampler_options_init(this, sizeof(loci_sampler_options))); }
};
struct GenerateOptions : loci_generate_options {
    GenerateOptions() { check(loci_generate_options_init(this, sizeof(loci_generate_options))); }
};

class Model {
public:
    explicit Model(const std::string &path, const ModelOptions &options = ModelOptions()) : handle_(open(path, options)) {}
    static Model from_fd(int fd, std::uint64_t offset = 0, std::uint64_t length = 0, const ModelOptions &options = ModelOptions()) {
        loci_model *out = nullptr;
        check(loci_model_open_fd(fd, offset, length, &options, &out));
        return Model(out);
    }
    // The bytes are copied.
    static Model from_memory(const void *bytes, std::size_t length, const ModelOptions &options = ModelOptions()) {
        loci_model *out = nullptr;
        check(loci_model_open_memory(bytes, length, &options, &out));
        return Model(out);
    }

    std::vector<loci_token> tokenize(std::string_view text, std::uint32_t flags = 0) const {
        std::size_t count = 0;
        loci_status status = loci_model_tokenize(get(), detail::data(text), text.size(), flags, nullptr, 0, &count);
        if (status != LOCI_BUFFER_TOO_SMALL) check(status);
        std::vector<loci_token> tokens(count);
        if (count > 0) check(loci_model_tokenize(get(), detail::data(text), text.size(), flags, tokens.data(), tokens.size(), &count));
        return tokens;
    }
    std::string detokenize(const std::vector<loci_token> &tokens, std::uint32_t flags = 0) const {
        return detail::text([&](char *buffer, std::size_t capacity, std::size_t *length) {
            return loci_model_detokenize(get(), tokens.data(), tokens.size(), flags, buffer, capacity, length);
        });
    }
    // A conversation as the model's chat template writes it; prompt it with LOCI_PARSE_SPECIAL.
    std::string chat(const std::vector<Message> &messages, bool add_generation_prompt = true) const {
        std::vector<const char *> roles, contents;
        for (const Message &message : messages) {
            roles.push_back(message.role.c_str());
            contents.push_back(message.content.c_str());
        }
        return detail::text([&](char *buffer, std::size_t capacity, std::size_t *length) {
            return loci_model_chat_render(get(), roles.data(), contents.data(), messages.size(), add_generation_prompt ? 1 : 0, buffer,
                                          capacity, length);
        });
    }
    std::string metadata(const std::string &key) const {
        return detail::text([&](char *buffer, std::size_t capacity, std::size_t *length) {
            return loci_model_metadata(get(), key.c_str(), buffer, capacity, length);
        });
    }

    loci_estimate estimate(const SessionOptions &options = SessionOptions(), bool with_memory = false) const {
        loci_estimate out = {};
        out.struct_size = sizeof out;
        check(loci_model_estimate(get(), &options, with_memory ? 1 : 0, &out));
        return out;
    }
    void trim() { check(loci_model_trim(get())); }

    loci_model *get() const noexcept { return handle_.get(); }

private:
    explicit Model(loci_model *handle) : handle_(handle) {}
    static loci_model *open(const std::string &path, const ModelOptions &options) {
        loci_model *out = nullptr;
        check(loci_model_open(path.c_str(), &options, &out));
        return out;
    }
    detail::Handle<loci_model, loci_model_free> handle_;
};

class Memory {
public:
    static Memory create(const Model &model, const std::string &path) { return made(loci_memory_create, model.get(), path); }
    static Memory open(const Model &model, const std::string &path) { return made(loci_memory_open, model.get(), path); }
    static Memory open_read_only(const Model &model, const std::string &path) {
        return made(loci_memory_open_read_only, model.get(), path);
    }
    static Memory in_ram(const Model &model) {
        loci_memory *out = nullptr;
        check(loci_memory_in_ram(model.get(), &out));
        return Memory(out);
    }

    void commit() { check(loci_memory_commit(get())); }
    /* True if the writer of a memory opened read-only has committed something since. */
    bool refresh() {
        std::int32_t more = 0;
        check(loci_memory_refresh(get(), &more));
        return more != 0;
    }
    std::uint64_t size() const {
        std::uint64_t length = 0;
        check(loci_memory_len(get(), &length));
        return length;
    }

    loci_memory *get() const noexcept { return handle_.get(); }

private:
    using Make = loci_status (*)(const loci_model *, const char *, loci_memory **);
    explicit Memory(loci_memory *handle) : handle_(handle) {}
    static Memory made(Make make, const loci_model *model, const std::string &path) {
        loci_memory *out = nullptr;
        check(make(model, path.c_str(), &out));
        return Memory(out);
    }
    detail::Handle<loci_memory, loci_memory_free> handle_;
};

class Session {
public:
    explicit Session(const Model &model, const SessionOptions &options = SessionOptions()) : handle_(make(model, options)) {}

    void prefill(std::string_view text, std::uint32_t flags = 0, const Progress &progress = {}) {
        read(progress, [&](loci_progress_fn fn, void *user) {
            return loci_session_prefill_text(get(), detail::data(text), text.size(), flags, fn, user);
        });
    }
    // The whole conversation so far: what is held already is kept.
    void prompt(std::string_view text, std::uint32_t flags = 0, const Progress &progress = {}) {
        read(progress, [&](loci_progress_fn fn, void *user) {
            return loci_session_prompt_text(get(), detail::data(text), text.size(), flags, fn, user);
        });
    }
    void prompt(const std::vector<loci_token> &tokens, const Progress &progress = {}) {
        read(progress, [&](loci_progress_fn fn, void *user) {
            return loci_session_prompt(get(), tokens.data(), tokens.size(), fn, user);
        });
    }

    // Answers, handing out text as it becomes certain.
    loci_finish generate(const OnText &on_text, const GenerateOptions &options = GenerateOptions()) {
        return generate_pieces([&](const loci_piece &piece) { return on_text(std::string_view(piece.text, piece.text_len)); }, options);
    }
    loci_finish generate_pieces(const OnPiece &on_piece, const GenerateOptions &options = GenerateOptions()) {
        detail::Guarded<OnPiece> guarded{on_piece, nullptr};
        loci_finish finish = LOCI_FINISH_NONE;
        loci_status status = loci_session_generate(
            get(), &options,
            [](void *user, const loci_piece *piece) -> std::int32_t { return (*static_cast<detail::Guarded<OnPiece> *>(user))(*piece); },
            &guarded, &finish);
        guarded.rethrow();
        check(status);
        return finish;
    }
    // The same, pulled: next() until the piece's finish is not LOCI_FINISH_NONE. Its pointers are valid until the next call.
    void start(const GenerateOptions &options = GenerateOptions()) { check(loci_session_start(get(), &options)); }
    loci_piece next() {
        loci_piece piece = {};
        piece.struct_size = sizeof piece;
        check(loci_session_next(get(), &piece));
        return piece;
    }

    // Reads text into a memory; commit the memory to keep it.
    void remember(Memory &memory, std::string_view text, const std::string &source = {}, std::uint32_t flags = 0,
                  const Progress &progress = {}) {
        const char *label = source.empty() ? nullptr : source.c_str();
        read(progress, [&](loci_progress_fn fn, void *user) {
            return loci_session_remember_text(get(), memory.get(), detail::data(text), text.size(), flags, label, fn, user);
        });
    }
    std::uint32_t attach(const Memory &memory) {
        std::uint32_t index = 0;
        check(loci_session_attach_memory(get(), memory.get(), &index));
        return index;
    }
    void detach_memories() { check(loci_session_detach_memories(get())); }

    // Of length 1. The context is reset.
    std::vector<float> embed(const std::vector<loci_token> &tokens, loci_pooling pooling = LOCI_POOLING_MEAN) {
        std::size_t length = 0;
        loci_status status = loci_session_embed(get(), tokens.data(), tokens.size(), pooling, nullptr, nullptr, nullptr, 0, &length);
        if (status != LOCI_BUFFER_TOO_SMALL) check(status);
        std::vector<float> values(length);
        check(loci_session_embed(get(), tokens.data(), tokens.size(), pooling, nullptr, nullptr, values.data(), values.size(), &length));
        return values;
    }
    void trim() { check(loci_session_trim(get())); }

    // To a file, and back, with the memories that it had attached (those not given are opened for reading).
    void save(const std::string &path) const { check(loci_session_save(get(), path.c_str())); }
    static Session load(const Model &model, const std::string &path, const std::vector<const Memory *> &memories = {}) {
        std::vector<loci_memory *> handles;
        for (const Memory *memory : memories) handles.push_back(memory->get());
        loci_session *out = nullptr;
        check(loci_session_load(model.get(), path.c_str(), handles.data(), handles.size(), &out));
        return Session(out);
    }
    // Another session that goes on from here.
    Session fork() const {
        loci_session *out = nullptr;
        check(loci_session_fork(get(), &out));
        return Session(out);
    }

    void reset() { check(loci_session_reset(get())); }
    void truncate(std::size_t length) { check(loci_session_truncate(get(), length)); }
    std::size_t size() const {
        std::size_t length = 0;
        check(loci_session_len(get(), &length));
        return length;
    }
    void set_sampler(const SamplerOptions &options) { check(loci_session_set_sampler(get(), &options)); }
    void set_threads(std::uint32_t threads) { check(loci_session_set_threads(get(), threads)); }
    void set_duty(std::uint32_t percent) { check(loci_session_set_duty(get(), percent)); }
    loci_session_stats stats() const {
        loci_session_stats out = {};
        out.struct_size = sizeof out;
        check(loci_session_stats_get(get(), &out));
        return out;
    }
    // From any thread.
    void cancel() noexcept { loci_session_cancel(get()); }

    loci_session *get() const noexcept { return handle_.get(); }

private:
    explicit Session(loci_session *handle) : handle_(handle) {}
    template <typename Call>
    void read(const Progress &progress, Call call) {
        detail::Guarded<Progress> guarded{progress, nullptr};
        loci_progress_fn fn = nullptr;
        if (progress)
            fn = [](void *user, std::uint64_t done, std::uint64_t total) -> std::int32_t {
                return (*static_cast<detail::Guarded<Progress> *>(user))(done, total);
            };
        loci_status status = call(fn, &guarded);
        guarded.rethrow();
        check(status);
    }
    static loci_session *make(const Model &model, const SessionOptions &options) {
        loci_session *out = nullptr;
        check(loci_session_new(model.get(), &options, &out));
        return out;
    }
    detail::Handle<loci_session, loci_session_free> handle_;
};

} // namespace loci

#endif // LOCI_HPP
