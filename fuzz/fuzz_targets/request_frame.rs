#![no_main]
//! libFuzzer's way into [`fuzz::request_frame`].

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::request_frame(data));
