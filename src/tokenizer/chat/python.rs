//! Where Jinja2 shows through to Python: how values print, filters, the methods of `str`, `dict` and `list`.
//!
//! Reference: CPython 3's documentation of the built-in types.
//!
//! Invariants: order of keys is kept; nesting deeper than [`DEPTH_MAX`] is an error, not a stack overflow.

use super::json;
use minijinja::value::{Enumerator, Kwargs, Object, ObjectRepr, Rest, Tuple, ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error, ErrorKind, Output, State, Value};
use serde_json::Value as Json;
use std::fmt::Write;
use std::sync::Arc;

/// How deep lists and dicts may be nested to be printed.
pub(super) const DEPTH_MAX: usize = 128;

pub(super) type Result<T, E = Error> = std::result::Result<T, E>;

pub(super) fn error(what: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, what)
}

/// A JSON value as the template sees it.
pub fn from_json(json: &Json) -> Value {
    match json {
        Json::Null => Value::from(()),
        Json::Bool(v) => Value::from(*v),
        Json::Number(n) => match (n.as_i64(), n.as_u64()) {
            (Some(v), _) => Value::from(v),
            (_, Some(v)) => Value::from(v),
            _ => Value::from(n.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(s) => Value::from(s.as_str()),
        Json::Array(items) => items.iter().map(from_json).collect::<Vec<Value>>().into(),
        Json::Object(map) => Value::from_object(Dict(Value::from_pairs(map.iter().map(|(k, v)| (k.as_str(), from_json(v)))))),
    }
}

/// A dict from outside. Its methods win over its keys, as attributes do in Python: `schema.items()` works on a schema that has a key
/// `items`.
#[derive(Debug)]
struct Dict(Value);

impl Object for Dict {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Map
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.0.as_object()?.get_value(key)
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        match self.0.try_iter() {
            Ok(keys) => Enumerator::Values(keys.collect()),
            Err(_) => Enumerator::Empty,
        }
    }

    fn call_method(self: &Arc<Self>, state: &mut State<'_, '_>, name: &str, args: &[Value]) -> Result<Value> {
        method(state, &self.0, name, args)
    }
}

/// `str(value)`.
pub fn to_str(value: &Value) -> String {
    let mut out = String::new();
    match value.as_str() {
        Some(s) => out.push_str(s),
        None if value.is_undefined() => {}
        None => repr(value, &mut out, 0),
    }
    out
}

/// What `{{ value }}` writes.
pub fn format(out: &mut Output<'_>, _: &mut State<'_, '_>, value: &Value) -> Result<()> {
    let written = match value.as_str() {
        Some(s) => out.write_str(s),
        None => out.write_str(&to_str(value)),
    };
    written.map_err(|_| error("the output is full"))
}

/// A float, if it is one and no integer.
pub(super) fn as_float(value: &Value) -> Option<f64> {
    if value.kind() == ValueKind::Number && !value.is_integer() { f64::try_from(value.clone()).ok() } else { None }
}

/// `repr(float)`: the shortest digits that read back, in exponent form below 1e-4 and from 1e16.
pub(super) fn float_repr(v: f64, out: &mut String) {
    if !v.is_finite() {
        out.push_str(if v.is_nan() { "nan" } else { ["inf", "-inf"][usize::from(v < 0.0)] });
        return;
    }
    let scientific = format!("{v:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let _ = if (-4..16).contains(&exponent) {
        write!(out, "{v:?}")
    } else {
        write!(out, "{digits}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.unsigned_abs())
    };
}

/// `repr(value)` onto `out`. Where it is too deep, three dots stand, as CPython has for a list inside itself.
fn repr(value: &Value, out: &mut String, depth: usize) {
    if depth > DEPTH_MAX {
        out.push_str("...");
        return;
    }
    if let Some(s) = value.as_str() {
        return str_repr(s, out);
    }
    if let Some(v) = as_float(value) {
        return float_repr(v, out);
    }
    match value.kind() {
        ValueKind::Seq | ValueKind::Iterable => {
            let tuple = value.is_tuple();
            out.push(if tuple { '(' } else { '[' });
            let len = value.len().unwrap_or(0);
            for (i, item) in value.try_iter().into_iter().flatten().enumerate() {
                if i > 0 {
                    out.push_str(", ");
                }
                repr(&item, out, depth + 1);
            }
            if tuple && len == 1 {
                out.push(',');
            }
            out.push(if tuple { ')' } else { ']' });
        }
        ValueKind::Map => {
            out.push('{');
            for (i, (key, item)) in pairs(value).enumerate() {
                if i > 0 {
                    out.push_str(", ");
                }
                repr(&key, out, depth + 1);
                out.push_str(": ");
                repr(&item, out, depth + 1);
            }
            out.push('}');
        }
        ValueKind::Undefined => out.push_str("Undefined"),
        _ => {
            let _ = write!(out, "{value}");
        }
    }
}

pub(super) fn pairs(value: &Value) -> impl Iterator<Item = (Value, Value)> + use<> {
    value.as_object().and_then(|o| o.try_iter_pairs()).into_iter().flatten().collect::<Vec<_>>().into_iter()
}

/// `repr(str)`: single quotes unless only double ones save an escape; what is not printable is escaped.
fn str_repr(s: &str, out: &mut String) {
    let quote = if s.contains('\'') && !s.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for c in s.chars() {
        let code = c as u32;
        let _ = match c {
            '\\' => write!(out, "\\\\"),
            '\n' => write!(out, "\\n"),
            '\r' => write!(out, "\\r"),
            '\t' => write!(out, "\\t"),
            c if c == quote => write!(out, "\\{c}"),
            c if is_printable(c) => write!(out, "{c}"),
            _ if code <= 0xff => write!(out, "\\x{code:02x}"),
            _ if code <= 0xffff => write!(out, "\\u{code:04x}"),
            _ => write!(out, "\\U{code:08x}"),
        };
    }
    out.push(quote);
}

/// Python's `isprintable`, but for unassigned code points.
fn is_printable(c: char) -> bool {
    let invisible = matches!(c, '\u{ad}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}' | '\u{180e}' | '\u{200b}'..='\u{200f}'
        | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{e000}'..='\u{f8ff}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
        | '\u{e0001}'..='\u{e007f}' | '\u{f0000}'..='\u{10ffff}');
    c == ' ' || !(c.is_control() || c.is_whitespace() || invisible)
}

/// The arguments of a call, by position or by name, as a Python function takes them.
pub(super) struct Arguments<'a> {
    positional: &'a [Value],
    named: Option<Kwargs>,
}

impl<'a> Arguments<'a> {
    pub(super) fn new(args: &'a [Value]) -> Self {
        match args.split_last() {
            Some((last, rest)) if last.is_kwargs() => Arguments { positional: rest, named: Kwargs::try_from(last.clone()).ok() },
            _ => Arguments { positional: args, named: None },
        }
    }

    /// The argument at a place or under a name; `None` (the value) counts as not given.
    pub(super) fn get(&self, at: usize, name: &str) -> Option<Value> {
        let value = match self.positional.get(at) {
            Some(value) => Some(value.clone()),
            None => self.named.as_ref().filter(|n| n.has(name)).and_then(|n| n.get::<Value>(name).ok()),
        };
        value.filter(|v| !v.is_none() && !v.is_undefined())
    }

    fn text(&self, at: usize, name: &str) -> Result<Option<String>> {
        let Some(value) = self.get(at, name) else { return Ok(None) };
        let wrong = || error(format!("argument {name}: expected a string, found {}", value.kind()));
        value.as_str().map(|s| Some(s.to_owned())).ok_or_else(wrong)
    }

    fn required(&self, at: usize, name: &str) -> Result<String> {
        self.text(at, name)?.ok_or_else(|| Error::new(ErrorKind::MissingArgument, format!("argument {name}")))
    }

    pub(super) fn integer(&self, at: usize, name: &str) -> Result<Option<i64>> {
        let Some(value) = self.get(at, name) else { return Ok(None) };
        i64::try_from(value).map(Some)
    }

    /// No more than `max` by position, and only these names.
    pub(super) fn only(&self, max: usize, names: &[&str]) -> Result<()> {
        if self.positional.len() > max {
            return Err(Error::from(ErrorKind::TooManyArguments));
        }
        match self.named.iter().flat_map(Kwargs::args).find(|n| !names.contains(n)) {
            Some(name) => Err(Error::new(ErrorKind::TooManyArguments, format!("unknown keyword argument {name}"))),
            None => Ok(()),
        }
    }
}

/// Filters and tests that differ from the engine's own or are missing there.
pub fn add_filters(env: &mut Environment<'_>) {
    env.add_filter("tojson", |value: &Value, args: Rest<ValueOrKwargs>| json::dumps(value, &args.into_values()));
    env.add_filter("string", |value: &Value| to_str(value));
    // These take anything and see its `str()`: `none|trim` is "None".
    env.add_filter("upper", |value: &Value| to_str(value).to_uppercase());
    env.add_filter("lower", |value: &Value| to_str(value).to_lowercase());
    env.add_filter("trim", |value: &Value, chars: Option<&str>| {
        let cut = |c: char| chars.map_or_else(|| is_space(c), |chars| chars.contains(c));
        to_str(value).trim_matches(cut).to_owned()
    });
    env.add_filter("capitalize", |value: &Value| capitalize(&to_str(value)));
    env.add_filter("replace", |value: &Value, old: &Value, new: &Value, count: Option<i64>| {
        let (text, old, new) = (to_str(value), to_str(old), to_str(new));
        count.and_then(|n| usize::try_from(n).ok()).map_or_else(|| text.replace(&old, &new), |n| text.replacen(&old, &new, n))
    });
    env.add_filter("int", |value: &Value, args: Rest<ValueOrKwargs>| int(value, &Arguments::new(&args.into_values())));
    env.add_filter("float", |value: &Value, args: Rest<ValueOrKwargs>| {
        let args = args.into_values();
        to_float(value).map_or_else(|| Arguments::new(&args).get(0, "default").unwrap_or(Value::from(0.0)), Value::from)
    });
    env.add_filter("wordcount", |value: &Value| {
        to_str(value).split(|c: char| !(c.is_alphanumeric() || c == '_')).filter(|word| !word.is_empty()).count()
    });
    // In Python whatever has a length and can be indexed: strings and dicts too.
    env.add_test("sequence", |value: &Value| {
        matches!(value.kind(), ValueKind::String | ValueKind::Seq | ValueKind::Map | ValueKind::Iterable)
    });
    env.add_test("iterable", |value: &Value| {
        !value.is_none() && (value.is_undefined() || value.as_str().is_some() || value.try_iter().is_ok())
    });
    env.add_test("callable", |value: &Value| value.kind() == ValueKind::Plain);
    env.add_function("cycler", |items: Rest<Value>| minijinja_contrib::globals::cycler(items.to_vec()));
}

/// `float(value)`, where Python can.
fn to_float(value: &Value) -> Option<f64> {
    match value.as_str() {
        // Rust reads what Python reads, but for underscores and "infinity"'s letters.
        Some(s) => s.trim_matches(is_space).replace('_', "").parse().ok(),
        None => f64::try_from(value.clone()).ok(),
    }
}

/// The filter `int(default=0, base=10)`: `int(value)`, else `int(float(value))`, else the default.
fn int(value: &Value, args: &Arguments<'_>) -> Result<Value> {
    let base = args.integer(1, "base")?.and_then(|b| u32::try_from(b).ok()).filter(|b| (2..=36).contains(b)).unwrap_or(10);
    if value.is_integer() {
        return Ok(value.clone());
    }
    if value.kind() == ValueKind::Bool {
        return Ok(Value::from(i64::from(value.is_true())));
    }
    if let Some(v) = value.as_str().and_then(|s| i128::from_str_radix(&s.trim_matches(is_space).replace('_', ""), base).ok()) {
        return Ok(Value::from(v));
    }
    // A cast saturates; what does not fit is not worth a big integer.
    let truncated = to_float(value).filter(|v| v.is_finite()).map(|v| Value::from(v as i64));
    Ok(truncated.or_else(|| args.get(0, "default")).unwrap_or(Value::from(0)))
}

/// A method of a string, a dict or a list.
pub fn method(state: &mut State<'_, '_>, value: &Value, name: &str, args: &[Value]) -> Result<Value> {
    let own = match value.kind() {
        _ if name == SLICE => Some(slice(value, args)?),
        ValueKind::String => str_method(value.as_str().unwrap_or_default(), name, &Arguments::new(args))?,
        ValueKind::Map if name == "copy" && args.is_empty() => Some(value.clone()),
        ValueKind::Seq if name == "copy" && args.is_empty() => Some(value.clone()),
        ValueKind::Seq if name == "index" && args.len() == 1 => {
            let at = value.try_iter()?.position(|item| item == args[0]);
            Some(Value::from(at.ok_or_else(|| error("list.index: not in the list"))?))
        }
        _ => None,
    };
    match own {
        Some(result) => Ok(result),
        None => minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args),
    }
}

/// The method that `value[start:stop:step]` is turned into: the engine's own slices of lists are lazy, no lists, and those with a
/// negative step panic on empty ones.
pub const SLICE: &str = "__slice__";

/// `value[start:stop:step]` by CPython's rules (`PySlice_AdjustIndices`).
fn slice(value: &Value, args: &[Value]) -> Result<Value> {
    let bound = |i: usize| match args.get(i).filter(|v| !v.is_none()) {
        None => Ok(None),
        Some(v) => i64::try_from(v.clone()).map(Some),
    };
    let (start, stop, step) = (bound(0)?, bound(1)?, bound(2)?.unwrap_or(1));
    if step == 0 {
        return Err(error("slice step cannot be zero"));
    }
    let text = value.as_str();
    let items: Vec<Value> = match (text, value.kind()) {
        (Some(_), _) => Vec::new(),
        (None, ValueKind::Seq | ValueKind::Iterable) => value.try_iter()?.collect(),
        (None, kind) => return Err(error(format!("{kind} cannot be sliced"))),
    };
    let chars: Vec<char> = text.map(|s| s.chars().collect()).unwrap_or_default();
    let len = items.len().max(chars.len()) as i64;
    // Where a bound may lie: one before the first is the end of a walk backwards.
    let (low, high) = if step > 0 { (0, len) } else { (-1, len - 1) };
    let adjust = |bound: Option<i64>, absent: i64| match bound {
        None => absent,
        Some(b) if b < 0 => b.saturating_add(len).clamp(low, high.max(low)),
        Some(b) => b.clamp(low, high.max(low)),
    };
    let start = adjust(start, if step > 0 { low } else { high });
    let stop = adjust(stop, if step > 0 { high } else { low });
    let inside = move |at: &i64| if step > 0 { *at < stop } else { *at > stop };
    let indices = std::iter::successors(Some(start), move |at| at.checked_add(step)).take_while(inside).map(|at| at as usize);
    Ok(match text {
        Some(_) => Value::from(indices.filter_map(|i| chars.get(i)).collect::<String>()),
        None => {
            let kept: Vec<Value> = indices.filter_map(|i| items.get(i).cloned()).collect();
            if value.is_tuple() { Value::from(Tuple::from(kept)) } else { Value::from(kept) }
        }
    })
}

/// Python's white space: Unicode's and four separators.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

fn capitalize(s: &str) -> String {
    let mut chars = s.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars.as_str().to_lowercase().chars()).collect())
}

/// The methods of `str` that the engine's own compatibility lacks or has otherwise.
fn str_method(s: &str, name: &str, args: &Arguments<'_>) -> Result<Option<Value>> {
    Ok(Some(match name {
        "strip" | "lstrip" | "rstrip" => {
            args.only(1, &[])?;
            let chars = args.text(0, "chars")?;
            let cut = |c: char| chars.as_deref().map_or_else(|| is_space(c), |chars| chars.contains(c));
            let s = if name == "rstrip" { s } else { s.trim_start_matches(cut) };
            Value::from(if name == "lstrip" { s } else { s.trim_end_matches(cut) })
        }
        "split" | "rsplit" => {
            args.only(2, &["sep", "maxsplit"])?;
            let most = args.integer(1, "maxsplit")?.and_then(|n| usize::try_from(n).ok()).unwrap_or(usize::MAX);
            let parts = match args.text(0, "sep")? {
                Some(sep) if sep.is_empty() => return Err(error("empty separator")),
                Some(sep) if name == "split" => s.splitn(most.saturating_add(1), sep.as_str()).map(Value::from).collect(),
                Some(sep) => reversed(s.rsplitn(most.saturating_add(1), sep.as_str())),
                None if name == "split" => split_space(s, most),
                None => rsplit_space(s, most),
            };
            Value::from(parts)
        }
        "splitlines" => {
            args.only(1, &["keepends"])?;
            Value::from(split_lines(s, args.get(0, "keepends").is_some_and(|v| v.is_true())))
        }
        "partition" | "rpartition" => {
            args.only(1, &[])?;
            let sep = args.required(0, "sep")?;
            if sep.is_empty() {
                return Err(error("empty separator"));
            }
            let found = if name == "partition" { s.split_once(&sep) } else { s.rsplit_once(&sep) };
            let parts = match found {
                Some((before, after)) => [before, &sep, after],
                None if name == "partition" => [s, "", ""],
                None => ["", "", s],
            };
            Value::from(Tuple::from(parts.map(Value::from)))
        }
        "removeprefix" => Value::from(s.strip_prefix(args.required(0, "prefix")?.as_str()).unwrap_or(s)),
        "removesuffix" => Value::from(s.strip_suffix(args.required(0, "suffix")?.as_str()).unwrap_or(s)),
        "capitalize" => Value::from(capitalize(s)),
        "casefold" => Value::from(s.to_lowercase()),
        "swapcase" => Value::from(
            s.chars()
                .map(|c| if c.is_uppercase() { c.to_lowercase().collect::<String>() } else { c.to_uppercase().collect() })
                .collect::<String>(),
        ),
        "title" => {
            let mut inside = false;
            let mut out = String::new();
            for c in s.chars() {
                if inside {
                    out.extend(c.to_lowercase())
                } else {
                    out.extend(c.to_uppercase())
                }
                inside = c.is_lowercase() || c.is_uppercase();
            }
            Value::from(out)
        }
        "join" => {
            let Some(items) = args.get(0, "iterable") else { return Err(Error::from(ErrorKind::MissingArgument)) };
            let mut out = String::new();
            for (i, item) in items.try_iter()?.enumerate() {
                let Some(text) = item.as_str() else {
                    return Err(error(format!("join: item {i}: expected a string, found {}", item.kind())));
                };
                if i > 0 {
                    out.push_str(s);
                }
                out.push_str(text);
            }
            Value::from(out)
        }
        "index" | "rindex" => {
            let what = args.required(0, "sub")?;
            let at = if name == "index" { s.find(&what) } else { s.rfind(&what) };
            let at = at.ok_or_else(|| error("substring not found"))?;
            Value::from(s[..at].chars().count())
        }
        "zfill" | "ljust" | "rjust" | "center" => {
            let width = args.integer(0, "width")?.ok_or_else(|| Error::from(ErrorKind::MissingArgument))?;
            // Wider than any line: a template that asks for more is after the memory.
            if width > 1 << 16 {
                return Err(error(format!("{name}: a width of {width}")));
            }
            let fill = args.text(1, "fillchar")?.and_then(|f| f.chars().next()).unwrap_or(' ');
            Value::from(pad(s, name, usize::try_from(width).unwrap_or(0), fill))
        }
        _ => return Ok(None),
    }))
}

fn reversed<'a>(parts: impl Iterator<Item = &'a str>) -> Vec<Value> {
    let mut parts: Vec<Value> = parts.map(Value::from).collect();
    parts.reverse();
    parts
}

/// `str.split()` without a separator: runs of white space separate, none at the ends; the rest keeps its trailing space.
fn split_space(s: &str, most: usize) -> Vec<Value> {
    let mut parts = Vec::new();
    let mut rest = s.trim_start_matches(is_space);
    while !rest.is_empty() {
        let end = if parts.len() < most { rest.find(is_space).unwrap_or(rest.len()) } else { rest.len() };
        parts.push(Value::from(&rest[..end]));
        rest = rest[end..].trim_start_matches(is_space);
    }
    parts
}

/// The same from the right.
fn rsplit_space(s: &str, most: usize) -> Vec<Value> {
    let mut parts = Vec::new();
    let mut rest = s.trim_end_matches(is_space);
    while !rest.is_empty() {
        let last = rest.char_indices().rev().find(|(_, c)| is_space(*c)).map(|(at, c)| at + c.len_utf8());
        let start = if parts.len() < most { last.unwrap_or(0) } else { 0 };
        parts.push(Value::from(&rest[start..]));
        rest = rest[..start].trim_end_matches(is_space);
    }
    parts.reverse();
    parts
}

/// `str.splitlines`.
fn split_lines(s: &str, keep_ends: bool) -> Vec<Value> {
    let mut parts = Vec::new();
    let mut rest = s;
    let is_end = |c: char| matches!(c, '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}');
    while let Some(at) = rest.find(is_end) {
        let end = &rest[at..];
        let len = if end.starts_with("\r\n") { 2 } else { end.chars().next().map_or(1, char::len_utf8) };
        parts.push(Value::from(&rest[..if keep_ends { at + len } else { at }]));
        rest = &rest[at + len..];
    }
    if !rest.is_empty() {
        parts.push(Value::from(rest));
    }
    parts
}

/// `zfill`, `ljust`, `rjust` and `center` (which puts the odd one where CPython does).
fn pad(s: &str, name: &str, width: usize, fill: char) -> String {
    let missing = width.saturating_sub(s.chars().count());
    let fills = |n: usize, c: char| c.to_string().repeat(n);
    match name {
        "ljust" => format!("{s}{}", fills(missing, fill)),
        "rjust" => format!("{}{s}", fills(missing, fill)),
        "zfill" => {
            let (sign, digits) = s.split_at(usize::from(s.starts_with(['+', '-'])));
            format!("{sign}{}{digits}", fills(missing, '0'))
        }
        _ => {
            let left = missing / 2 + (missing & width & 1);
            format!("{}{s}{}", fills(left, fill), fills(missing - left, fill))
        }
    }
}
