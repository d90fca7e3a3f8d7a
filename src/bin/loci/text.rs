//! `tokenize` and `render`: what happens to text before a model sees it.

use crate::args::ModelArgs;
use crate::{Done, Failure, output, prompt};
use clap::Args;
use loci::gguf::Gguf;
use loci::tokenizer::chat::ChatTemplate;
use loci::tokenizer::{Tokenizer, TokenizerOptions};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Text to token ids as JSON, or back with `--detokenize`
#[derive(Args)]
pub struct Tokenize {
    #[command(flatten)]
    model: ModelArgs,
    /// The text
    #[arg(long, group = "source")]
    text: Option<String>,
    /// A file with the text (`-`: stdin)
    #[arg(long, group = "source")]
    file: Option<PathBuf>,
    /// A JSON array of texts, or of objects with a `text`: one array of ids each
    #[arg(long, group = "source")]
    json: Option<PathBuf>,
    /// Ids to text: a JSON array of ids, or of arrays of ids, in a file (`-`: stdin)
    #[arg(long, value_name = "JSON", group = "source")]
    detokenize: Option<PathBuf>,
    /// Read spellings of control tokens as those tokens; with --detokenize, write them
    #[arg(long)]
    special: bool,
    /// Begin with the model's BOS even if the model does not ask for one
    #[arg(long, conflicts_with = "no_bos")]
    bos: bool,
    /// Add no BOS and no EOS
    #[arg(long)]
    no_bos: bool,
}

impl Tokenize {
    pub fn exec(self) -> Done {
        // A file that holds nothing but a vocabulary will do.
        let gguf = Gguf::open(&self.model.model)?;
        let tokenizer = Tokenizer::from_gguf(&gguf, &TokenizerOptions { pre: self.model.pre.clone() })?;
        if let Some(path) = &self.detokenize {
            return self.detokenize(&tokenizer, path);
        }
        let ids = |text: &[u8]| -> Result<Vec<u32>, Failure> {
            let mut ids = tokenizer.encode_bytes(text, !self.no_bos, self.special);
            if self.bos {
                let bos = tokenizer.bos().ok_or_else(|| Failure::failed("--bos: the model has no BOS token"))?;
                if ids.first() != Some(&bos) {
                    ids.insert(0, bos);
                }
            }
            Ok(ids)
        };
        let done = match (&self.text, &self.file, &self.json) {
            (Some(text), _, _) => json!(ids(text.as_bytes())?),
            (_, Some(file), _) => json!(ids(&prompt::read(file)?)?),
            (_, _, Some(file)) => {
                let value = prompt::read_json(file)?;
                let bad = |v: &Value| Failure::failed(format!("{}: expected an array of texts, found {v}", file.display()));
                let mut all = Vec::new();
                for item in value.as_array().ok_or_else(|| bad(&value))? {
                    let text = item.as_str().or_else(|| item.get("text")?.as_str()).ok_or_else(|| bad(item))?;
                    all.push(ids(text.as_bytes())?);
                }
                json!(all)
            }
            _ => return Err(Failure::usage("tokenize: one of --text, --file, --json or --detokenize is needed")),
        };
        output::print_line(&done.to_string())
    }

    /// One array of ids: the text's bytes as they are. Several: a JSON array of texts.
    fn detokenize(&self, tokenizer: &Tokenizer, path: &Path) -> Done {
        let value = prompt::read_json(path)?;
        let name = path.display().to_string();
        let text = |value: &Value| -> Result<Vec<u8>, Failure> {
            let ids = prompt::ids_of_json(value, &name)?;
            prompt::check_ids(tokenizer.vocab_len(), &ids)?;
            Ok(tokenizer.decode(&ids, self.special))
        };
        match value.as_array() {
            Some(items) if items.iter().any(Value::is_array) => {
                let mut texts = Vec::new();
                for item in items {
                    texts.push(String::from_utf8_lossy(&text(item)?).into_owned());
                }
                output::print_line(&json!(texts).to_string())
            }
            _ => output::print_bytes(&text(&value)?),
        }
    }
}

/// Render a chat template with variables from JSON (`messages`, `add_generation_prompt`, `bos_token` ...)
#[derive(Args)]
pub struct Render {
    /// The template; without it the model's own
    #[arg(long, value_name = "FILE", required_unless_present = "model")]
    template: Option<PathBuf>,
    /// A model whose template is used
    #[arg(short, long, value_name = "GGUF", conflicts_with = "template")]
    model: Option<PathBuf>,
    /// A JSON object: each member is a variable
    #[arg(long, value_name = "JSON")]
    vars: PathBuf,
}

impl Render {
    pub fn exec(self) -> Done {
        let vars = prompt::read_json(&self.vars)?;
        let source = match (&self.template, &self.model) {
            (Some(path), _) => prompt::read_text(path)?,
            (None, Some(path)) => {
                let gguf = loci::gguf::Gguf::open(path)?;
                let source = gguf.str(loci::gguf::keys::CHAT_TEMPLATE)?;
                source.ok_or_else(|| Failure::failed(format!("{}: no tokenizer.chat_template", path.display())))?.to_string()
            }
            (None, None) => return Err(Failure::usage("render: --template or --model is needed")),
        };
        let variable = |name: &str| vars.get(name).and_then(Value::as_str).unwrap_or_default();
        let template = ChatTemplate::new(&source, variable("bos_token"), variable("eos_token"))?;
        output::print(&template.render_json(&vars)?)
    }
}
