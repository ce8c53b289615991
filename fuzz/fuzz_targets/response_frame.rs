#![no_main]
//! libFuzzer's way into [`fuzz::response_frame`].

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::response_frame(data));
