//! `eval`: how much of what a text held is found again, at every length and depth, and what memory does to perplexity.

mod ask;
mod corpus;
mod perplexity;
mod report;
mod tasks;

use crate::args::{ModelArgs, SessionArgs};
use crate::{Done, Failure, interrupt, output, prompt};
use clap::{Args, ValueEnum};
use corpus::{Corpus, Plan};
use loci::memory::{Codec, Memory};
use loci::model::Model;
use loci::sampler::SamplerOptions;
use loci::session::{Session, SessionOptions, SharedMemory};
use report::Report;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};
use tasks::Task;

/// What the model has of the text when it is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// A memory of it
    Memory,
    /// All of it in the prompt; only lengths that the trained context holds
    Full,
    /// As much of its end in the prompt as the window holds
    Window,
}

impl Mode {
    fn name(self) -> &'static str {
        match self {
            Mode::Memory => "memory",
            Mode::Full => "full",
            Mode::Window => "window",
        }
    }
}

/// Hide things in a long text, remember it, and ask for them at every length and depth
///
/// One text serves all lengths: the shorter ones are its beginnings, it holds what is hidden for each of them, and it is remembered
/// once; what belongs to other questions is left out for each. With --memory it is kept, and what was interrupted goes on; while one process remembers, others can ask at the lengths that
/// are there. Everything follows from --seed. Scores are shares of what was asked for that the answer holds, greedy decoding, with the
/// beginning of the answer given.
#[derive(Args)]
pub struct Eval {
    #[command(flatten)]
    model: ModelArgs,
    /// What is hidden
    #[arg(long, value_name = "TASKS", value_enum, value_delimiter = ',', default_value = "passkey,needle,kv")]
    tasks: Vec<Task>,
    /// Tokens of text, for example 4k,32k,1m
    #[arg(long, value_name = "TOKENS", value_delimiter = ',', value_parser = length, default_value = "4k,16k")]
    lengths: Vec<usize>,
    /// What the model has of the text
    #[arg(long, value_name = "MODES", value_enum, value_delimiter = ',', default_value = "memory,full,window")]
    modes: Vec<Mode>,
    /// Depths at which things are hidden, evenly spread
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..))]
    depths: u16,
    /// Things of each task at each depth; fewer where they would be more than a quarter of the text
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    samples: u16,
    /// Where the random numbers start
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// A text to hide things in; without one it is made up
    #[arg(long, value_name = "FILE")]
    haystack: Option<PathBuf>,
    /// Keep the memory in this file, and take it from there the next time; without it a temporary one is used
    #[arg(long, value_name = "FILE")]
    memory: Option<PathBuf>,
    /// Also the perplexity of the text's last N tokens at every length, 0: none
    #[arg(long, value_name = "N", default_value_t = 0)]
    perplexity: usize,
    /// Only these lengths are asked about, of those that the text is made for
    #[arg(long, value_name = "TOKENS", value_delimiter = ',', value_parser = length)]
    only: Vec<usize>,
    /// Only these tasks are asked about, of those that are hidden
    #[arg(long, value_name = "TASKS", value_enum, value_delimiter = ',')]
    only_tasks: Vec<Task>,
    /// Remember the text up to the longest length in question, and ask nothing
    #[arg(long, requires = "memory")]
    remember: bool,
    /// Tokens of local context while the text is remembered; 0: as for the questions, 2048 at most
    #[arg(long, value_name = "TOKENS", default_value_t = 0)]
    reading_ctx: usize,
    /// Encoding of a new memory: f32, f16, bf16, k8v4 (keys in 8 bits, values in 4) or k4v4; else the model's own, or f16
    #[arg(long, value_name = "CODEC", value_parser = crate::memory::codec)]
    codec: Option<Codec>,
    /// One line for each question on stderr: what was asked, expected and answered
    #[arg(long)]
    verbose: bool,
    /// One JSON object in place of tables
    #[arg(long)]
    json: bool,
    /// Heat maps of length and depth
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    #[command(flatten)]
    session: SessionArgs,
}

/// A commit of a text that is being remembered ends at a multiple of this: lengths do, too.
const COMMIT_TOKENS: usize = 4096;

/// `4k`, `1m` or plain tokens; from 4096 on rounded up to a multiple of that.
fn length(text: &str) -> Result<usize, String> {
    let expected = || format!("expected a number of tokens such as 512, 32k or 1m, found {text:?}");
    let lower = text.to_ascii_lowercase();
    let (digits, factor) = match lower.strip_suffix('k') {
        Some(digits) => (digits, 1 << 10),
        None => lower.strip_suffix('m').map_or((lower.as_str(), 1), |digits| (digits, 1_000_000)),
    };
    let n: usize = digits.parse().map_err(|_| expected())?;
    let n = n.checked_mul(factor).filter(|n| (64..=1 << 30).contains(n)).ok_or_else(expected)?;
    Ok(if n < COMMIT_TOKENS { n } else { n.next_multiple_of(COMMIT_TOKENS) })
}

impl Eval {
    pub fn exec(mut self) -> Done {
        self.lengths.sort_unstable();
        self.lengths.dedup();
        let text = self.haystack.as_deref().map(prompt::read_text).transpose()?;
        let model = self.model.open()?;
        let plan = Plan {
            tasks: &self.tasks,
            lengths: &self.lengths,
            depths: self.depths.into(),
            samples: self.samples.into(),
            seed: self.seed,
            haystack: text.as_deref(),
        };
        let corpus = Corpus::build(model.tokenizer(), &plan)?;
        let asked: Vec<usize> = (0..self.lengths.len()).filter(|l| self.only.is_empty() || self.only.contains(&self.lengths[*l])).collect();
        let mut report = Report::new(&model, &plan);
        interrupt::install()?;
        let temporary = tempfile_path();
        let path = self.memory.clone().unwrap_or_else(|| temporary.0.clone());
        if self.remember {
            let longest = asked.last().map_or(0, |l| self.lengths[*l]);
            return self.remembered(&model, &corpus, longest, &path, &mut report).map(|_| ());
        }
        for l in asked {
            let memory = match self.modes.contains(&Mode::Memory) {
                true => Some(self.remembered(&model, &corpus, self.lengths[l], &path, &mut report)?),
                false => None,
            };
            for &mode in &self.modes {
                self.ask(&model, &corpus, l, mode, memory.as_ref(), &mut report)?;
                if self.perplexity > 0 {
                    let session = self.new_session(&model)?;
                    let text = perplexity::Text::new(&session, &corpus.tokens[..self.lengths[l]], self.perplexity, mode);
                    if let Some(memory) = &memory {
                        let window = text.before_window() as u64..self.lengths[l] as u64;
                        memory.write().map_err(|_| broken())?.leave_out(&[window]);
                    }
                    report.perplexity(l, mode, text.score(session, memory.clone())?);
                }
            }
        }
        if let Some(path) = &self.svg {
            std::fs::write(path, report.svg()).map_err(|e| Failure::io("write", path, e))?;
        }
        if self.json { output::print_line(&report.json().to_string()) } else { output::print(&report.table()) }
    }

    fn new_session(&self, model: &Arc<Model>) -> Result<Session, Failure> {
        let sampler = SamplerOptions { temperature: 0.0, ..SamplerOptions::default() };
        self.session.start(model.clone(), SessionOptions { sampler, ..self.session.options() })
    }

    /// The memory of the text's first `length` tokens: reads into the file what it does not hold yet.
    fn remembered(
        &self,
        model: &Arc<Model>,
        corpus: &Corpus,
        length: usize,
        path: &Path,
        report: &mut Report,
    ) -> Result<SharedMemory, Failure> {
        let text = &corpus.tokens[..length];
        if let Some(memory) = path.exists().then(|| open_at(model, path, length)).transpose()? {
            let held = memory.read().map_err(|_| broken())?;
            if held.tokens(0..held.len())? != text[..held.len() as usize] {
                return Err(Failure::failed(format!("{} holds another text than this one", path.display())));
            }
            if held.len() == length as u64 {
                drop(held);
                return Ok(memory);
            }
        }
        let mut geometry = model.memory_geometry();
        geometry.codec = self.codec.unwrap_or(geometry.codec);
        let memory = match path.exists() {
            true => Memory::open(path, Some(model.fingerprint()))?,
            false => Memory::create(path, geometry, model.fingerprint().clone())?,
        };
        let held = memory.len();
        if (held as usize) < length {
            let started = std::time::Instant::now();
            let reading = match self.reading_ctx {
                0 => self.session.options(),
                n => SessionOptions { context_length: n, ..self.session.options() },
            };
            let mut session = self.session.start(model.clone(), reading)?;
            let _busy = interrupt::guard(session.cancel_handle());
            let memory: SharedMemory = Arc::new(RwLock::new(memory));
            let bar = output::token_bar("remembering", length);
            let done = session.remember(&memory, &text[held as usize..], None, &mut |done, _| {
                bar.set_position(held + done as u64);
                ControlFlow::Continue(())
            });
            bar.finish_and_clear();
            memory.write().map_err(|_| broken())?.commit()?;
            done?;
            report.remembered(length - held as usize, started.elapsed().as_secs_f64());
        }
        open_at(model, path, length)
    }

    fn ask(
        &self,
        model: &Arc<Model>,
        corpus: &Corpus,
        length: usize,
        mode: Mode,
        memory: Option<&SharedMemory>,
        report: &mut Report,
    ) -> Done {
        let mut session = self.new_session(model)?;
        let _busy = interrupt::guard(session.cancel_handle());
        let asker = ask::Asker::new(model)?;
        let tokens = self.lengths[length];
        if let (Some(memory), Mode::Memory) = (memory, mode) {
            session.attach_memory(memory.clone())?;
        }
        let wanted = |i: &tasks::Item| i.length == length && (self.only_tasks.is_empty() || self.only_tasks.contains(&i.task));
        for (number, item) in corpus.items.iter().enumerate().filter(|(_, i)| wanted(i)) {
            let others = corpus.others(number);
            let text = match memory {
                Some(memory) if mode == Mode::Memory => {
                    memory.write().map_err(|_| broken())?.leave_out(&others);
                    Vec::new()
                }
                _ => corpus.without(&others, tokens),
            };
            let Some(answer) = asker.ask(&mut session, item, &text, mode)? else { break };
            let score = item.score(&answer.text);
            let rank = if mode == Mode::Memory { ask::found(&session, item)? } else { None };
            if self.verbose {
                let (task, depth, expected) = (item.task.name(), item.depth, item.expected.join(" "));
                let rank = rank.map_or(String::new(), |rank| format!(", read as {rank}"));
                let what = format!("{task} {} {tokens} depth {depth}: {score:.2}{rank}", mode.name());
                output::note(&format!("{what}: {:?} expected {expected:?}, answered {:?}", item.question, answer.text));
            }
            report.answer(item, mode, score, &answer, rank, &session);
        }
        Ok(())
    }
}

fn broken() -> Failure {
    Failure::failed("a memory is unusable after a failure")
}

/// The memory as it was after the last commit with at most `tokens` tokens.
fn open_at(model: &Model, path: &Path, tokens: usize) -> Result<SharedMemory, Failure> {
    let mut memory = Memory::open_read_only(path, Some(model.fingerprint()))?;
    memory.rewind(tokens as u64)?;
    Ok(Arc::new(RwLock::new(memory)))
}

/// A file that goes when this is dropped.
struct Temporary(PathBuf);

fn tempfile_path() -> Temporary {
    Temporary(std::env::temp_dir().join(format!("loci-eval-{}.lmem", std::process::id())))
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}
