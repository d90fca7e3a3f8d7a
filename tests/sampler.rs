//! The sampler: each stage against a plain f64 evaluation, the draw against the distribution it claims, state, hostile input.

use loci::Error;
use loci::sampler::{Candidate, Rng, Sampler, SamplerOptions, log_probability, log_softmax, log_sum_exp, top_log_probabilities};
use proptest::prelude::*;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! { static ALLOCATIONS: Cell<u64> = const { Cell::new(0) }; }

struct Counting;

// SAFETY: forwards to the system's allocator; the counter is a constant-initialised thread local and allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = ALLOCATIONS.try_with(|n| n.set(n.get() + 1));
        // SAFETY: the caller's promise is the same.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is the same.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Everything off: the draw follows the softmax of the row.
fn off() -> SamplerOptions {
    SamplerOptions { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, ..SamplerOptions::default() }
}

/// A row of roughly normal logits, none equal.
fn row(rng: &mut Rng, n: usize, scale: f64) -> Vec<f32> {
    (0..n).map(|_| (((0..12).map(|_| rng.unit()).sum::<f64>() - 6.0) * scale) as f32).collect()
}

/// The chain as its papers describe it: sort everything, sum everything, f64. Pairs of id and probability in ascending order of id.
fn plain(options: &SamplerOptions, row: &[f32], history: &[u32]) -> Vec<(u32, f64)> {
    let mut x: Vec<f64> = row.iter().map(|&v| v as f64).collect();
    for &(id, bias) in &options.logit_bias {
        x[id as usize] += bias as f64;
    }
    let lately = &history[history.len().saturating_sub(options.penalty_last_n as usize)..];
    for (id, v) in x.iter_mut().enumerate() {
        let count = lately.iter().filter(|&&t| t as usize == id).count() as f64;
        if count > 0.0 {
            let r = options.repetition_penalty as f64;
            *v = if *v > 0.0 { *v / r } else { *v * r };
            *v -= options.presence_penalty as f64 + count * options.frequency_penalty as f64;
        }
    }
    let mut left: Vec<(u32, f64)> = (0..).zip(x).filter(|c| c.1 > f64::NEG_INFINITY).collect();
    left.sort_by(|a, b| b.1.partial_cmp(&a.1).unwrap().then(a.0.cmp(&b.0)));
    if options.temperature == 0.0 {
        return vec![(left[0].0, 1.0)];
    }
    let softmax = |left: &[(u32, f64)], t: f64| -> Vec<f64> {
        let e: Vec<f64> = left.iter().map(|c| ((c.1 - left[0].1) / t).exp()).collect();
        let sum: f64 = e.iter().sum();
        e.iter().map(|v| v / sum).collect()
    };
    if options.top_k > 0 {
        left.truncate(options.top_k as usize);
    }
    if options.typical_p < 1.0 {
        let p = softmax(&left, 1.0);
        let entropy: f64 = -p.iter().map(|p| p * p.ln()).sum::<f64>();
        let mut order: Vec<usize> = (0..left.len()).collect();
        order.sort_by(|&a, &b| (-p[a].ln() - entropy).abs().partial_cmp(&(-p[b].ln() - entropy).abs()).unwrap());
        let mut mass = 0.0;
        let mut keep = vec![];
        for i in order {
            keep.push(i);
            mass += p[i];
            if mass >= options.typical_p as f64 {
                break;
            }
        }
        keep.sort();
        left = keep.into_iter().map(|i| left[i]).collect();
    }
    if options.top_p < 1.0 {
        let p = softmax(&left, 1.0);
        let mut mass = 0.0;
        let keep = p.iter().take_while(|&&p| (mass < options.top_p as f64, mass += p).0).count();
        left.truncate(keep.max(1));
    }
    if options.min_p > 0.0 {
        let p = softmax(&left, 1.0);
        let keep = p.iter().take_while(|&&v| v >= options.min_p as f64 * p[0]).count();
        left.truncate(keep.max(1));
    }
    let p = softmax(&left, options.temperature as f64);
    let mut out: Vec<(u32, f64)> = left.iter().map(|c| c.0).zip(p).collect();
    out.sort_by_key(|c| c.0);
    out
}

fn assert_plain(name: &str, options: &SamplerOptions, row: &[f32], history: &[u32]) {
    let mut sampler = Sampler::new(options.clone()).unwrap();
    for &token in history {
        sampler.accept(token);
    }
    let mut got: Vec<Candidate> = sampler.candidates(row).unwrap().to_vec();
    got.sort_by_key(|c| c.id);
    let expected = plain(options, row, history);
    assert_eq!(got.iter().map(|c| c.id).collect::<Vec<_>>(), expected.iter().map(|c| c.0).collect::<Vec<_>>(), "{name}: {options:?}");
    for (got, expected) in got.iter().zip(&expected) {
        // Bias and penalties are applied to f32 logits: a rounding of theirs is 1e-6 of a probability.
        let bound = 4e-6 * expected.1 + 1e-12;
        assert!((got.probability - expected.1).abs() <= bound, "{name}: id {}: {} for {}", got.id, got.probability, expected.1);
    }
}

#[test]
fn every_stage_agrees_with_a_plain_evaluation() {
    let mut rng = Rng::new(11);
    let base = off();
    for n in [1usize, 2, 3, 17, 300, 5000] {
        for scale in [0.05, 1.0, 4.0] {
            let row = row(&mut rng, n, scale);
            let history: Vec<u32> = (0..100).map(|_| (rng.bits() % (n as u64 + 3)) as u32).collect();
            let cases: Vec<(&str, SamplerOptions)> = vec![
                ("off", base.clone()),
                ("greedy", SamplerOptions::greedy()),
                ("temperature", SamplerOptions { temperature: 0.3, ..base.clone() }),
                ("temperature", SamplerOptions { temperature: 5.0, ..base.clone() }),
                ("top_k 1", SamplerOptions { top_k: 1, ..base.clone() }),
                ("top_k 7", SamplerOptions { top_k: 7, ..base.clone() }),
                ("top_k 200", SamplerOptions { top_k: 200, ..base.clone() }),
                ("top_k max", SamplerOptions { top_k: u32::MAX, ..base.clone() }),
                ("top_p 0", SamplerOptions { top_p: 0.0, ..base.clone() }),
                ("top_p 0.3", SamplerOptions { top_p: 0.3, ..base.clone() }),
                ("top_p 0.95", SamplerOptions { top_p: 0.95, ..base.clone() }),
                ("min_p 0.05", SamplerOptions { min_p: 0.05, ..base.clone() }),
                ("min_p 1", SamplerOptions { min_p: 1.0, ..base.clone() }),
                ("typical 0", SamplerOptions { typical_p: 0.0, ..base.clone() }),
                ("typical 0.2", SamplerOptions { typical_p: 0.2, ..base.clone() }),
                ("typical 0.9", SamplerOptions { typical_p: 0.9, ..base.clone() }),
                ("repetition", SamplerOptions { repetition_penalty: 1.3, ..base.clone() }),
                ("repetition below 1", SamplerOptions { repetition_penalty: 0.7, penalty_last_n: 5, ..base.clone() }),
                ("presence", SamplerOptions { presence_penalty: 0.9, ..base.clone() }),
                ("frequency", SamplerOptions { frequency_penalty: 0.25, ..base.clone() }),
                ("penalties off", SamplerOptions { frequency_penalty: 0.25, penalty_last_n: 0, ..base.clone() }),
                ("bias", SamplerOptions { logit_bias: vec![(0, 2.5), (n as u32 - 1, -1.0)], ..base.clone() }),
                ("default", SamplerOptions::default()),
                (
                    "all",
                    SamplerOptions {
                        temperature: 0.7,
                        top_k: 60,
                        top_p: 0.9,
                        min_p: 0.02,
                        typical_p: 0.97,
                        repetition_penalty: 1.1,
                        presence_penalty: 0.2,
                        frequency_penalty: -0.1,
                        penalty_last_n: 40,
                        logit_bias: vec![(n as u32 / 2, 1.5), (n as u32 / 2, 0.25)],
                        seed: 3,
                    },
                ),
            ];
            for (name, options) in cases {
                assert_plain(name, &options, &row, &history);
            }
        }
    }
}

#[test]
fn bans_hold_even_for_the_best_token() {
    let row = [1.0, 9.0, 2.0, 1.5];
    let options = SamplerOptions { logit_bias: vec![(1, f32::NEG_INFINITY), (2, f32::NEG_INFINITY)], ..SamplerOptions::greedy() };
    assert_eq!(Sampler::new(options.clone()).unwrap().sample(&row).unwrap(), 3);
    let mut sampler =
        Sampler::new(SamplerOptions { temperature: 50.0, ..SamplerOptions { logit_bias: options.logit_bias, ..off() } }).unwrap();
    let drawn: Vec<u32> = (0..500).map(|_| sampler.sample(&row).unwrap()).collect();
    assert!(drawn.iter().all(|&id| id == 0 || id == 3) && drawn.contains(&0) && drawn.contains(&3));
}

#[test]
fn ties_go_to_the_lowest_id() {
    let mut row = vec![0.5f32; 1000];
    for id in [3, 400, 401, 999] {
        row[id] = 2.0;
    }
    row[10] = -0.0;
    row[11] = 0.0;
    assert_eq!(Sampler::new(SamplerOptions::greedy()).unwrap().sample(&row).unwrap(), 3);
    let ids =
        |options: SamplerOptions| -> Vec<u32> { Sampler::new(options).unwrap().candidates(&row).unwrap().iter().map(|c| c.id).collect() };
    assert_eq!(ids(SamplerOptions { top_k: 3, ..off() }), [3, 400, 401]);
    assert_eq!(ids(SamplerOptions { top_k: 6, ..off() }), [3, 400, 401, 999, 0, 1]);
    assert_eq!(ids(SamplerOptions { top_p: 0.0, ..off() }), [3]);
    assert_eq!(ids(SamplerOptions { min_p: 1.0, ..off() }), [3, 400, 401, 999]);
    // Through the pruned selection and through the whole row: the same best tokens.
    let many: Vec<f32> = (0..5000).map(|i| (i % 7) as f32).collect();
    let mut sampler = Sampler::new(SamplerOptions { top_k: 100, ..off() }).unwrap();
    let expected: Vec<u32> = (0..100).map(|i| 6 + 7 * i).collect();
    assert_eq!(sampler.candidates(&many).unwrap().iter().map(|c| c.id).collect::<Vec<_>>(), expected);
}

/// Pearson's statistic against the plain distribution, with the 1 - 1e-6 quantile of chi-square by Wilson and Hilferty's formula. The
/// seeds are fixed, so the test gives the same verdict every time; a wrong distribution is off by orders of magnitude.
#[test]
fn draws_follow_the_distribution() {
    let mut rng = Rng::new(5);
    let row = row(&mut rng, 24, 1.2);
    let cases = [
        off(),
        SamplerOptions { temperature: 0.6, ..off() },
        SamplerOptions { temperature: 2.0, top_k: 9, ..off() },
        SamplerOptions { top_p: 0.8, ..off() },
        SamplerOptions { min_p: 0.2, ..off() },
        SamplerOptions { typical_p: 0.7, temperature: 0.9, ..off() },
        SamplerOptions { logit_bias: vec![(4, 3.0), (5, f32::NEG_INFINITY)], ..off() },
    ];
    for (case, options) in cases.into_iter().enumerate() {
        for seed in [1, 2, 0x9e37_79b9_7f4a_7c15] {
            let options = SamplerOptions { seed, ..options.clone() };
            let expected = plain(&options, &row, &[]);
            let mut sampler = Sampler::new(options).unwrap();
            let draws = 40_000;
            let mut seen = vec![0u32; row.len()];
            for _ in 0..draws {
                seen[sampler.sample(&row).unwrap() as usize] += 1;
            }
            assert_eq!(expected.iter().map(|c| seen[c.0 as usize]).sum::<u32>(), draws, "case {case}: drawn outside the set");
            let chi: f64 = expected
                .iter()
                .map(|&(id, p)| {
                    let e = p * draws as f64;
                    (seen[id as usize] as f64 - e).powi(2) / e
                })
                .sum();
            let freedom = (expected.len() - 1) as f64;
            let (spread, z) = (2.0 / (9.0 * freedom), 4.753);
            let bound = freedom * (1.0 - spread + z * spread.sqrt()).powi(3);
            assert!(chi < bound, "case {case} seed {seed}: chi-square {chi} on {freedom} degrees, bound {bound}");
        }
    }
}

#[test]
fn seeds_history_and_state_decide_everything() {
    let mut rng = Rng::new(8);
    let rows: Vec<Vec<f32>> = (0..50).map(|_| row(&mut rng, 200, 1.0)).collect();
    let options = SamplerOptions { temperature: 1.0, repetition_penalty: 1.2, penalty_last_n: 10, seed: 42, ..off() };
    let run = |sampler: &mut Sampler, rows: &[Vec<f32>]| -> Vec<u32> {
        rows.iter()
            .map(|row| {
                let token = sampler.sample(row).unwrap();
                sampler.accept(token);
                token
            })
            .collect()
    };
    let mut sampler = Sampler::new(options.clone()).unwrap();
    let first = run(&mut sampler, &rows);
    sampler.reset();
    assert_eq!(run(&mut sampler, &rows), first, "reset");
    assert_ne!(run(&mut Sampler::new(SamplerOptions { seed: 43, ..options.clone() }).unwrap(), &rows), first, "another seed");

    let mut sampler = Sampler::new(options.clone()).unwrap();
    run(&mut sampler, &rows[..20]);
    let state = sampler.state();
    let mut resumed = Sampler::new(options.clone()).unwrap();
    resumed.restore(&state).unwrap();
    assert_eq!(resumed.state(), state);
    assert_eq!(run(&mut resumed, &rows[20..]), first[20..], "restored");

    // A copy with a shorter memory keeps the newest tokens.
    let mut short = Sampler::new(SamplerOptions { penalty_last_n: 3, ..options }).unwrap();
    short.restore(&state).unwrap();
    assert_eq!(short.state()[40..], state[state.len() - 12..]);
}

#[test]
fn damaged_state_is_refused_and_changes_nothing() {
    let mut sampler = Sampler::new(SamplerOptions::default()).unwrap();
    for token in 0..9 {
        sampler.accept(token);
    }
    let good = sampler.state();
    let mut version = good.clone();
    version[0] = 9;
    let mut zero = good.clone();
    zero[4..36].fill(0);
    let mut count = good.clone();
    count[36..40].fill(255);
    for bad in [&good[..0], &good[..39], &good[..good.len() - 1], &version, &zero, &count] {
        assert!(matches!(sampler.restore(bad), Err(Error::Format { file: "sampler state", .. })));
        assert_eq!(sampler.state(), good);
    }
}

#[test]
fn options_out_of_range_are_named() {
    let nan = f32::NAN;
    let inf = f32::INFINITY;
    let d = SamplerOptions::default;
    let cases: Vec<(&str, SamplerOptions)> = vec![
        ("temperature", SamplerOptions { temperature: nan, ..d() }),
        ("temperature", SamplerOptions { temperature: -0.1, ..d() }),
        ("temperature", SamplerOptions { temperature: inf, ..d() }),
        ("top_p", SamplerOptions { top_p: nan, ..d() }),
        ("top_p", SamplerOptions { top_p: 1.01, ..d() }),
        ("top_p", SamplerOptions { top_p: -0.01, ..d() }),
        ("min_p", SamplerOptions { min_p: nan, ..d() }),
        ("min_p", SamplerOptions { min_p: 2.0, ..d() }),
        ("typical_p", SamplerOptions { typical_p: -1.0, ..d() }),
        ("typical_p", SamplerOptions { typical_p: nan, ..d() }),
        ("repetition_penalty", SamplerOptions { repetition_penalty: 0.0, ..d() }),
        ("repetition_penalty", SamplerOptions { repetition_penalty: -1.0, ..d() }),
        ("repetition_penalty", SamplerOptions { repetition_penalty: nan, ..d() }),
        ("presence_penalty", SamplerOptions { presence_penalty: inf, ..d() }),
        ("frequency_penalty", SamplerOptions { frequency_penalty: nan, ..d() }),
        ("logit_bias", SamplerOptions { logit_bias: vec![(0, 1.0), (1, nan)], ..d() }),
        ("logit_bias", SamplerOptions { logit_bias: vec![(1, inf)], ..d() }),
    ];
    for (field, options) in cases {
        match Sampler::new(options) {
            Err(Error::Argument { name, .. }) => assert_eq!(name, field),
            other => panic!("{field}: {other:?}"),
        }
    }
    d().validate().unwrap();
    SamplerOptions::greedy().validate().unwrap();
}

#[test]
fn rows_with_nothing_to_draw_are_errors() {
    let none = [f32::NEG_INFINITY, f32::NAN, f32::NEG_INFINITY];
    for options in [SamplerOptions::default(), SamplerOptions::greedy(), off()] {
        let mut sampler = Sampler::new(options.clone()).unwrap();
        assert!(matches!(sampler.sample(&none), Err(Error::Argument { name: "logits", .. })));
        assert!(matches!(sampler.sample(&[]), Err(Error::Argument { name: "logits", .. })));
        assert_eq!(sampler.sample(&[f32::NAN, f32::NEG_INFINITY, -1e30]).unwrap(), 2, "usable after an error");
        let mut outside = Sampler::new(SamplerOptions { logit_bias: vec![(3, 1.0)], ..options }).unwrap();
        assert!(matches!(outside.sample(&none), Err(Error::Argument { name: "logit_bias", .. })));
    }
}

#[test]
fn a_warm_sampler_does_not_allocate() {
    let mut rng = Rng::new(1);
    let rows: Vec<Vec<f32>> = (0..8).map(|_| row(&mut rng, 3000, 2.0)).collect();
    for base in [SamplerOptions::default(), SamplerOptions::greedy(), SamplerOptions { top_p: 0.9, typical_p: 0.95, ..off() }] {
        let options =
            SamplerOptions { repetition_penalty: 1.1, frequency_penalty: 0.1, penalty_last_n: 6, logit_bias: vec![(1, -1.0)], ..base };
        let mut sampler = Sampler::new(options).unwrap();
        let mut before = 0;
        for round in 0..10 {
            if round == 1 {
                before = ALLOCATIONS.get();
            }
            for row in &rows {
                let token = sampler.sample(row).unwrap();
                sampler.accept(token);
            }
        }
        assert_eq!(ALLOCATIONS.get() - before, 0, "{:?}", sampler.options());
        assert!(before > 0, "the counter counts");
    }
}

#[test]
fn log_probabilities_agree_with_a_plain_evaluation() {
    let mut rng = Rng::new(2);
    for n in [1usize, 2, 50, 4000] {
        let mut row = row(&mut rng, n, 3.0);
        if n > 2 {
            row[1] = f32::NEG_INFINITY;
        }
        // Shifting a row changes no probability: far out, sums without the maximum taken off overflow.
        for shift in [0.0f32, 1024.0, -2048.0] {
            let row: Vec<f32> = row.iter().map(|x| x + shift).collect();
            let shifted: Vec<f64> = row.iter().map(|&x| x as f64 - shift as f64).collect();
            let sum: f64 = shifted.iter().map(|x| x.exp()).sum();
            assert!((log_sum_exp(&row).unwrap() - shift as f64 - sum.ln()).abs() < 1e-9);
            let mut out = vec![0.0; n];
            log_softmax(&row, &mut out).unwrap();
            let mut expected: Vec<(u32, f64)> = (0..).zip(shifted.iter().map(|x| (x.exp() / sum).ln())).collect();
            for &(id, e) in &expected {
                let got = log_probability(&row, id).unwrap();
                assert!(got == e || (got - e).abs() < 1e-9, "{got} {e}");
                assert_eq!(out[id as usize], got as f32);
            }
            expected.sort_by(|a, b| b.1.partial_cmp(&a.1).unwrap().then(a.0.cmp(&b.0)));
            for top in [0, 1, 5, n, n + 7] {
                let got = top_log_probabilities(&row, top).unwrap();
                assert_eq!(got.len(), top.min(n));
                for (got, e) in got.iter().zip(&expected) {
                    assert!(got.1 == e.1 || (got.1 - e.1).abs() < 1e-9);
                }
                if shift == 0.0 {
                    assert_eq!(got.iter().map(|c| c.0).collect::<Vec<_>>(), expected.iter().take(top).map(|c| c.0).collect::<Vec<_>>());
                }
            }
        }
    }
    assert!(log_probability(&[1.0], 1).is_err());
    assert!(log_sum_exp(&[f32::NAN, f32::NEG_INFINITY]).is_err() && log_sum_exp(&[]).is_err());
    assert!(log_softmax(&[1.0, 2.0], &mut [0.0]).is_err());
    assert_eq!(log_probability(&[f32::NAN, 3.0], 0).unwrap(), f64::NEG_INFINITY);
    assert_eq!(top_log_probabilities(&[1.0, f32::NAN, 1.0], 3).unwrap()[2].0, 1);
}

fn any_f32() -> impl Strategy<Value = f32> {
    prop_oneof![
        4 => -20.0f32..20.0,
        1 => any::<u32>().prop_map(f32::from_bits),
        1 => prop_oneof![Just(f32::NAN), Just(f32::INFINITY), Just(f32::NEG_INFINITY), Just(f32::MAX), Just(f32::MIN), Just(0.0), Just(-0.0)],
    ]
}

prop_compose! {
    fn any_options()(a in (any_f32(), 0u32..300, 0.0f32..=1.0, 0.0f32..=1.0, 0.0f32..=1.0), b in (any_f32(), any_f32(), any_f32(), 0u32..20),
        logit_bias in prop::collection::vec((0u32..40, any_f32()), 0..3), seed in any::<u64>()) -> SamplerOptions {
        SamplerOptions { temperature: a.0.abs(), top_k: a.1, top_p: a.2, min_p: a.3, typical_p: a.4, repetition_penalty: b.0.abs(),
            presence_penalty: b.1, frequency_penalty: b.2, penalty_last_n: b.3, logit_bias, seed }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    /// Whatever the logits and the options: no panic, and a token is one of the row that was not banned, with a proper distribution.
    #[test]
    fn hostile_rows_and_options(options in any_options(), logits in prop::collection::vec(any_f32(), 0..300), history in prop::collection::vec(any::<u32>(), 0..30)) {
        let Ok(mut sampler) = Sampler::new(options.clone()) else {
            prop_assert!(options.validate().is_err());
            return Ok(());
        };
        for token in history {
            sampler.accept(token % 400);
        }
        match sampler.sample(&logits) {
            Ok(token) => {
                let logit = logits[token as usize];
                prop_assert!(!logit.is_nan() && logit > f32::NEG_INFINITY);
                let banned = options.logit_bias.iter().any(|&(id, bias)| id == token && bias == f32::NEG_INFINITY);
                prop_assert!(!banned);
                let candidates = sampler.candidates(&logits).unwrap();
                prop_assert!(candidates.iter().any(|c| c.id == token && c.probability > 0.0));
                prop_assert!(candidates.iter().all(|c| c.logit.is_finite() && c.probability.is_finite()));
                prop_assert!((candidates.iter().map(|c| c.probability).sum::<f64>() - 1.0).abs() < 1e-9);
            }
            Err(Error::Argument { name, .. }) => prop_assert!(name == "logits" || name == "logit_bias"),
            Err(other) => prop_assert!(false, "{other}"),
        }
    }
}
