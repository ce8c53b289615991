//! Frames: the unit of the connection between two nodes.
//!
//! ```text
//! 0   u32  bytes after this field
//! 4   u32  CRC32C of everything else in the frame
//! 8   u8   frame kind
//! 9   u8   request kind
//! 10  u16  shard; in a fault its code
//! 12  u32  the caller's time-out in milliseconds
//! 16  u64  call
//! 24  [16] incarnation that the receiver must have; all zeros: any
//! 40  u32  length of the body
//! 44       body, then payload
//! ```
//! Numbers are big-endian. All functions here are pure.

use bytes::{BufMut, Bytes, BytesMut};

/// Bytes before the body.
pub const HEADER_LEN: usize = 44;

const LENGTH_LEN: usize = 4;
const CHECKED_FROM: usize = 8;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameKind {
    /// A sign of life; the body is gossip.
    Ping,
    /// A request, from the end that dialled.
    Request,
    /// A reply, from the end that was dialled.
    Reply,
    /// A refusal or failure; the body says why.
    Fault,
    /// The receiver is not the one the request was meant for.
    WrongIncarnation,
}

impl FrameKind {
    const fn code(self) -> u8 {
        match self {
            FrameKind::Ping => 1,
            FrameKind::Request => 2,
            FrameKind::Reply => 3,
            FrameKind::Fault => 4,
            FrameKind::WrongIncarnation => 5,
        }
    }

    const fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(FrameKind::Ping),
            2 => Some(FrameKind::Request),
            3 => Some(FrameKind::Reply),
            4 => Some(FrameKind::Fault),
            5 => Some(FrameKind::WrongIncarnation),
            _ => None,
        }
    }
}

/// The fixed part of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHead {
    /// What the frame is.
    pub kind: FrameKind,
    /// Request kind.
    pub request_kind: u8,
    /// Shard, or a fault's code.
    pub shard: u16,
    /// The caller's time-out.
    pub timeout_ms: u32,
    /// The call that a request starts and a reply ends.
    pub call: u64,
    /// Incarnation that the receiver must have; all zeros: any.
    pub incarnation: [u8; 16],
}

impl FrameHead {
    /// A head with nothing but its kind and call.
    #[must_use]
    pub const fn new(kind: FrameKind, call: u64) -> Self {
        Self { kind, request_kind: 0, shard: 0, timeout_ms: 0, call, incarnation: [0; 16] }
    }
}

/// A decoded frame. Body and payload are slices of the buffer that was decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Fixed part.
    pub head: FrameHead,
    /// Small part.
    pub body: Bytes,
    /// Large part.
    pub payload: Bytes,
}

/// Bytes that are not a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The length is beyond the limit.
    #[error("a frame of {len} bytes exceeds the limit of {len_max}")]
    TooLong {
        /// Bytes of the frame.
        len: usize,
        /// The limit.
        len_max: usize,
    },
    /// The length is less than a header's, or not that of the buffer.
    #[error("a frame cannot have {0} bytes")]
    Length(usize),
    /// The checksum does not match.
    #[error("the checksum does not match")]
    Checksum,
    /// No such kind.
    #[error("unknown frame kind {0}")]
    Kind(u8),
    /// The body would reach beyond the frame.
    #[error("a body of {0} bytes reaches beyond its frame")]
    Body(u32),
}

/// Encodes header and body; the payload is to be written right after them. `TooLong` if all together exceed `len_max` bytes.
pub fn encode_frame(head: &FrameHead, body: &[u8], payload: &[Bytes], len_max: usize) -> Result<Bytes, FrameError> {
    let payload_len = payload.iter().fold(0_usize, |sum, part| sum.saturating_add(part.len()));
    let len = HEADER_LEN.saturating_add(body.len()).saturating_add(payload_len);
    let (Ok(len_after), Ok(body_len)) = (u32::try_from(len - LENGTH_LEN), u32::try_from(body.len())) else {
        return Err(FrameError::TooLong { len, len_max });
    };
    if len > len_max {
        return Err(FrameError::TooLong { len, len_max });
    }
    let mut encoded = BytesMut::with_capacity(HEADER_LEN + body.len());
    encoded.put_u32(len_after);
    encoded.put_u32(0);
    encoded.put_u8(head.kind.code());
    encoded.put_u8(head.request_kind);
    encoded.put_u16(head.shard);
    encoded.put_u32(head.timeout_ms);
    encoded.put_u64(head.call);
    encoded.put_slice(&head.incarnation);
    encoded.put_u32(body_len);
    assert_eq!(encoded.len(), HEADER_LEN);
    encoded.put_slice(body);
    let mut checksum = checksum(&encoded);
    for part in payload {
        checksum = crc32c::crc32c_append(checksum, part);
    }
    encoded[LENGTH_LEN..CHECKED_FROM].copy_from_slice(&checksum.to_be_bytes());
    Ok(encoded.freeze())
}

/// CRC32C of a frame, or of its beginning, without the field that holds it.
fn checksum(frame: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&frame[..LENGTH_LEN]), &frame[CHECKED_FROM..])
}

/// The length in bytes of the frame that begins with `prefix`, its length field included; `None` when `prefix` is
/// too short to tell.
pub fn frame_length(prefix: &[u8], len_max: usize) -> Result<Option<usize>, FrameError> {
    let Some(length) = prefix.first_chunk() else {
        return Ok(None);
    };
    let len = (u32::from_be_bytes(*length) as usize).saturating_add(LENGTH_LEN);
    if len > len_max {
        return Err(FrameError::TooLong { len, len_max });
    }
    if len < HEADER_LEN {
        return Err(FrameError::Length(len));
    }
    Ok(Some(len))
}

/// Decodes a buffer that holds exactly one frame. Never panics, and allocates nothing.
pub fn decode_frame(frame: &Bytes) -> Result<Frame, FrameError> {
    let Some(header) = frame.first_chunk::<HEADER_LEN>() else {
        return Err(FrameError::Length(frame.len()));
    };
    if frame_length(header, frame.len())? != Some(frame.len()) {
        return Err(FrameError::Length(frame.len()));
    }
    if checksum(frame) != number(header, LENGTH_LEN) {
        return Err(FrameError::Checksum);
    }
    let kind = FrameKind::from_code(header[8]).ok_or(FrameError::Kind(header[8]))?;
    let body_len = number(header, 40);
    let body_end = HEADER_LEN.saturating_add(body_len as usize);
    if body_end > frame.len() {
        return Err(FrameError::Body(body_len));
    }
    let mut call = [0; 8];
    call.copy_from_slice(&header[16..24]);
    let mut incarnation = [0; 16];
    incarnation.copy_from_slice(&header[24..40]);
    let head = FrameHead {
        kind,
        request_kind: header[9],
        shard: u16::from_be_bytes([header[10], header[11]]),
        timeout_ms: number(header, 12),
        call: u64::from_be_bytes(call),
        incarnation,
    };
    Ok(Frame { head, body: frame.slice(HEADER_LEN..body_end), payload: frame.slice(body_end..) })
}

fn number(header: &[u8; HEADER_LEN], at: usize) -> u32 {
    u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn joined(encoded: &Bytes, payload: &[Bytes]) -> Bytes {
        std::iter::once(encoded).chain(payload).flatten().copied().collect()
    }

    fn any_head() -> impl Strategy<Value = FrameHead> {
        let kind = prop::sample::select(vec![
            FrameKind::Ping,
            FrameKind::Request,
            FrameKind::Reply,
            FrameKind::Fault,
            FrameKind::WrongIncarnation,
        ]);
        (kind, any::<u8>(), any::<u16>(), any::<u32>(), any::<u64>(), any::<[u8; 16]>()).prop_map(
            |(kind, request_kind, shard, timeout_ms, call, incarnation)| FrameHead {
                kind,
                request_kind,
                shard,
                timeout_ms,
                call,
                incarnation,
            },
        )
    }

    fn any_bytes() -> impl Strategy<Value = Bytes> {
        prop::collection::vec(any::<u8>(), 0..300).prop_map(Bytes::from)
    }

    proptest! {
        #[test]
        fn a_frame_is_decoded_as_it_was_encoded(
            head in any_head(),
            body in any_bytes(),
            payload in prop::collection::vec(any_bytes(), 0..4),
        ) {
            let frame = joined(&encode_frame(&head, &body, &payload, 1 << 20).unwrap(), &payload);
            prop_assert_eq!(frame_length(&frame, 1 << 20), Ok(Some(frame.len())));
            let decoded = decode_frame(&frame).unwrap();
            prop_assert_eq!(decoded.head, head);
            prop_assert_eq!(decoded.body, body);
            prop_assert_eq!(decoded.payload, joined(&Bytes::new(), &payload));
            prop_assert!(encode_frame(&head, &frame, &payload, frame.len()).is_err());
        }

        #[test]
        fn a_changed_byte_is_noticed(head in any_head(), body in any_bytes(), at in any::<prop::sample::Index>(), flip in 1_u8..) {
            let mut frame = encode_frame(&head, &body, &[], 1 << 20).unwrap().to_vec();
            let at = at.index(frame.len());
            frame[at] ^= flip;
            prop_assert!(decode_frame(&Bytes::from(frame)).is_err());
        }

        #[test]
        fn any_bytes_are_decoded_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = frame_length(&bytes, 100);
            let _ = decode_frame(&Bytes::from(bytes));
        }
    }

    #[test]
    fn lengths_out_of_bounds_are_refused_from_the_first_four_bytes() {
        assert_eq!(frame_length(&[0, 0, 0], 100), Ok(None));
        assert_eq!(
            frame_length(&u32::MAX.to_be_bytes(), 100),
            Err(FrameError::TooLong { len: 4_294_967_299, len_max: 100 })
        );
        assert_eq!(frame_length(&39_u32.to_be_bytes(), 100), Err(FrameError::Length(43)));
        assert_eq!(frame_length(&40_u32.to_be_bytes(), 100), Ok(Some(44)));
    }
}
