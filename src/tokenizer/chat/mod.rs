//! Chat templates: a conversation to the text the model was trained on, by the model's own Jinja template
//! (`tokenizer.chat_template`), as the [Hugging Face chat templating](https://huggingface.co/docs/transformers/chat_templating)
//! environment renders it: `trim_blocks`, `lstrip_blocks`, loop controls, `raise_exception`, `strftime_now`, Python's own `tojson`
//! and string methods.
//!
//! Invariants: a template is parsed once, at the door; rendering is deterministic but for `strftime_now`, which
//! [`RenderOptions::now`] fixes; steps ([`FUEL`]), recursion and output ([`OUTPUT_BYTES_MAX`]) are bounded, so a hostile template ends
//! with an error. What is not bounded, because the engine gives no hold on it: a string that a template keeps doubling
//! (`{% set ns.s = ns.s ~ ns.s %}` in a loop), and a list that it keeps nesting, ten thousand deep. Whoever renders templates of
//! strangers on behalf of others should do it in a process that may die.
//!
//! Not rendered as Python does: text joined to a `|safe` string by `+` (Python escapes it as HTML), `varargs` and `kwargs` in macros, `%` as
//! string formatting, a sign before an expression (`+x`), floats of 1e16 and more joined by `~`, `{% raw %}` followed at once by a line
//! break, and how Python prints functions, generators and dict views. Some templates that Python refuses (JSON of a generator) render.

mod clock;
mod json;
mod python;
mod source;

use crate::error::{Error, Result};
use crate::gguf::{Gguf, keys};
use crate::tokenizer::Tokenizer;
use minijinja::{Environment, ErrorKind, Value, syntax::SyntaxConfig};
use serde_json::Value as Json;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Steps of the template engine in one rendering. A conversation of a thousand messages takes some hundred thousand.
pub const FUEL: u64 = 20_000_000;

/// Most bytes that one rendering may put out.
pub const OUTPUT_BYTES_MAX: usize = 64 << 20;

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// `system`, `user`, `assistant`, `tool`, or whatever else the template knows.
    pub role: String,
    /// What was said.
    pub content: String,
}

impl Message {
    /// A message from its two parts.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Message {
        Message { role: role.into(), content: content.into() }
    }
}

/// What a template is told beside the messages.
#[derive(Clone, Debug, Default)]
pub struct RenderOptions {
    /// Ends the text with the opening of the assistant's turn.
    pub add_generation_prompt: bool,
    /// The functions the model may call: a list of JSON schemas, as the template wants them.
    pub tools: Option<Json>,
    /// Further variables, for example `enable_thinking`; they win over all others.
    pub extra: serde_json::Map<String, Json>,
    /// What `strftime_now` takes for now: seconds since 1970, with the offset of the wall clock wanted added. `None` is now in UTC.
    pub now: Option<i64>,
}

/// A compiled chat template.
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
    /// What every conversation begins with, whether or not the template writes it.
    opening: String,
}

/// The name under which the template is compiled; error messages carry it.
const NAME: &str = "chat_template";

impl ChatTemplate {
    /// Compiles a template. `bos` and `eos` are the texts of the model's special tokens; an empty one is undefined in the template.
    ///
    /// # Errors
    /// [`Error::Model`] with the line of the first thing that is no Jinja.
    pub fn new(source: &str, bos: &str, eos: &str) -> Result<ChatTemplate> {
        let mut env = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(|e| bad_template(&e))?;
        env.set_syntax(syntax);
        env.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        env.set_fuel(Some(FUEL));
        env.set_debug(false);
        env.set_formatter(python::format);
        env.set_unknown_method_callback(python::method);
        minijinja_contrib::add_to_environment(&mut env);
        python::add_filters(&mut env);
        env.add_function("raise_exception", raise_exception);
        for (name, text) in [("bos_token", bos), ("eos_token", eos)] {
            if !text.is_empty() {
                env.add_global(name, Value::from(text));
            }
        }
        let prepared = source::prepare(source)
            .map_err(|(line, what)| Error::model(keys::CHAT_TEMPLATE, "a template within bounds", format!("line {line}: {what}")))?;
        env.add_template_owned(NAME, prepared).map_err(|e| bad_template(&e))?;
        Ok(ChatTemplate { environment: env, source: source.to_owned(), opening: String::new() })
    }

    /// [`ChatTemplate::new`] for the model with this tokenizer. Where its texts begin with a beginning-of-sequence token, so do conversations,
    /// once, whether or not the template writes it (many do, some leave it to whoever makes tokens of the text).
    ///
    /// # Errors
    /// As [`ChatTemplate::new`].
    pub fn of_model(source: &str, tokenizer: &Tokenizer) -> Result<ChatTemplate> {
        let text = |id: Option<u32>| id.and_then(|id| tokenizer.token_text(id)).unwrap_or_default();
        let mut template = ChatTemplate::new(source, text(tokenizer.bos()), text(tokenizer.eos()))?;
        if tokenizer.add_bos() {
            template.opening = text(tokenizer.bos()).to_owned();
        }
        Ok(template)
    }

    /// The template of a model: the default one, or the variant `tokenizer.chat_template.NAME` (for example `tool_use`, `rag`).
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the model has none of that name (it says which there are; [`ChatTemplate::chatml`] may serve),
    /// otherwise as [`ChatTemplate::new`].
    pub fn from_gguf(gguf: &Gguf, variant: Option<&str>, bos: &str, eos: &str) -> Result<ChatTemplate> {
        let key = match variant {
            Some(name) => format!("{}.{name}", keys::CHAT_TEMPLATE),
            None => keys::CHAT_TEMPLATE.to_owned(),
        };
        match gguf.str(&key)? {
            Some(source) => ChatTemplate::new(source, bos, eos),
            None => {
                let others = Self::variants(gguf);
                let others = if others.is_empty() { "no variants either".to_owned() } else { format!("variants: {}", others.join(", ")) };
                Err(Error::Unsupported(format!(
                    "the model has no chat template ({key} is missing; {others}): give a template, choose ChatML, or write the prompt by hand"
                )))
            }
        }
    }

    /// The names of a model's template variants, without the default one.
    pub fn variants(gguf: &Gguf) -> Vec<&str> {
        let variant = |key: &'_ str| key.strip_prefix(keys::CHAT_TEMPLATE).and_then(|rest| rest.strip_prefix('.')).map(str::len);
        gguf.metadata().iter().filter_map(|(key, _)| variant(key).map(|len| &key[key.len() - len..])).collect()
    }

    /// ChatML, for a model that was tuned on it but brings no template: `<|im_start|>role`, the content, `<|im_end|>`.
    pub fn chatml() -> Result<ChatTemplate> {
        ChatTemplate::new(CHATML, "", "<|im_end|>")
    }

    /// The template's text.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Renders a conversation.
    ///
    /// The text contains the special tokens as text, often the beginning-of-sequence token too: tokenise it with special tokens
    /// recognised, and add no second one.
    ///
    /// # Errors
    /// [`Error::Argument`] with the template's own words where it refuses the conversation (`raise_exception`), [`Error::Limit`]
    /// where it does not end, [`Error::Model`] with a line number where it fails.
    pub fn render(&self, messages: &[Message], options: &RenderOptions) -> Result<String> {
        let messages = messages.iter().map(|m| Value::from_pairs([("role", m.role.as_str()), ("content", m.content.as_str())]));
        let mut variables = vec![
            ("messages".to_owned(), messages.collect::<Value>()),
            ("tools".to_owned(), options.tools.as_ref().map_or(Value::from(()), python::from_json)),
            ("documents".to_owned(), Value::from(())),
            ("add_generation_prompt".to_owned(), Value::from(options.add_generation_prompt)),
        ];
        variables.extend(options.extra.iter().map(|(name, value)| (name.clone(), python::from_json(value))));
        self.render_variables(variables, options.now)
    }

    /// Renders with variables all given by the caller: an object with `messages`, `add_generation_prompt`, `tools` and so on. What it
    /// does not give is undefined, but for the special tokens. The wall clock is UTC.
    ///
    /// # Errors
    /// As [`ChatTemplate::render`], and [`Error::Argument`] if `variables` is no object.
    pub fn render_json(&self, variables: &Json) -> Result<String> {
        let Some(object) = variables.as_object() else {
            return Err(Error::argument("variables", "a JSON object", kind_of(variables)));
        };
        self.render_variables(object.iter().map(|(name, value)| (name.clone(), python::from_json(value))).collect(), None)
    }

    fn render_variables(&self, mut variables: Vec<(String, Value)>, now: Option<i64>) -> Result<String> {
        if !variables.iter().any(|(name, _)| name == "strftime_now") {
            let clock = move |format: &str| clock::strftime(format, now.unwrap_or_else(clock::now));
            variables.push(("strftime_now".to_owned(), Value::from_function(clock)));
        }
        let template = self.environment.get_template(NAME).map_err(|e| bad_template(&e))?;
        let mut out = Bounded { bytes: Vec::new(), full: false };
        // The engine is somebody else's and templates are strangers': a panic there is an error here.
        let run = AssertUnwindSafe(|| template.render_captured_to(Value::from_pairs(variables), &mut out).map(drop));
        let Ok(rendered) = catch_unwind(run) else {
            return Err(Error::Unsupported("the chat template brought down the template engine".to_owned()));
        };
        match rendered {
            Ok(()) => {
                let text = String::from_utf8(out.bytes).map_err(|e| Error::model(keys::CHAT_TEMPLATE, "UTF-8 output", e))?;
                Ok(if text.starts_with(&self.opening) { text } else { self.opening.clone() + &text })
            }
            Err(_) if out.full => Err(Error::Limit {
                what: "output bytes of the chat template".to_owned(),
                limit: OUTPUT_BYTES_MAX as u64,
                asked: OUTPUT_BYTES_MAX as u64 + 1,
            }),
            Err(error) => Err(failed(&error)),
        }
    }
}

/// The template of [`ChatTemplate::chatml`].
const CHATML: &str = "\
{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}";

/// A buffer that refuses to grow beyond [`OUTPUT_BYTES_MAX`].
struct Bounded {
    bytes: Vec<u8>,
    full: bool,
}

impl io::Write for Bounded {
    fn write(&mut self, part: &[u8]) -> io::Result<usize> {
        if part.len() > OUTPUT_BYTES_MAX - self.bytes.len() {
            self.full = true;
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(part);
        Ok(part.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What a template said through `raise_exception`: it travels as the source of the engine's error.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

fn raise_exception(message: &Value) -> Result<Value, minijinja::Error> {
    let message = python::to_str(message);
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, "raise_exception").with_source(Raised(message)))
}

/// The engine's errors nest (a macro, an include): the walk from the outside in.
fn chain(error: &minijinja::Error) -> impl Iterator<Item = &(dyn std::error::Error + 'static)> {
    std::iter::successors(Some(error as &(dyn std::error::Error + 'static)), |e| e.source()).take(32)
}

/// What the innermost error of the engine says, with the line it knows.
fn describe(error: &minijinja::Error) -> String {
    let engine = chain(error).filter_map(|e| e.downcast_ref::<minijinja::Error>());
    let (mut text, mut line) = (String::new(), None);
    for e in engine {
        text = match e.detail() {
            Some(detail) => format!("{}: {detail}", e.kind()),
            None => e.kind().to_string(),
        };
        line = e.line().or(line);
    }
    match line {
        Some(line) => format!("line {line}: {text}"),
        None => text,
    }
}

fn bad_template(error: &minijinja::Error) -> Error {
    Error::model(keys::CHAT_TEMPLATE, "a Jinja template", describe(error))
}

fn failed(error: &minijinja::Error) -> Error {
    if let Some(raised) = chain(error).find_map(|e| e.downcast_ref::<Raised>()) {
        return Error::argument("messages", "a conversation that the chat template accepts", &raised.0);
    }
    if chain(error).any(|e| e.downcast_ref::<minijinja::Error>().is_some_and(|e| e.kind() == ErrorKind::OutOfFuel)) {
        return Error::Limit { what: "steps of the chat template".to_owned(), limit: FUEL, asked: FUEL + 1 };
    }
    Error::model(keys::CHAT_TEMPLATE, "a template that renders", describe(error))
}

fn kind_of(value: &Json) -> &'static str {
    match value {
        Json::Null => "null",
        Json::Bool(_) => "a boolean",
        Json::Number(_) => "a number",
        Json::String(_) => "a string",
        Json::Array(_) => "an array",
        Json::Object(_) => "an object",
    }
}
