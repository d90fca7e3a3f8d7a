//! stdout, stderr and progress bars. Nothing here panics when the reader goes away.

use crate::failure::Failure;
use indicatif::{ProgressBar, ProgressStyle};
use std::io::{self, Write};
use std::path::Path;

/// Writes `text` to stdout and flushes it.
pub fn print(text: &str) -> Result<(), Failure> {
    print_bytes(text.as_bytes())
}

/// Writes bytes to stdout as they are and flushes it.
pub fn print_bytes(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).map_err(Failure::stdout)
}

/// Writes `text` and a line end to stdout.
pub fn print_line(text: &str) -> Result<(), Failure> {
    print(&format!("{text}\n"))
}

/// Writes a line to stderr; where even that is closed there is nobody to tell.
pub fn note(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// A bar over `total` tokens; it shows only where stderr is a terminal.
pub fn token_bar(what: &'static str, total: usize) -> ProgressBar {
    let bar = ProgressBar::new(total as u64);
    let template = "{msg} [{bar:30}] {human_pos}/{human_len} tokens  {per_sec:.0}  {eta} left";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.with_key("per_sec", |s: &indicatif::ProgressState, w: &mut dyn std::fmt::Write| {
            let _ = write!(w, "{:.0} tokens/s", s.per_sec());
        }));
    }
    bar.set_message(what);
    bar
}

/// Where raw numbers go: a file, or stdout for `-`.
pub fn create(path: &Path) -> Result<Box<dyn Write>, Failure> {
    if path == Path::new("-") {
        return Ok(Box::new(io::BufWriter::new(io::stdout())));
    }
    let file = std::fs::File::create(path).map_err(|e| Failure::io("create", path, e))?;
    Ok(Box::new(io::BufWriter::new(file)))
}

/// Writes `values` as little-endian f32.
pub fn write_f32(out: &mut dyn Write, values: &[f32], path: &Path) -> Result<(), Failure> {
    let mut bytes = Vec::with_capacity(values.len() * 4);
    for v in values {
        bytes.extend_from_slice(&v.to_le_bytes());
    }
    out.write_all(&bytes).map_err(|e| write_failure(path, e))
}

/// Flushes what [`create`] gave.
pub fn finish(out: &mut dyn Write, path: &Path) -> Result<(), Failure> {
    out.flush().map_err(|e| write_failure(path, e))
}

fn write_failure(path: &Path, e: io::Error) -> Failure {
    if path == Path::new("-") { Failure::stdout(e) } else { Failure::io("write", path, e) }
}

/// Bytes for people: `93.8 MiB`.
pub fn bytes(n: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut value, mut unit) = (n as f64, 0);
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{n} B") } else { format!("{value:.1} {}", units[unit]) }
}

/// Tokens per second, or 0 where no time has passed.
pub fn per_second(tokens: u64, seconds: f64) -> f64 {
    if seconds > 0.0 { tokens as f64 / seconds } else { 0.0 }
}
