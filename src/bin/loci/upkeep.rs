//! `memory`: what a memory file holds, whether it is whole, and looking after it.

use crate::args::{ModelArgs, SessionArgs};
use crate::memory::{codec, sources, sources_json};
use crate::{Done, Failure, interrupt, output};
use clap::{Args, Subcommand};
use indicatif::ProgressBar;
use loci::memory::{Codec, CompactOptions, Memory};
use loci::session::SharedMemory;
use serde_json::{Value, json};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::{Arc, RwLock};

#[derive(Subcommand)]
pub enum MemoryVerb {
    /// What a memory file holds
    Info(MemoryFile),
    /// Read every block of a memory file and check it
    Verify(MemoryFile),
    /// Bring back what is damaged, by reading the documents again where that is needed
    Repair(Repair),
    /// Read a document no more (its blocks leave the file when it is compacted)
    Forget(Forget),
    /// Rewrite a memory file without what was forgotten, its commits joined, and put it in the place of the old one
    Compact(Compact),
    /// The texts in a memory file
    Export(Export),
}

#[derive(Args)]
pub struct MemoryFile {
    /// The memory file
    file: PathBuf,
    /// One JSON object in place of lines
    #[arg(long)]
    json: bool,
}

impl MemoryVerb {
    pub fn exec(self) -> Done {
        match self {
            MemoryVerb::Info(a) => a.info(),
            MemoryVerb::Verify(a) => a.verify(),
            MemoryVerb::Repair(a) => a.exec(),
            MemoryVerb::Forget(a) => a.exec(),
            MemoryVerb::Compact(a) => a.exec(),
            MemoryVerb::Export(a) => a.exec(),
        }
    }
}

impl MemoryFile {
    fn info(&self) -> Done {
        let memory = Memory::open_read_only(&self.file, None)?;
        let (stats, shape, sources) = (memory.stats(), memory.geometry(), sources(&memory)?);
        if self.json {
            let object = json!({
                "file": self.file.display().to_string(), "tokens": stats.tokens, "committed_tokens": stats.committed_tokens,
                "forgotten_tokens": stats.forgotten_tokens, "blocks": stats.blocks, "commits": stats.commits, "file_bytes": stats.file_bytes,
                "model": memory.fingerprint().to_string(), "layers": shape.layers, "head_count_kv": shape.head_count_kv,
                "key_length": shape.key_length, "value_length": shape.value_length, "block_tokens": shape.block_tokens,
                "codec": shape.codec.name(), "sketched_layers": shape.sketched, "sources": sources_json(&sources), "damaged_pages": stats.damaged_pages, "lost_tokens": stats.lost_tokens,
            });
            return output::print_line(&object.to_string());
        }
        let mut text = format!(
            "{}: {} tokens in {} blocks of {}, {} commits, {}\n",
            self.file.display(),
            stats.tokens,
            stats.blocks,
            shape.block_tokens,
            stats.commits,
            output::bytes(stats.file_bytes),
        );
        let sketched: Vec<String> = shape.sketched.iter().map(u32::to_string).collect();
        text += &format!(
            "{} layers (sketches of {}), {} heads, keys of {}, values of {}, {}\nmade by {}\n",
            shape.layers.len(),
            if sketched.is_empty() { "none".into() } else { sketched.join(", ") },
            shape.head_count_kv,
            shape.key_length,
            shape.value_length,
            shape.codec,
            memory.fingerprint(),
        );
        if stats.forgotten_tokens > 0 {
            text += &format!("{} tokens are forgotten: they leave with the next compaction\n", stats.forgotten_tokens);
        }
        if stats.damaged_pages > 0 {
            text += &format!("{} pages of the chain are damaged; {} tokens are lost by that\n", stats.damaged_pages, stats.lost_tokens);
        }
        for s in sources {
            text += &format!("{}: tokens {}..{}\n", s.label, s.tokens.start, s.tokens.end);
        }
        output::print(&text)
    }

    fn verify(&self) -> Done {
        let memory = Memory::open_read_only(&self.file, None)?;
        let stats = memory.stats();
        let bar = ProgressBar::new(stats.file_bytes);
        let damages = memory.verify(|done, total| {
            bar.set_length(total);
            bar.set_position(done);
            true
        })?;
        bar.finish_and_clear();
        if self.json {
            let list: Vec<Value> = damages
                .iter()
                .map(|d| {
                    json!({"first_block": d.blocks.start, "blocks": d.blocks.len(), "layer_slot": d.layer_slot, "error": d.error.to_string()})
                })
                .collect();
            output::print_line(&json!({"tokens": stats.tokens, "file_bytes": stats.file_bytes, "damages": list}).to_string())?;
        }
        match damages.first() {
            None if self.json => Ok(()),
            None => output::print_line(&format!("{}: {} tokens, all checksums hold", self.file.display(), stats.tokens)),
            Some(first) => {
                let count = damages.len();
                Err(Failure::failed(format!("{}: {count} damaged parts, the first: {}", self.file.display(), first.error)))
            }
        }
    }
}

#[derive(Args)]
pub struct Repair {
    /// The memory file
    file: PathBuf,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    session: SessionArgs,
}

impl Repair {
    fn exec(self) -> Done {
        let model = self.model.open()?;
        let memory: SharedMemory = Arc::new(RwLock::new(Memory::open(&self.file, Some(model.fingerprint()))?));
        let mut session = self.session.start(model, self.session.options())?;
        interrupt::install()?;
        let _busy = interrupt::guard(session.cancel_handle());
        let bar = output::token_bar("reading again", 0);
        let done = session.repair(&memory, &mut |at, total| {
            bar.set_length(total as u64);
            bar.set_position(at as u64);
            ControlFlow::Continue(())
        })?;
        bar.finish_and_clear();
        output::print_line(&format!("{}: {} sections and {} blocks brought back", self.file.display(), done.sections, done.extents))?;
        match done.lost.first() {
            None => Ok(()),
            Some(first) => Err(Failure::failed(format!(
                "{} damaged parts could not be brought back, the first: {} (forget the document and remember it again)",
                done.lost.len(),
                first.error
            ))),
        }
    }
}

#[derive(Args)]
pub struct Forget {
    /// The memory file
    file: PathBuf,
    /// The documents, as `memory info` names them
    #[arg(required = true)]
    sources: Vec<String>,
}

impl Forget {
    fn exec(self) -> Done {
        let mut memory = Memory::open(&self.file, None)?;
        for source in &self.sources {
            let tokens = memory.forget(source)?;
            if tokens == 0 {
                return Err(Failure::failed(format!("{}: it has no document {source:?}", self.file.display())));
            }
            output::print_line(&format!("{source}: {tokens} tokens are forgotten"))?;
        }
        Ok(())
    }
}

#[derive(Args)]
pub struct Compact {
    /// The memory file
    file: PathBuf,
    /// Another encoding: f32, f16, bf16, k8v4 or k4v4
    #[arg(long, value_name = "CODEC", value_parser = codec)]
    codec: Option<Codec>,
    /// Other layers to keep sketches of, from 0: what a search of an ordinary model scans (files of before have none)
    #[arg(long, value_name = "LAYERS", value_delimiter = ',')]
    sketches: Option<Vec<u32>>,
    /// Leave damaged blocks out, instead of refusing
    #[arg(long)]
    drop_damaged: bool,
}

impl Compact {
    fn exec(self) -> Done {
        let bar = output::token_bar("compacting", 0);
        let options = CompactOptions { codec: self.codec, sketched: self.sketches, drop_damaged: self.drop_damaged };
        let done = Memory::compact(&self.file, None, options, |at, total| {
            bar.set_length(total);
            bar.set_position(at);
            true
        })?;
        bar.finish_and_clear();
        let (before, after) = (output::bytes(done.bytes_before), output::bytes(done.bytes));
        output::print_line(&format!(
            "{}: {} tokens, {before} before; {} tokens, {after} now",
            self.file.display(),
            done.tokens_before,
            done.tokens
        ))?;
        if done.dropped_blocks > 0 {
            output::note(&format!("{} damaged blocks were left out", done.dropped_blocks));
        }
        if done.unlabelled_blocks > 0 {
            output::note(&format!("{} blocks were kept without their sources, which were damaged", done.unlabelled_blocks));
        }
        Ok(())
    }
}

#[derive(Args)]
pub struct Export {
    /// The memory file
    file: PathBuf,
    #[command(flatten)]
    model: ModelArgs,
    /// Only this document
    #[arg(long, value_name = "NAME")]
    source: Option<String>,
    /// A line of JSON for each document, with its token ids, in place of the bare text
    #[arg(long)]
    json: bool,
}

impl Export {
    fn exec(self) -> Done {
        let model = self.model.open()?;
        let memory = Memory::open_read_only(&self.file, Some(model.fingerprint()))?;
        let mut found = false;
        for span in sources(&memory)? {
            if self.source.as_ref().is_some_and(|wanted| *wanted != span.label) {
                continue;
            }
            found = true;
            let ids = memory.tokens(span.tokens.clone())?;
            let text = String::from_utf8_lossy(&model.tokenizer().decode(&ids, false)).into_owned();
            if self.json {
                let object = json!({
                    "source": span.label, "first_token": span.tokens.start, "text_start": span.text.start, "text_end": span.text.end,
                    "tokens": ids, "text": text,
                });
                output::print_line(&object.to_string())?;
            } else {
                output::print(&text)?;
            }
        }
        match &self.source {
            Some(wanted) if !found => Err(Failure::failed(format!("{}: it has no document {wanted:?}", self.file.display()))),
            _ => Ok(()),
        }
    }
}
