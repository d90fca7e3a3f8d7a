//! `inspect`: what a GGUF file holds, whether or not this build can compute with it.

use crate::{Done, output};
use clap::Args;
use loci::gguf::{Gguf, TensorInfo, Value};
use serde_json::{Value as Json, json};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Elements of an array that are shown without --full.
const ARRAY_SHOWN: usize = 6;
/// Characters of a string that are shown to people.
const TEXT_SHOWN: usize = 100;

/// Metadata and tensors of any GGUF file
#[derive(Args)]
pub struct Inspect {
    /// The file
    file: PathBuf,
    /// One JSON object
    #[arg(long)]
    json: bool,
    /// List the tensors (what happens anyway)
    #[arg(long, hide = true)]
    tensors: bool,
    /// Leave the list of tensors out; JSON has it always
    #[arg(long, conflicts_with = "tensors")]
    no_tensors: bool,
    /// Whole arrays, and whole strings for people (JSON has those always)
    #[arg(long)]
    full: bool,
}

impl Inspect {
    pub fn exec(self) -> Done {
        let gguf = Gguf::open(&self.file)?;
        let shown = if self.full { usize::MAX } else { ARRAY_SHOWN };
        if self.json {
            return output::print_line(&self.as_json(&gguf, shown).to_string());
        }
        let mut text = format!(
            "{}: GGUF version {}, {}, {} metadata keys, {} tensors, {} parameters, data at {} (alignment {})\n\n",
            self.file.display(),
            gguf.version(),
            output::bytes(gguf.map().len() as u64),
            gguf.metadata().len(),
            gguf.tensors().len(),
            gguf.tensors().iter().map(TensorInfo::elements).sum::<u64>(),
            gguf.data_offset(),
            gguf.alignment(),
        );
        for (key, value) in gguf.metadata() {
            text += &format!("{key} ({}) = {}\n", type_name(value), self.for_people(value, shown));
        }
        text += "\n";
        for (ty, (count, bytes)) in by_type(&gguf) {
            text += &format!("{ty}: {count} tensors, {}\n", output::bytes(bytes));
        }
        if !self.no_tensors {
            text += "\n";
            for t in gguf.tensors() {
                let dims: Vec<String> = t.dims.iter().map(u64::to_string).collect();
                text += &format!("{} {} [{}] at {}, {} bytes\n", t.name, t.ty.name(), dims.join(", "), t.range.start, t.range.len());
            }
        }
        output::print(&text)
    }

    fn as_json(&self, gguf: &Gguf, shown: usize) -> Json {
        let metadata: serde_json::Map<String, Json> = gguf
            .metadata()
            .iter()
            .map(|(key, value)| (key.clone(), json!({"type": type_name(value), "value": json_of(value, shown)})))
            .collect();
        let types: serde_json::Map<String, Json> =
            by_type(gguf).into_iter().map(|(ty, (count, bytes))| (ty.into(), json!({"tensors": count, "bytes": bytes}))).collect();
        let tensors: Vec<Json> = gguf
            .tensors()
            .iter()
            .map(|t| {
                json!({
                    "name": t.name, "type": t.ty.name(), "dims": t.dims, "offset": t.range.start, "bytes": t.range.len(),
                    "supported": loci::quant::is_supported(t.ty),
                })
            })
            .collect();
        json!({
            "file": self.file.display().to_string(),
            "version": gguf.version(),
            "alignment": gguf.alignment(),
            "data_offset": gguf.data_offset(),
            "file_bytes": gguf.map().len(),
            "tensor_count": tensors.len(),
            "parameters": gguf.tensors().iter().map(TensorInfo::elements).sum::<u64>(),
            "types": types,
            "metadata": metadata,
            "tensors": tensors,
        })
    }

    fn for_people(&self, value: &Value, shown: usize) -> String {
        match (value.as_str(), value.as_array()) {
            (Some(s), _) if !self.full && s.chars().count() > TEXT_SHOWN => {
                format!("{:?}... ({} bytes)", s.chars().take(TEXT_SHOWN).collect::<String>(), s.len())
            }
            (Some(s), _) => format!("{s:?}"),
            (None, Some(array)) if array.len > shown => {
                let items: Vec<String> = array.values().take(shown).map(|v| json_of(&v, shown).to_string()).collect();
                format!("[{}, ... {} in all]", items.join(", "), array.len)
            }
            _ => json_of(value, shown).to_string(),
        }
    }
}

fn type_name(value: &Value) -> String {
    match value.as_array() {
        Some(array) => format!("{}[{}]", array.ty.name(), array.len),
        None => value.ty().name().to_string(),
    }
}

/// A value as JSON; long arrays become `{"len": .., "first": [..]}`.
fn json_of(value: &Value, shown: usize) -> Json {
    if let Some(array) = value.as_array() {
        let first: Vec<Json> = array.values().take(shown).map(|v| json_of(&v, shown)).collect();
        return if array.len > shown { json!({"len": array.len, "first": first}) } else { Json::Array(first) };
    }
    if let Some(s) = value.as_str() {
        return json!(s);
    }
    if let Some(b) = value.as_bool() {
        return json!(b);
    }
    match (value.as_u64(), value.as_i64()) {
        (Some(n), _) => json!(n),
        (None, Some(n)) => json!(n),
        // JSON has no NaN and no infinity: they become null.
        _ => json!(value.as_f64()),
    }
}

fn by_type(gguf: &Gguf) -> BTreeMap<&'static str, (usize, u64)> {
    let mut types = BTreeMap::new();
    for t in gguf.tensors() {
        let (count, bytes) = types.entry(t.ty.name()).or_insert((0, 0));
        *count += 1;
        *bytes += t.range.len() as u64;
    }
    types
}
