#![no_main]
//! libFuzzer's way into [`fuzz::apply`].

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::apply(data));
