//! A small safe face on ggml of May 2023 (crate `ggml-sys`), as an oracle for operators: build a graph, compute it, read floats.
//!
//! Shapes are ggml's: `ne[0]` is the contiguous dimension. Its block formats are older than GGUF's; see [`old_blocks`]. It
//! aborts the process on shapes that do not fit, so give it good ones.
#![allow(dead_code, unused_imports)]

use ggml_sys as ggml;
use std::marker::PhantomData;

/// ggml's ids of the types used here.
pub use ggml_sys::{
    ggml_type as Type, ggml_type_GGML_TYPE_F16 as F16, ggml_type_GGML_TYPE_F32 as F32, ggml_type_GGML_TYPE_Q4_0 as Q4_0,
    ggml_type_GGML_TYPE_Q4_1 as Q4_1, ggml_type_GGML_TYPE_Q5_0 as Q5_0, ggml_type_GGML_TYPE_Q5_1 as Q5_1, ggml_type_GGML_TYPE_Q8_0 as Q8_0,
};

/// A graph under construction; owns all its tensors.
pub struct Graph {
    context: *mut ggml::ggml_context,
}

/// A tensor of a graph.
#[derive(Clone, Copy)]
pub struct Node<'a> {
    tensor: *mut ggml::ggml_tensor,
    graph: PhantomData<&'a Graph>,
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: made by `ggml_init`, freed once; nodes borrow the graph.
        unsafe { ggml::ggml_free(self.context) }
    }
}

macro_rules! operators {
    ($($(#[$doc:meta])* $name:ident($($arg:ident: $ty:ty),*) = $op:ident($($pass:expr),*);)*) => {$(
        $(#[$doc])*
        pub fn $name<'a>(&'a self, a: Node<'a>, $($arg: $ty),*) -> Node<'a> {
            // SAFETY: the context and its tensors live as long as `self`.
            self.node(unsafe { ggml::$op(self.context, a.tensor, $($pass),*) })
        }
    )*};
}

impl Graph {
    /// A graph whose tensors and work space fit `bytes`.
    pub fn new(bytes: usize) -> Graph {
        // SAFETY: plain parameters; a null buffer asks ggml to allocate.
        let context =
            unsafe { ggml::ggml_init(ggml::ggml_init_params { mem_size: bytes, mem_buffer: std::ptr::null_mut(), no_alloc: false }) };
        assert!(!context.is_null());
        Graph { context }
    }

    fn node<'a>(&'a self, tensor: *mut ggml::ggml_tensor) -> Node<'a> {
        assert!(!tensor.is_null());
        Node { tensor, graph: PhantomData }
    }

    /// A tensor of any type from its bytes.
    pub fn raw(&self, ty: Type, ne: &[usize], bytes: &[u8]) -> Node<'_> {
        let ne: Vec<i64> = ne.iter().map(|n| *n as i64).collect();
        // SAFETY: `ne` holds as many dimensions as it says; the tensor's data has `ggml_nbytes` bytes, which are compared first.
        unsafe {
            let tensor = ggml::ggml_new_tensor(self.context, ty, ne.len() as i32, ne.as_ptr());
            assert_eq!(ggml::ggml_nbytes(tensor), bytes.len());
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), (*tensor).data.cast::<u8>(), bytes.len());
            self.node(tensor)
        }
    }

    /// A tensor of floats.
    pub fn floats(&self, ne: &[usize], values: &[f32]) -> Node<'_> {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.raw(F32, ne, &bytes)
    }

    operators! {
        /// `(k, m)` by `(k, n)` to `(m, n)`: every row of `b` with every row of `a`.
        mul_mat(b: Node<'a>) = ggml_mul_mat(b.tensor);
        /// Root mean square over `ne[0]`, eps 1e-6.
        rms_norm() = ggml_rms_norm();
        /// Mean and variance over `ne[0]`, eps 1e-5.
        norm() = ggml_norm();
        /// x * sigmoid(x); by a table of halves.
        silu() = ggml_silu();
        /// The tanh form; by a table of halves.
        gelu() = ggml_gelu();
        /// Over `ne[0]`.
        soft_max() = ggml_soft_max();
        /// Rotates `(head_dim, heads, positions)`, first position `past`; mode 0 adjacent pairs, 2 halves (NeoX).
        rope(past: i32, dims: i32, mode: i32) = ggml_rope(past, dims, mode);
    }

    /// Computes `node` and gives its floats.
    pub fn compute(&self, node: Node<'_>) -> Vec<f32> {
        // SAFETY: the node belongs to a live graph; the result is contiguous f32 of `ggml_nbytes` bytes.
        unsafe {
            let mut graph = Box::new(ggml::ggml_build_forward(node.tensor));
            graph.n_threads = 1;
            ggml::ggml_graph_compute(self.context, &mut *graph);
            std::slice::from_raw_parts(ggml::ggml_get_data_f32(node.tensor), ggml::ggml_nbytes(node.tensor) / 4).to_vec()
        }
    }
}

/// GGUF's blocks of 32 in the layout of May 2023: scales of Q4_0, Q4_1 and Q8_0 are f32, and a byte of nibbles holds neighbours
/// (elements 2i and 2i + 1) where GGUF has i and i + 16.
pub fn old_blocks(ty: Type, blocks: &[u8]) -> Vec<u8> {
    let half = |b: &[u8], at: usize| half::f16::from_le_bytes([b[at], b[at + 1]]).to_f32().to_le_bytes();
    let neighbours = |qs: &[u8]| -> Vec<u8> {
        let code = |i: usize| if i < 16 { qs[i] & 15 } else { qs[i - 16] >> 4 };
        (0..16).map(|i| code(2 * i) | code(2 * i + 1) << 4).collect()
    };
    let (bytes, heads, qs) = match ty {
        Q4_0 => (18, 1, 2),
        Q4_1 => (20, 2, 4),
        Q5_0 => (22, 0, 6),
        Q5_1 => (24, 0, 8),
        Q8_0 => (34, 1, 2),
        _ => panic!("no old layout"),
    };
    let mut out = Vec::new();
    for block in blocks.chunks_exact(bytes) {
        (0..heads).for_each(|h| out.extend_from_slice(&half(block, 2 * h)));
        out.extend_from_slice(&block[2 * heads..qs]);
        if ty == Q8_0 { out.extend_from_slice(&block[qs..]) } else { out.extend(neighbours(&block[qs..])) }
    }
    out
}
