//! The structs and constants of `include/loci.h`, under the same names. `tests/c_abi.rs` reads this file too, and lets a C compiler
//! compare every offset and constant with the header's; so it depends on nothing but `core`.
//!
//! Invariants: every struct starts with `struct_size` or has no version (pairs in arrays, never extended); no struct has padding at
//! its end, where a later field would find what an older caller left there.
// The tables are for that test.
#![allow(non_camel_case_types, missing_docs, unsafe_code, dead_code)]

use core::ffi::{CStr, c_char, c_void};
use core::mem::offset_of;

/// A field of a struct of the header.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    pub name: &'static str,
    pub offset: usize,
    pub size: usize,
}

/// A struct of the header whose first field is `struct_size`.
///
/// # Safety
/// `repr(C)`, starts with `struct_size: usize`, and every pattern of bits is a valid value.
pub unsafe trait Versioned: Copy {
    /// As in the header.
    const NAME: &'static str;
    /// In order, `struct_size` first.
    const FIELDS: &'static [Field];
}

macro_rules! field_size {
    ($name:ident, $field:ident, $ty:ty) => {
        Field { name: stringify!($field), offset: offset_of!($name, $field), size: size_of::<$ty>() }
    };
}

macro_rules! structs {
    ($($name:ident { $($field:ident: $ty:ty),* $(,)? })*) => {
        $(
            #[repr(C)]
            #[derive(Clone, Copy, Debug)]
            pub struct $name {
                pub struct_size: usize,
                $(pub $field: $ty),*
            }
            // SAFETY: repr(C), struct_size comes first, and the fields are integers, floats and raw pointers.
            unsafe impl Versioned for $name {
                const NAME: &'static str = stringify!($name);
                const FIELDS: &'static [Field] =
                    &[field_size!($name, struct_size, usize), $(field_size!($name, $field, $ty)),*];
            }
            // No padding at the end.
            const _: () = {
                let last = <$name as Versioned>::FIELDS[<$name as Versioned>::FIELDS.len() - 1];
                assert!(last.offset + last.size == size_of::<$name>());
            };
        )*
        /// Every versioned struct: its name, size and fields.
        pub const STRUCTS: &[(&str, usize, &[Field])] = &[$((stringify!($name), size_of::<$name>(), <$name as Versioned>::FIELDS)),*];
    };
}

structs! {
    loci_error {
        message: *const c_char,
        name: *const c_char,
        expected: *const c_char,
        found: *const c_char,
        offset: u64,
        status: i32,
        has_offset: i32,
    }
    loci_model_options { pre_tokenizer: *const c_char }
    loci_session_options {
        context_length: u32,
        batch: u32,
        threads: u32,
        kv_codec: i32,
        overflow: i32,
        slide_block: u32,
        last_context_length: u32,
        memory_top_k: u32,
        retrieved_blocks: u32,
        rope_scaling: i32,
        rope_factor: f32,
        rope_original_context_length: u32,
        rope_freq_base: f32,
        rope_ext_factor: f32,
        rope_attn_factor: f32,
        rope_beta_fast: f32,
        rope_beta_slow: f32,
        reserved: u32,
        memory_budget_bytes: u64,
        reselect_tokens: u32,
        reserved_more: u32,
    }
    loci_sampler_options {
        seed: u64,
        logit_bias: *const loci_logit_bias,
        logit_bias_count: usize,
        temperature: f32,
        top_k: u32,
        top_p: f32,
        min_p: f32,
        typical_p: f32,
        repetition_penalty: f32,
        presence_penalty: f32,
        frequency_penalty: f32,
        penalty_last_n: u32,
        reserved: u32,
    }
    loci_generate_options {
        stop: *const *const c_char,
        stop_count: usize,
        max_tokens: u32,
        ignore_eos: i32,
        log_probabilities: i32,
        reserved: u32,
    }
    loci_piece {
        text: *const c_char,
        text_len: usize,
        alternatives: *const loci_alternative,
        alternative_count: usize,
        token: i32,
        log_probability: f32,
        finish: i32,
        reserved: u32,
    }
    loci_session_stats {
        load_seconds: f64,
        first_token_seconds: f64,
        prefill_tokens: u64,
        prefill_seconds: f64,
        decode_tokens: u64,
        decode_seconds: f64,
        reused_tokens: u64,
        local_tokens: u64,
        memory_tokens: u64,
        mapped_bytes: u64,
        anonymous_bytes: u64,
        resident_bytes: u64,
        memory_bytes_read: u64,
        memory_bytes_per_token: f64,
        memory_held_bytes: u64,
        memory_blocks_read: u64,
        memory_block_hits: u64,
        memory_blocks_damaged: u64,
        memory_choices: u64,
        memory_unread_share: f64,
        resting_seconds: f64,
    }
    loci_estimate {
        file_bytes: u64,
        model_bytes: u64,
        context_bytes: u64,
        scratch_bytes: u64,
        memory_bytes: u64,
        total_bytes: u64,
    }
    loci_memory_options {
        codec: i32,
        reserved: u32,
    }
    loci_memory_stats {
        tokens: u64,
        committed_tokens: u64,
        file_bytes: u64,
        forgotten_tokens: u64,
        dropped_blocks: u64,
        damaged_sections: u64,
        damaged_pages: u64,
        lost_tokens: u64,
    }
    loci_source {
        label: *const c_char,
        first_token: u64,
        token_count: u64,
        text_start: u64,
        text_end: u64,
    }
    loci_compact_options {
        codec: i32,
        drop_damaged: i32,
    }
    loci_passage {
        source: *const c_char,
        first_token: u64,
        token_count: u64,
        memory: u32,
        score: f32,
    }
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct loci_logit_bias {
    pub token: i32,
    pub bias: f32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct loci_alternative {
    pub token: i32,
    pub log_probability: f32,
}

/// The structs without a version: name, size, fields.
pub const PAIRS: &[(&str, usize, &[Field])] = &[
    ("loci_logit_bias", size_of::<loci_logit_bias>(), &[field_size!(loci_logit_bias, token, i32), field_size!(loci_logit_bias, bias, f32)]),
    (
        "loci_alternative",
        size_of::<loci_alternative>(),
        &[field_size!(loci_alternative, token, i32), field_size!(loci_alternative, log_probability, f32)],
    ),
];

/// Opaque: a `loci_model *` is a number for the registry.
#[repr(C)]
pub struct loci_model {
    _opaque: [u8; 0],
}
#[repr(C)]
pub struct loci_session {
    _opaque: [u8; 0],
}
#[repr(C)]
pub struct loci_memory {
    _opaque: [u8; 0],
}

pub type loci_log_fn = Option<unsafe extern "C" fn(user: *mut c_void, level: i32, target: *const c_char, message: *const c_char)>;
pub type loci_progress_fn = Option<unsafe extern "C" fn(user: *mut c_void, done: u64, total: u64) -> i32>;
pub type loci_piece_fn = Option<unsafe extern "C" fn(user: *mut c_void, piece: *const loci_piece) -> i32>;

const fn c_name(name: &str) -> &CStr {
    match CStr::from_bytes_with_nul(name.as_bytes()) {
        Ok(name) => name,
        Err(_) => c"",
    }
}

macro_rules! constants {
    ($table:ident: $($name:ident = $value:expr),* $(,)?) => {
        $(pub const $name: i32 = $value;)*
        pub const $table: &[(&CStr, i32)] = &[$((c_name(concat!(stringify!($name), "\0")), $value)),*];
    };
}

constants! { STATUSES:
    LOCI_OK = 0,
    LOCI_INVALID_ARGUMENT = -1,
    LOCI_INVALID_HANDLE = -2,
    LOCI_BUFFER_TOO_SMALL = -3,
    LOCI_IO = -4,
    LOCI_FORMAT = -5,
    LOCI_CORRUPT = -6,
    LOCI_UNSUPPORTED = -7,
    LOCI_BAD_MODEL = -8,
    LOCI_MISMATCH = -9,
    LOCI_LIMIT = -10,
    LOCI_NOMEM = -11,
    LOCI_CANCELLED = -12,
    LOCI_BUSY = -13,
    LOCI_PANIC = -14,
    LOCI_POISONED = -15,
    LOCI_NOT_FOUND = -16,
    LOCI_STATE = -17,
    LOCI_INTERNAL = -18,
}

constants! { FINISHES:
    LOCI_FINISH_NONE = 0,
    LOCI_FINISH_EOS = 1,
    LOCI_FINISH_STOP = 2,
    LOCI_FINISH_LENGTH = 3,
    LOCI_FINISH_CANCELLED = 4,
    LOCI_FINISH_CALLBACK = 5,
    LOCI_FINISH_ERROR = 6,
}

constants! { VALUES:
    LOCI_LOG_OFF = 0,
    LOCI_LOG_ERROR = 1,
    LOCI_LOG_WARN = 2,
    LOCI_LOG_INFO = 3,
    LOCI_LOG_DEBUG = 4,
    LOCI_LOG_TRACE = 5,
    LOCI_NO_TOKEN = -1,
    LOCI_ADD_SPECIAL = 1,
    LOCI_PARSE_SPECIAL = 2,
    LOCI_PRINT_SPECIAL = 4,
    LOCI_KV_F32 = 0,
    LOCI_KV_F16 = 1,
    LOCI_KV_BF16 = 2,
    LOCI_KV_Q8_0 = 3,
    LOCI_KV_Q4 = 4,
    LOCI_POOLING_MEAN = 0,
    LOCI_POOLING_LAST = 1,
    LOCI_MEMORY_DEFAULT = 0,
    LOCI_MEMORY_F32 = 1,
    LOCI_MEMORY_F16 = 2,
    LOCI_MEMORY_BF16 = 3,
    LOCI_MEMORY_K8V4 = 4,
    LOCI_MEMORY_K4V4 = 5,
    LOCI_MEMORY_OWN = -1,
    LOCI_OVERFLOW_DEFAULT = 0,
    LOCI_OVERFLOW_SLIDE = 1,
    LOCI_OVERFLOW_DUMP_ALL = 2,
    LOCI_ROPE_FILE = 0,
    LOCI_ROPE_NONE = 1,
    LOCI_ROPE_LINEAR = 2,
    LOCI_ROPE_NTK = 3,
    LOCI_ROPE_YARN = 4,
    LOCI_ROPE_LONGROPE = 5,
}

/// `LOCI_NUL_TERMINATED`.
pub const LOCI_NUL_TERMINATED: usize = usize::MAX;
