//! The filter `tojson` as transformers has it: Python's `json.dumps`, with the signature
//! `tojson(ensure_ascii=False, indent=None, separators=None, sort_keys=False)`. Reference: CPython 3's documentation of `json`.
//!
//! Invariants: order of keys is kept; nesting deeper than [`DEPTH_MAX`] is an error, not a stack overflow.

use super::python::{Arguments, DEPTH_MAX, Result, as_float, error, float_repr, pairs, to_str};
use minijinja::Value;
use minijinja::value::ValueKind;
use std::fmt::Write;

/// The layout of one `json.dumps`.
struct Layout {
    ensure_ascii: bool,
    indent: Option<String>,
    item: String,
    key: String,
    sort_keys: bool,
}

/// `json.dumps`.
pub fn dumps(value: &Value, args: &[Value]) -> Result<String> {
    let args = Arguments::new(args);
    args.only(4, &["ensure_ascii", "indent", "separators", "sort_keys"])?;
    let indent = match args.get(1, "indent") {
        None => None,
        Some(v) if v.as_str().is_some() => v.as_str().map(str::to_owned),
        Some(v) if v.kind() == ValueKind::Bool => Some(" ".repeat(usize::from(v.is_true()))),
        // A negative indent breaks lines and indents by nothing.
        Some(v) => Some(" ".repeat(i64::try_from(v)?.clamp(0, 64) as usize)),
    };
    let (mut item, mut key) = (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned());
    if let Some(separators) = args.get(2, "separators") {
        let both: Vec<Value> = separators.try_iter()?.collect();
        match both.as_slice() {
            [a, b] => (item, key) = (to_str(a), to_str(b)),
            _ => return Err(error("tojson: separators are two strings")),
        }
    }
    let truth = |at, name| args.get(at, name).is_some_and(|v| v.is_true());
    let layout = Layout { ensure_ascii: truth(0, "ensure_ascii"), indent, item, key, sort_keys: truth(3, "sort_keys") };
    let mut out = String::new();
    layout.write(value, &mut out, 0)?;
    Ok(out)
}

impl Layout {
    fn write(&self, value: &Value, out: &mut String, depth: usize) -> Result<()> {
        if depth > DEPTH_MAX {
            return Err(error("tojson: nested too deeply"));
        }
        if let Some(s) = value.as_str() {
            self.string(s, out);
            return Ok(());
        }
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => match as_float(value) {
                Some(v) if v.is_nan() => out.push_str("NaN"),
                Some(v) if v.is_infinite() => out.push_str(["Infinity", "-Infinity"][usize::from(v < 0.0)]),
                Some(v) => float_repr(v, out),
                None => {
                    let _ = write!(out, "{value}");
                }
            },
            ValueKind::Seq | ValueKind::Iterable => {
                out.push('[');
                let items: Vec<Value> = value.try_iter()?.collect();
                for (i, item) in items.iter().enumerate() {
                    self.separate(i, out, depth + 1);
                    self.write(item, out, depth + 1)?;
                }
                self.close(items.len(), ']', out, depth);
            }
            ValueKind::Map => {
                out.push('{');
                let mut items: Vec<(String, Value)> = Vec::new();
                for (key, item) in pairs(value) {
                    items.push((self.key(&key)?, item));
                }
                if self.sort_keys {
                    items.sort_by(|a, b| a.0.cmp(&b.0));
                }
                for (i, (key, item)) in items.iter().enumerate() {
                    self.separate(i, out, depth + 1);
                    self.string(key, out);
                    out.push_str(&self.key);
                    self.write(item, out, depth + 1)?;
                }
                self.close(items.len(), '}', out, depth);
            }
            kind => return Err(error(format!("tojson: {kind} is not JSON serializable"))),
        }
        Ok(())
    }

    /// Keys that are no strings become what their value is in JSON.
    fn key(&self, key: &Value) -> Result<String> {
        if let Some(s) = key.as_str() {
            return Ok(s.to_owned());
        }
        match key.kind() {
            ValueKind::None | ValueKind::Bool | ValueKind::Number => {
                let mut out = String::new();
                self.write(key, &mut out, 0)?;
                Ok(out)
            }
            kind => Err(error(format!("tojson: keys are strings and numbers, not {kind}"))),
        }
    }

    fn separate(&self, i: usize, out: &mut String, depth: usize) {
        if i > 0 {
            out.push_str(&self.item);
        }
        self.line(out, depth);
    }

    fn close(&self, len: usize, bracket: char, out: &mut String, depth: usize) {
        if len > 0 {
            self.line(out, depth);
        }
        out.push(bracket);
    }

    fn line(&self, out: &mut String, depth: usize) {
        if let Some(indent) = &self.indent {
            out.push('\n');
            for _ in 0..depth {
                out.push_str(indent);
            }
        }
    }

    fn string(&self, s: &str, out: &mut String) {
        out.push('"');
        for c in s.chars() {
            let _ = match c {
                '"' => write!(out, "\\\""),
                '\\' => write!(out, "\\\\"),
                '\n' => write!(out, "\\n"),
                '\r' => write!(out, "\\r"),
                '\t' => write!(out, "\\t"),
                '\u{8}' => write!(out, "\\b"),
                '\u{c}' => write!(out, "\\f"),
                '\0'..='\u{1f}' => write!(out, "\\u{:04x}", c as u32),
                '\u{7f}'.. if self.ensure_ascii => c.encode_utf16(&mut [0; 2]).iter().try_for_each(|unit| write!(out, "\\u{unit:04x}")),
                _ => write!(out, "{c}"),
            };
        }
        out.push('"');
    }
}
