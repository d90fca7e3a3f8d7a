//! Pre-tokenizers: what a byte-level BPE cuts the text into before it merges, by `tokenizer.ggml.pre`.
//!
//! A model is right only with the splitter it was trained with, which each publishes as one or several regular expressions;
//! these are those expressions, evaluated by hand. A splitter is a list of passes: each cuts every piece of the one before it
//! into its matches and what lies between them, and sees the ends of the piece as the ends of the text. Every pass is linear
//! in the length of the text. `(?i:'s)` matches the long s (U+017F) too, as the expressions' engines do.

use super::unicode::{ANY, Char, L, LL, LM, LO, LT, LU, M, Mask, N, ND, P, S, WS, char_at, is_word};

/// How a `tokenizer.ggml.pre` splits, and what else hangs on it.
#[derive(Clone, Copy)]
pub(super) struct PreTokenizer {
    passes: &'static [Pass],
    /// A piece that is a token as it stands is not merged.
    pub ignore_merges: bool,
    /// BOS is added where the file does not say.
    pub add_bos: bool,
}

/// One way to find the next match.
enum Pass {
    /// GPT-2: `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`
    Gpt2,
    /// Llama 3 and its relatives: see [`Words`].
    Words(Words),
    /// GPT-4o and Tekken: words end where upper case follows lower case; see [`Cased`].
    Cased(Cased),
    /// DeepSeek V3: `[!-/:-@\[-`{-~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
    DeepSeekV3,
    /// A run of the characters of one set, `len_max` at most, perhaps behind one character of another.
    Run { before: fn(Char) -> bool, set: fn(Char) -> bool, len_max: usize },
    /// `[0-9][0-9][0-9]`
    ThreeDigits,
    /// `\d{1,3}(?=(?:\d{3})*\b)`: threes counted from the right.
    DigitGroups,
    /// `\s+$`
    TrailingSpace,
}

/// `CONTRACTION|[^\r\n\p{L}\p{N}]?LETTERS+|\p{N}{1,digits_max}| ?[^\s LETTERS \p{N}]+TAIL*|\s*[\r\n]+|\s+(?!\S)|\s+`
struct Words {
    contractions: bool,
    letters: Mask,
    digits_max: usize,
    /// Whether newlines that follow punctuation belong to it.
    newline_tail: bool,
}

/// `[^\r\n\p{L}\p{N}]?UPPER*LOWER+CONTRACTION?|[^\r\n\p{L}\p{N}]?UPPER+LOWER*CONTRACTION?|\p{N}{1,digits_max}|
///  ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+` with UPPER = Lu Lt Lm Lo M and LOWER = Ll Lm Lo M.
struct Cased {
    contractions: bool,
    digits_max: usize,
}

const fn run(set: fn(Char) -> bool, len_max: usize) -> Pass {
    Pass::Run { before: |_| false, set, len_max }
}

const WORDS: Words = Words { contractions: true, letters: L, digits_max: 3, newline_tail: true };

static LLAMA3: [Pass; 1] = [Pass::Words(WORDS)];
static QWEN2: [Pass; 1] = [Pass::Words(Words { digits_max: 1, ..WORDS })];
static QWEN35: [Pass; 1] = [Pass::Words(Words { digits_max: 1, letters: L | M, ..WORDS })];
static SEED_CODER: [Pass; 1] = [Pass::Words(Words { digits_max: 1, newline_tail: false, ..WORDS })];
static UFAKZEKA: [Pass; 1] = [Pass::Words(Words { digits_max: 1, contractions: false, ..WORDS })];
static MINICPM5: [Pass; 2] = [run(|c| c.is(N), 3), Pass::Words(Words { digits_max: usize::MAX, ..WORDS })];
static LAGUNA: [Pass; 2] = [run(|c| c.cp == '\n' as u32, usize::MAX), Pass::Words(Words { digits_max: 1, ..WORDS })];
static GPT2: [Pass; 1] = [Pass::Gpt2];
static SMOLLM: [Pass; 2] = [run(|c| c.is(N), 1), Pass::Gpt2];
static GPT4O: [Pass; 1] = [Pass::Cased(Cased { contractions: true, digits_max: 3 })];
static TINY_AYA: [Pass; 2] = [Pass::DigitGroups, Pass::Cased(Cased { contractions: true, digits_max: 3 })];
static TEKKEN: [Pass; 1] = [Pass::Cased(Cased { contractions: false, digits_max: 1 })];
static YOUTU: [Pass; 5] = [
    run(|c| matches!(c.cp, 0xAC00..=0xD7A3 | 0x3131..=0x318E), usize::MAX),
    run(
        |c| matches!(c.cp, 0xFF01 | 0x2026 | 0x201C | 0x201D | 0x2018 | 0x2019 | 0x2014 | 0xFF1A | 0xFF1B | 0xFF0C | 0x3001..=0x303F | 0xFE30..=0xFE4F),
        usize::MAX,
    ),
    run(|c| matches!(c.cp, 0x3105..=0x312F), usize::MAX),
    run(is_kanji_or_kana, usize::MAX),
    Pass::Cased(Cased { contractions: true, digits_max: 1 }),
];
static DEEPSEEK_V3: [Pass; 3] = [run(|c| c.is(N), 3), run(is_kanji_or_kana, usize::MAX), Pass::DeepSeekV3];
static DEEPSEEK_CODER: [Pass; 5] = [
    run(Char::is_newline, 1),
    Pass::Run { before: |c| c.is(WS), set: |c| c.is(L), len_max: usize::MAX },
    Pass::Run { before: |c| c.is(WS), set: |c| c.is(P), len_max: usize::MAX },
    run(is_east_asian, usize::MAX),
    run(|c| c.is(N), 1),
];
static DEEPSEEK_LLM: [Pass; 6] = [
    run(Char::is_newline, 1),
    Pass::Run { before: |c| c.is(WS), set: is_cased_script, len_max: usize::MAX },
    Pass::Run {
        before: |c| c.is(WS),
        set: |c| matches!(c.cp, 0x21..=0x2F | 0x3A..=0x7E | 0xFF01..=0xFF0F | 0xFF1A..=0xFF5E | 0x2018..=0x201F | 0x3000..=0x3002),
        len_max: usize::MAX,
    },
    Pass::TrailingSpace,
    run(is_east_asian, usize::MAX),
    run(|c| c.is(N), usize::MAX),
];
static FALCON: [Pass; 3] =
    [run(|c| c.is(P) || b"$+<=>^~|`".iter().any(|b| c.cp == u32::from(*b)), usize::MAX), Pass::Gpt2, Pass::ThreeDigits];
static DEFAULT: [Pass; 4] = [
    run(|c| c.is(P) || b"$+<=>^~|".iter().any(|b| c.cp == u32::from(*b)), usize::MAX),
    Pass::Gpt2,
    run(|c| c.is(N), usize::MAX),
    Pass::ThreeDigits,
];
static BLOOM: [Pass; 1] = [Pass::Run { before: |c| c.cp == ' ' as u32, set: is_bloom_word, len_max: usize::MAX }];
static VIKING: [Pass; 2] = [Pass::Run { before: |c| c.cp == ' ' as u32, set: is_bloom_word, len_max: usize::MAX }, run(|c| c.is(N), 1)];
/// Gemma 4 merges whole lines.
static NEWLINES: [Pass; 1] = [run(|c| c.cp == '\n' as u32, usize::MAX)];

/// `[一-龥぀-ゟ゠-ヿ]`
fn is_kanji_or_kana(c: Char) -> bool {
    matches!(c.cp, 0x4E00..=0x9FA5 | 0x3040..=0x30FF)
}

/// `[一-龥ࠀ-一가-퟿]`
fn is_east_asian(c: Char) -> bool {
    matches!(c.cp, 0x0800..=0x9FA5 | 0xAC00..=0xD7FF)
}

/// `[^(\s|.,!?…。，、।۔،)]`
fn is_bloom_word(c: Char) -> bool {
    const NOT: &str = "(|.,!?\u{2026}\u{3002}\u{FF0C}\u{3001}\u{964}\u{6D4}\u{60C})";
    c.is(ANY & !WS) && !NOT.chars().any(|n| n as u32 == c.cp)
}

/// Letters of the scripts that have case, as the expression of DeepSeek LLM lists them (first and last of each range).
fn is_cased_script(c: Char) -> bool {
    #[rustfmt::skip]
    const RANGES: [(u32, u32); 84] = [
        (0x41, 0x5a), (0x61, 0x7a), (0xb5, 0xb5), (0xc0, 0xd6), (0xd8, 0xf6), (0xf8, 0x1ba), (0x1bc, 0x1bf), (0x1c4, 0x293),
        (0x295, 0x2af), (0x370, 0x373), (0x376, 0x377), (0x37b, 0x37d), (0x37f, 0x37f), (0x386, 0x386), (0x388, 0x38a),
        (0x38c, 0x38c), (0x38e, 0x3a1), (0x3a3, 0x3f5), (0x3f7, 0x481), (0x48a, 0x52f), (0x531, 0x556), (0x10a0, 0x10c5),
        (0x13a0, 0x13f5), (0x13f8, 0x13fd), (0x1c90, 0x1cba), (0x1cbd, 0x1cbf), (0x1d00, 0x1d2b), (0x1d6b, 0x1d77),
        (0x1d79, 0x1d9a), (0x1e00, 0x1f15), (0x1f18, 0x1f1d), (0x1f20, 0x1f45), (0x1f48, 0x1f4d), (0x1f50, 0x1f57),
        (0x1f59, 0x1f59), (0x1f5b, 0x1f5b), (0x1f5d, 0x1f5d), (0x1f5f, 0x1f7d), (0x1f80, 0x1fb4), (0x1fb6, 0x1fbc),
        (0x1fbe, 0x1fbe), (0x1fc2, 0x1fc4), (0x1fc6, 0x1fcc), (0x1fd0, 0x1fd3), (0x1fd6, 0x1fdb), (0x1fe0, 0x1fec),
        (0x1ff2, 0x1ff4), (0x1ff6, 0x1ffc), (0x2102, 0x2102), (0x2107, 0x2107), (0x210a, 0x2113), (0x2115, 0x2115),
        (0x2119, 0x211d), (0x2124, 0x2124), (0x2126, 0x2126), (0x2128, 0x2128), (0x212a, 0x212d), (0x212f, 0x2134),
        (0x2139, 0x2139), (0x213c, 0x213f), (0x2145, 0x2149), (0x214e, 0x214e), (0x2183, 0x2184), (0x2c00, 0x2c7b),
        (0x2c7e, 0x2ce4), (0x2ceb, 0x2cee), (0x2cf2, 0x2cf3), (0xa640, 0xa66d), (0xa680, 0xa69b), (0xa722, 0xa76f),
        (0xa771, 0xa787), (0xa78b, 0xa78e), (0xab70, 0xabbf), (0xfb00, 0xfb06), (0xfb13, 0xfb17), (0xff21, 0xff3a),
        (0xff41, 0xff5a), (0x10400, 0x1044f), (0x104b0, 0x104d3), (0x104d8, 0x104fb), (0x10c80, 0x10cb2), (0x10cc0, 0x10cf2),
        (0x118a0, 0x118df), (0x1e900, 0x1e943),
    ];
    let i = RANGES.partition_point(|r| r.0 <= c.cp);
    i > 0 && c.cp <= RANGES[i - 1].1
}

impl PreTokenizer {
    /// The splitter of a `tokenizer.ggml.pre`; `None` for a name that is not known here.
    pub fn by_name(name: &str) -> Option<PreTokenizer> {
        let passes: &'static [Pass] = match name {
            "default" => &DEFAULT,
            "llama3" | "llama-v3" | "llama-bpe" | "falcon3" | "falcon-h1" | "pixtral" | "midm-2.0" | "lfm2" | "jina-v5-nano" => &LLAMA3,
            "dbrx" | "smaug-bpe" | "chatglm-bpe" | "glm4" | "glm5" => &LLAMA3,
            "qwen2" | "deepseek-r1-qwen" | "kormo" | "f2llmv2" | "megrez" | "stablelm2" | "hunyuan" | "solar-open" | "grok-2" => &QWEN2,
            // Their expressions differ from Qwen's in ways that never change a match.
            "bailingmoe" | "bailingmoe2" | "llada-moe" => &QWEN2,
            "qwen35" => &QWEN35,
            "seed-coder" => &SEED_CODER,
            "ufakzeka" => &UFAKZEKA,
            "minicpm5" => &MINICPM5,
            "laguna" => &LAGUNA,
            "gpt-2" | "phi-2" | "jina-es" | "jina-de" | "jina-v1-en" | "jina-v2-es" | "jina-v2-de" | "jina-v2-code" | "roberta-bpe" => {
                &GPT2
            }
            "gigachat" | "a.x-4.0" | "mellum" | "modern-bert" | "mpt" | "olmo" | "jais" | "trillion" | "granite-docling" | "exaone4" => {
                &GPT2
            }
            "smollm" | "starcoder" | "refact" | "command-r" | "codeshell" | "exaone" | "minerva-7b" | "mellum2" => &SMOLLM,
            "gpt-4o" | "llama4" | "kanana2" | "talkie" | "minimax-m2" => &GPT4O,
            "tiny_aya" | "cohere2moe" => &TINY_AYA,
            "tekken" => &TEKKEN,
            "youtu" => &YOUTU,
            "deepseek-v3" | "hunyuan-dense" | "joyai-llm" | "hy_v4" => &DEEPSEEK_V3,
            "deepseek-coder" => &DEEPSEEK_CODER,
            "deepseek-llm" => &DEEPSEEK_LLM,
            "falcon" => &FALCON,
            "bloom" | "gpt3-finnish" | "poro-chat" => &BLOOM,
            "viking" => &VIKING,
            _ => return None,
        };
        let llama3 = std::ptr::eq(passes, &LLAMA3) && !matches!(name, "dbrx" | "smaug-bpe" | "chatglm-bpe" | "glm4" | "glm5");
        Some(PreTokenizer {
            passes,
            ignore_merges: llama3 || matches!(name, "tekken" | "youtu" | "minicpm5" | "glm4" | "glm5"),
            add_bos: llama3 || name == "tekken",
        })
    }

    /// The splitter of `tokenizer.ggml.model` gemma4.
    pub fn newlines() -> PreTokenizer {
        PreTokenizer { passes: &NEWLINES, ignore_merges: false, add_bos: true }
    }

    /// Hands each piece of `text` to `emit`, in order; together they are `text`.
    pub fn split(&self, text: &[u8], emit: &mut impl FnMut(&[u8])) {
        split(self.passes, text, emit);
    }
}

fn split(passes: &[Pass], text: &[u8], emit: &mut impl FnMut(&[u8])) {
    if text.is_empty() {
        return;
    }
    let Some((pass, rest)) = passes.split_first() else { return emit(text) };
    let trailing = if matches!(pass, Pass::TrailingSpace) { trailing_space(text) } else { text.len() };
    let (mut unmatched, mut pos) = (0, 0);
    while pos < text.len() {
        let len = match pass {
            Pass::TrailingSpace => {
                pos = trailing;
                text.len() - trailing
            }
            Pass::Gpt2 => gpt2(text, pos),
            Pass::Words(words) => words.match_at(text, pos),
            Pass::Cased(cased) => cased.match_at(text, pos),
            Pass::DeepSeekV3 => deepseek_v3(text, pos),
            Pass::Run { before, set, len_max } => run_at(text, pos, *before, *set, *len_max),
            Pass::ThreeDigits => three_digits(text, pos),
            Pass::DigitGroups => {
                // A whole run of digits at once, or its look-ahead would be evaluated over again for each group.
                let digits = while_in(text, pos, ND) - pos;
                if digits > 0 && !is_word(char_at(text, pos + digits)) {
                    split(rest, &text[unmatched..pos], emit);
                    emit_digit_groups(rest, &text[pos..pos + digits], emit);
                    unmatched = pos + digits;
                }
                pos += digits.max(char_at(text, pos).len);
                continue;
            }
        };
        if len == 0 {
            pos += char_at(text, pos).len;
            continue;
        }
        split(rest, &text[unmatched..pos], emit);
        split(rest, &text[pos..pos + len], emit);
        pos += len;
        unmatched = pos;
    }
    split(rest, &text[unmatched..], emit);
}

/// The end of the characters in `mask` from `pos` on.
#[inline]
fn while_in(text: &[u8], mut pos: usize, mask: Mask) -> usize {
    loop {
        let c = char_at(text, pos);
        if !c.is(mask) {
            return pos;
        }
        pos += c.len;
    }
}

/// The same for `len_max` characters at most.
fn while_in_at_most(text: &[u8], mut pos: usize, mask: Mask, len_max: usize) -> usize {
    for _ in 0..len_max {
        let c = char_at(text, pos);
        if !c.is(mask) {
            break;
        }
        pos += c.len;
    }
    pos
}

/// The length of a contraction at `pos`, 0 if there is none.
fn contraction(text: &[u8], pos: usize, any_case: bool) -> usize {
    let fold = |i: usize| {
        let b = text.get(pos + i).copied().unwrap_or(0);
        if any_case { b.to_ascii_lowercase() } else { b }
    };
    if fold(0) != b'\'' {
        return 0;
    }
    match (fold(1), fold(2)) {
        (b's' | b't' | b'm' | b'd', _) => 2,
        (b'r' | b'v', b'e') | (b'l', b'l') => 3,
        (0xC5, 0xBF) if any_case => 3,
        _ => 0,
    }
}

/// `\s+(?!\S)|\s+`, with `\s*[\r\n]+|` before it if `newlines`.
fn space(text: &[u8], pos: usize, newlines: bool) -> usize {
    let (mut end, mut last, mut newline_end) = (pos, pos, pos);
    loop {
        let c = char_at(text, end);
        if !c.is(WS) {
            break;
        }
        last = end;
        end += c.len;
        if c.is_newline() {
            newline_end = end;
        }
    }
    if newlines && newline_end > pos {
        newline_end - pos
    } else if last > pos && end < text.len() {
        // The last space stays with what follows it.
        last - pos
    } else {
        end - pos
    }
}

fn gpt2(text: &[u8], pos: usize) -> usize {
    let n = contraction(text, pos, false);
    if n > 0 {
        return n;
    }
    let first = char_at(text, pos);
    let start = if first.cp == ' ' as u32 { pos + 1 } else { pos };
    let c = char_at(text, start);
    let set = [L, N, ANY & !(WS | L | N)].into_iter().find(|set| c.is(*set));
    match set {
        Some(set) => while_in(text, start + c.len, set) - pos,
        None => space(text, pos, false),
    }
}

/// ` ?[PUNCTUATION]+`, then newlines if `tail`, and slashes among them if `slashes`; 0 if there is no punctuation.
fn punctuation(text: &[u8], pos: usize, set: Mask, tail: bool, slashes: bool) -> usize {
    let start = if char_at(text, pos).cp == ' ' as u32 { pos + 1 } else { pos };
    let mut end = while_in(text, start, set);
    if end == start {
        return 0;
    }
    while tail && (char_at(text, end).is_newline() || slashes && text.get(end) == Some(&b'/')) {
        end += 1;
    }
    end - pos
}

impl Words {
    #[inline]
    fn match_at(&self, text: &[u8], pos: usize) -> usize {
        let n = if self.contractions { contraction(text, pos, true) } else { 0 };
        if n > 0 {
            return n;
        }
        let c = char_at(text, pos);
        if c.is(self.letters) || (c.is(ANY & !(L | N)) && !c.is_newline() && char_at(text, pos + c.len).is(self.letters)) {
            return while_in(text, pos + c.len, self.letters) - pos;
        }
        if c.is(N) {
            return while_in_at_most(text, pos, N, self.digits_max) - pos;
        }
        match punctuation(text, pos, ANY & !(WS | N | self.letters), self.newline_tail, false) {
            0 => space(text, pos, true),
            n => n,
        }
    }
}

impl Cased {
    fn match_at(&self, text: &[u8], pos: usize) -> usize {
        let c = char_at(text, pos);
        let prefixed = if c.is(ANY & !(L | N)) && !c.is_newline() { Some(pos + c.len) } else { None };
        let starts = [prefixed, Some(pos)].into_iter().flatten();
        let end =
            starts.clone().find_map(|start| lower_word(text, start)).or_else(|| starts.clone().find_map(|start| upper_word(text, start)));
        if let Some(end) = end {
            let tail = if self.contractions { contraction(text, end, true) } else { 0 };
            return end + tail - pos;
        }
        if c.is(N) {
            return while_in_at_most(text, pos, N, self.digits_max) - pos;
        }
        match punctuation(text, pos, ANY & !(WS | L | N), true, true) {
            0 => space(text, pos, true),
            n => n,
        }
    }
}

const UPPER: Mask = LU | LT | LM | LO | M;
const LOWER: Mask = LL | LM | LO | M;

/// `UPPER*LOWER+`: the end of the match.
fn lower_word(text: &[u8], start: usize) -> Option<usize> {
    // UPPER* takes all it can and gives back what LOWER+ needs: the last character that is in both sets, if what follows is
    // not in LOWER anyway.
    let (mut pos, mut both_end) = (start, None);
    loop {
        let c = char_at(text, pos);
        if !c.is(UPPER) {
            let end = while_in(text, pos, LOWER);
            return if end > pos { Some(end) } else { both_end };
        }
        pos += c.len;
        if c.is(LOWER) {
            both_end = Some(pos);
        }
    }
}

/// `UPPER+LOWER*`: the end of the match.
fn upper_word(text: &[u8], start: usize) -> Option<usize> {
    let upper_end = while_in(text, start, UPPER);
    if upper_end > start { Some(while_in(text, upper_end, LOWER)) } else { None }
}

fn deepseek_v3(text: &[u8], pos: usize) -> usize {
    let is_letter = |i: usize| text.get(i).is_some_and(u8::is_ascii_alphabetic);
    if text[pos].is_ascii_punctuation() && is_letter(pos + 1) {
        let mut end = pos + 1;
        while is_letter(end) {
            end += 1;
        }
        return end - pos;
    }
    let c = char_at(text, pos);
    if c.is(L | M) || (c.is(ANY & !(P | S)) && !c.is_newline() && char_at(text, pos + c.len).is(L | M)) {
        return while_in(text, pos + c.len, L | M) - pos;
    }
    match punctuation(text, pos, P | S, true, false) {
        0 => space(text, pos, true),
        n => n,
    }
}

fn run_at(text: &[u8], pos: usize, before: fn(Char) -> bool, set: fn(Char) -> bool, len_max: usize) -> usize {
    let first = char_at(text, pos);
    let mut end = if before(first) && set(char_at(text, pos + first.len)) { pos + first.len } else { pos };
    let start = end;
    for _ in 0..len_max {
        let c = char_at(text, end);
        if c.len == 0 || !set(c) {
            break;
        }
        end += c.len;
    }
    if end > start { end - pos } else { 0 }
}

fn three_digits(text: &[u8], pos: usize) -> usize {
    match text.get(pos..pos + 3) {
        Some(s) if s.iter().all(u8::is_ascii_digit) => 3,
        _ => 0,
    }
}

fn trailing_space(text: &[u8]) -> usize {
    let (mut pos, mut start) = (0, 0);
    while pos < text.len() {
        let c = char_at(text, pos);
        pos += c.len;
        if !c.is(WS) {
            start = pos;
        }
    }
    start
}

/// Cuts a run of digits into threes from the right.
fn emit_digit_groups(rest: &[Pass], digits: &[u8], emit: &mut impl FnMut(&[u8])) {
    let mut count = 0;
    let mut pos = 0;
    while pos < digits.len() {
        pos += char_at(digits, pos).len;
        count += 1;
    }
    let mut start = 0;
    while start < digits.len() {
        let end = while_in_at_most(digits, start, ND, if count % 3 == 0 { 3 } else { count % 3 });
        count -= if count % 3 == 0 { 3 } else { count % 3 };
        split(rest, &digits[start..end], emit);
        start = end;
    }
}
