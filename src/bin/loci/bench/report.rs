//! The figures as a table, as JSON, as CSV.

use super::limits::Limits;
use super::{Format, Kind, Row};
use crate::{Done, output};
use loci::model::Model;
use loci::session::SessionOptions;
use serde_json::{Value, json};

pub fn print(format: Format, model: &Model, options: &SessionOptions, limits: &Limits, rows: &[Row]) -> Done {
    match format {
        Format::Table => output::print(&table(model, options, limits, rows)),
        Format::Json => output::print_line(&object(model, options, limits, rows).to_string()),
        Format::Csv => output::print(&csv(model, options, rows)),
    }
}

fn simd() -> &'static str {
    loci::simd::Level::detect().name()
}

fn table(model: &Model, options: &SessionOptions, limits: &Limits, rows: &[Row]) -> String {
    let mut text = format!(
        "{} {}, {} parameters, {}, {} threads, {}\n",
        model.name(),
        model.weight_type(),
        model.parameter_count(),
        output::bytes(model.weight_bytes()),
        options.threads,
        simd(),
    );
    text += &format!(
        "limits of these threads here: {:.1} GB/s read from memory, {:.0} Gop/s of 8-bit dot products\n\n",
        limits.read_bandwidth() / 1e9,
        limits.dot_rate() / 1e9,
    );
    text += &format!(
        "| {:12} | {:>15} | {:>21} | {:>20} |\n|{:-<14}|{:->16}:|{:->22}:|{:->21}:|\n",
        "test", "median tokens/s", "least .. most", "of the limit", "", "", "", ""
    );
    for r in rows {
        let of = if r.kind == Kind::Decode { "bandwidth" } else { "dot rate" };
        let share = r.share.map_or(String::new(), |s| format!("{:.0} % of {of}", 100.0 * s));
        text += &format!("| {:12} | {:>15.2} | {:>9.2} .. {:>8.2} | {share:>20} |\n", r.name(), r.median(), r.least(), r.most());
    }
    text
}

fn object(model: &Model, options: &SessionOptions, limits: &Limits, rows: &[Row]) -> Value {
    let test = |r: &Row| {
        json!({
            "test": r.name(), "tokens": r.tokens, "depth": r.depth, "median": r.median(), "min": r.least(), "max": r.most(),
            "share_of_limit": r.share, "all": r.speeds,
        })
    };
    json!({
        "model": model.name(), "type": model.weight_type(), "parameters": model.parameter_count(), "weight_bytes": model.weight_bytes(),
        "threads": options.threads, "batch": options.batch, "simd": simd(), "unit": "tokens/s",
        "limits": {
            "read_bytes_per_second": limits.read_bandwidth(), "dot_operations_per_second": limits.dot_rate(),
        },
        "tests": rows.iter().map(test).collect::<Vec<Value>>(),
    })
}

fn csv(model: &Model, options: &SessionOptions, rows: &[Row]) -> String {
    let mut text = String::from("model,type,simd,threads,test,tokens,depth,median,min,max,share_of_limit\n");
    for r in rows {
        let (name, ty, threads) = (model.name().replace(',', " "), model.weight_type(), options.threads);
        let share = r.share.map_or(String::new(), |s| format!("{s:.4}"));
        let figures = format!("{:.2},{:.2},{:.2},{share}", r.median(), r.least(), r.most());
        text += &format!("{name},{ty},{},{threads},{},{},{},{figures}\n", simd(), r.name(), r.tokens, r.depth);
    }
    text
}
