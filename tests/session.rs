//! A session keeps its promises: prefixes are reused, a cancel leaves it usable, a full window ends or slides as told, stop
//! strings and whole UTF-8, the same text with the same seed, and a memory that answers after a restart.

mod common;

use common::tiny::{self, TinyOptions};
use common::{argmax, max_abs_diff};
use loci::Error;
use loci::kv::KvType;
use loci::memory::Memory;
use loci::model::{Model, ModelOptions};
use loci::sampler::SamplerOptions;
use loci::session::{Finish, GenerateOptions, Overflow, Piece, Session, SessionOptions, SharedMemory};
use std::ops::ControlFlow::{self, Break, Continue};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, RwLock};
use std::time::Duration;

fn tiny_model() -> Arc<Model> {
    Model::open_bytes(tiny::llama(TinyOptions::default()), &ModelOptions::default()).unwrap()
}

fn options() -> SessionOptions {
    SessionOptions { threads: 2, batch: 16, sampler: SamplerOptions::greedy(), ..SessionOptions::default() }
}

fn session(options: SessionOptions) -> Session {
    Session::new(tiny_model(), options).unwrap()
}

fn quiet() -> impl FnMut(usize, usize) -> ControlFlow<()> {
    |_, _| Continue(())
}

fn ids(n: usize, seed: u64) -> Vec<u32> {
    tiny::ids(n, tiny::VOCAB_MIN, seed)
}

fn shared(memory: Memory) -> SharedMemory {
    Arc::new(RwLock::new(memory))
}

#[test]
fn a_common_prefix_is_not_computed_again() {
    let mut s = session(options());
    let first = ids(60, 1);
    s.prefill_prompt(&first, &mut quiet()).unwrap();
    let mut second = first[..45].to_vec();
    second.extend(ids(30, 2));
    s.prefill_prompt(&second, &mut quiet()).unwrap();
    assert_eq!((s.tokens(), s.stats().reused_tokens, s.stats().prefill_tokens), (&second[..], 45, 60 + 30));
    let got = s.logits().unwrap().to_vec();

    let mut fresh = session(options());
    fresh.prefill(&second, &mut quiet()).unwrap();
    assert_eq!(got, fresh.logits().unwrap(), "the same bits as without reuse");
    // The whole prompt is there already: only its last token is computed.
    s.prefill_prompt(&second, &mut quiet()).unwrap();
    assert_eq!(s.stats().reused_tokens, 45 + 74);
    assert_eq!(s.logits().unwrap(), got);
}

#[test]
fn token_by_token_is_the_batch() {
    let text = ids(50, 3);
    let mut batch = session(SessionOptions { kv_type: KvType::F32, ..options() });
    batch.prefill(&text, &mut quiet()).unwrap();
    let mut steps = session(SessionOptions { kv_type: KvType::F32, ..options() });
    for id in &text {
        steps.prefill(&[*id], &mut quiet()).unwrap();
    }
    let d = max_abs_diff(batch.logits().unwrap(), steps.logits().unwrap());
    assert!(d < 1e-5, "{d}");
}

/// With heads of 32, which every type of window takes.
fn with_kv(kv_type: KvType, threads: usize) -> Session {
    let bytes = tiny::llama(TinyOptions { head_dim: 32, ..TinyOptions::default() });
    let model = Model::open_bytes(bytes, &ModelOptions::default()).unwrap();
    Session::new(model, SessionOptions { kv_type, threads, ..options() }).unwrap()
}

#[test]
fn every_type_of_window_is_close_to_the_exact_one() {
    let text = ids(70, 13);
    let logits = |kv_type| {
        let mut s = with_kv(kv_type, 2);
        s.prefill(&text, &mut quiet()).unwrap();
        s.logits().unwrap().to_vec()
    };
    let exact = logits(KvType::F32);
    let size = exact.iter().fold(0f64, |m, x| m.max(f64::from(x.abs())));
    let errors = [KvType::F16, KvType::Q8_0, KvType::Q4].map(|kv_type| max_abs_diff(&exact, &logits(kv_type)) / size);
    assert!(errors[0] < 1e-3 && errors[1] < 1e-2 && errors[2] < 1e-1, "{errors:?}");
    assert!(errors[0] < errors[1] && errors[1] < errors[2], "{errors:?}");
}

#[test]
fn a_quantised_window_is_cut_and_continued_like_any_other() {
    let text = ids(90, 14);
    for kv_type in [KvType::Q8_0, KvType::Q4] {
        let mut fresh = with_kv(kv_type, 1);
        fresh.prefill(&text, &mut quiet()).unwrap();
        let want = fresh.logits().unwrap();
        // Cut in the middle of a tile, then read on in other batches and with other threads.
        let mut cut = with_kv(kv_type, 3);
        cut.prefill(&text[..50], &mut quiet()).unwrap();
        cut.prefill(&ids(30, 15), &mut quiet()).unwrap();
        cut.truncate(37).unwrap();
        for id in &text[37..60] {
            cut.prefill(&[*id], &mut quiet()).unwrap();
        }
        let handle = cut.cancel_handle();
        let stopped = cut.prefill(&text[60..], &mut |_, _| {
            handle.cancel();
            Continue(())
        });
        assert!(matches!(stopped, Err(Error::Cancelled)));
        let held = cut.len();
        cut.prefill(&text[held..], &mut quiet()).unwrap();
        assert_eq!(cut.logits().unwrap(), want, "{kv_type:?}");
    }
}

#[test]
fn a_quantised_window_slides_and_its_entries_go_to_memory() {
    let text = ids(150, 16);
    for kv_type in [KvType::F32, KvType::Q8_0, KvType::Q4] {
        let bytes = tiny::llama(TinyOptions { head_dim: 32, ..TinyOptions::default() });
        let model = Model::open_bytes(bytes, &ModelOptions::default()).unwrap();
        let overflow = Some(Overflow::Slide { block: 21 });
        let run = |threads| {
            let options = SessionOptions { kv_type, overflow, context_length: 64, threads, ..options() };
            let mut s = Session::new(model.clone(), options).unwrap();
            s.prefill(&text, &mut quiet()).unwrap();
            s.logits().unwrap().to_vec()
        };
        let logits = run(1);
        assert!(logits.iter().all(|x| x.is_finite()));
        assert_eq!(logits, run(2), "{kv_type:?}");
    }
}

#[test]
fn heads_that_cannot_be_quantised_are_an_error_at_once() {
    let bytes = tiny::llama(TinyOptions { head_dim: 24, ..TinyOptions::default() });
    let model = Model::open_bytes(bytes, &ModelOptions::default()).unwrap();
    for kv_type in [KvType::Q8_0, KvType::Q4] {
        let refused = Session::new(model.clone(), SessionOptions { kv_type, ..options() }).err().unwrap();
        assert!(matches!(&refused, Error::Unsupported(what) if what.contains("head size of 24")), "{refused}");
    }
}

#[test]
fn cancelling_leaves_a_usable_session() {
    let text = ids(100, 4);
    let mut s = session(options());
    let handle = s.cancel_handle();
    let result = s.prefill(&text, &mut |done, _| {
        if done >= 32 {
            handle.cancel();
        }
        Continue(())
    });
    assert!(matches!(result, Err(Error::Cancelled)), "{result:?}");
    assert_eq!(s.tokens(), &text[..32], "it says exactly what it holds");
    // Going on from there is the whole text.
    s.prefill(&text[32..], &mut quiet()).unwrap();
    let mut fresh = session(options());
    fresh.prefill(&text, &mut quiet()).unwrap();
    assert_eq!(s.logits().unwrap(), fresh.logits().unwrap());

    let result = s.prefill(&text[..20], &mut |_, _| Break(()));
    assert!(matches!(result, Err(Error::Cancelled)));
    assert_eq!(s.len(), 116);

    assert!(s.start(GenerateOptions::default()).is_err(), "there are no logits to go on from");
    s.prefill(&text[..1], &mut quiet()).unwrap();
    let handle = s.cancel_handle();
    let mut pieces = 0;
    let finish = s
        .generate(GenerateOptions { ignore_eos: true, ..GenerateOptions::default() }, &mut |_| {
            pieces += 1;
            if pieces == 3 {
                handle.cancel();
            }
            Continue(())
        })
        .unwrap();
    assert_eq!((finish, pieces), (Finish::Cancelled, 4));
    s.prefill(&text[..1], &mut quiet()).unwrap();
}

#[test]
fn a_cancel_between_two_steps_of_one_call_is_not_forgotten() {
    let text = ids(100, 4);
    let mut s = session(options());
    let handle = s.cancel_handle();
    handle.cancel();
    s.prefill(&text[..10], &mut quiet()).unwrap();
    let result = s.as_one_call(|s| {
        handle.cancel(); // while a text is made into tokens, say
        s.prefill(&text[10..], &mut quiet())
    });
    assert!(matches!(result, Err(Error::Cancelled)), "{result:?}");
    let memory = shared(Memory::in_ram(s.model().memory_geometry(), s.model().fingerprint().clone()).unwrap());
    let result = s.as_one_call(|s| {
        handle.cancel();
        s.remember(&memory, &text, None, &mut quiet())
    });
    assert!(matches!(result, Err(Error::Cancelled)), "{result:?}");
    s.prefill(&text, &mut quiet()).unwrap();
}

/// A sampler that comes later knows what was said before it came.
#[test]
fn a_new_sampler_looks_back_at_the_same_tokens() {
    let text = ids(40, 9);
    let penalised = SamplerOptions { repetition_penalty: 3.0, penalty_last_n: 64, ..SamplerOptions::greedy() };
    let mut first = session(SessionOptions { sampler: penalised.clone(), ..options() });
    let mut later = session(options());
    for s in [&mut first, &mut later] {
        s.prefill(&text, &mut quiet()).unwrap();
    }
    later.set_sampler(penalised).unwrap();
    for _ in 0..10 {
        let token = first.sample().unwrap();
        assert_eq!(later.sample().unwrap(), token);
        for s in [&mut first, &mut later] {
            s.prefill(&[token], &mut quiet()).unwrap();
        }
    }
}

#[test]
fn rests_change_nothing_and_end_with_a_cancel() {
    let tokens = ids(120, 9);
    let mut plain = session(options());
    plain.prefill(&tokens, &mut quiet()).unwrap();
    assert_eq!(plain.stats().resting_seconds, 0.0);

    let mut s = session(options());
    assert!(matches!(s.set_duty(0), Err(Error::Argument { .. })) && matches!(s.set_duty(101), Err(Error::Argument { .. })));
    s.set_duty(50).unwrap();
    s.prefill(&tokens[..60], &mut quiet()).unwrap();
    let stats = s.stats();
    assert!(stats.resting_seconds > 0.0 && stats.resting_seconds < stats.prefill_seconds, "{stats:?}");
    // At one percent each pass is followed by 99 times its length; a cancel within the first of them leaves the rest undone.
    s.set_duty(1).unwrap();
    let (handle, ended) = (s.cancel_handle(), AtomicBool::new(false));
    let mut told = 0;
    let result = std::thread::scope(|scope| {
        scope.spawn(|| {
            // Once is not enough: one that comes before the work begins does nothing.
            while !ended.load(Relaxed) {
                handle.cancel();
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let result = s.prefill(&tokens[60..], &mut |done, _| {
            told = done;
            Continue(())
        });
        ended.store(true, Relaxed);
        result
    });
    assert!(matches!(result, Err(Error::Cancelled)) && told < 60, "{result:?} after {told}");
    s.set_duty(100).unwrap();
    s.prefill(&tokens[s.len()..], &mut quiet()).unwrap();
    assert_eq!(s.tokens(), &tokens[..]);
    assert!(max_abs_diff(s.logits().unwrap(), plain.logits().unwrap()) < 1e-4);
}

#[test]
fn a_full_window_is_a_limit_before_anything_is_computed() {
    let mut s = session(SessionOptions { context_length: 40, ..options() });
    s.prefill(&ids(30, 5), &mut quiet()).unwrap();
    let before = s.logits().unwrap().to_vec();
    let result = s.prefill(&ids(11, 6), &mut quiet());
    assert!(matches!(result, Err(Error::Limit { limit: 40, asked: 41, .. })), "{result:?}");
    assert_eq!((s.len(), s.logits().unwrap()), (30, &before[..]));
    let finish = s.generate(GenerateOptions { ignore_eos: true, max_tokens: 1000, ..Default::default() }, &mut |_| Continue(()));
    assert_eq!(finish.unwrap(), Finish::Length);
    assert!(s.len() >= 40);
}

#[test]
fn a_sliding_window_goes_on_and_reads_back_what_left() {
    let o = SessionOptions { context_length: 128, overflow: Some(Overflow::Slide { block: 16 }), retrieved_blocks: 1, ..options() };
    let mut s = session(o);
    s.prefill(&ids(300, 7), &mut quiet()).unwrap();
    let (local, memory) = s.state();
    assert_eq!(local as u64 + memory, 300);
    assert!(local <= 128 - 80, "room is kept for sinks and what comes back: {local}");
    assert!(!s.passages().unwrap().is_empty());
    let finish = s.generate(GenerateOptions { ignore_eos: true, max_tokens: 50, ..Default::default() }, &mut |_| Continue(()));
    assert_eq!(finish.unwrap(), Finish::Length);
    assert!(s.truncate(10).is_err(), "those tokens have left the window");
    s.reset();
    assert_eq!(s.state(), (0, 0));
}

#[test]
fn the_same_seed_gives_the_same_text() {
    let text = |seed: u64| {
        let sampler = SamplerOptions { temperature: 1.5, seed, ..SamplerOptions::default() };
        let mut s = session(SessionOptions { sampler, ..options() });
        s.prefill(&ids(20, 8), &mut quiet()).unwrap();
        let mut out = Vec::new();
        s.generate(GenerateOptions { ignore_eos: true, max_tokens: 40, ..Default::default() }, &mut |p: &Piece| {
            out.extend(p.token);
            Continue(())
        })
        .unwrap();
        out
    };
    assert_eq!(text(1), text(1));
    assert_ne!(text(1), text(2));
}

fn all_text(s: &mut Session, options: GenerateOptions) -> (String, Finish, Vec<Piece>) {
    let (mut text, mut pieces) = (String::new(), Vec::new());
    let finish = s
        .generate(options, &mut |p| {
            text.push_str(&p.text);
            pieces.push(p.clone());
            Continue(())
        })
        .unwrap();
    assert_eq!(pieces.iter().filter(|p| p.finish.is_some()).count(), 1, "exactly one finish");
    (text, finish, pieces)
}

#[test]
fn stop_strings_end_the_text_before_them() {
    let prompt = ids(20, 9);
    let all = GenerateOptions { ignore_eos: true, max_tokens: 60, ..Default::default() };
    let mut s = session(options());
    s.prefill(&prompt, &mut quiet()).unwrap();
    let (whole, finish, pieces) = all_text(&mut s, all.clone());
    assert_eq!((finish, pieces.len()), (Finish::Length, 60));
    let chars: Vec<(usize, char)> = whole.char_indices().collect();
    assert!(chars.len() > 12, "{whole:?}");
    // Every stretch of the text is found, also where it crosses tokens.
    for at in [0, 5, chars.len() / 2] {
        let stop = &whole[chars[at].0..chars[(at + 4).min(chars.len() - 1)].0];
        let first = whole.find(stop).unwrap();
        s.reset();
        s.prefill(&prompt, &mut quiet()).unwrap();
        let options = GenerateOptions { stop: vec!["\u{10FFFF}".into(), stop.into()], ..all.clone() };
        let (text, finish, _) = all_text(&mut s, options);
        assert_eq!((text.as_str(), finish), (&whole[..first], Finish::Stop), "stop {stop:?}");
    }
}

#[test]
fn log_probabilities_are_those_of_the_logits() {
    let mut s = session(options());
    s.prefill(&ids(20, 10), &mut quiet()).unwrap();
    let logits = s.logits().unwrap().to_vec();
    s.start(GenerateOptions { log_probabilities: Some(3), ignore_eos: true, ..Default::default() }).unwrap();
    let piece = s.next().unwrap();
    let best = argmax(&logits);
    let want = f64::from(logits[best]) - common::log_sum_exp(&logits);
    assert_eq!(piece.token, Some(best as u32));
    assert!((f64::from(piece.log_probability.unwrap()) - want).abs() < 1e-5);
    assert_eq!(piece.alternatives.len(), 3);
    assert_eq!(piece.alternatives[0].0, best as u32);
    assert!(piece.alternatives.windows(2).all(|w| w[0].1 >= w[1].1));
}

#[test]
fn bad_wishes_are_named() {
    let model = tiny_model();
    let bad = |o: SessionOptions| match Session::new(model.clone(), o).err().expect("refused") {
        Error::Argument { name, .. } => name,
        e => panic!("{e}"),
    };
    assert_eq!(bad(SessionOptions { batch: 0, ..options() }), "batch");
    assert_eq!(bad(SessionOptions { threads: 100_000, ..options() }), "threads");
    assert_eq!(bad(SessionOptions { retrieved_blocks: 1 << 20, ..options() }), "retrieved_blocks");
    let mut s = session(options());
    assert!(matches!(s.prefill(&[u32::MAX], &mut quiet()), Err(Error::Argument { name: "token", .. })));
    assert!(s.sample().is_err() && s.next().is_err() && s.start(GenerateOptions::default()).is_err());
    assert!(s.is_empty());
}

#[test]
fn threads_change_nothing_but_time() {
    let text = ids(70, 11);
    let mut s = session(SessionOptions { threads: 1, ..options() });
    s.prefill(&text, &mut quiet()).unwrap();
    let want = s.logits().unwrap().to_vec();
    for threads in [2, 3, 4] {
        s.set_threads(threads).unwrap();
        s.reset();
        s.prefill(&text, &mut quiet()).unwrap();
        assert_eq!(s.logits().unwrap(), want, "{threads} threads");
    }
}

#[test]
fn threads_may_change_in_the_middle_of_a_text() {
    let text = ids(70, 11);
    let answer = |threads: &[usize]| {
        let mut s = session(SessionOptions { threads: threads[0], ..options() });
        let mut logits = Vec::new();
        for (i, part) in text.chunks(7).enumerate() {
            s.set_threads(threads[i % threads.len()]).unwrap();
            s.prefill(part, &mut quiet()).unwrap();
            logits.push(s.logits().unwrap().to_vec());
        }
        s.start(GenerateOptions { max_tokens: 6, ignore_eos: true, ..GenerateOptions::default() }).unwrap();
        let mut chosen = Vec::new();
        loop {
            s.set_threads(threads[chosen.len() % threads.len()]).unwrap();
            let piece = s.next().unwrap();
            chosen.push(piece.token);
            if piece.finish.is_some() {
                break;
            }
        }
        (logits, chosen)
    };
    let want = answer(&[1]);
    assert_eq!(answer(&[2, 1, 4, 3]), want);
    assert_eq!(answer(&[3, 0, 2]), want);
}

#[test]
fn a_memory_answers_the_same_after_a_restart_and_only_its_own_model() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notes.lmem");
    let model = tiny_model();
    let document = ids(500, 12);
    let ask = |memory: SharedMemory| {
        let mut s = Session::new(model.clone(), options()).unwrap();
        assert_eq!(s.attach_memory(memory).unwrap(), 0);
        s.prefill(&ids(12, 13), &mut quiet()).unwrap();
        (s.logits().unwrap().to_vec(), s.passages().unwrap())
    };
    let written = shared(Memory::create(&path, model.memory_geometry(), model.fingerprint().clone()).unwrap());
    let mut s = Session::new(model.clone(), options()).unwrap();
    let mut last = 0;
    s.remember(&written, &document, Some("notes.txt"), &mut |done, total| {
        assert!(done > last && total == 500);
        last = done;
        Continue(())
    })
    .unwrap();
    assert_eq!((last, s.len()), (500, 0));
    written.write().unwrap().commit().unwrap();
    let before = ask(written.clone());
    drop(written);

    let reopened = Memory::open_read_only(&path, Some(model.fingerprint())).unwrap();
    assert_eq!(reopened.len(), 500);
    assert_eq!(reopened.tokens(0..500).unwrap(), document);
    let reopened = shared(reopened);
    let after = ask(reopened.clone());
    assert!(before == after, "the same logits and passages");
    assert!(after.1.iter().all(|p| p.source.as_deref() == Some("notes.txt") && p.first_token + p.len <= 500));
    let mut without = Session::new(model.clone(), options()).unwrap();
    without.prefill(&ids(12, 13), &mut quiet()).unwrap();
    assert!(max_abs_diff(without.logits().unwrap(), &after.0) > 1e-3, "the memory matters");

    let other = Model::open_bytes(tiny::llama(TinyOptions { seed: 2, ..TinyOptions::default() }), &ModelOptions::default()).unwrap();
    let e = Session::new(other.clone(), options()).unwrap().attach_memory(reopened).expect_err("another model");
    assert!(matches!(e, Error::Mismatch { .. }), "{e}");
    let e = Memory::open_read_only(&path, Some(other.fingerprint())).err().expect("another model");
    assert!(matches!(e, Error::Mismatch { .. }), "{e}");
}

#[test]
fn remembering_can_be_cancelled_and_keeps_what_was_read() {
    let model = tiny_model();
    let memory = shared(Memory::in_ram(model.memory_geometry(), model.fingerprint().clone()).unwrap());
    let mut s = Session::new(model, options()).unwrap();
    let document = ids(400, 14);
    let result = s.remember(&memory, &document, None, &mut |done, _| if done >= 200 { Break(()) } else { Continue(()) });
    assert!(matches!(result, Err(Error::Cancelled)));
    let memory = memory.read().unwrap();
    assert!((200..=216).contains(&memory.len()), "{}", memory.len());
    assert_eq!(memory.tokens(0..memory.len()).unwrap(), &document[..memory.len() as usize]);
}

#[test]
fn gemma_s_memory_holds_its_global_layers() {
    let bytes = tiny::gemma3(TinyOptions { n_layer: 7, ..TinyOptions::default() });
    let model = Model::open_bytes(bytes, &ModelOptions::default()).unwrap();
    assert_eq!(model.memory_geometry().layers, [5]);
    let memory = shared(Memory::in_ram(model.memory_geometry(), model.fingerprint().clone()).unwrap());
    let mut s = Session::new(model, options()).unwrap();
    s.remember(&memory, &ids(300, 15), None, &mut quiet()).unwrap();
    s.attach_memory(memory).unwrap();
    // The one stored layer votes: a question in the words of a block far from the start brings that block back.
    let question = &ids(300, 15)[170..200];
    s.prefill(question, &mut quiet()).unwrap();
    assert!(s.stats().memory_bytes_read > 0);
    let best = &s.passages().unwrap()[0];
    assert!(best.first_token < 200 && best.first_token + best.len > 170, "{best:?}");
}

/// However small the window, text goes on; nothing hangs, nothing panics.
#[test]
fn the_smallest_windows_slide_too() {
    for context_length in 1..=40 {
        for overflow in [Overflow::Slide { block: 0 }, Overflow::Slide { block: 1 }, Overflow::Slide { block: 100 }] {
            let mut s = session(SessionOptions { context_length, overflow: Some(overflow), ..options() });
            s.prefill(&ids(90, 17), &mut quiet()).unwrap();
            let all = GenerateOptions { ignore_eos: true, max_tokens: 5, ..Default::default() };
            s.generate(all, &mut |_| Continue(())).unwrap();
            assert_eq!(s.len(), 95, "context {context_length}, {overflow:?}");
        }
    }
}

#[test]
fn attaching_and_detaching_in_the_middle_of_a_text() {
    let model = tiny_model();
    let memory = shared(Memory::in_ram(model.memory_geometry(), model.fingerprint().clone()).unwrap());
    let o = SessionOptions { context_length: 128, overflow: Some(Overflow::Slide { block: 0 }), ..options() };
    let mut s = Session::new(model, o).unwrap();
    s.remember(&memory, &ids(200, 18), None, &mut quiet()).unwrap();
    s.prefill(&ids(400, 19), &mut quiet()).unwrap();
    s.attach_memory(memory).unwrap();
    s.prefill(&ids(1, 20), &mut quiet()).unwrap();
    let all = GenerateOptions { ignore_eos: true, max_tokens: 30, ..Default::default() };
    s.generate(all.clone(), &mut |_| Continue(())).unwrap();
    s.detach_memories();
    s.generate(all, &mut |_| Continue(())).unwrap();
    assert_eq!(s.len(), 400 + 1 + 60);
}

#[test]
fn each_passage_names_the_memory_that_it_is_of() {
    let model = tiny_model();
    let dir = tempfile::tempdir().unwrap();
    let documents = [("base", ids(300, 31)), ("overlay", ids(300, 32)), ("another", ids(300, 33))];
    let memories: Vec<SharedMemory> = documents
        .iter()
        .map(|(label, tokens)| {
            let path = dir.path().join(label);
            let memory = shared(Memory::create(&path, model.memory_geometry(), model.fingerprint().clone()).unwrap());
            let mut s = Session::new(model.clone(), options()).unwrap();
            s.remember(&memory, tokens, Some(label), &mut quiet()).unwrap();
            drop(memory);
            shared(Memory::open_read_only(&path, None).unwrap())
        })
        .collect();
    let mut named = [0; 3];
    for (_, tokens) in &documents {
        let mut s = Session::new(model.clone(), options()).unwrap();
        for (i, memory) in memories.iter().enumerate() {
            assert_eq!(s.attach_memory(memory.clone()).unwrap(), i);
        }
        s.prefill(&tokens[128..160], &mut quiet()).unwrap();
        assert_eq!(s.state().1, 900);
        for passage in s.passages().unwrap() {
            let memory = passage.memory.unwrap();
            assert_eq!(passage.source.as_deref(), Some(documents[memory].0));
            assert!(passage.first_token + passage.len <= 300, "{passage:?}");
            named[memory] += 1;
        }
    }
    assert!(named.iter().filter(|n| **n > 0).count() > 1, "{named:?}");
}
