//! The `loci` command: one verb per subcommand, one file per group of verbs.
//!
//! Results go to stdout and nothing else does; progress and notes go to stderr, progress only where that is a terminal.
//! Exit codes: 0 success, 1 failure, 2 wrong usage, 130 cancelled by Ctrl-C, 141 the reader of stdout went away.
#![deny(unsafe_code)]

mod args;
mod bench;
mod chat;
mod eval;
mod failure;
mod footprint;
mod inspect;
mod interrupt;
mod memory;
mod output;
mod perplexity;
mod prompt;
mod requantise;
mod run;
mod simd;
mod text;
mod upkeep;

use clap::{Parser, Subcommand};
use failure::Failure;
use std::process::ExitCode;

const EXIT_CODES: &str = "Exit codes: 0 success, 1 failure, 2 wrong usage, 130 cancelled, 141 the reader of stdout went away.";

/// Language models on this machine's CPU, with a memory on disk.
#[derive(Parser)]
#[command(name = "loci", version, after_help = EXIT_CODES, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Complete a prompt
    Run(run::Run),
    /// Talk with a model
    Chat(chat::Chat),
    /// Read files into a memory on disk
    Remember(memory::Remember),
    /// Ask a question with a memory attached, and see which passages were read
    Recall(memory::Recall),
    /// What a memory file holds, whether it is whole, and looking after it
    #[command(subcommand)]
    Memory(upkeep::MemoryVerb),
    /// Metadata and tensors of any GGUF file
    Inspect(inspect::Inspect),
    /// Text to token ids, or back
    Tokenize(text::Tokenize),
    /// Render a chat template with variables from JSON
    Render(text::Render),
    /// Logits of every position, as raw little-endian f32
    Logits(perplexity::Logits),
    /// Perplexity of a text, in chunks
    Perplexity(perplexity::Perplexity),
    /// What is found again of a long text, at every length and depth
    Eval(Box<eval::Eval>),
    /// Speed of prefill and decode
    Bench(bench::Bench),
    /// RAM that a session takes, before it is made
    Estimate(footprint::Estimate),
    /// Rewrite a GGUF file with its matrices in another type
    Quantize(requantise::Quantize),
    /// Raw blocks of a tensor type to f32
    Dequantize(requantise::Dequantize),
    /// Instruction sets this machine can compute with
    Simd(simd::Simd),
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) if e.use_stderr() => {
            // clap's text begins with "error: " and names the argument.
            let text = e.render().to_string();
            let prefix = if text.starts_with("error:") { "loci: " } else { "" };
            output::note(&format!("{prefix}{}", text.trim_end()));
            return ExitCode::from(2);
        }
        // --help and --version
        Err(e) => {
            return match output::print(&e.render().to_string()) {
                Ok(()) => ExitCode::SUCCESS,
                Err(failure) => failure.report(),
            };
        }
    };
    let done = match cli.verb {
        Verb::Run(a) => a.exec(),
        Verb::Chat(a) => a.exec(),
        Verb::Remember(a) => a.exec(),
        Verb::Recall(a) => a.exec(),
        Verb::Memory(a) => a.exec(),
        Verb::Inspect(a) => a.exec(),
        Verb::Tokenize(a) => a.exec(),
        Verb::Render(a) => a.exec(),
        Verb::Logits(a) => a.exec(),
        Verb::Perplexity(a) => a.exec(),
        Verb::Eval(a) => a.exec(),
        Verb::Bench(a) => a.exec(),
        Verb::Estimate(a) => a.exec(),
        Verb::Quantize(a) => a.exec(),
        Verb::Dequantize(a) => a.exec(),
        Verb::Simd(a) => a.exec(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

/// What every verb returns.
type Done = Result<(), Failure>;
