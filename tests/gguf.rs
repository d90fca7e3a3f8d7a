//! The GGUF reader and writer: what is written is read back, by this library and by candle; what candle writes is read; and a
//! refusal says where the file is wrong.
#![cfg(target_pointer_width = "64")]

mod common;

use candle_core::quantized::{GgmlDType, QTensor, gguf_file};
use candle_core::{Device, Tensor};
use common::raw::{self, Raw};
use loci::bytes::Map;
use loci::error::Error;
use loci::gguf::{Array, Gguf, TensorType, Value, ValueType, Writer};
use std::io::Cursor;
use std::sync::Arc;

fn parse(bytes: Vec<u8>) -> Result<Gguf, Error> {
    Gguf::parse(Arc::new(Map::owned(bytes)))
}

/// The error, taken apart: (offset, field, expected, found).
fn refusal(bytes: Vec<u8>) -> (u64, String, String, String) {
    match parse(bytes) {
        Err(Error::Format { file: "GGUF", offset, field, expected, found }) => (offset, field, expected, found),
        Err(other) => panic!("another kind of error: {other}"),
        Ok(_) => panic!("the file was read"),
    }
}

/// One key of every scalar type at its extremes, and of strings and arrays.
fn every_kind() -> Writer {
    let mut w = Writer::new();
    w.scalar("u8", ValueType::U8, &[255]).scalar("i8", ValueType::I8, &[0x80]);
    w.scalar("u16", ValueType::U16, &u16::MAX.to_le_bytes()).scalar("i16", ValueType::I16, &i16::MIN.to_le_bytes());
    w.u32("u32", u32::MAX).scalar("i32", ValueType::I32, &i32::MIN.to_le_bytes());
    w.scalar("u64", ValueType::U64, &u64::MAX.to_le_bytes()).scalar("i64", ValueType::I64, &i64::MIN.to_le_bytes());
    w.f32("f32", f32::MIN_POSITIVE).scalar("f64", ValueType::F64, &f64::MAX.to_le_bytes());
    w.bool("true", true).bool("false", false);
    w.str("empty", "").str("text", "Füße \u{2581}\u{0}\n");
    w.strings("strings", &["a", "", "\u{1F600}"]).strings::<&str>("no strings", &[]);
    w.u32s("u32s", &[0, 7, u32::MAX]).i32s("i32s", &[-1, 0, i32::MIN]).f32s("f32s", &[0.5, -0.0, f32::INFINITY]);
    w.array("u8s", ValueType::U8, &[1, 2, 255]).array("i8s", ValueType::I8, &[1, 0x80]).array("bools", ValueType::Bool, &[1, 0, 1]);
    w.array("u16s", ValueType::U16, &[1, 0, 255, 255]).array("i16s", ValueType::I16, &[255, 255]);
    w.array("u64s", ValueType::U64, &u64::MAX.to_le_bytes()).array("i64s", ValueType::I64, &i64::MIN.to_le_bytes());
    w.array("f64s", ValueType::F64, &[1.5f64.to_le_bytes(), f64::MIN.to_le_bytes()].concat());
    w
}

fn integers(g: &Gguf, key: &str) -> Vec<i64> {
    g.array(key).unwrap().unwrap().integers().collect()
}

fn numbers(g: &Gguf, key: &str) -> Vec<f64> {
    g.array(key).unwrap().unwrap().numbers().collect()
}

fn check_every_kind(g: &Gguf) {
    assert_eq!(g.u64("u8").unwrap(), Some(255));
    assert_eq!(g.value("i8").unwrap().as_i64(), Some(-128));
    assert_eq!(g.u32("u16").unwrap(), Some(65535));
    assert_eq!(g.value("i16").unwrap().as_i64(), Some(i16::MIN.into()));
    assert_eq!(g.u32("u32").unwrap(), Some(u32::MAX));
    assert_eq!(g.value("i32").unwrap().as_i64(), Some(i32::MIN.into()));
    assert_eq!(g.u64("u64").unwrap(), Some(u64::MAX));
    assert_eq!(g.value("i64").unwrap().as_i64(), Some(i64::MIN));
    assert_eq!(g.f32("f32").unwrap(), Some(f32::MIN_POSITIVE));
    assert_eq!(g.value("f64").unwrap().as_f64(), Some(f64::MAX));
    assert_eq!((g.bool("true").unwrap(), g.bool("false").unwrap()), (Some(true), Some(false)));
    assert_eq!((g.str("empty").unwrap(), g.str("text").unwrap()), (Some(""), Some("Füße \u{2581}\u{0}\n")));
    let strings: Vec<&[u8]> = g.array("strings").unwrap().unwrap().strings().collect();
    assert_eq!(strings, [b"a".as_slice(), b"", "\u{1F600}".as_bytes()]);
    assert_eq!(g.array("no strings").unwrap().unwrap().strings().count(), 0);
    assert_eq!(integers(g, "u32s"), [0, 7, u32::MAX.into()]);
    assert_eq!(integers(g, "i32s"), [-1, 0, i32::MIN.into()]);
    assert_eq!(numbers(g, "f32s"), [0.5, 0.0, f64::INFINITY]);
    assert_eq!((integers(g, "u8s"), integers(g, "i8s")), (vec![1, 2, 255], vec![1, -128]));
    assert_eq!((integers(g, "u16s"), integers(g, "i16s")), (vec![1, 65535], vec![-1]));
    let bools: Vec<Option<bool>> = g.array("bools").unwrap().unwrap().values().map(|v| v.as_bool()).collect();
    assert_eq!(bools, [Some(true), Some(false), Some(true)]);
    let wide: Vec<Option<u64>> = g.array("u64s").unwrap().unwrap().values().map(|v| v.as_u64()).collect();
    assert_eq!((wide, integers(g, "i64s")), (vec![Some(u64::MAX)], vec![i64::MIN]));
    assert_eq!(numbers(g, "f64s"), [1.5, f64::MIN]);
}

#[test]
fn every_kind_of_value_comes_back() {
    let g = parse(every_kind().to_bytes().unwrap()).unwrap();
    check_every_kind(&g);
    assert_eq!((g.version(), g.alignment(), g.tensors().len()), (3, 32, 0));
    // A copy of a copy is the same file.
    let mut copy = Writer::new();
    g.metadata().iter().for_each(|(key, value)| _ = copy.copy(key, value));
    assert_eq!(copy.to_bytes().unwrap(), every_kind().to_bytes().unwrap());
    let shown = format!("{:?}", g.value("u32s").unwrap());
    assert_eq!(shown, "[uint32; 3]");
}

#[test]
fn version_2_reads_as_version_3() {
    let mut raw = Raw::of(&every_kind().to_bytes().unwrap());
    raw.version = 2;
    let g = parse(raw.bytes()).unwrap();
    assert_eq!(g.version(), 2);
    check_every_kind(&g);
}

#[test]
fn other_versions_and_other_byte_orders_are_refused_by_name() {
    let with = |version: u32| {
        let mut raw = Raw::of(&every_kind().to_bytes().unwrap());
        raw.version = version;
        refusal(raw.bytes())
    };
    for (version, says) in [(0, "0"), (1, "1 "), (4, "4"), (77, "77")] {
        let (offset, field, _, found) = with(version);
        assert_eq!((offset, field.as_str()), (4, "version"));
        assert!(found.starts_with(says), "{version}: {found}");
    }
    for version in [2u32, 3] {
        assert_eq!(with(version.swap_bytes()).3, "a big-endian one");
    }
    let mut raw = Raw::empty();
    raw.magic = *b"GGML";
    assert_eq!(refusal(raw.bytes()), (0, "magic".into(), "\"GGUF\"".into(), "\"GGML\"".into()));
}

#[test]
fn arrays_of_arrays_are_read_to_their_depth() {
    let row = |v: &[u8]| raw::array(raw::U8, v.len() as u64, v);
    let words = raw::strings(&["x", "yz"]);
    let rows = raw::array(raw::ARRAY, 3, &[row(&[1, 2, 3]), row(&[]), row(&[4])].concat());
    let mixed = raw::array(raw::ARRAY, 2, &[rows.clone(), words.clone()].concat());
    let bytes = Raw::empty().with("rows", raw::ARRAY, rows).with("mixed", raw::ARRAY, mixed).with("after", raw::U8, vec![9]).bytes();
    let g = parse(bytes.clone()).unwrap();
    assert_eq!(g.u32("after").unwrap(), Some(9));
    fn inner(a: &Array) -> Vec<Array> {
        a.values().map(|v| v.as_array().expect("an array").clone()).collect()
    }
    let check_rows = |a: &Array| {
        let rows: Vec<Vec<i64>> = inner(a).iter().map(|r| r.integers().collect()).collect();
        assert_eq!(rows, [vec![1, 2, 3], vec![], vec![4]]);
    };
    check_rows(g.array("rows").unwrap().unwrap());
    let mixed = inner(g.array("mixed").unwrap().unwrap());
    assert_eq!(mixed.len(), 2);
    check_rows(&mixed[0]);
    assert_eq!(mixed[1].strings().collect::<Vec<_>>(), [b"x".as_slice(), b"yz"]);
    let mut copy = Writer::new();
    g.metadata().iter().for_each(|(key, value)| _ = copy.copy(key, value));
    assert_eq!(copy.to_bytes().unwrap(), bytes);

    // Eight deep is read, nine deep is not.
    let nested = |depth: usize| (1..depth).fold(raw::array(raw::U8, 1, &[7]), |inner, _| raw::array(raw::ARRAY, 1, &inner));
    let file = |depth: usize| Raw::empty().with("deep", raw::ARRAY, nested(depth)).bytes();
    let mut value = parse(file(8)).unwrap().value("deep").unwrap().clone();
    for _ in 0..8 {
        let next = value.as_array().expect("an array").values().next();
        value = next.expect("one element");
    }
    assert_eq!(value.as_u64(), Some(7));
    assert!(refusal(file(9)).2.contains("8 deep"));
}

#[test]
fn strings_that_are_not_utf8_are_kept_in_arrays_and_refused_elsewhere() {
    let tokens = raw::strings(&[b"ok".as_slice(), b"\xff\xfe", b"\xe2\x96", b"end"]);
    let g = parse(Raw::empty().with("tokens", raw::ARRAY, tokens).bytes()).unwrap();
    let array = g.array("tokens").unwrap().unwrap();
    assert_eq!(array.strings().collect::<Vec<_>>(), [b"ok".as_slice(), b"\xff\xfe", b"\xe2\x96", b"end"]);
    assert_eq!(array.values().count(), 4);
    assert_eq!(array.values().last().unwrap().as_str(), Some("end"));
    let (offset, field, expected, _) = refusal(Raw::empty().with("text", raw::STRING, raw::string(b"ab\xffc")).bytes());
    // magic, version, two counts; key length and key; type; string length; the third byte.
    assert_eq!((offset, field.as_str(), expected.as_str()), (4 + 4 + 16 + 8 + 4 + 4 + 8 + 2, "text", "UTF-8"));
}

#[test]
fn typed_look_ups_name_the_key_and_what_they_found() {
    let g = parse(every_kind().to_bytes().unwrap()).unwrap();
    let says = |r: Result<(), Error>, parts: &[&str]| {
        let text = r.expect_err("a refusal").to_string();
        parts.iter().for_each(|p| assert!(text.contains(p), "{p:?} is missing in: {text}"));
    };
    says(g.u64("text").map(drop), &["text", "unsigned integer", "string"]);
    says(g.u64("i8").map(drop), &["i8", "unsigned", "-128"]);
    says(g.u32("u64").map(drop), &["u64", "32 bits", "18446744073709551615"]);
    says(g.f32("f64").map(drop), &["f64", "finite"]);
    says(g.f32("true").map(drop), &["true", "bool"]);
    says(g.bool("u8").map(drop), &["u8", "bool", "uint8 255"]);
    says(g.str("u8s").map(drop), &["u8s", "a string", "[uint8; 3]"]);
    says(g.array("u8").map(drop), &["u8", "an array"]);
    says(g.required("absent", g.u32("absent").unwrap()).map(drop), &["absent", "present"]);
    let long = parse(Writer::new().str("long", &"ä".repeat(100_000)).to_bytes().unwrap()).unwrap();
    let text = long.u64("long").unwrap_err().to_string();
    assert!(text.len() < 500 && text.contains("200000 bytes"), "{text}");
}

/// (id, name, elements and bytes of a block), from the format's own list.
const TYPES: &[(u32, &str, usize, usize)] = &[
    (0, "F32", 1, 4),
    (1, "F16", 1, 2),
    (2, "Q4_0", 32, 18),
    (3, "Q4_1", 32, 20),
    (6, "Q5_0", 32, 22),
    (7, "Q5_1", 32, 24),
    (8, "Q8_0", 32, 34),
    (9, "Q8_1", 32, 36),
    (10, "Q2_K", 256, 84),
    (11, "Q3_K", 256, 110),
    (12, "Q4_K", 256, 144),
    (13, "Q5_K", 256, 176),
    (14, "Q6_K", 256, 210),
    (15, "Q8_K", 256, 292),
    (16, "IQ2_XXS", 256, 66),
    (17, "IQ2_XS", 256, 74),
    (18, "IQ3_XXS", 256, 98),
    (19, "IQ1_S", 256, 50),
    (20, "IQ4_NL", 32, 18),
    (21, "IQ3_S", 256, 110),
    (22, "IQ2_S", 256, 82),
    (23, "IQ4_XS", 256, 136),
    (24, "I8", 1, 1),
    (25, "I16", 1, 2),
    (26, "I32", 1, 4),
    (27, "I64", 1, 8),
    (28, "F64", 1, 8),
    (29, "IQ1_M", 256, 56),
    (30, "BF16", 1, 2),
    (34, "TQ1_0", 256, 54),
    (35, "TQ2_0", 256, 66),
    (39, "MXFP4", 32, 17),
    (40, "NVFP4", 64, 36),
    (41, "Q1_0", 128, 18),
    (42, "Q2_0", 64, 18),
];

#[test]
fn every_official_tensor_type_is_known_by_id_and_name() {
    assert_eq!(TensorType::all().count(), TYPES.len());
    let mut rng = common::tiny::Rng(4);
    for &(id, name, block, bytes) in TYPES {
        let ty = TensorType::from_id(id).unwrap_or_else(|| panic!("{id} {name}"));
        assert_eq!((ty.id(), ty.name(), ty.block_len(), ty.block_bytes()), (id, name, block, bytes));
        assert_eq!(TensorType::from_name(&name.to_lowercase()), Some(ty));
        assert_eq!(ty.row_bytes(block * 3), Some(bytes * 3));
        assert_eq!(ty.row_bytes(block * 3 + 1), if block == 1 { Some(bytes * 4) } else { None });
        // A tensor of it survives the way through a file.
        let data = common::tiny::random_blocks(ty, block * 6, 1.0, &mut rng);
        let mut w = Writer::new();
        w.tensor("t", ty, &[block as u64 * 2, 3], data.clone()).tensor("next", TensorType::F32, &[1], vec![0; 4]);
        let g = parse(w.to_bytes().unwrap()).unwrap();
        let t = g.tensor("t").unwrap();
        assert_eq!((t.ty, t.cols(), t.rows(), t.elements()), (ty, block * 2, 3, block as u64 * 6));
        assert_eq!(&g.bytes(t)[..], data);
    }
    for (id, word) in [(4, "Q4_2"), (5, "Q4_3"), (31, "Q4_0_4_4"), (33, "Q4_0_8_8"), (36, "IQ4_NL_4_4"), (150, "fork"), (43, "unknown")] {
        let t = raw::Tensor { name: b"t".to_vec(), n_dims: None, dims: vec![32], ty: id, offset: 0 };
        let raw = Raw { tensors: vec![t], data: vec![0; 4096], ..Raw::empty() };
        let (_, field, _, found) = refusal(raw.bytes());
        assert!(field == "t" && found.contains(word) && found.contains(&id.to_string()), "{found}");
    }
}

#[test]
fn tensors_lie_where_the_directory_says_under_any_alignment() {
    for alignment in [8u32, 32, 64, 4096] {
        let mut w = Writer::new();
        w.u32("general.alignment", alignment);
        w.tensor("a", TensorType::I8, &[3, 1], vec![1, 2, 3]).tensor("b", TensorType::F16, &[2, 2, 2, 1], (0..16).collect());
        w.tensor("c", TensorType::I8, &[1], vec![9]);
        let bytes = w.to_bytes().unwrap();
        let g = parse(bytes.clone()).unwrap();
        assert_eq!(g.alignment(), u64::from(alignment));
        assert_eq!(&g.bytes(g.tensor("a").unwrap())[..], [1, 2, 3]);
        assert_eq!(&g.bytes(g.tensor("b").unwrap())[..], (0..16).collect::<Vec<u8>>());
        assert_eq!((g.tensor("b").unwrap().dims.as_slice(), g.tensor("b").unwrap().rows()), ([2u64, 2, 2, 1].as_slice(), 4));
        for t in g.tensors() {
            assert_eq!(t.range.start as u64 % u64::from(alignment), 0, "{}", t.name);
        }
        // The padding behind the last tensor may be missing, its last byte may not.
        let end = g.tensor("c").unwrap().range.end;
        assert!(parse(bytes[..end].to_vec()).is_ok());
        assert_eq!(refusal(bytes[..end - 1].to_vec()).1, "c");
    }
}

#[test]
fn the_writer_refuses_what_it_could_not_read_back() {
    let fails = |w: &Writer, word: &str| {
        let text = w.to_bytes().expect_err("a refusal").to_string();
        assert!(text.contains(word), "{word}: {text}");
    };
    fails(Writer::new().u32("twice", 1).u32("twice", 2), "twice");
    fails(Writer::new().u32("", 1), "key");
    fails(Writer::new().scalar("short", ValueType::U32, &[1]), "short");
    fails(Writer::new().scalar("text", ValueType::String, &[0; 8]), "text");
    fails(Writer::new().array("ragged", ValueType::U32, &[0; 7]), "ragged");
    fails(Writer::new().u32("general.alignment", 48), "general.alignment");
    let tensor = |name: &str, ty, dims: &[u64], n: usize| {
        let mut w = Writer::new();
        w.tensor(name, ty, dims, vec![0; n]);
        w
    };
    fails(&tensor("weights", TensorType::F32, &[], 0), "weights");
    fails(&tensor("weights", TensorType::F32, &[0], 0), "weights");
    fails(&tensor("weights", TensorType::F32, &[1; 5], 4), "weights");
    fails(&tensor("weights", TensorType::F32, &[2], 4), "weights");
    fails(&tensor("weights", TensorType::Q4_0, &[16, 2], 18), "weights");
    fails(&tensor("weights", TensorType::F32, &[1 << 40, 1 << 40], 4), "weights");
    fails(&tensor(&"n".repeat(65), TensorType::F32, &[1], 4), "64");
    fails(tensor("weights", TensorType::F32, &[1], 4).tensor("weights", TensorType::F32, &[1], vec![0; 4]), "weights");
}

#[test]
fn candle_reads_what_is_written_here() {
    let mut w = every_kind();
    let blocks = common::tiny::random_blocks(TensorType::Q4_K, 512 * 3, 1.0, &mut common::tiny::Rng(2));
    w.tensor("m", TensorType::Q4_K, &[512, 3], blocks.clone()).tensor("v", TensorType::F32, &[5], vec![1; 20]);
    let bytes = w.to_bytes().unwrap();
    let mut file = Cursor::new(&bytes);
    let c = gguf_file::Content::read(&mut file).unwrap();
    let get = |key: &str| c.metadata.get(key).unwrap_or_else(|| panic!("{key}"));
    assert_eq!(get("u8").to_u8().unwrap(), 255);
    assert_eq!(get("i8").to_i8().unwrap(), -128);
    assert_eq!(get("u16").to_u16().unwrap(), u16::MAX);
    assert_eq!(get("i16").to_i16().unwrap(), i16::MIN);
    assert_eq!(get("u32").to_u32().unwrap(), u32::MAX);
    assert_eq!(get("i32").to_i32().unwrap(), i32::MIN);
    assert_eq!(get("u64").to_u64().unwrap(), u64::MAX);
    assert_eq!(get("i64").to_i64().unwrap(), i64::MIN);
    assert_eq!(get("f32").to_f32().unwrap(), f32::MIN_POSITIVE);
    assert_eq!(get("f64").to_f64().unwrap(), f64::MAX);
    assert!(get("true").to_bool().unwrap());
    assert_eq!(get("text").to_string().unwrap(), "Füße \u{2581}\u{0}\n");
    assert_eq!(get("strings").to_vec().unwrap().len(), 3);
    assert_eq!(c.metadata.len(), parse(bytes.clone()).unwrap().metadata().len());
    let m = c.tensor(&mut file, "m", &Device::Cpu).unwrap();
    assert_eq!((m.dtype(), m.shape().dims()), (GgmlDType::Q4K, [3, 512].as_slice()));
    assert_eq!(m.data().unwrap().as_ref(), blocks);
}

#[test]
fn what_candle_writes_is_read_here() {
    let values: Vec<f32> = (0..1024).map(|i| (i as f32 * 0.7).sin()).collect();
    let tensor = Tensor::from_vec(values.clone(), (2, 512), &Device::Cpu).unwrap();
    let kinds = [
        (GgmlDType::F32, TensorType::F32),
        (GgmlDType::F16, TensorType::F16),
        (GgmlDType::Q4_0, TensorType::Q4_0),
        (GgmlDType::Q4_1, TensorType::Q4_1),
        (GgmlDType::Q5_0, TensorType::Q5_0),
        (GgmlDType::Q5_1, TensorType::Q5_1),
        (GgmlDType::Q8_0, TensorType::Q8_0),
        (GgmlDType::Q2K, TensorType::Q2_K),
        (GgmlDType::Q3K, TensorType::Q3_K),
        (GgmlDType::Q4K, TensorType::Q4_K),
        (GgmlDType::Q5K, TensorType::Q5_K),
        (GgmlDType::Q6K, TensorType::Q6_K),
    ];
    let quantised: Vec<QTensor> = kinds.iter().map(|(theirs, _)| QTensor::quantize(&tensor, *theirs).unwrap()).collect();
    let names: Vec<String> = kinds.iter().map(|(_, ours)| format!("t.{ours}")).collect();
    let tensors: Vec<(&str, &QTensor)> = names.iter().map(String::as_str).zip(&quantised).collect();
    let list = gguf_file::Value::Array(vec![gguf_file::Value::I16(-3), gguf_file::Value::I16(4)]);
    let text = gguf_file::Value::String("llama".into());
    let metadata = [("general.architecture", &text), ("list", &list)];
    let mut file = Cursor::new(Vec::new());
    gguf_file::write(&mut file, &metadata, &tensors).unwrap();
    let g = parse(file.into_inner()).unwrap();
    assert_eq!(g.str("general.architecture").unwrap(), Some("llama"));
    assert_eq!(integers(&g, "list"), [-3, 4]);
    assert_eq!(g.tensors().len(), kinds.len());
    for ((_, ty), (name, q)) in kinds.iter().zip(&tensors) {
        let t = g.tensor(name).unwrap();
        assert_eq!((t.ty, t.cols(), t.rows()), (*ty, 512, 2));
        assert_eq!(&g.bytes(t)[..], q.data().unwrap().as_ref(), "{name}");
        // The reference decoder of these tests agrees with candle's.
        let theirs: Vec<f32> = q.dequantize(&Device::Cpu).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        assert!(common::max_abs_diff(&common::reference::decode(*ty, &g.bytes(t)), &theirs) <= 1e-6, "{name}");
    }
}

#[test]
fn a_file_of_the_python_package_is_read() {
    let g = Gguf::open(&common::data("fot/fot_a.f16.gguf")).unwrap();
    assert_eq!(g.str("general.architecture").unwrap(), Some("llama"));
    assert_eq!(g.u32("llama.embedding_length").unwrap(), Some(128));
    assert_eq!(integers(&g, "llama.fot.memory_layers"), [1, 3]);
    assert_eq!(g.bool("llama.fot.memory_positionals").unwrap(), Some(true));
    assert_eq!(g.array("tokenizer.ggml.tokens").unwrap().unwrap().strings().count(), 512);
    assert_eq!(g.tensors().len(), 57);
    let down = g.tensor("blk.5.ffn_down.weight").unwrap();
    assert_eq!((down.ty, down.cols(), down.rows()), (TensorType::F16, 352, 128));
    assert!(matches!(g.value("llama.rope.freq_base"), Some(Value::F32(v)) if *v == 10000.0));
}
