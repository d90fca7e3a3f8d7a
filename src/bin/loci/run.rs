//! `run`: completes a prompt.

use crate::args::{AnswerArgs, ModelArgs};
use crate::{Done, Failure, interrupt, output, prompt};
use clap::Args;
use loci::session::{Finish, GenerateOptions, Piece, Session, SessionStats};
use serde_json::{Value, json};
use std::ops::ControlFlow;
use std::path::PathBuf;

/// Complete a prompt
///
/// The text is streamed to stdout as the model writes it; the prompt itself is not repeated.
#[derive(Args)]
pub struct Run {
    #[command(flatten)]
    model: ModelArgs,
    /// The prompt
    #[arg(conflicts_with_all = ["ids", "file"])]
    prompt: Option<String>,
    /// A file with the prompt (`-`: stdin)
    #[arg(short, long, conflicts_with = "ids")]
    file: Option<PathBuf>,
    /// The prompt as token ids: `1,2,3`, or a file with a JSON array
    #[arg(long)]
    ids: Option<String>,
    /// Put the prompt through the model's chat template
    #[arg(long, conflicts_with = "ids")]
    chat: bool,
    /// Read spellings of control tokens in the prompt as those tokens
    #[arg(long)]
    special: bool,
    /// Write the ids of the answer as a JSON array, in place of its text
    #[arg(long, conflicts_with = "json")]
    print_ids: bool,
    /// Write one JSON object at the end, in place of text
    #[arg(long)]
    json: bool,
    /// With --json: log-probability of each token and of N alternatives
    #[arg(long, value_name = "N", requires = "json")]
    logprobs: Option<usize>,
    /// Figures on stderr at the end
    #[arg(long)]
    stats: bool,
    #[command(flatten)]
    answer: AnswerArgs,
}

impl Run {
    pub fn exec(self) -> Done {
        let options = self.answer.session_options()?;
        let model = self.model.open()?;
        let tokens = self.tokens(&model)?;
        prompt::check_ids(model.vocab_len(), &tokens)?;
        if tokens.is_empty() {
            return Err(Failure::usage("run: the prompt is empty; give a text, --file or --ids"));
        }
        let mut session = self.answer.session.start(model, options)?;
        interrupt::install()?;
        let _busy = interrupt::guard(session.cancel_handle());
        let options = GenerateOptions { log_probabilities: self.logprobs, ..self.answer.length.options() };
        let text_now = !self.print_ids && !self.json;
        // One call: a Ctrl-C in the last of the prompt ends the answer too.
        let answer = session.as_one_call(|session| {
            prefill(session, &tokens, "reading")?;
            generate(session, options, &mut |text| if text_now { output::print(text) } else { Ok(()) })
        })?;
        if self.print_ids {
            output::print_line(&json!(answer.ids).to_string())?;
        } else if self.json {
            let mut object = json!({
                "text": answer.text, "ids": answer.ids, "prompt_ids": tokens, "finish": finish_name(answer.finish),
                "stats": stats_json(&session.stats()),
            });
            if self.logprobs.is_some() {
                object["logprobs"] = Value::Array(answer.log_probabilities);
            }
            output::print_line(&object.to_string())?;
        } else if !answer.text.ends_with('\n') {
            output::print("\n")?;
        }
        if self.stats {
            note_stats(&session.stats());
        }
        if answer.finish == Finish::Cancelled { Err(Failure::Cancelled) } else { Ok(()) }
    }

    fn tokens(&self, model: &loci::model::Model) -> Result<Vec<u32>, Failure> {
        if let Some(ids) = &self.ids {
            return prompt::ids(ids);
        }
        let text = match (&self.prompt, &self.file) {
            (Some(text), _) => text.clone().into_bytes(),
            (None, Some(path)) => prompt::read(path)?,
            (None, None) => return Err(Failure::usage("run: give a prompt, --file or --ids")),
        };
        if self.chat {
            let text = String::from_utf8_lossy(&text);
            return prompt::Chat::new(model)?.tokens(&[prompt::message("user", &text)]);
        }
        Ok(model.tokenizer().encode_bytes(&text, true, self.special))
    }
}

/// Computes the whole prompt, reusing what the session holds of it, with a bar where it takes long.
pub fn prefill(session: &mut Session, tokens: &[u32], what: &'static str) -> Result<(), Failure> {
    let bar = output::token_bar(what, tokens.len());
    let done = session.prefill_prompt(tokens, &mut |done, total| {
        bar.set_length(total as u64);
        bar.set_position(done as u64);
        ControlFlow::Continue(())
    });
    bar.finish_and_clear();
    Ok(done?)
}

/// What a generation left behind.
pub struct Answer {
    pub text: String,
    pub ids: Vec<u32>,
    pub log_probabilities: Vec<Value>,
    pub finish: Finish,
    /// Seconds from each token to the next.
    pub token_seconds: Vec<f64>,
}

impl Answer {
    /// Median, 99th percentile and most of the seconds from one token to the next; none of an answer of less than two tokens.
    pub fn pace(&self) -> Option<[f64; 3]> {
        let mut sorted = self.token_seconds.clone();
        sorted.sort_by(f64::total_cmp);
        let of = |part: f64| sorted.get(((sorted.len() as f64 * part).ceil() as usize).saturating_sub(1)).copied();
        Some([of(0.5)?, of(0.99)?, of(1.0)?])
    }
}

/// Generates, handing out text as it becomes certain.
pub fn generate(
    session: &mut Session,
    options: GenerateOptions,
    each: &mut dyn FnMut(&str) -> Result<(), Failure>,
) -> Result<Answer, Failure> {
    let mut answer =
        Answer { text: String::new(), ids: Vec::new(), log_probabilities: Vec::new(), finish: Finish::Length, token_seconds: Vec::new() };
    let (mut failed, mut last) = (None, None);
    answer.finish = session.generate(options, &mut |piece: &Piece| {
        let now = std::time::Instant::now();
        if piece.token.is_some() {
            answer.token_seconds.extend(last.replace(now).map(|last| (now - last).as_secs_f64()));
        }
        answer.text.push_str(&piece.text);
        answer.ids.extend(piece.token);
        if let (Some(id), Some(p)) = (piece.token, piece.log_probability) {
            let best: Vec<Value> = piece.alternatives.iter().map(|(id, p)| json!({"id": id, "logprob": p})).collect();
            answer.log_probabilities.push(json!({"id": id, "logprob": p, "best": best}));
        }
        match if piece.text.is_empty() { Ok(()) } else { each(&piece.text) } {
            Ok(()) => ControlFlow::Continue(()),
            Err(e) => {
                failed = Some(e);
                ControlFlow::Break(())
            }
        }
    })?;
    match failed {
        Some(e) => Err(e),
        None => Ok(answer),
    }
}

/// How `--json` spells a finish reason.
pub fn finish_name(finish: Finish) -> &'static str {
    match finish {
        Finish::Eos => "eos",
        Finish::Stop => "stop",
        Finish::Length => "length",
        Finish::Cancelled => "cancelled",
        Finish::Callback => "callback",
    }
}

/// A session's figures as JSON.
pub fn stats_json(s: &SessionStats) -> Value {
    json!({
        "load_seconds": s.load_seconds,
        "first_token_seconds": s.first_token_seconds,
        "prefill_tokens": s.prefill_tokens,
        "prefill_seconds": s.prefill_seconds,
        "prefill_tokens_per_second": output::per_second(s.prefill_tokens, s.prefill_seconds),
        "decode_tokens": s.decode_tokens,
        "decode_seconds": s.decode_seconds,
        "decode_tokens_per_second": output::per_second(s.decode_tokens, s.decode_seconds),
        "reused_tokens": s.reused_tokens,
        "local_tokens": s.local_tokens,
        "memory_tokens": s.memory_tokens,
        "mapped_bytes": s.mapped_bytes,
        "anonymous_bytes": s.anonymous_bytes,
        "resident_bytes": s.resident_bytes,
        "memory_bytes_read": s.memory_bytes_read,
        "memory_bytes_per_token": s.memory_bytes_per_token,
        "memory_held_bytes": s.memory_held_bytes,
        "memory_blocks_read": s.memory_blocks_read,
        "memory_block_hits": s.memory_block_hits,
        "memory_blocks_damaged": s.memory_blocks_damaged,
        "memory_choices": s.memory_choices,
        "memory_unread_share": s.memory_unread_share,
        "resting_seconds": s.resting_seconds,
    })
}

/// A session's figures on stderr.
pub fn note_stats(s: &SessionStats) {
    output::note(&format!(
        "prefill {} tokens, {:.1} tokens/s; decode {} tokens, {:.1} tokens/s; first token after {:.2} s; {} reused",
        s.prefill_tokens,
        output::per_second(s.prefill_tokens, s.prefill_seconds),
        s.decode_tokens,
        output::per_second(s.decode_tokens, s.decode_seconds),
        s.first_token_seconds,
        s.reused_tokens,
    ));
    output::note(&format!(
        "resident {}, mapped {}, anonymous {}; memory {} tokens, {} read",
        output::bytes(s.resident_bytes),
        output::bytes(s.mapped_bytes),
        output::bytes(s.anonymous_bytes),
        s.memory_tokens,
        output::bytes(s.memory_bytes_read),
    ));
    if s.resting_seconds > 0.0 {
        output::note(&format!("rests: {:.2} s", s.resting_seconds));
    }
    if s.memory_choices > 0 {
        output::note(&format!(
            "memory: {} read per token since the prompt, {} blocks read, {} held already, {} damaged, {} choices, {:.0} % of the votes unread; {} held",
            output::bytes(s.memory_bytes_per_token as u64),
            s.memory_blocks_read,
            s.memory_block_hits,
            s.memory_blocks_damaged,
            s.memory_choices,
            s.memory_unread_share * 100.0,
            output::bytes(s.memory_held_bytes),
        ));
    }
}
