//! What nodes send each other.

use bytes::Bytes;
use lockstep_runtime::peer::frame::{HEADER_LEN, decode_frame, encode_frame, frame_length};
use lockstep_runtime::peer::{HELLO_LEN, decode_hello};

const LEN_MAX: usize = 1 << 20;

/// A greeting and a frame, each as it is and once more with length and checksum set right.
pub fn peer_frame(data: &[u8]) {
    if let Some(greeting) = data.first_chunk::<HELLO_LEN>() {
        let mut greeting = *greeting;
        assert!(decode_hello(&greeting).is_err() || greeting.starts_with(b"LKSP"), "a stranger's greeting is taken");
        greeting[..4].copy_from_slice(b"LKSP");
        let crc = crc32c::crc32c(&greeting[..HELLO_LEN - 4]);
        greeting[HELLO_LEN - 4..].copy_from_slice(&crc.to_be_bytes());
        if let Ok(hello) = decode_hello(&greeting) {
            assert_eq!(hello.node.to_be_bytes(), greeting[8..16], "a greeting is read wrongly");
        }
    }
    if let Ok(Some(len)) = frame_length(data, LEN_MAX) {
        assert!((HEADER_LEN..=LEN_MAX).contains(&len), "a frame of {len} bytes is not refused");
    }
    try_frame(data);
    if data.len() >= HEADER_LEN
        && let Ok(length) = u32::try_from(data.len() - 4)
    {
        let mut sealed = data.to_vec();
        sealed[..4].copy_from_slice(&length.to_be_bytes());
        let crc = crc32c::crc32c_append(crc32c::crc32c(&sealed[..4]), &sealed[8..]);
        sealed[4..8].copy_from_slice(&crc.to_be_bytes());
        try_frame(&sealed);
    }
}

fn try_frame(data: &[u8]) {
    let Ok(frame) = decode_frame(&Bytes::copy_from_slice(data)) else { return };
    assert_eq!(HEADER_LEN + frame.body.len() + frame.payload.len(), data.len());
    let payload = [frame.payload.clone()];
    let encoded = encode_frame(&frame.head, &frame.body, &payload, data.len()).expect("it fits where it came from");
    assert_eq!([&encoded[..], &payload[0][..]].concat(), data, "a frame is not what it was after encoding");
}
