#![no_main]
//! libFuzzer's way into [`fuzz::op`].

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::op(data));
