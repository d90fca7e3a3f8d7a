//! Metadata keys which more than one reader needs, spelled once.

/// `general.architecture`: the name of the model family, and the prefix of its own keys.
pub const ARCHITECTURE: &str = "general.architecture";
/// `general.name`
pub const NAME: &str = "general.name";
/// `tokenizer.ggml.model`: `gpt2`, `llama` ...
pub const TOKENIZER_MODEL: &str = "tokenizer.ggml.model";
/// `tokenizer.ggml.pre`: which pre-tokenizer a byte-level BPE uses.
pub const TOKENIZER_PRE: &str = "tokenizer.ggml.pre";
/// `tokenizer.ggml.tokens`
pub const TOKENIZER_TOKENS: &str = "tokenizer.ggml.tokens";
/// `tokenizer.chat_template`
pub const CHAT_TEMPLATE: &str = "tokenizer.chat_template";
