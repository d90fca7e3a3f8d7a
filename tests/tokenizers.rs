//! Tokenizers agree with the `tokenizers` crate and with a plain evaluation of their definitions; decoding gives the text back.
#![cfg(target_pointer_width = "64")]

mod tokenizers_common;

use loci::gguf::{Gguf, ValueType, Writer};
use loci::tokenizer::{TokenKind, Tokenizer, TokenizerOptions, Utf8Stream};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use tokenizers::PreTokenizerWrapper;
use tokenizers_common::*;

const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;

/// The texts that every tokenizer is tried on: written ones, and random ones that mix what splitters look at.
fn texts() -> Vec<String> {
    let mut texts: Vec<String> = [
        "",
        " ",
        "Hello, world! It's the 1st of 1234567 tests; we've seen 'em ALL, haven't WE'LL'D?",
        "  leading, trailing, and   inner    spaces   ",
        "fn main() {\n\tlet x: Vec<u8> = vec![0; 10_000];\r\n    println!(\"{x:?}\"); // done\n}\n\n\n",
        "if (a <= b && c != d) { e += f[g] ^ ~h; } $100 = \u{20ac}90.5 <= 50% \u{b1}3 |x| `y`",
        "\u{1f680} (normal) \u{1f636}\u{200d}\u{1f32b}\u{fe0f} (joined) \u{1f468}\u{200d}\u{1f469}\u{200d}\u{1f467} \u{2705} \u{1f1e9}\u{1f1ea}",
        "\u{4e2d}\u{6587}\u{548c}English\u{6df7}\u{5408}123\u{3002}\u{3053}\u{3093}\u{306b}\u{3061}\u{306f}\u{3001}\u{30ab}\u{30bf}\u{30ab}\u{30ca}\u{ff01} \u{d55c}\u{ad6d}\u{c5b4}",
        "\u{41d}\u{415}\u{429}\u{41e} \u{43d}\u{430} \u{411}\u{44a}\u{43b}\u{433}\u{430}\u{440}\u{441}\u{43a}\u{438} \u{395}\u{3bb}\u{3bb}\u{3b7}\u{3bd}\u{3b9}\u{3ba}\u{3ac} \u{5e2}\u{5d1}\u{5e8}\u{5d9}\u{5ea} \u{627}\u{644}\u{639}\u{631}\u{628}\u{64a}\u{629}",
        "e\u{301}n\u{303}o\u{308}\u{323} \u{928}\u{92e}\u{938}\u{94d}\u{924}\u{947} \u{e2a}\u{e27}\u{e31}\u{e2a}\u{e14}\u{e35} \u{301}\u{301} a\u{301}\u{301}1\u{301}",
        "\u{0}\u{1}\u{7f}\u{85}\u{9f} \u{ad}\u{200b}\u{feff}\u{fffd}\u{e000}\u{10ffff}",
        "a\u{a0}b\u{2003}c\u{3000}d\u{1680}e\u{2028}f\u{2029}g\u{85}h \u{a0} \u{2003}\u{3000} \n\u{a0}\n",
        "\u{b2}\u{b3}\u{bd}\u{664}\u{665}\u{666}\u{2167}\u{2177}\u{3289}\u{1d7d8} 12\u{664}\u{b2}34567",
        "\u{1c5}\u{1c8}\u{2b0}\u{aa}\u{df}\u{17f}\u{fb01}\u{2120}CamelCase HTTPServer iPhone XMLHttpRequest\u{2b0}A a\u{2b0}B \u{4e2d}A\u{4e2d}a",
        "'s 'S 't 're 'RE 'Ve 'll 'LL 'd ''s '\u{17f} x'\u{17f} don\u{2019}t I'M they'Re 'x '",
        "1 12 123 1234 12345 123456 1234567 12345678 1,234.5 0x1F 1e10 a1b22c333d4444 12345abc 12345_ 12345 ",
        " \n \n\n  \n\t\r\n \r \n", // white space alone
    ]
    .map(String::from)
    .into();
    let mut random = Random(0x5eed);
    let parts: Vec<&str> = "a A b B z Z ab AB aB Ab the of 0 1 12 345 6789 \u{664} \u{b2} \u{2167} ' 's 'S 're 'LL \" . , ; ! ? - _ / // ( ) [ ] { } $ + < = > ^ ~ | ` \
        \u{e9} \u{c9} \u{451} \u{416} \u{3b2} \u{394} \u{2b0} \u{aa} \u{1c5} \u{301} \u{94d} \u{4e2d} \u{6587} \u{3042} \u{30a2} \u{d55c} \u{3131} \u{ff0c} \u{3002} \u{2018} \u{2014} \u{1f680} \u{200d}"
        .split(' ')
        .collect();
    let spaces = [" ", "  ", "\n", "\r\n", "\t", "\u{a0}", "\u{3000}", "\u{b}", "\u{85}", "\u{2028}"];
    for _ in 0..300 {
        let n = 1 + random.below(40);
        texts.push(
            (0..n)
                .map(|_| if random.below(3) == 0 { spaces[random.below(spaces.len())] } else { parts[random.below(parts.len())] })
                .collect(),
        );
    }
    for _ in 0..300 {
        let n = 1 + random.below(60);
        texts.push((0..n).map(|_| random.char()).collect());
    }
    for c in [' ', '\n', 'a', 'A', '1', '=', '\'', '\u{4e2d}', '\u{301}', '\u{1f680}', '\u{a0}'] {
        texts.push(c.to_string().repeat(200));
        texts.push(format!("x{}y", c.to_string().repeat(130)));
    }
    texts
}

fn split(regex: &str) -> Value {
    json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false})
}

/// What each `tokenizer.ggml.pre` stands for: the published regular expressions, one after the other.
fn published() -> Vec<(Vec<&'static str>, Vec<String>)> {
    const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
    const CJK: &str = r"[一-龥぀-ゟ゠-ヿ]+";
    const EAST_ASIAN: &str = r"[一-龥ࠀ-一가-\x{d7ff}]+";
    const BLOOM: &str = r" ?[^(\s|.,!?…。，、।۔،)]+";
    let words = |contraction: &str, letter: &str, digits: &str, tail: &str| {
        format!(r"{contraction}[^\r\n\p{{L}}\p{{N}}]?[{letter}]+|\p{{N}}{digits}| ?[^\s{letter}\p{{N}}]+{tail}|\s*[\r\n]+|\s+(?!\S)|\s+")
    };
    let cased = |contraction: &str, digits: &str| {
        let (upper, lower) = (r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]");
        format!(
            r"[^\r\n\p{{L}}\p{{N}}]?{upper}*{lower}+{contraction}|[^\r\n\p{{L}}\p{{N}}]?{upper}+{lower}*{contraction}|\p{{N}}{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        )
    };
    let (short, optional) = ("(?i:'s|'t|'re|'ve|'m|'ll|'d)|", "(?i:'s|'t|'re|'ve|'m|'ll|'d)?");
    let llama3 = words(short, r"\p{L}", "{1,3}", r"[\r\n]*");
    let qwen2 = words(short, r"\p{L}", "", r"[\r\n]*");
    let s = |r: &str| r.to_string();
    vec![
        (vec!["gpt-2", "mpt", "olmo", "phi-2", "exaone4", "modern-bert"], vec![s(GPT2)]),
        (vec!["smollm", "starcoder", "refact", "command-r", "exaone", "codeshell"], vec![s(r"\p{N}"), s(GPT2)]),
        (vec!["llama-bpe", "llama3", "falcon3", "lfm2", "dbrx", "smaug-bpe", "glm4", "chatglm-bpe"], vec![llama3]),
        (vec!["qwen2", "deepseek-r1-qwen", "megrez", "stablelm2", "hunyuan"], vec![qwen2.clone()]),
        (
            vec!["bailingmoe"],
            vec![s(r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+")],
        ),
        (vec!["qwen35"], vec![words(short, r"\p{L}\p{M}", "", r"[\r\n]*")]),
        (vec!["ufakzeka"], vec![words("", r"\p{L}", "", r"[\r\n]*")]),
        (vec!["laguna"], vec![s(r"[^\n]+|[\n]+"), qwen2]),
        (vec!["minicpm5"], vec![s(r"\p{N}{1,3}"), words(short, r"\p{L}", "+", r"[\r\n]*")]),
        (
            vec!["seed-coder"],
            vec![s(r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+")],
        ),
        (vec!["gpt-4o", "llama4"], vec![cased(optional, "{1,3}")]),
        (vec!["tekken"], vec![cased("", "")]),
        (vec!["tiny_aya", "cohere2moe"], vec![s(r"\d{1,3}(?=(?:\d{3})*\b)"), cased(optional, "{1,3}")]),
        (vec!["youtu"], vec![s(r"[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|[一-龥぀-ゟ゠-ヿ]+"), cased(optional, "")]),
        (
            vec!["deepseek-v3", "hunyuan-dense"],
            vec![
                s(r"\p{N}{1,3}"),
                s(CJK),
                s(
                    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
                ),
            ],
        ),
        (vec!["deepseek-coder"], vec![s("[\r\n]"), s(r"\s?\p{L}+"), s(r"\s?\p{P}+"), s(EAST_ASIAN), s(r"\p{N}")]),
        (
            vec!["deepseek-llm"],
            vec![s("[\r\n]"), s(DEEPSEEK_LLM_WORDS), s(r"\s?[!-/:-~！-／：-～‘-‟\x{3000}-。]+"), s(r"\s+$"), s(EAST_ASIAN), s(r"\p{N}+")],
        ),
        (vec!["falcon"], vec![s(r"[\p{P}\$\+<=>\^~\|`]+"), s(GPT2), s("[0-9][0-9][0-9]")]),
        (vec!["default"], vec![s(r"[\p{P}\$\+<=>\^~\|]+"), s(GPT2), s(r"\p{N}+"), s("[0-9][0-9][0-9]")]),
        (vec!["bloom", "poro-chat"], vec![s(BLOOM)]),
        (vec!["viking"], vec![s(BLOOM), s(r"\p{N}")]),
    ]
}

const DEEPSEEK_LLM_WORDS: &str = r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+";

/// Every pair of bytes is a token, and which pairs go first is drawn by lot: any difference in splitting shows.
#[test]
fn every_splitter_splits_as_its_published_expressions_do() {
    let letters = byte_letters();
    let mut tokens: Vec<String> = letters.iter().map(|c| c.to_string()).collect();
    let mut merges: Vec<(String, String)> =
        letters.iter().flat_map(|a| letters.iter().map(move |b| (a.to_string(), b.to_string()))).collect();
    Random(7).shuffle(&mut merges);
    tokens.extend(merges.iter().map(|(a, b)| format!("{a}{b}")));
    // No merges lead to these: they show whether whole pieces are looked up first.
    tokens.extend(["the", "Hello", "\u{120}spaces", "345", "\u{ff61}"].map(String::from));
    let texts = texts();
    let mut oracles = [false, true].map(|ignore_merges| crate_bpe(&tokens, &merges, Value::Null, ignore_merges));
    for (names, expressions) in published() {
        let mut steps: Vec<Value> = expressions.iter().map(|e| split(e)).collect();
        steps.push(json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}));
        let steps = json!({"type": "Sequence", "pretokenizers": steps});
        let steps: PreTokenizerWrapper = serde_json::from_value(steps).unwrap();
        for (i, name) in names.iter().enumerate() {
            let tokenizer = Tokenizer::from_gguf(&gguf_of(&byte_level(&tokens, &merges, name)), &TokenizerOptions::default()).unwrap();
            let ignore_merges = ["llama-bpe", "llama3", "falcon3", "lfm2", "glm4", "tekken", "youtu", "minicpm5"].contains(name);
            let oracle = &mut oracles[usize::from(ignore_merges)];
            oracle.with_pre_tokenizer(Some(steps.clone()));
            // Names of one expression share one splitter: the first of them gets every text.
            for text in texts.iter().step_by(if i == 0 { 1 } else { 5 }) {
                // Engines do not agree on what a word character is, which is what `\b` in this one expression asks.
                if expressions[0].contains(r"\b") && text.chars().any(|c| c.is_alphanumeric() && !c.is_ascii() && !is_plain_letter(c)) {
                    continue;
                }
                let ids = tokenizer.encode(text, false, false);
                assert_eq!(ids, crate_ids(oracle, text), "{name}: {text:?}");
                assert_eq!(tokenizer.decode(&ids, false), text.as_bytes(), "{name}: {text:?}");
            }
        }
    }
}

/// Letters that every engine counts among the word characters.
fn is_plain_letter(c: char) -> bool {
    matches!(c, '\u{e9}' | '\u{c9}' | '\u{451}' | '\u{416}' | '\u{3b2}' | '\u{394}' | '\u{4e2d}' | '\u{6587}' | '\u{d55c}')
}

#[test]
fn smollm2_agrees_with_the_crate_and_with_itself() {
    let gguf = model("SmolLM2-135M-Instruct.Q4_1.gguf");
    let tokenizer = Tokenizer::from_gguf(&gguf, &TokenizerOptions::default()).unwrap();
    let tokens = strings(&gguf, "tokenizer.ggml.tokens");
    let merges: Vec<(String, String)> =
        strings(&gguf, "tokenizer.ggml.merges").iter().map(|m| m.split_once(' ').map(|(a, b)| (a.into(), b.into())).unwrap()).collect();
    let pre = json!({"type": "Sequence", "pretokenizers": [
        {"type": "Digits", "individual_digits": true},
        {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
    ]});
    let mut oracle = crate_bpe(&tokens, &merges, pre, false);
    let mut texts = texts();
    texts.push(include_str!("tokenizers.rs").into());
    texts.push("<|im_start|>user\nWhat's 2+2?<|im_end|>\n<|im_start|>assistant\n".into());
    // The vocabulary lacks some control bytes, and some that only rare planes and no UTF-8 need. They are left out; the crate
    // does so before it merges, and their neighbours meet.
    let lacking = |text: &str| text.bytes().any(|b| matches!(b, 4 | 6 | 0x13 | 0x14 | 0x16 | 0x1D | 0xF1 | 0xF2));
    texts.retain(|text| !lacking(text));
    assert!(texts.len() > 350, "{}", texts.len());
    for text in &texts {
        let ids = tokenizer.encode(text, false, false);
        assert_eq!(ids, crate_ids(&oracle, text), "{text:?}");
        assert_eq!(tokenizer.decode(&ids, false), text.as_bytes(), "{text:?}");
    }
    let control: Vec<String> = (0..tokenizer.vocab_len() as u32)
        .filter(|id| tokenizer.token_kind(*id) == TokenKind::Control)
        .map(|id| tokenizer.token_text(id).unwrap().to_string())
        .collect();
    assert!(control.len() >= 17, "{control:?}");
    oracle.add_special_tokens(control.iter().map(|t| tokenizers::AddedToken::from(t.clone(), true))).unwrap();
    let mut random = Random(11);
    for text in &texts {
        let mut text = text.clone();
        for _ in 0..random.below(4) {
            let at = random.below(text.chars().count() + 1);
            let at = text.char_indices().nth(at).map_or(text.len(), |(i, _)| i);
            text.insert_str(at, &control[random.below(control.len())]);
        }
        let ids = tokenizer.encode(&text, true, true);
        assert_eq!(ids, crate_ids(&oracle, &text), "{text:?}");
        assert_eq!(tokenizer.decode(&ids, true), text.as_bytes(), "{text:?}");
    }
    // The file: BOS is known and not asked for, turns end with <|im_end|>.
    assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.add_bos()), (Some(1), Some(2), false));
    assert_eq!((tokenizer.token_id("<|im_end|>"), tokenizer.token_text(2)), (Some(2), Some("<|im_end|>")));
    assert!(tokenizer.is_end_of_generation(2) && !tokenizer.is_end_of_generation(1));
}

#[test]
fn bytes_that_are_no_text_come_back() {
    let tokenizer = Tokenizer::from_gguf(&model("SmolLM2-135M-Instruct.Q4_1.gguf"), &TokenizerOptions::default()).unwrap();
    // Some control bytes, two of rare planes, and those that UTF-8 never uses: without a token, they are left out.
    let missing: Vec<u8> = (0..=255).filter(|b| tokenizer.token_id(&byte_letters()[*b as usize].to_string()).is_none()).collect();
    for b in 0..=255 {
        let expected: &[u8] = if missing.contains(&b) { &[] } else { &[b] };
        assert_eq!(tokenizer.decode(&tokenizer.encode_bytes(&[b], false, false), false), expected);
    }
    let mut random = Random(23);
    for _ in 0..2000 {
        let bytes: Vec<u8> = (0..random.below(50)).map(|_| random.below(256) as u8).filter(|b| !missing.contains(b)).collect();
        assert_eq!(tokenizer.decode(&tokenizer.encode_bytes(&bytes, false, true), true), bytes);
    }
    let [a, b] = ["a", "b"].map(|s| tokenizer.encode(s, false, false));
    assert_eq!(tokenizer.encode("a\u{6}b", false, false), [a, b].concat());

    let letters = byte_letters().map(|c| c.to_string());
    let all = Tokenizer::from_gguf(&gguf_of(&byte_level(&letters, &[], "llama-bpe")), &TokenizerOptions::default()).unwrap();
    for _ in 0..2000 {
        let bytes: Vec<u8> = (0..random.below(50)).map(|_| random.below(256) as u8).collect();
        let ids = all.encode_bytes(&bytes, false, false);
        assert_eq!((ids.len(), all.decode(&ids, false)), (bytes.len(), bytes));
    }
}

/// The definition, evaluated plainly: of all adjacent pairs that make a token, merge the one with the best score, the leftmost
/// of equals, until there is none; what is no token then becomes bytes.
fn spm_by_definition(tokens: &HashMap<&[u8], (u32, f32)>, text: &[u8]) -> Vec<u32> {
    let mut symbols: Vec<&[u8]> = String::from_utf8_lossy(text).char_indices().map(|(i, c)| &text[i..i + c.len_utf8()]).collect();
    let mut starts: Vec<usize> = symbols.iter().scan(0, |at, s| Some(std::mem::replace(at, *at + s.len()))).collect();
    loop {
        let mut best: Option<(f32, usize)> = None;
        for i in 1..symbols.len() {
            let joined = &text[starts[i - 1]..starts[i] + symbols[i].len()];
            if let Some((_, score)) = tokens.get(joined)
                && best.is_none_or(|(s, _)| *score > s)
            {
                best = Some((*score, i));
            }
        }
        let Some((_, i)) = best else { break };
        symbols[i - 1] = &text[starts[i - 1]..starts[i] + symbols[i].len()];
        symbols.remove(i);
        starts.remove(i);
    }
    let byte = |b: &u8| tokens[format!("<0x{b:02X}>").as_bytes()].0;
    symbols.iter().flat_map(|s| tokens.get(s).map_or_else(|| s.iter().map(byte).collect(), |t| vec![t.0])).collect()
}

#[test]
fn gemma_merges_by_score_as_defined() {
    let gguf = model("gemma-3-270m-Q4_K_M.gguf");
    let tokenizer = Tokenizer::from_gguf(&gguf, &TokenizerOptions::default()).unwrap();
    let names = strings(&gguf, "tokenizer.ggml.tokens");
    let scores: Vec<f32> = gguf.array("tokenizer.ggml.scores").unwrap().unwrap().numbers().map(|s| s as f32).collect();
    let tokens: HashMap<&[u8], (u32, f32)> = names.iter().zip(scores).zip(0..).map(|((n, s), id)| (n.as_bytes(), (id, s))).collect();
    for text in texts() {
        let ids = tokenizer.encode(&text, false, false);
        assert_eq!(tokenizer.decode(&ids, false), text.as_bytes(), "{text:?}");
        // User-defined tokens (runs of newlines and the like) are cut out beforehand; the definition is of what lies between.
        let mut expected = Vec::new();
        let mut rest = text.as_str();
        for id in ids.iter().filter(|id| tokenizer.token_kind(**id) == TokenKind::UserDefined) {
            let Some((before, after)) = rest.split_once(tokenizer.token_text(*id).unwrap()) else { continue };
            expected.extend(spm_by_definition(&tokens, before.replace(' ', "\u{2581}").as_bytes()));
            expected.push(*id);
            rest = after;
        }
        expected.extend(spm_by_definition(&tokens, rest.replace(' ', "\u{2581}").as_bytes()));
        assert_eq!(ids, expected, "{text:?}");
    }
    assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.unk(), tokenizer.pad()), (Some(2), Some(1), Some(3), Some(0)));
    assert_eq!(tokenizer.encode("", true, false), [2]);
    assert_eq!(tokenizer.encode("a", true, false)[0], 2);
    assert!(tokenizer.is_end_of_generation(tokenizer.token_id("<end_of_turn>").unwrap()));
    assert_eq!(tokenizer.token_bytes(tokenizer.token_id("<0x0A>").unwrap()).as_deref(), Some(&b"\n"[..]));
    assert_eq!(tokenizer.token_bytes(2).as_deref(), Some(&b""[..]));
    assert_eq!(tokenizer.token_bytes(u32::MAX), None);
}

/// The crate knows ranked merges only: each way to make a token from two others is one, ranked by the token's score.
#[test]
fn gemma_agrees_with_the_crate() {
    let gguf = model("gemma-3-270m-Q4_K_M.gguf");
    let tokenizer = Tokenizer::from_gguf(&gguf, &TokenizerOptions::default()).unwrap();
    let tokens = strings(&gguf, "tokenizer.ggml.tokens");
    let scores: Vec<f32> = gguf.array("tokenizer.ggml.scores").unwrap().unwrap().numbers().map(|s| s as f32).collect();
    let ids: HashMap<&str, usize> = tokens.iter().enumerate().map(|(i, t)| (t.as_str(), i)).collect();
    let mut merges = Vec::new();
    for (id, token) in tokens.iter().enumerate().filter(|(id, _)| tokenizer.token_kind(*id as u32) == TokenKind::Normal) {
        for (at, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(at);
            if let (Some(l), Some(r)) = (ids.get(left), ids.get(right)) {
                merges.push((id, *l, *r, (left.to_string(), right.to_string())));
            }
        }
    }
    merges.sort_by(|a, b| scores[b.0].total_cmp(&scores[a.0]).then((a.1, a.2).cmp(&(b.1, b.2))));
    let merges: Vec<(String, String)> = merges.into_iter().map(|m| m.3).collect();
    let mut oracle =
        crate_plain_bpe(&tokens, &merges, json!({"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"}), Value::Null);
    let user_defined = (0..tokens.len()).filter(|id| tokenizer.token_kind(*id as u32) == TokenKind::UserDefined);
    oracle.add_tokens(user_defined.map(|id| tokenizers::AddedToken::from(tokens[id].clone(), false).normalized(false))).unwrap();
    let mut compared = 0;
    for text in texts() {
        // Where one token can be made in two ways at two places, its rank and its place may say different things: not so in
        // written text, but in runs of one character.
        let runs = text.as_bytes().windows(6).any(|w| w.iter().all(|b| *b == w[0]));
        if runs || !text.is_ascii() && text.chars().count() < 3 {
            continue;
        }
        assert_eq!(tokenizer.encode(&text, false, false), crate_ids(&oracle, &text), "{text:?}");
        compared += 1;
    }
    assert!(compared > 300, "{compared}");
}

/// A small vocabulary of SentencePiece's kind: bytes, letters, and some words.
fn small_spm(flags: impl Fn(&mut Writer)) -> Tokenizer {
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(String::from).into();
    tokens.extend((0..256).map(|b| format!("<0x{b:02X}>")));
    tokens.extend(["\u{2581}", "a", "b", "ab", "\u{2581}a", "\u{2581}ab", "<tag>"].map(String::from));
    let mut types = vec![1i32; tokens.len()];
    types[0] = 2;
    types[1..3].fill(CONTROL);
    types[3..259].fill(6);
    *types.last_mut().unwrap() = USER_DEFINED;
    let mut w = Writer::new();
    w.str("tokenizer.ggml.model", "llama").strings("tokenizer.ggml.tokens", &tokens).i32s("tokenizer.ggml.token_type", &types);
    w.f32s("tokenizer.ggml.scores", &(0..tokens.len()).map(|i| -(i as f32)).collect::<Vec<_>>());
    flags(&mut w);
    Tokenizer::from_gguf(&gguf_of(&w), &TokenizerOptions::default()).unwrap()
}

#[test]
fn sentencepiece_prefixes_a_space_and_takes_it_away() {
    let t = small_spm(|_| ());
    let id = |text: &str| t.token_id(text).unwrap();
    let texts = |ids: &[u32]| ids.iter().map(|id| t.token_text(*id).unwrap()).collect::<Vec<_>>().join(" ");
    assert_eq!((t.bos(), t.eos(), t.unk(), t.add_bos(), t.add_eos()), (Some(1), Some(2), Some(0), true, false));
    assert_eq!(texts(&t.encode("ab", true, false)), "<s> \u{2581}ab");
    assert_eq!(texts(&t.encode(" ab", false, false)), "\u{2581} \u{2581}ab");
    assert_eq!(texts(&t.encode("\u{e9}", false, false)), "\u{2581} <0xC3> <0xA9>");
    // A space also behind each special token; user-defined ones are always matched, control tokens on request.
    assert_eq!(texts(&t.encode("a<tag>b", false, false)), "\u{2581}a <tag> \u{2581} b");
    assert_eq!(texts(&t.encode("<s>a</s>", false, true)), "<s> \u{2581}a </s>");
    assert!(!t.encode("<s>a</s>", false, false).contains(&id("<s>")));
    // A BOS in the text stays beside the one that is added.
    assert_eq!(texts(&t.encode("<s>a", true, true)), "<s> <s> \u{2581}a");
    for text in ["ab", " ab", "  a b ", "", "\n", "\u{1f680} a\u{0}"] {
        assert_eq!(t.decode(&t.encode(text, false, false), false), text.as_bytes());
    }
    assert_eq!(t.decode(&[1, id("\u{2581}a"), 2], false), b" a");
    assert_eq!(t.decode(&[1, id("\u{2581}a"), 2, u32::MAX], true), b"<s> a</s>");

    let t = small_spm(|w| {
        w.bool("tokenizer.ggml.add_space_prefix", false)
            .bool("tokenizer.ggml.add_bos_token", false)
            .bool("tokenizer.ggml.add_eos_token", true);
    });
    assert_eq!(t.encode("ab", true, false), [t.token_id("ab").unwrap(), 2]);
    assert_eq!(t.decode(&t.encode(" ab", false, false), false), b" ab");
}

#[test]
fn gemma4_merges_plain_text_between_newlines() {
    let mut tokens: Vec<String> = ["<pad>", "<eos>", "<bos>", "<unk>"].map(String::from).into();
    tokens.extend((0..256).map(|b| format!("<0x{b:02X}>")));
    let letters = ["\u{2581}", "a", "b", "\u{e9}", "\u{4e2d}", "1", "\n"];
    tokens.extend(letters.map(String::from));
    let mut random = Random(3);
    let mut merges: Vec<(String, String)> = Vec::new();
    while merges.len() < 60 {
        let mut pick = || tokens[260 + random.below(tokens.len() - 260)].clone();
        let (a, b) = (pick(), pick());
        if !a.contains('\n') && !b.contains('\n') && !tokens.contains(&format!("{a}{b}")) {
            tokens.push(format!("{a}{b}"));
            merges.push((a, b));
        }
    }
    let mut w = Writer::new();
    let types: Vec<i32> = (0..tokens.len())
        .map(|i| {
            if i < 4 {
                CONTROL
            } else if i < 260 {
                6
            } else {
                1
            }
        })
        .collect();
    w.str("tokenizer.ggml.model", "gemma4").strings("tokenizer.ggml.tokens", &tokens).i32s("tokenizer.ggml.token_type", &types);
    w.strings("tokenizer.ggml.merges", &merges.iter().map(|(a, b)| format!("{a} {b}")).collect::<Vec<_>>());
    w.u32("tokenizer.ggml.bos_token_id", 2).u32("tokenizer.ggml.eos_token_id", 1);
    let tokenizer = Tokenizer::from_gguf(&gguf_of(&w), &TokenizerOptions::default()).unwrap();
    let normalizer = json!({"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"});
    let oracle = crate_plain_bpe(&tokens, &merges, normalizer, split(r"[^\n]+|[\n]+"));
    let alphabet = [" ", "a", "b", "\u{e9}", "\u{4e2d}", "1", "\n", "x", "\u{1f680}"];
    for _ in 0..500 {
        let text: String = (0..random.below(100)).map(|_| alphabet[random.below(alphabet.len())]).collect();
        let ids = tokenizer.encode(&text, false, false);
        assert_eq!(ids, crate_ids(&oracle, &text), "{text:?}");
        assert_eq!(tokenizer.decode(&ids, false), text.as_bytes());
    }
    assert_eq!(tokenizer.encode("", true, false), [2]);
}

#[test]
fn special_tokens_are_cut_out_longest_first() {
    let mut tokens: Vec<String> = byte_letters().map(|c| c.to_string()).into();
    tokens.extend(["<|a|>", "|>b", "<|a|>b", "  ", "<mask>", "<|endoftext|>"].map(String::from));
    let mut types = vec![1; tokens.len()];
    types[256..].copy_from_slice(&[CONTROL, USER_DEFINED, CONTROL, USER_DEFINED, CONTROL, CONTROL]);
    let mut w = Writer::new();
    w.str("tokenizer.ggml.model", "gpt2").str("tokenizer.ggml.pre", "jina-v2-de").strings("tokenizer.ggml.tokens", &tokens);
    w.strings::<&str>("tokenizer.ggml.merges", &[]).i32s("tokenizer.ggml.token_type", &types);
    let t = Tokenizer::from_gguf(&gguf_of(&w), &TokenizerOptions::default()).unwrap();
    let texts =
        |text: &str, special| t.encode(text, false, special).iter().map(|id| t.token_text(*id).unwrap().to_string()).collect::<Vec<_>>();
    assert_eq!(texts("<|a|>b", true), ["<|a|>b"]);
    assert_eq!(texts("<|a|>b", false), ["<", "|", "a", "|>b"]);
    assert_eq!(texts("<|a|>c   d", true), ["<|a|>", "c", "  ", "\u{120}", "d"]);
    // This model's mask takes the white space before it.
    assert_eq!(texts("x \t<mask> y", true), ["x", "<mask>", "\u{120}", "y"]);
    assert!(t.is_end_of_generation(t.token_id("<|endoftext|>").unwrap()) && !t.is_end_of_generation(256));
    assert_eq!(t.encode("x", true, true).len(), 1);
}

#[test]
fn streams_of_tokens_become_whole_characters() {
    let mut random = Random(5);
    for _ in 0..2000 {
        let mut bytes: Vec<u8> = Vec::new();
        for _ in 0..random.below(20) {
            match random.below(4) {
                0 => bytes.push(random.below(256) as u8),
                1 => bytes.extend(&"\u{1f680}".as_bytes()[..random.below(5)]),
                _ => bytes.extend(random.char().to_string().as_bytes()),
            }
        }
        let mut stream = Utf8Stream::new();
        let mut text = String::new();
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let (head, tail) = rest.split_at(1 + random.below(rest.len().min(5)));
            text.push_str(&stream.push(head));
            rest = tail;
        }
        let waiting = stream.is_waiting();
        let end = stream.flush();
        assert_eq!(waiting, !end.is_empty());
        assert_eq!(text + &end, String::from_utf8_lossy(&bytes));
    }
}

/// A million of one character, and of others: time must stay in proportion to the length.
#[test]
fn long_runs_are_no_trouble() {
    let smollm = Tokenizer::from_gguf(&model("SmolLM2-135M-Instruct.Q4_1.gguf"), &TokenizerOptions::default()).unwrap();
    let gemma = Tokenizer::from_gguf(&model("gemma-3-270m-Q4_K_M.gguf"), &TokenizerOptions::default()).unwrap();
    let llama = small_spm(|_| ());
    for (unit, len) in ["a", " ", "\n", "1", "=", "\u{4e2d}", "ab", "<", " \n", "\u{301}", "A", "'"]
        .iter()
        .zip([1_000_000; 3].into_iter().chain([200_000; 9]))
    {
        let text = unit.repeat(len / unit.len());
        for tokenizer in [&smollm, &gemma, &llama] {
            let ids = tokenizer.encode(&text, true, true);
            assert!(tokenizer.decode(&ids, false) == text.as_bytes() || tokenizer.decode(&ids[1..], false) == text.as_bytes(), "{unit:?}");
        }
    }
    let letters = byte_letters().map(|c| c.to_string());
    for (names, _) in published() {
        let tokenizer = Tokenizer::from_gguf(&gguf_of(&byte_level(&letters, &[], names[0])), &TokenizerOptions::default()).unwrap();
        for unit in [" ", "\n", "1", "A", "\u{301}", "\u{3000}", " a", "1a"] {
            let text = format!("{}x", unit.repeat(200_000 / unit.len()));
            assert_eq!(tokenizer.encode(&text, false, true).len(), text.len(), "{names:?} {unit:?}");
        }
    }
}

#[test]
fn bad_vocabularies_are_refused_by_name() {
    type Change = fn(&mut Writer) -> &mut Writer;
    let good: [(&str, Change); 4] = [
        ("tokenizer.ggml.model", |w| w.str("tokenizer.ggml.model", "gpt2")),
        ("tokenizer.ggml.pre", |w| w.str("tokenizer.ggml.pre", "gpt-2")),
        ("tokenizer.ggml.tokens", |w| w.strings("tokenizer.ggml.tokens", &["a", "b", "ab"])),
        ("tokenizer.ggml.merges", |w| w.strings("tokenizer.ggml.merges", &["a b"])),
    ];
    let open = |key: &str, change: Change| {
        let mut w = Writer::new();
        good.iter().filter(|(k, _)| *k != key).for_each(|(_, put)| {
            put(&mut w);
        });
        change(&mut w);
        Tokenizer::from_gguf(&gguf_of(&w), &TokenizerOptions::default())
    };
    assert_eq!(open("", |w| w).unwrap().encode("abab", true, true), [2, 2]);
    let bad: &[(&str, Change, &str)] = &[
        ("tokenizer.ggml.model", |w| w, "present"),
        ("tokenizer.ggml.model", |w| w.str("tokenizer.ggml.model", "none"), "\"none\""),
        ("tokenizer.ggml.model", |w| w.str("tokenizer.ggml.model", "bert"), "\"bert\""),
        ("tokenizer.ggml.model", |w| w.u32("tokenizer.ggml.model", 1), "a string"),
        ("tokenizer.ggml.pre", |w| w.str("tokenizer.ggml.pre", "klingon"), "\"klingon\""),
        ("tokenizer.ggml.tokens", |w| w, "present"),
        ("tokenizer.ggml.tokens", |w| w.strings::<&str>("tokenizer.ggml.tokens", &[]), "at least one"),
        ("tokenizer.ggml.tokens", |w| w.u32s("tokenizer.ggml.tokens", &[1, 2, 3]), "strings"),
        ("tokenizer.ggml.tokens", |w| w.strings("tokenizer.ggml.tokens", &["a", "b", "ab", "a"]), "once"),
        ("tokenizer.ggml.merges", |w| w, "present"),
        ("tokenizer.ggml.merges", |w| w.strings("tokenizer.ggml.merges", &["a b", "a c"]), "merge 1"),
        ("tokenizer.ggml.merges", |w| w.strings("tokenizer.ggml.merges", &["b a"]), "merge 0"),
        ("tokenizer.ggml.merges", |w| w.strings("tokenizer.ggml.merges", &["ab"]), "space"),
        ("tokenizer.ggml.merges", |w| w.strings("tokenizer.ggml.merges", &[""]), "space"),
        ("tokenizer.ggml.merges", |w| w.f32s("tokenizer.ggml.merges", &[1.0]), "strings"),
        ("tokenizer.ggml.token_type", |w| w.i32s("tokenizer.ggml.token_type", &[1, 1]), "3 tokens"),
        ("tokenizer.ggml.token_type", |w| w.f32s("tokenizer.ggml.token_type", &[1.0; 3]), "integers"),
        ("tokenizer.ggml.scores", |w| w.f32s("tokenizer.ggml.scores", &[0.0; 4]), "3 tokens"),
        ("tokenizer.ggml.scores", |w| w.f32s("tokenizer.ggml.scores", &[0.0, f32::NAN, 0.0]), "NaN"),
        ("tokenizer.ggml.scores", |w| w.strings("tokenizer.ggml.scores", &["0"; 3]), "numbers"),
        ("tokenizer.ggml.bos_token_id", |w| w.u32("tokenizer.ggml.bos_token_id", 3), "3 tokens"),
        ("tokenizer.ggml.eos_token_id", |w| w.str("tokenizer.ggml.eos_token_id", "2"), "integer"),
        ("tokenizer.ggml.add_bos_token", |w| w.u32("tokenizer.ggml.add_bos_token", 1), "bool"),
    ];
    for (key, change, says) in bad {
        let message = open(key, *change).err().unwrap_or_else(|| panic!("{key}: accepted, expected {says}")).to_string();
        assert!(message.contains(key) && message.contains(says), "{message}: expected {key} and {says}");
    }
    // What is odd and harmless: no ids, ids beyond the vocabulary for padding, bytes without a token, bytes that are no text.
    let t = open("tokenizer.ggml.tokens", |w| {
        w.strings::<&[u8]>("tokenizer.ggml.tokens", &[b"a", b"b", b"ab", b"", b"\xff\xfe"]);
        w.scalar("tokenizer.ggml.bos_token_id", ValueType::I32, &(-1i32).to_le_bytes()).u32("tokenizer.ggml.padding_token_id", 99)
    })
    .unwrap();
    assert_eq!((t.bos(), t.pad(), t.vocab_len(), t.token_text(4)), (None, None, 5, None));
    assert_eq!(t.encode_bytes(b"ab\xffzba\x00", true, true), [2, 1, 0]);
    let mut w = Writer::new();
    good.iter().for_each(|(_, put)| {
        put(&mut w);
    });
    let options = TokenizerOptions { pre: Some("klingon".into()) };
    assert!(Tokenizer::from_gguf(&gguf_of(&w), &options).err().unwrap().to_string().contains("klingon"));
}

/// llama.cpp's own vocabulary tests: `ggml-vocab-*.gguf` with their `.inp` and `.out` beside them.
#[test]
#[ignore = "set LOCI_VOCAB_TESTS to a directory with llama.cpp's ggml-vocab-*.gguf, .inp and .out"]
fn vocabulary_tests_of_llama_cpp_pass() {
    let dir = std::env::var_os("LOCI_VOCAB_TESTS").expect("LOCI_VOCAB_TESTS is not set");
    let (mut files, mut cases, mut failed) = (0, 0, 0);
    for entry in std::fs::read_dir(Path::new(&dir)).unwrap() {
        let path = entry.unwrap().path();
        let with = |suffix: &str| PathBuf::from(format!("{}.{suffix}", path.display()));
        if path.extension().is_none_or(|e| e != "gguf") || !with("inp").exists() {
            continue;
        }
        let tokenizer = match Tokenizer::from_gguf(&Gguf::open(&path).unwrap(), &TokenizerOptions::default()) {
            Ok(t) => t,
            Err(e) => {
                println!("{}: {e}", path.display());
                assert!(matches!(e, loci::Error::Unsupported(_)), "{}: {e}", path.display());
                continue;
            }
        };
        let input = String::from_utf8(std::fs::read(with("inp")).unwrap()).unwrap();
        let output = std::fs::read_to_string(with("out")).unwrap();
        let inputs: Vec<&str> = input.split("\n__ggml_vocab_test__\n").collect();
        let outputs: Vec<Vec<u32>> = output.lines().map(|l| l.split_whitespace().map(|id| id.parse().unwrap()).collect()).collect();
        assert!(inputs.len() == outputs.len() || (inputs.len() == outputs.len() + 1 && inputs.last() == Some(&"")), "{}", path.display());
        for (text, expected) in inputs.iter().zip(&outputs) {
            cases += 1;
            let ids = tokenizer.encode(text, false, false);
            if ids != *expected {
                println!("{}: {text:?}\n  expected {expected:?}\n  found    {ids:?}", path.display());
                failed += 1;
            }
            assert_eq!(String::from_utf8_lossy(&tokenizer.decode(&ids, false)), *text, "{}", path.display());
        }
        files += 1;
    }
    println!("{cases} cases of {files} vocabularies, {failed} failed");
    assert!(files > 0 && failed == 0);
}
