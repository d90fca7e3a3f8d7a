//! A page of a mapped file that cannot be had: zeros and a note within guarded maps, and elsewhere what would have been without them. What
//! ends a process, or belongs to all of it, happens in one of its own: this program again, asked for one test.
#![cfg(unix)]

mod common;

use loci::bytes::Map;
use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

fn page() -> usize {
    // SAFETY: a question about the system.
    unsafe { libc::sysconf(libc::_SC_PAGESIZE) as usize }
}

/// `pages` pages of 7s, mapped, and the file.
fn mapped(pages: usize) -> (Map, File) {
    let file = tempfile::tempfile().unwrap();
    std::io::Write::write_all(&mut &file, &vec![7; pages * page()]).unwrap();
    (Map::of_file(&file, 0, (pages * page()) as u64).unwrap(), file)
}

/// Runs the test `name`, which is an ignored one, in a process of its own.
fn apart(name: &str) -> ExitStatus {
    common::this_program().args([name, "--exact", "--ignored"]).output().unwrap().status
}

/// The first byte of a map of a file that is empty by now.
fn read_what_is_gone(guarded: bool) -> u8 {
    let (map, file) = mapped(1);
    let map = if guarded { map.guarded() } else { map };
    file.set_len(0).unwrap();
    map[0]
}

fn action() -> libc::sigaction {
    // SAFETY: all zeros are a valid action, which the call fills.
    unsafe {
        let mut now: libc::sigaction = std::mem::zeroed();
        assert_eq!(libc::sigaction(libc::SIGBUS, std::ptr::null(), &mut now), 0);
        now
    }
}

extern "C" fn leave(_: libc::c_int) {
    // SAFETY: ends the process, which a handler may.
    unsafe { libc::_exit(42) }
}

fn leave_at_sigbus() {
    handle(leave as extern "C" fn(libc::c_int) as usize);
}

fn handle(handler: libc::sighandler_t) {
    // SAFETY: a valid action with a valid handler.
    unsafe {
        let mut mine: libc::sigaction = std::mem::zeroed();
        mine.sa_sigaction = handler;
        assert_eq!(libc::sigaction(libc::SIGBUS, &mine, std::ptr::null_mut()), 0);
    }
}

#[test]
fn a_page_that_is_gone_is_zeros_and_known() {
    let (map, file) = mapped(4);
    let (map, page) = (map.guarded(), page());
    assert_eq!((map[0], map[3 * page], map.lost_pages(), map.first_lost()), (7, 7, 0, None));
    file.set_len(2 * page as u64).unwrap();
    assert_eq!((map[2 * page - 1], map[2 * page], map[3 * page - 1], map[4 * page - 1]), (7, 0, 0, 0));
    assert_eq!((map.lost_pages(), map.first_lost()), (2, Some(2 * page)));
    assert!(map.may_have_lost(&(page..2 * page + 1)) && map.may_have_lost(&(3 * page..3 * page + 1)));
    assert!(!map.may_have_lost(&(0..2 * page)), "what was there was read");
    // A new map of the same file knows nothing of it.
    let again = Map::of_file(&file, 0, 2 * page as u64).unwrap().guarded();
    assert_eq!((again[page], again.lost_pages()), (7, 0));
}

#[test]
fn after_very_many_pages_any_may_be_lost() {
    let (map, file) = mapped(40);
    let (map, page) = (map.guarded(), page());
    file.set_len(page as u64).unwrap();
    let zeros = (1..33).filter(|i| map[i * page] == 0).count();
    assert_eq!((zeros, map.lost_pages(), map.may_have_lost(&(0..page))), (32, 32, false));
    assert_eq!((map[33 * page], map.lost_pages(), map.may_have_lost(&(0..page))), (0, 33, true));
}

#[test]
fn many_maps_are_watched_at_once_and_by_many_threads() {
    let maps: Vec<(Map, File)> = (0..50).map(|_| mapped(3)).map(|(map, file)| (map.guarded(), file)).collect();
    for (_, file) in maps.iter().step_by(2) {
        file.set_len(0).unwrap();
    }
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for (i, (map, _)) in maps.iter().enumerate() {
                    let sum: usize = map.iter().map(|b| usize::from(*b)).sum();
                    assert_eq!(sum, if i % 2 == 0 { 0 } else { 21 * page() }, "map {i}");
                }
            });
        }
    });
    // Two threads may have met the same page.
    assert!(maps.iter().enumerate().all(|(i, (map, _))| (map.lost_pages() >= 3) == (i % 2 == 0)));
}

#[test]
fn other_signals_do_what_they_did() {
    for (name, signal, code) in [
        ("apart_an_unguarded_page_is_gone", Some(libc::SIGBUS), None),
        ("apart_an_unguarded_page_is_gone_under_rusts_handler", Some(libc::SIGBUS), None),
        ("apart_nobody_minds_the_signal", None, Some(0)),
        ("apart_the_signal_is_sent", Some(libc::SIGBUS), None),
        ("apart_the_program_has_a_handler", None, Some(42)),
        ("apart_the_handler_goes_with_the_last_guard", None, Some(0)),
        ("apart_another_handler_stays_on_top", None, Some(42)),
    ] {
        let status = apart(name);
        assert_eq!((status.signal(), status.code()), (signal, code), "{name}");
    }
}

#[test]
#[ignore = "in a process of its own"]
fn apart_an_unguarded_page_is_gone() {
    // In place of Rust's own, which looks for overflows of the stack.
    handle(libc::SIG_DFL);
    let _another = mapped(1).0.guarded();
    assert_eq!(read_what_is_gone(false), 1, "never comes back");
}

#[test]
#[ignore = "in a process of its own"]
fn apart_an_unguarded_page_is_gone_under_rusts_handler() {
    let _another = mapped(1).0.guarded();
    assert_eq!(read_what_is_gone(false), 1, "never comes back");
}

#[test]
#[ignore = "in a process of its own"]
fn apart_nobody_minds_the_signal() {
    handle(libc::SIG_IGN);
    let guarded = mapped(1).0.guarded();
    // SAFETY: sends a signal.
    unsafe { libc::raise(libc::SIGBUS) };
    assert_eq!(guarded[0], 7);
}

#[test]
#[ignore = "in a process of its own"]
fn apart_the_signal_is_sent() {
    handle(libc::SIG_DFL);
    let _guarded = mapped(1).0.guarded();
    // SAFETY: sends a signal.
    unsafe { libc::raise(libc::SIGBUS) };
}

#[test]
#[ignore = "in a process of its own"]
fn apart_the_program_has_a_handler() {
    leave_at_sigbus();
    let _another = mapped(1).0.guarded();
    assert_eq!(read_what_is_gone(true), 0, "ours comes first");
    assert_eq!(read_what_is_gone(false), 1, "never comes back");
}

#[test]
#[ignore = "in a process of its own"]
fn apart_the_handler_goes_with_the_last_guard() {
    for _ in 0..3 {
        leave_at_sigbus();
        let (first, second) = (mapped(1).0.guarded(), mapped(1).0.guarded());
        assert_ne!(action().sa_sigaction, leave as extern "C" fn(libc::c_int) as usize);
        drop(first);
        assert_ne!(action().sa_sigaction, leave as extern "C" fn(libc::c_int) as usize);
        drop(second);
        assert_eq!(action().sa_sigaction, leave as extern "C" fn(libc::c_int) as usize);
        assert_eq!(action().sa_flags & libc::SA_SIGINFO, 0);
    }
}

#[test]
#[ignore = "in a process of its own"]
fn apart_another_handler_stays_on_top() {
    let guarded = mapped(1).0.guarded();
    leave_at_sigbus();
    drop(guarded);
    assert_eq!(action().sa_sigaction, leave as extern "C" fn(libc::c_int) as usize, "not ours to take away");
    assert_eq!(read_what_is_gone(true), 1, "never comes back");
}
