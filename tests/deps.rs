#[test]
fn t() {
    let _ = tokenizers::AddedToken::from("a", true);
    let _ = candle_core::Device::Cpu;
    assert_eq!(unsafe { ggml_sys::ggml_blck_size(0) }, 1);
}
