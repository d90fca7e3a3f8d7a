//! `chat`: a conversation on a terminal, or one line per turn from a pipe.

use crate::args::{AnswerArgs, ModelArgs};
use crate::{Done, Failure, interrupt, memory, output, prompt, run};
use clap::Args;
use loci::session::{Finish, Session};
use std::io::{BufRead, IsTerminal};
use std::path::PathBuf;

const COMMANDS: &str = "/clear forgets the conversation, /stats shows figures, /quit leaves; Ctrl-C stops an answer, Ctrl-D leaves";

/// Talk with a model
///
/// Ctrl-C stops an answer, not the program; at the prompt, a second Ctrl-C or Ctrl-D leaves. /help lists the commands.
#[derive(Args)]
pub struct Chat {
    #[command(flatten)]
    model: ModelArgs,
    /// What the model is told before the conversation
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// A memory to read from; may be repeated
    #[arg(long, value_name = "FILE")]
    memory: Vec<PathBuf>,
    #[command(flatten)]
    answer: AnswerArgs,
}

impl Chat {
    pub fn exec(self) -> Done {
        let options = self.answer.session_options()?;
        let model = self.model.open()?;
        let chat = prompt::Chat::new(&model)?;
        let mut session = self.answer.session.start(model.clone(), options)?;
        for path in &self.memory {
            session.attach_memory(memory::open_shared(path, &model)?)?;
        }
        interrupt::install()?;
        let terminal = std::io::stdin().is_terminal();
        if terminal {
            output::note(&format!("{} ({}); {COMMANDS}", model.name(), model.weight_type()));
        }
        let start: Vec<_> = self.system.iter().map(|text| prompt::message("system", text)).collect();
        let mut messages = start.clone();
        while let Some(line) = next_line(terminal)? {
            match line.trim() {
                "" => continue,
                "/quit" | "/exit" => break,
                "/help" => output::note(COMMANDS),
                "/stats" => run::note_stats(&session.stats()),
                "/clear" => {
                    messages = start.clone();
                    session.reset();
                }
                command if command.starts_with('/') => output::note(&format!("unknown command {command}; {COMMANDS}")),
                text => {
                    messages.push(prompt::message("user", text));
                    match self.answer(&mut session, &chat, &messages) {
                        Ok(answer) => messages.push(prompt::message("assistant", &answer)),
                        // Stopped before a word came: the question is as if never asked.
                        Err(Failure::Cancelled) => drop(messages.pop()),
                        // The session is usable after an error, and so is the conversation without the turn that failed.
                        Err(Failure::Failed(what)) if terminal => {
                            messages.pop();
                            output::note(&format!("loci: error: {what}"));
                        }
                        Err(e) => return Err(e),
                    }
                }
            }
        }
        if terminal { output::print("\n") } else { Ok(()) }
    }

    fn answer(&self, session: &mut Session, chat: &prompt::Chat, messages: &[loci::tokenizer::chat::Message]) -> Result<String, Failure> {
        let _busy = interrupt::guard(session.cancel_handle());
        let tokens = chat.tokens(messages)?;
        // One call: a Ctrl-C in the last of the prompt ends the answer too.
        let answer = session.as_one_call(|session| {
            run::prefill(session, &tokens, "reading")?;
            run::generate(session, self.answer.length.options(), &mut output::print)
        })?;
        output::print(if answer.text.ends_with('\n') { "" } else { "\n" })?;
        match answer.finish {
            Finish::Cancelled => output::note("(stopped)"),
            Finish::Length => output::note("(cut at the length limit; -n allows more)"),
            _ => {}
        }
        Ok(answer.text)
    }
}

/// The next line of stdin; `None` at its end.
fn next_line(terminal: bool) -> Result<Option<String>, Failure> {
    let _prompt = interrupt::prompt();
    if terminal {
        output::print("> ")?;
    }
    let mut line = Vec::new();
    let n = std::io::stdin().lock().read_until(b'\n', &mut line).map_err(|e| Failure::failed(format!("read stdin: {e}")))?;
    Ok((n > 0).then(|| String::from_utf8_lossy(&line).into_owned()))
}
