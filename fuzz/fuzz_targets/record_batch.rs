#![no_main]
//! libFuzzer's way into [`fuzz::record_batch`].

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::record_batch(data));
