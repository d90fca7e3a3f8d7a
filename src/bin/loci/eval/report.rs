//! What came out, as tables, as JSON and as heat maps.

use super::ask::Answer;
use super::corpus::Plan;
use super::tasks::{Item, Task};
use super::{Mode, Model};
use crate::output;
use crate::perplexity::Score;
use loci::session::Session;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write;

/// Sums over the questions of one task, length, depth and mode.
#[derive(Clone, Copy, Default)]
struct Cell {
    asked: usize,
    score: f64,
    /// Questions whose passage was among those that were read.
    found: usize,
}

/// Sums over the questions of one length and mode.
#[derive(Clone, Copy, Default)]
struct Cost {
    asked: usize,
    first_token_seconds: f64,
    bytes_read: u64,
    tokens: u64,
    resident_bytes: u64,
    anonymous_bytes: u64,
}

pub struct Report {
    model: String,
    seed: u64,
    tasks: Vec<Task>,
    lengths: Vec<usize>,
    depths: usize,
    /// By (mode, task, length, depth).
    cells: BTreeMap<(usize, usize, usize, usize), Cell>,
    costs: BTreeMap<(usize, usize), Cost>,
    /// By (mode, length): negative log-likelihoods of the same tokens.
    perplexities: BTreeMap<(usize, usize), Vec<f64>>,
    remembered: (usize, f64),
    /// One for each question.
    questions: Vec<Value>,
}

const MODES: [Mode; 3] = [Mode::Memory, Mode::Full, Mode::Window];

impl Report {
    pub fn new(model: &Model, plan: &Plan<'_>) -> Report {
        Report {
            model: model.name().to_string(),
            seed: plan.seed,
            tasks: plan.tasks.to_vec(),
            lengths: plan.lengths.to_vec(),
            depths: plan.depths,
            cells: BTreeMap::new(),
            costs: BTreeMap::new(),
            perplexities: BTreeMap::new(),
            remembered: (0, 0.0),
            questions: Vec::new(),
        }
    }

    pub fn remembered(&mut self, tokens: usize, seconds: f64) {
        self.remembered.0 += tokens;
        self.remembered.1 += seconds;
    }

    pub fn answer(&mut self, item: &Item, mode: Mode, score: f64, answer: &Answer, rank: Option<usize>, session: &Session) {
        let hidden: Vec<_> = item.hidden.iter().map(|r| [r.start, r.end]).collect();
        self.questions.push(json!({
            "mode": mode.name(), "task": item.task.name(), "length": self.lengths[item.length], "depth": item.depth, "hidden": hidden,
            "question": item.question, "expected": item.expected, "answer": answer.text, "score": score, "passage": rank,
        }));
        let task = self.tasks.iter().position(|t| *t == item.task).unwrap_or(0);
        let cell = self.cells.entry((mode as usize, task, item.length, item.depth)).or_default();
        cell.asked += 1;
        cell.score += score;
        cell.found += usize::from(rank.is_some());
        let (stats, cost) = (session.stats(), self.costs.entry((mode as usize, item.length)).or_default());
        cost.asked += 1;
        cost.first_token_seconds += answer.first_token_seconds;
        cost.bytes_read += answer.memory_bytes_read;
        cost.tokens += answer.tokens;
        cost.resident_bytes = cost.resident_bytes.max(stats.resident_bytes);
        cost.anonymous_bytes = cost.anonymous_bytes.max(stats.anonymous_bytes);
    }

    pub fn perplexity(&mut self, length: usize, mode: Mode, scored: Option<Vec<f64>>) {
        if let Some(scored) = scored {
            self.perplexities.insert((mode as usize, length), scored);
        }
    }

    /// By how much the perplexity of a mode exceeds that of full attention, as a share of it, and the standard error of that: token by
    /// token, so that what makes a token hard for both does not count.
    fn over_full(&self, mode: usize, length: usize) -> Option<(f64, f64)> {
        let (scored, full) = (self.perplexities.get(&(mode, length))?, self.perplexities.get(&(Mode::Full as usize, length))?);
        let paired = mode != Mode::Full as usize && scored.len() == full.len();
        paired.then(|| {
            let mut differences = Score::default();
            scored.iter().zip(full).for_each(|(a, b)| differences.add(a - b));
            let (ratio, error) = differences.perplexity();
            (ratio - 1.0, error)
        })
    }

    fn sum(&self, mode: Mode, task: usize, length: usize) -> Option<Cell> {
        let mut total = Cell::default();
        for d in 0..self.depths {
            if let Some(c) = self.cells.get(&(mode as usize, task, length, d)) {
                total = Cell { asked: total.asked + c.asked, score: total.score + c.score, found: total.found + c.found };
            }
        }
        (total.asked > 0).then_some(total)
    }

    /// What the scores of a task are compared with: the same model with all of the shortest text in its prompt, or else its memory.
    fn own(&self, task: usize) -> Option<f64> {
        [Mode::Full, Mode::Memory].into_iter().find_map(|m| self.sum(m, task, 0)).map(|c| c.score / c.asked as f64)
    }

    pub fn table(&self) -> String {
        let mut out = format!("{}, seed {}, {} depths\n", self.model, self.seed, self.depths);
        if self.remembered.0 > 0 {
            let speed = output::per_second(self.remembered.0 as u64, self.remembered.1);
            let _ = writeln!(out, "remembered {} tokens, {speed:.0} tokens/s", self.remembered.0);
        }
        out += "\n| task | mode |";
        self.lengths.iter().for_each(|l| out += &format!(" {l} |"));
        out += "\n|---|---|";
        self.lengths.iter().for_each(|_| out += "---:|");
        out.push('\n');
        for (t, task) in self.tasks.iter().enumerate() {
            for mode in MODES {
                let row: Vec<Option<Cell>> = (0..self.lengths.len()).map(|l| self.sum(mode, t, l)).collect();
                if row.iter().all(Option::is_none) {
                    continue;
                }
                let _ = write!(out, "| {} | {} |", task.name(), mode.name());
                for cell in row {
                    match cell {
                        Some(c) if mode == Mode::Memory => {
                            let _ = write!(out, " {:.1} of {} (read {}) |", c.score, c.asked, c.found);
                        }
                        Some(c) => {
                            let _ = write!(out, " {:.1} of {} |", c.score, c.asked);
                        }
                        None => out += " - |",
                    }
                }
                out.push('\n');
            }
        }
        for (&(mode, l), scored) in &self.perplexities {
            let ((perplexity, error), count) = (of(scored), scored.len());
            let (name, length) = (MODES[mode].name(), self.lengths[l]);
            let _ = write!(out, "perplexity of the last {count} of {length} tokens, {name}: {perplexity:.4} +/- {error:.4}");
            if let Some((over, error)) = self.over_full(mode, l) {
                let _ = write!(out, ", {:+.2} % +/- {:.2} % against full", 100.0 * over, 100.0 * error);
            }
            out.push('\n');
        }
        for (&(mode, length), c) in &self.costs {
            let (name, length) = (MODES[mode].name(), self.lengths[length]);
            let _ = writeln!(
                out,
                "{name} {length}: first token after {:.3} s, {} read per question, {} per token; resident {}, anonymous {}",
                c.first_token_seconds / c.asked as f64,
                output::bytes(c.bytes_read / c.asked as u64),
                output::bytes(c.bytes_read / c.tokens),
                output::bytes(c.resident_bytes),
                output::bytes(c.anonymous_bytes),
            );
        }
        out
    }

    pub fn json(&self) -> Value {
        let cells = self.cells.iter().map(|(&(mode, task, length, depth), c)| {
            json!({
                "mode": MODES[mode].name(), "task": self.tasks[task].name(), "length": self.lengths[length],
                "depth": (depth as f64 + 0.5) / self.depths as f64, "asked": c.asked, "score": c.score / c.asked as f64,
                "passage_read": c.found as f64 / c.asked as f64,
            })
        });
        let mut totals = Vec::new();
        for (t, task) in self.tasks.iter().enumerate() {
            for mode in MODES {
                for (l, length) in self.lengths.iter().enumerate() {
                    if let Some(c) = self.sum(mode, t, l) {
                        let score = c.score / c.asked as f64;
                        totals.push(json!({
                            "mode": mode.name(), "task": task.name(), "length": length, "asked": c.asked, "score": score,
                            "of_own": self.own(t).filter(|own| *own > 0.0).map(|own| score / own),
                        }));
                    }
                }
            }
        }
        let perplexities = self.perplexities.iter().map(|(&(mode, l), scored)| {
            let ((perplexity, error), over) = (of(scored), self.over_full(mode, l));
            json!({
                "mode": MODES[mode].name(), "length": self.lengths[l], "scored_tokens": scored.len(), "perplexity": perplexity,
                "error": error, "over_full": over.map(|o| o.0), "over_full_error": over.map(|o| o.1),
                "negative_log_likelihoods": scored,
            })
        });
        let costs = self.costs.iter().map(|(&(mode, length), c)| {
            json!({
                "mode": MODES[mode].name(), "length": self.lengths[length], "asked": c.asked,
                "first_token_seconds": c.first_token_seconds / c.asked as f64, "memory_bytes_read": c.bytes_read, "tokens": c.tokens,
                "resident_bytes": c.resident_bytes, "anonymous_bytes": c.anonymous_bytes,
            })
        });
        json!({
            "model": self.model, "seed": self.seed, "lengths": self.lengths, "depths": self.depths,
            "remembered_tokens": self.remembered.0, "remember_seconds": self.remembered.1,
            "cells": cells.collect::<Vec<_>>(), "totals": totals, "perplexity": perplexities.collect::<Vec<_>>(),
            "costs": costs.collect::<Vec<_>>(), "questions": self.questions,
        })
    }

    /// One map for each mode and task: lengths to the right, depths downwards, from red (nothing found) to green.
    pub fn svg(&self) -> String {
        const SIDE: usize = 26;
        const LEFT: usize = 60;
        const TOP: usize = 46;
        let maps: Vec<(Mode, usize)> = MODES
            .into_iter()
            .flat_map(|m| (0..self.tasks.len()).map(move |t| (m, t)))
            .filter(|(m, t)| (0..self.lengths.len()).any(|l| self.sum(*m, *t, l).is_some()))
            .collect();
        let across = self.tasks.len().max(1);
        let (width, height) = (LEFT + self.lengths.len() * SIDE * 2 + 20, TOP + self.depths * SIDE + 24);
        let (all_width, all_height) = (across.min(maps.len().max(1)) * width, maps.len().div_ceil(across).max(1) * height);
        let mut out = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{all_width}\" height=\"{all_height}\" font-family=\"sans-serif\" font-size=\"11\">\n\
             <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n"
        );
        for (i, (mode, task)) in maps.iter().enumerate() {
            let (x, y) = (i % across * width, i / across * height);
            let title = format!("{} ({})", self.tasks[*task].name(), mode.name());
            let _ = writeln!(out, "<g transform=\"translate({x} {y})\"><text x=\"{LEFT}\" y=\"16\" font-size=\"13\">{title}</text>");
            for (l, length) in self.lengths.iter().enumerate() {
                let at = LEFT + l * SIDE * 2 + SIDE;
                let _ = writeln!(out, "<text x=\"{at}\" y=\"{}\" text-anchor=\"middle\">{}</text>", TOP - 8, short(*length));
            }
            for d in 0..self.depths {
                let middle = TOP + d * SIDE + SIDE / 2 + 4;
                let percent = (d as f64 + 0.5) / self.depths as f64 * 100.0;
                let _ = writeln!(out, "<text x=\"{}\" y=\"{middle}\" text-anchor=\"end\">{percent:.0} %</text>", LEFT - 8);
                for l in 0..self.lengths.len() {
                    let Some(c) = self.cells.get(&(*mode as usize, *task, l, d)) else { continue };
                    let share = c.score / c.asked as f64;
                    let (left, top, fill) = (LEFT + l * SIDE * 2, TOP + d * SIDE, colour(share));
                    let (w, h) = (SIDE * 2 - 2, SIDE - 2);
                    let _ = writeln!(
                        out,
                        "<rect x=\"{left}\" y=\"{top}\" width=\"{w}\" height=\"{h}\" fill=\"{fill}\"><title>{:.0} %</title></rect>",
                        share * 100.0
                    );
                    let (x, percent) = (left + SIDE - 1, share * 100.0);
                    let _ = writeln!(out, "<text x=\"{x}\" y=\"{}\" text-anchor=\"middle\" fill=\"#fff\">{percent:.0}</text>", middle - 1);
                }
            }
            out += "</g>\n";
        }
        out + "</svg>\n"
    }
}

/// Perplexity and its standard error.
fn of(scored: &[f64]) -> (f64, f64) {
    let mut score = Score::default();
    scored.iter().for_each(|nll| score.add(*nll));
    score.perplexity()
}

/// `32k`, `1m`.
fn short(tokens: usize) -> String {
    match tokens {
        t if t >= 1_000_000 => format!("{:.1}m", t as f64 / 1e6),
        t if t >= 1024 => format!("{}k", t / 1024),
        t => t.to_string(),
    }
}

fn colour(share: f64) -> String {
    let mix = |a: f64, b: f64| (a + (b - a) * share.clamp(0.0, 1.0)).round() as u8;
    format!("#{:02x}{:02x}{:02x}", mix(214.0, 46.0), mix(72.0, 160.0), mix(64.0, 92.0))
}
