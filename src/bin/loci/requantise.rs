//! `quantize` and `dequantize`: between f32 and blocks.

use crate::{Done, Failure, interrupt, output, prompt};
use clap::Args;
use indicatif::ProgressBar;
use loci::gguf::{Gguf, TensorInfo, TensorType, Writer};
use std::io::BufWriter;
use std::path::PathBuf;

/// Raw blocks of a tensor type to little-endian f32
#[derive(Args)]
pub struct Dequantize {
    /// Type of the blocks, for example Q4_K
    #[arg(long = "type", value_name = "TYPE", value_parser = tensor_type)]
    ty: TensorType,
    /// The blocks (`-`: stdin)
    #[arg(long = "in", value_name = "FILE")]
    input: std::path::PathBuf,
    /// Elements; without it, all that the input holds
    #[arg(long, value_name = "N")]
    count: Option<usize>,
    /// Where the numbers go (`-`: stdout)
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

impl Dequantize {
    pub fn exec(self) -> Done {
        let ty = self.ty;
        let bytes = prompt::read(&self.input)?;
        let whole = bytes.len() / ty.block_bytes() * ty.block_len();
        let count = self.count.unwrap_or(whole);
        let needed = ty.row_bytes(count).ok_or_else(|| {
            Failure::usage(format!("--count: expected a multiple of {} for {}, found {count}", ty.block_len(), ty.name()))
        })?;
        let given = match self.count {
            Some(_) => bytes.get(..needed),
            None => (bytes.len() == needed).then_some(&bytes[..]),
        };
        let blocks = given.ok_or_else(|| {
            Failure::failed(format!(
                "{}: {count} elements of {} take {needed} bytes, found {}",
                self.input.display(),
                ty.name(),
                bytes.len()
            ))
        })?;
        let mut values = vec![0.0; count];
        loci::quant::dequantise(ty, blocks, &mut values)?;
        let mut out = output::create(&self.out)?;
        output::write_f32(&mut *out, &values, &self.out)?;
        output::finish(&mut *out, &self.out)
    }
}

fn tensor_type(name: &str) -> Result<TensorType, String> {
    TensorType::from_name(name).ok_or_else(|| {
        let names: Vec<&str> = TensorType::all().map(TensorType::name).collect();
        format!("expected one of {}", names.join(", "))
    })
}

/// Rewrite a GGUF file with its matrices in another type
///
/// Matrices (`*.weight` of two or more dimensions whose rows the type's blocks divide) are converted, everything else is copied.
#[derive(Args)]
pub struct Quantize {
    /// The model to read
    input: PathBuf,
    /// The file to write; it must not exist yet
    output: PathBuf,
    /// For example Q8_0
    #[arg(value_name = "TYPE", value_parser = tensor_type)]
    ty: TensorType,
    /// Overwrite the output
    #[arg(long)]
    force: bool,
}

impl Quantize {
    pub fn exec(self) -> Done {
        let gguf = Gguf::open(&self.input)?;
        if self.output.exists() && !self.force {
            return Err(Failure::failed(format!("{}: exists already (--force overwrites it)", self.output.display())));
        }
        interrupt::install()?;
        let mut writer = Writer::new();
        for (key, value) in gguf.metadata() {
            // The old file type would be a lie, and the writer has its own alignment.
            if key != "general.file_type" && key != "general.alignment" {
                writer.copy(key, value);
            }
        }
        let bar = ProgressBar::new(gguf.tensors().len() as u64);
        let mut converted = 0;
        for tensor in gguf.tensors() {
            let bytes = gguf.bytes(tensor);
            match self.convert(tensor, &bytes)? {
                Some(blocks) => {
                    writer.tensor(&tensor.name, self.ty, &tensor.dims, blocks);
                    converted += 1;
                }
                None => drop(writer.tensor(&tensor.name, tensor.ty, &tensor.dims, bytes.to_vec())),
            }
            bar.inc(1);
        }
        bar.finish_and_clear();
        // A file that appears is whole: write beside it, then rename.
        let partial = self.output.with_extension("partial");
        let file = std::fs::File::create(&partial).map_err(|e| Failure::io("create", &partial, e))?;
        let mut out = BufWriter::new(file);
        writer.write(&mut out)?;
        let file = out.into_inner().map_err(|e| Failure::io("write", &partial, e.into_error()))?;
        file.sync_all().map_err(|e| Failure::io("write", &partial, e))?;
        let bytes = file.metadata().map_or(0, |m| m.len());
        std::fs::rename(&partial, &self.output).map_err(|e| Failure::io("rename to", &self.output, e))?;
        output::print_line(&format!(
            "{}: {converted} of {} tensors as {}, {}",
            self.output.display(),
            gguf.tensors().len(),
            self.ty.name(),
            output::bytes(bytes),
        ))
    }

    /// The tensor in the wanted type; `None` where it stays as it is.
    fn convert(&self, tensor: &TensorInfo, bytes: &[u8]) -> Result<Option<Vec<u8>>, Failure> {
        let matrix = tensor.dims.len() >= 2 && tensor.rows() > 1 && tensor.name.ends_with(".weight");
        if !matrix || tensor.ty == self.ty || self.ty.row_bytes(tensor.cols()).is_none() {
            return Ok(None);
        }
        let (Some(from), Some(to)) = (tensor.ty.row_bytes(tensor.cols()), self.ty.row_bytes(tensor.cols())) else {
            return Ok(None);
        };
        let mut row = vec![0.0; tensor.cols()];
        let mut blocks = Vec::with_capacity(to * tensor.rows());
        for source in bytes.chunks_exact(from) {
            loci::quant::dequantise(tensor.ty, source, &mut row)?;
            loci::quant::quantise(self.ty, &row, &mut blocks)?;
        }
        Ok(Some(blocks))
    }
}
