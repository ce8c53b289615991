#![no_main]
//! libFuzzer's way into [`fuzz::snapshot`].

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::snapshot(data));
