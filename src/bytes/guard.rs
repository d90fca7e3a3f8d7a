//! What becomes of the process when a page of a mapped file cannot be had, because somebody cut the file short or the disk has an
//! error: the kernel says SIGBUS, and the process would die of it. Within a [`Guard`]ed range the page becomes zeros instead, and the
//! guard knows: who has read there asks it afterwards, and throws away what came of it.
//!
//! Invariants: the handler is the process's only while a guard lives, then the one before it comes back; signals that are not about a
//! guarded range go on to that one. The handler allocates nothing, takes no lock, and looks at atomics that never move.
#![allow(unsafe_code)]

use std::ops::Range;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::{Mutex, OnceLock};

/// Watches one range of addresses, on systems with signals; elsewhere it knows of nothing.
pub struct Guard(&'static Slot);

impl Guard {
    /// Watches `range`, which is to be a private, read-only map of the caller's that outlives the guard. `None` where that cannot be.
    pub fn new(range: Range<usize>) -> Option<Guard> {
        if cfg!(not(unix)) || range.is_empty() {
            return None;
        }
        let mut installed = INSTALLED.lock().unwrap_or_else(|e| e.into_inner());
        if installed.guards == 0 && !installed.is_there {
            installed.is_there = handler::install();
        }
        if !installed.is_there {
            return None;
        }
        installed.guards += 1;
        let mut chunk = &FIRST;
        let slot = loop {
            match chunk.slots.iter().find(|slot| slot.start.load(Relaxed) == FREE) {
                Some(slot) => break slot,
                None => chunk = chunk.next.get_or_init(Box::default),
            }
        };
        slot.count.store(0, Relaxed);
        slot.lost.iter().for_each(|page| page.store(0, Relaxed));
        slot.end.store(range.end, Release);
        slot.start.store(range.start, Release);
        Some(Guard(slot))
    }

    /// Times that a page could not be had.
    pub fn lost_pages(&self) -> u64 {
        self.0.count.load(Acquire) as u64
    }

    /// The address of the first of them.
    pub fn first_lost(&self) -> Option<usize> {
        Some(self.0.lost[0].load(Acquire)).filter(|page| *page != 0)
    }

    /// True if one of them may have been in `range`: after very many, any of the addresses.
    pub fn may_have_lost(&self, range: &Range<usize>) -> bool {
        let count = self.0.count.load(Acquire);
        if count == 0 {
            return false;
        }
        let (size, mut pages) = (handler::page_size(), self.0.lost.iter().take(count).map(|page| page.load(Acquire)));
        // 0: being written down at this moment.
        count > LOST_MAX || pages.any(|page| page == 0 || page < range.end && range.start < page.saturating_add(size))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let mut installed = INSTALLED.lock().unwrap_or_else(|e| e.into_inner());
        self.0.start.store(FREE, Release);
        self.0.end.store(0, Release);
        installed.guards -= 1;
        if installed.guards == 0 && handler::remove() {
            installed.is_there = false;
        }
    }
}

/// Whether the handler is the process's, and for how many guards. If somebody put another one over it, it stays below for good.
struct Installed {
    is_there: bool,
    guards: usize,
}

static INSTALLED: Mutex<Installed> = Mutex::new(Installed { is_there: false, guards: 0 });

/// A start that no map has.
const FREE: usize = 0;

/// Pages that a slot remembers one by one.
const LOST_MAX: usize = 32;

/// The handler may look at any time, so whoever changes a slot makes it free first and sets its start last.
struct Slot {
    start: AtomicUsize,
    end: AtomicUsize,
    count: AtomicUsize,
    lost: [AtomicUsize; LOST_MAX],
}

impl Slot {
    const fn new() -> Slot {
        Slot {
            start: AtomicUsize::new(FREE),
            end: AtomicUsize::new(0),
            count: AtomicUsize::new(0),
            lost: [const { AtomicUsize::new(0) }; LOST_MAX],
        }
    }

    #[cfg(unix)]
    fn holds(&self, address: usize) -> bool {
        let start = self.start.load(Acquire);
        let end = self.end.load(Acquire);
        // The end belongs to the start if that is still there.
        start != FREE && start <= address && address < end && self.start.load(Acquire) == start
    }
}

/// Slots are never freed, for the handler's sake; there are as many as there once were guards at a time.
struct Chunk {
    slots: [Slot; 16],
    next: OnceLock<Box<Chunk>>,
}

impl Chunk {
    const fn new() -> Chunk {
        Chunk { slots: [const { Slot::new() }; 16], next: OnceLock::new() }
    }
}

impl Default for Chunk {
    fn default() -> Chunk {
        Chunk::new()
    }
}

static FIRST: Chunk = Chunk::new();

#[cfg(unix)]
mod handler {
    use super::*;
    use libc::{c_int, c_void, siginfo_t};
    use std::sync::atomic::AtomicBool;

    /// What was there before: its address and its flags.
    static BEFORE: AtomicUsize = AtomicUsize::new(libc::SIG_DFL);
    static BEFORE_FLAGS: AtomicUsize = AtomicUsize::new(0);
    static BEFORE_IS_KNOWN: AtomicBool = AtomicBool::new(false);

    fn address() -> usize {
        on_signal as extern "C" fn(c_int, *mut siginfo_t, *mut c_void) as usize
    }

    /// The present action, after putting `new` there if it is given.
    fn action(new: Option<&libc::sigaction>) -> Option<libc::sigaction> {
        let new = new.map_or(std::ptr::null(), std::ptr::from_ref);
        // SAFETY: all zeros are a valid action, and the call fills it or fails; `new` is null or a valid action.
        let mut old: libc::sigaction = unsafe { std::mem::zeroed() };
        // SAFETY: as above.
        (unsafe { libc::sigaction(libc::SIGBUS, new, &mut old) } == 0).then_some(old)
    }

    /// A Java machine checks that its handlers stay where they are, and has its own way with this signal.
    fn is_in_a_java_machine() -> bool {
        // SAFETY: asks for the address of a name; the name ends in NUL.
        !unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"JNI_GetCreatedJavaVMs".as_ptr()) }.is_null()
    }

    pub fn install() -> bool {
        let Some(before) = action(None).filter(|_| !is_in_a_java_machine()) else { return false };
        BEFORE.store(before.sa_sigaction, Relaxed);
        BEFORE_FLAGS.store(before.sa_flags as usize, Relaxed);
        BEFORE_IS_KNOWN.store(true, Release);
        // SAFETY: all zeros are a valid action with an empty mask.
        let mut ours: libc::sigaction = unsafe { std::mem::zeroed() };
        ours.sa_sigaction = address();
        // On the thread's own stack for signals, if it has one.
        // Its type is not the same everywhere.
        ours.sa_flags = (libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART) as _;
        action(Some(&ours)).is_some()
    }

    /// Puts back what was there, unless somebody has come after us. True if our handler is gone.
    pub fn remove() -> bool {
        let Some(now) = action(None).filter(|now| now.sa_sigaction == address()) else { return false };
        let before = libc::sigaction { sa_sigaction: BEFORE.load(Relaxed), sa_flags: BEFORE_FLAGS.load(Relaxed) as _, ..now };
        action(Some(&before)).is_some()
    }

    /// 0 if the system does not say.
    pub fn page_size() -> usize {
        // SAFETY: a question about the system, which a handler may ask.
        usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(0)
    }

    extern "C" fn on_signal(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
        // SAFETY: the system hands a handler with SA_SIGINFO a valid `info`.
        let (address, code) = unsafe { ((*info).si_addr() as usize, (*info).si_code) };
        let mut chunk = Some(&FIRST);
        while let Some(here) = chunk {
            if let Some(slot) = here.slots.iter().find(|slot| slot.holds(address))
                && lose(slot, address)
            {
                return;
            }
            chunk = here.next.get().map(|next| &**next);
        }
        pass_on(signal, info, context, code);
    }

    /// Puts zeros in the place of the page at `address`.
    fn lose(slot: &Slot, address: usize) -> bool {
        let size = page_size();
        if !size.is_power_of_two() {
            return false;
        }
        let page = address & !(size - 1);
        let flags = libc::MAP_PRIVATE | libc::MAP_FIXED | libc::MAP_ANON;
        // SAFETY: the page lies in a guarded map, which lives, since somebody reads from it right now, and is only ever read; unmapping
        // that map takes this page with it.
        let zeros = unsafe { libc::mmap(page as *mut c_void, size, libc::PROT_READ, flags, -1, 0) };
        if zeros == libc::MAP_FAILED {
            return false;
        }
        // Counted before it is written down: who asks in between takes it for any page.
        if let Some(lost) = slot.lost.get(slot.count.fetch_add(1, Release)) {
            lost.store(page, Release);
        }
        true
    }

    /// What would have happened without us.
    fn pass_on(signal: c_int, info: *mut siginfo_t, context: *mut c_void, code: c_int) {
        let before = if BEFORE_IS_KNOWN.load(Acquire) { BEFORE.load(Relaxed) } else { libc::SIG_DFL };
        if before != libc::SIG_DFL && before != libc::SIG_IGN {
            if BEFORE_FLAGS.load(Relaxed) & libc::SA_SIGINFO as usize != 0 {
                // SAFETY: whoever installed it said that it takes these three.
                let then: extern "C" fn(c_int, *mut siginfo_t, *mut c_void) = unsafe { std::mem::transmute(before) };
                then(signal, info, context);
            } else {
                // SAFETY: whoever installed it said that it takes the signal alone.
                let then: extern "C" fn(c_int) = unsafe { std::mem::transmute(before) };
                then(signal);
            }
            return;
        }
        let is_fault = (1..=4).contains(&code);
        if before == libc::SIG_IGN && !is_fault {
            return;
        }
        // SAFETY: all zeros are the default action. An access that failed fails again when we return, and ends the process with its own
        // address; what somebody sent is sent again, and waits until we return.
        unsafe {
            let default: libc::sigaction = std::mem::zeroed();
            libc::sigaction(libc::SIGBUS, &default, std::ptr::null_mut());
            if !is_fault {
                libc::raise(signal);
            }
        }
    }
}

#[cfg(not(unix))]
mod handler {
    pub fn page_size() -> usize {
        0
    }
    pub fn install() -> bool {
        false
    }
    pub fn remove() -> bool {
        true
    }
}
