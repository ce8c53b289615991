#![no_main]
//! libFuzzer's way into [`fuzz::peer_frame`].

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::peer_frame(data));
