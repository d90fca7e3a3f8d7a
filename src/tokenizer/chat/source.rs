//! A template's text, made ready for the engine: what Python's lexer does and this one does not.
//!
//! - Line ends become `\n`.
//! - `{% generation %}` ... `{% endgeneration %}`, which marks what the assistant wrote for training, becomes `{% with %}` ...
//!   `{% endwith %}`: the same scope, nothing else. Dashes stay, so white space is trimmed as before.
//! - `value[start:stop:step]` becomes a call of a method, which gives a list as in Python ([`SLICE`] says why).
//! - Escapes in string literals mean what they mean in Python: `'\d'` is a backslash and a d, not an error.
//!
//! Invariant: line numbers do not change (but after a line continued inside a string literal).

use super::python::SLICE;

/// Longest chain of operators, words and brackets in one expression, commas starting anew. The engine's parser and compiler recurse
/// along it unbounded, some 500 bytes of stack a link.
const CHAIN_MAX: usize = 2000;

/// Most `elif`s in a template: each is one level of nesting to the engine.
const ELIF_MAX: usize = 500;

/// The text for the engine, or which bound it breaks and on which line.
pub fn prepare(source: &str) -> Result<String, (usize, String)> {
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let mut out = String::with_capacity(source.len() + 64);
    let mut rest = source.as_str();
    let mut elifs = 0;
    while let Some(at) = rest.find('{') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let len = match rest.as_bytes().get(1) {
            Some(b'#') => rest.find("#}").map_or(rest.len(), |end| end + 2),
            Some(b'%') => raw(rest).unwrap_or(0),
            Some(b'{') => 0,
            _ => 1,
        };
        if len == 0 {
            let close = if rest.starts_with("{%") { "%}" } else { "}}" };
            let len = code(rest, close, &mut out).map_err(|what| (line(&source, rest), what))?;
            elifs += usize::from(word(&rest[..len]).starts_with("elif"));
            if elifs > ELIF_MAX {
                return Err((line(&source, rest), format!("more than {ELIF_MAX} elif")));
            }
            rest = &rest[len..];
            continue;
        }
        out.push_str(&rest[..len]);
        rest = &rest[len..];
    }
    out.push_str(rest);
    Ok(out)
}

/// The line on which `rest`, the end of `source`, begins; the first is 1.
fn line(source: &str, rest: &str) -> usize {
    1 + source[..source.len() - rest.len()].matches('\n').count()
}

/// The word of a tag: `{%- word -%}` is `word`.
fn word(tag: &str) -> &str {
    let inner = tag.strip_prefix("{%").unwrap_or(tag);
    let inner = inner.strip_suffix("%}").unwrap_or(inner);
    inner.trim_matches(is_around_word)
}

/// What may stand between the word of a tag and its delimiters.
fn is_around_word(c: char) -> bool {
    c == '-' || c == '+' || c.is_whitespace()
}

/// If a `{% raw %}` block starts here: its length up to and with `{% endraw %}`.
fn raw(text: &str) -> Option<usize> {
    let end = text.find("%}")? + 2;
    if word(&text[..end]) != "raw" {
        return None;
    }
    let mut at = end;
    while let Some(next) = text[at..].find("{%") {
        at += next + 2;
        // Looks no further than the word: a text of nothing but beginnings is read once.
        let inner = text[at..].trim_start_matches(is_around_word);
        if let Some(rest) = inner.strip_prefix("endraw").map(|rest| rest.trim_start_matches(is_around_word))
            && rest.starts_with("%}")
        {
            return Some(text.len() - rest.len() + 2);
        }
    }
    Some(text.len())
}

/// Copies one tag or expression, up to and with `close`, and returns its length in `text`.
fn code(text: &str, close: &str, out: &mut String) -> Result<usize, String> {
    let begin = out.len();
    let bytes = text.as_bytes();
    // Opening delimiter first: `{{` must not be taken for a brace that waits for its partner.
    out.push_str(&text[..2]);
    let mut at = 2;
    let mut braces = 0u32;
    let mut open: Vec<Bracket> = Vec::new();
    let mut links = 0;
    while at < bytes.len() {
        match bytes[at] {
            _ if braces == 0 && text[at..].starts_with(close) => {
                at += 2;
                out.push_str(close);
                if word(&text[..at]) == "generation" || word(&text[..at]) == "endgeneration" {
                    let tag = out.split_off(begin);
                    out.push_str(&tag.replacen("generation", "with", 1));
                }
                return Ok(at);
            }
            quote @ (b'\'' | b'"') => at += literal(&text[at..], quote, out),
            byte => {
                // A new word, or a sign: one more link.
                let inside_word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
                let continues = inside_word(byte) && inside_word(bytes[at - 1]);
                links += usize::from(!continues && !byte.is_ascii_whitespace());
                if links > CHAIN_MAX {
                    return Err(format!("an expression of more than {CHAIN_MAX} parts"));
                }
                match byte {
                    b',' => links = open.last().map_or(0, |b| b.links),
                    b'{' | b'(' | b'[' => {
                        braces += u32::from(byte == b'{');
                        open.push(Bracket { byte, at: out.len(), colons: Vec::new(), links });
                    }
                    b'}' | b')' | b']' => {
                        braces -= u32::from(byte == b'}' && braces > 0);
                        if let Some(bracket) = open.pop() {
                            links = bracket.links;
                            if byte == b']' && bracket.byte == b'[' && !bracket.colons.is_empty() {
                                call_slice(out, bracket.at, &bracket.colons);
                                at += 1;
                                continue;
                            }
                        }
                    }
                    b':' => {
                        if let Some(Bracket { byte: b'[', colons, .. }) = open.last_mut() {
                            colons.push(out.len());
                        }
                    }
                    _ => {}
                }
                let len = text[at..].chars().next().map_or(1, char::len_utf8);
                out.push_str(&text[at..at + len]);
                at += len;
            }
        }
    }
    Ok(at)
}

/// A bracket that waits for its partner: where it stands in the output, the colons directly inside it, the links up to it.
struct Bracket {
    byte: u8,
    at: usize,
    colons: Vec<usize>,
    links: usize,
}

/// Turns `[a:b:c`, which ends the output, into `.__slice__(a,b,c)`.
fn call_slice(out: &mut String, from: usize, colons: &[usize]) {
    let inside = out.split_off(from);
    out.push('.');
    out.push_str(SLICE);
    out.push('(');
    let mut begin = 1;
    for end in colons.iter().map(|at| at - from).chain([inside.len()]) {
        let part = &inside[begin..end];
        // An empty part may still hold the line breaks that error messages count.
        let none = if part.trim().is_empty() { "none" } else { "" };
        out.push_str(part);
        out.push_str(none);
        out.push(if end == inside.len() { ')' } else { ',' });
        begin = end + 1;
    }
}

/// Copies a string literal and returns its length in `text`.
fn literal(text: &str, quote: u8, out: &mut String) -> usize {
    out.push(quote as char);
    let mut chars = text.char_indices().skip(1);
    while let Some((at, c)) = chars.next() {
        if c == '\\' {
            match chars.next() {
                Some((_, '\n')) => {}
                Some((_, 'a')) => out.push_str("\\x07"),
                Some((_, 'v')) => out.push_str("\\x0b"),
                Some((_, e @ ('\'' | '"' | '\\' | 'b' | 'f' | 'n' | 'r' | 't' | 'u' | 'x' | '0'..='7'))) => {
                    out.push('\\');
                    out.push(e);
                }
                Some((_, e)) => {
                    out.push_str("\\\\");
                    out.push(e);
                }
                None => out.push('\\'),
            }
            continue;
        }
        out.push(c);
        if c as u32 == u32::from(quote) {
            return at + 1;
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn raw_text_of_nothing_but_beginnings_is_read_once() {
        let text = format!("{{% raw %}}{}%}}", "{%".repeat(5_000_000));
        assert_eq!(raw(&text), Some(text.len()));
        assert_eq!(raw("{%- raw -%} {% end %} {{ {%- endraw +%} rest"), Some(39));
        assert_eq!(raw("{% raw %}{% endraws %}{% endraw"), Some(31));
        assert_eq!(raw("{% rawer %}{% endraw %}"), None);
    }
}
