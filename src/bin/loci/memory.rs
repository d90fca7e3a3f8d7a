//! `remember` and `recall`: context that outlives the window and the process. Looking after the files: `upkeep.rs`.

use crate::args::{AnswerArgs, ModelArgs, SessionArgs};
use crate::{Done, Failure, interrupt, output, prompt, run};
use clap::Args;
use loci::Error;
use loci::memory::{Codec, Geometry, Memory, SourceSpan};
use loci::model::Model;
use loci::session::{Finish, Passage, Session, SharedMemory};
use serde_json::{Value, json};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

/// How often what has been read so far is made durable.
const COMMIT_EVERY: Duration = Duration::from_secs(10);
/// Tokens of a stored passage that are shown.
const SNIPPET_TOKENS: u64 = 32;
/// What the memory of the session itself is called, where what left its window goes.
const THIS_CONVERSATION: &str = "this conversation";

/// Read files into a memory on disk, creating or extending it
///
/// Every token's keys and values are appended, so that a later question can be answered from them, in this process or another one.
/// A text's tokens are durable before the first of them is computed, what is computed is committed every ten seconds and at the end;
/// Ctrl-C keeps what was read until then. What a crash interrupted is finished first.
#[derive(Args)]
pub struct Remember {
    /// Texts to read (`-`: stdin)
    #[arg(required = true)]
    files: Vec<PathBuf>,
    #[command(flatten)]
    model: ModelArgs,
    /// The memory file
    #[arg(long, value_name = "FILE")]
    memory: PathBuf,
    /// Encoding of a new memory: f32, f16, bf16, k8v4 (keys in 8 bits, values in 4) or k4v4; else the model's own, or f16
    #[arg(long, value_name = "CODEC", value_parser = codec)]
    codec: Option<Codec>,
    /// Leave out files that are in the memory already; what is there in part is forgotten and read anew
    #[arg(long)]
    skip_known: bool,
    /// One JSON object in place of lines
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    session: SessionArgs,
}

impl Remember {
    pub fn exec(self) -> Done {
        // Read everything first: a missing file should not be noticed after an hour.
        let texts = self.files.iter().map(|path| Ok((path, prompt::read(path)?))).collect::<Result<Vec<_>, Failure>>()?;
        let model = self.model.open()?;
        let memory = self.open(&model)?;
        let before = memory.len();
        let memory: SharedMemory = Arc::new(RwLock::new(memory));
        let mut session = self.session.start(model.clone(), self.session.options())?;
        interrupt::install()?;
        let _busy = interrupt::guard(session.cancel_handle());
        let mut stored = Vec::new();
        let mut outcome = Ok(());
        if let Some(label) = resume(&mut session, &memory)? {
            output::note(&format!("{label}: what was interrupted is finished"));
        }
        let done: Vec<SourceSpan> =
            if self.skip_known { memory.read().map_err(|_| poisoned()).and_then(|m| sources(&m))? } else { Vec::new() };
        for (path, text) in &texts {
            let label = if *path == Path::new("-") { "stdin".to_string() } else { path.display().to_string() };
            let tokens = model.tokenizer().encode_bytes(text, true, false);
            match done.iter().filter(|s| s.label == label).map(|s| s.tokens.end - s.tokens.start).sum::<u64>() {
                0 => {}
                held if held >= tokens.len() as u64 => {
                    output::note(&format!("{label}: it is in the memory already"));
                    continue;
                }
                held => {
                    output::note(&format!("{label}: {held} of its {} tokens are in the memory; it is read anew", tokens.len()));
                    memory.write().map_err(|_| poisoned())?.forget(&label)?;
                }
            }
            let first = len(&memory);
            let started = Instant::now();
            outcome = read_in(&mut session, &memory, &tokens, &label);
            commit(&memory)?;
            stored.push((label, first, len(&memory) - first, started.elapsed().as_secs_f64()));
            if outcome.is_err() {
                break;
            }
        }
        self.report(&stored, before, &memory)?;
        outcome
    }

    fn open(&self, model: &Model) -> Result<Memory, Failure> {
        // An empty one was left by a process that was killed before it had written a byte.
        if std::fs::metadata(&self.memory).map_or(true, |m| m.is_file() && m.len() == 0) {
            let geometry = model.memory_geometry();
            let codec = self.codec.unwrap_or(geometry.codec);
            return Ok(Memory::create(&self.memory, Geometry { codec, ..geometry }, model.fingerprint().clone())?);
        }
        let memory = Memory::open(&self.memory, Some(model.fingerprint()))?;
        let found = memory.geometry().codec;
        match self.codec.filter(|wanted| *wanted != found) {
            Some(wanted) => Err(Error::mismatch("the codec of the memory", wanted, found).into()),
            None => Ok(memory),
        }
    }

    fn report(&self, stored: &[(String, u64, u64, f64)], before: u64, memory: &SharedMemory) -> Done {
        let total = len(memory);
        let file_bytes = std::fs::metadata(&self.memory).map_or(0, |m| m.len());
        if self.json {
            let files: Vec<Value> = stored
                .iter()
                .map(|(label, first, tokens, seconds)| {
                    let speed = output::per_second(*tokens, *seconds);
                    json!({"source": label, "first_token": first, "tokens": tokens, "seconds": seconds, "tokens_per_second": speed})
                })
                .collect();
            let object = json!({
                "memory": self.memory.display().to_string(), "stored": files, "tokens_before": before, "tokens": total,
                "file_bytes": file_bytes,
            });
            return output::print_line(&object.to_string());
        }
        for (label, first, tokens, seconds) in stored {
            let end = first + tokens;
            let speed = output::per_second(*tokens, *seconds);
            output::print_line(&format!("{label}: {tokens} tokens ({first}..{end}) in {seconds:.1} s, {speed:.0} tokens/s"))?;
        }
        output::print_line(&format!("{}: {total} tokens, {}", self.memory.display(), output::bytes(file_bytes)))
    }
}

/// Reads one text into the memory, committing now and then.
fn read_in(session: &mut Session, memory: &SharedMemory, tokens: &[u32], label: &str) -> Done {
    let bar = output::token_bar("remembering", tokens.len());
    let mut failed = None;
    let done = session.remember(memory, tokens, Some(label), &mut committing(memory, &bar, &mut failed));
    bar.finish_and_clear();
    match failed {
        Some(e) => Err(e.into()),
        None => Ok(done?),
    }
}

/// Finishes what a crash interrupted; its label, if there was something.
fn resume(session: &mut Session, memory: &SharedMemory) -> Result<Option<String>, Failure> {
    let Some(rest) = memory.read().map_err(|_| poisoned())?.unfinished()? else { return Ok(None) };
    let bar = output::token_bar("remembering what was interrupted", rest.tokens.len());
    let mut failed = None;
    let done = session.resume(memory, &mut committing(memory, &bar, &mut failed));
    bar.finish_and_clear();
    match failed {
        Some(e) => Err(e.into()),
        None => Ok(done?.then(|| rest.label.unwrap_or_else(|| "a text without a name".into()))),
    }
}

/// Shows progress and commits every now and then; stops when that fails.
fn committing<'a>(
    memory: &'a SharedMemory,
    bar: &'a indicatif::ProgressBar,
    failed: &'a mut Option<Error>,
) -> impl FnMut(usize, usize) -> ControlFlow<()> + 'a {
    let mut last_commit = Instant::now();
    move |done, _| {
        bar.set_position(done as u64);
        if last_commit.elapsed() >= COMMIT_EVERY {
            last_commit = Instant::now();
            if let Ok(mut memory) = memory.try_write()
                && let Err(e) = memory.commit()
            {
                *failed = Some(e);
                return ControlFlow::Break(());
            }
        }
        ControlFlow::Continue(())
    }
}

fn commit(memory: &SharedMemory) -> Done {
    let mut memory = memory.write().map_err(|_| poisoned())?;
    Ok(memory.commit()?)
}

fn len(memory: &SharedMemory) -> u64 {
    memory.read().map_or(0, |m| m.len())
}

fn poisoned() -> Failure {
    Failure::failed("the memory is unusable after a failure in another thread")
}

/// A memory to read from, which must belong to `model`.
pub fn open_shared(path: &Path, model: &Model) -> Result<SharedMemory, Failure> {
    Ok(Arc::new(RwLock::new(Memory::open_read_only(path, Some(model.fingerprint()))?)))
}

/// Ask a question with a memory attached, and see which passages were read
#[derive(Args)]
pub struct Recall {
    /// The question
    question: String,
    #[command(flatten)]
    model: ModelArgs,
    /// The memory file; may be repeated
    #[arg(long, value_name = "FILE", required = true)]
    memory: Vec<PathBuf>,
    /// What the model is told before the question
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Give the question to the model as it stands, without the chat template
    #[arg(long)]
    raw: bool,
    /// How the answer begins: the model goes on from there, which helps a small one to the point
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    begin: String,
    /// Show so many passages
    #[arg(long, value_name = "N", default_value_t = 4)]
    passages: usize,
    /// Figures on stderr at the end
    #[arg(long)]
    stats: bool,
    /// One JSON object at the end, in place of text
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    answer: AnswerArgs,
}

impl Recall {
    pub fn exec(self) -> Done {
        let options = self.answer.session_options()?;
        let model = self.model.open()?;
        let mut session = self.answer.session.start(model.clone(), options)?;
        let mut memories = Vec::new();
        let started = std::time::Instant::now();
        for path in &self.memory {
            let memory = open_shared(path, &model)?;
            session.attach_memory(memory.clone())?;
            memories.push(memory);
        }
        let open_seconds = started.elapsed().as_secs_f64();
        let mut tokens = if self.raw || model.chat_template().is_none() {
            model.tokenizer().encode(&self.question, true, false)
        } else {
            let mut messages: Vec<_> = self.system.iter().map(|text| prompt::message("system", text)).collect();
            messages.push(prompt::message("user", &self.question));
            prompt::Chat::new(&model)?.tokens(&messages)?
        };
        tokens.extend(model.tokenizer().encode(&self.begin, false, false));
        interrupt::install()?;
        let _busy = interrupt::guard(session.cancel_handle());
        let json = self.json;
        // One call: a Ctrl-C in the last of the prompt ends the answer too.
        let mut answer = session.as_one_call(|session| {
            run::prefill(session, &tokens, "reading")?;
            if !json {
                output::print(&self.begin)?;
            }
            run::generate(session, self.answer.length.options(), &mut |text| if json { Ok(()) } else { output::print(text) })
        })?;
        answer.text.insert_str(0, &self.begin);
        let passages: Vec<Passage> = session.passages()?.into_iter().take(self.passages).collect();
        let texts = passages.iter().map(|p| snippet(&session, &memories, p)).collect::<Result<Vec<_>, _>>()?;
        let whole = self.read_whole(&session, &memories)?;
        if json {
            let read: Vec<Value> = passages
                .iter()
                .zip(&texts)
                .map(|(p, text)| {
                    json!({
                        "memory": self.name(p.memory), "source": p.source, "first_token": p.first_token,
                        "tokens": p.len, "score": p.score, "text": text,
                    })
                })
                .collect();
            let whole: Vec<Value> = whole.iter().map(Whole::json).collect();
            let object = json!({
                "answer": answer.text, "finish": run::finish_name(answer.finish), "passages": read, "read_whole": whole,
                "open_seconds": open_seconds,
                "pace": answer.pace().map(|[median, p99, most]| json!({"median": median, "p99": p99, "most": most, "each": answer.token_seconds})),
                "stats": run::stats_json(&session.stats()),
            });
            output::print_line(&object.to_string())?;
        } else {
            output::print(if answer.text.ends_with('\n') { "\n" } else { "\n\n" })?;
            if !passages.is_empty() {
                output::print_line("read from memory:")?;
            }
            for (p, text) in passages.iter().zip(&texts) {
                let here = if p.memory.is_some() { "(no source)" } else { THIS_CONVERSATION };
                let source = p.source.as_deref().unwrap_or(here);
                let of = if memories.len() > 1 { format!("{}: ", self.name(p.memory)) } else { String::new() };
                let span = format!("{}..{}", p.first_token, p.first_token + p.len);
                output::print_line(&format!("  {of}{source}, tokens {span}, {:.3}: {:?}", p.score, text.trim()))?;
            }
            for memory in &whole {
                output::print(&memory.lines())?;
            }
        }
        if self.stats {
            run::note_stats(&session.stats());
            let pace = answer.pace().unwrap_or_default().map(|s| s * 1e3);
            let [median, p99, most] = pace;
            output::note(&format!(
                "memory open after {:.2} ms; from token to token {median:.2} ms (median), {p99:.2} ms (99th percentile), {most:.2} ms (most)",
                open_seconds * 1e3
            ));
        }
        if answer.finish == Finish::Cancelled { Err(Failure::Cancelled) } else { Ok(()) }
    }
}

impl Recall {
    /// What the memory of a passage is called: its file, or this conversation for what left the session's own window.
    fn name(&self, memory: Option<usize>) -> String {
        memory.and_then(|m| self.memory.get(m)).map_or_else(|| THIS_CONVERSATION.into(), |path| path.display().to_string())
    }

    /// What a Focused Transformer has read: its memory layers attend to every memory as a whole, so there are no passages to
    /// choose from. Empty for other models.
    fn read_whole(&self, session: &Session, memories: &[SharedMemory]) -> Result<Vec<Whole>, Failure> {
        if session.model().memory_layers().is_empty() {
            return Ok(Vec::new());
        }
        let keys = Some(self.answer.session.memory_top_k).filter(|&k| k > 0);
        let all = memories.iter().chain(session.overflow_memory()).enumerate().map(|(i, memory)| {
            let memory = memory.read().map_err(|_| poisoned())?;
            Ok(Whole { name: self.name(Some(i)), tokens: memory.len(), keys, sources: sources(&memory)? })
        });
        all.collect()
    }
}

/// A memory that was read as a whole.
struct Whole {
    name: String,
    tokens: u64,
    /// How many keys each query and head took, if not all.
    keys: Option<usize>,
    sources: Vec<SourceSpan>,
}

impl Whole {
    fn json(&self) -> Value {
        json!({"memory": self.name, "tokens": self.tokens, "keys_per_query": self.keys, "sources": sources_json(&self.sources)})
    }

    fn lines(&self) -> String {
        let (name, tokens) = (&self.name, self.tokens);
        let mut text = match self.keys {
            None => format!("all {tokens} tokens of {name} were read\n"),
            Some(keys) => format!("all {tokens} tokens of {name} were searched, each query and head read its {keys} best keys\n"),
        };
        for s in &self.sources {
            text += &format!("  {}, tokens {}..{}\n", s.label, s.tokens.start, s.tokens.end);
        }
        text
    }
}

/// The sources of a memory. A long text is committed in parts, each a span of its own, which are one again here.
pub fn sources(memory: &Memory) -> Result<Vec<SourceSpan>, Failure> {
    let mut out: Vec<SourceSpan> = Vec::new();
    for s in memory.sources()? {
        match out.last_mut() {
            Some(last) if last.label == s.label && last.tokens.end == s.tokens.start && last.text.end == s.text.start => {
                last.tokens.end = s.tokens.end;
                last.text.end = s.text.end;
            }
            _ => out.push(s),
        }
    }
    Ok(out)
}

pub fn sources_json(sources: &[SourceSpan]) -> Vec<Value> {
    sources.iter().map(|s| json!({"label": s.label, "first_token": s.tokens.start, "tokens": s.tokens.end - s.tokens.start})).collect()
}

/// The beginning of a passage, from the token ids that its memory keeps.
fn snippet(session: &Session, memories: &[SharedMemory], passage: &Passage) -> Result<String, Failure> {
    let Some(memory) = passage.memory.map_or(session.overflow_memory(), |m| memories.get(m)) else { return Ok(String::new()) };
    let memory = memory.read().map_err(|_| poisoned())?;
    let end = passage.first_token + passage.len.min(SNIPPET_TOKENS);
    let (ids, gaps) = memory.tokens_and_gaps(passage.first_token..end)?;
    if !gaps.is_empty() {
        return Ok(String::new());
    }
    Ok(String::from_utf8_lossy(&session.model().tokenizer().decode(&ids, false)).into_owned())
}

pub fn codec(name: &str) -> Result<Codec, String> {
    Codec::from_name(name).ok_or_else(|| "expected f32, f16, bf16, k8v4 or k4v4".to_string())
}
