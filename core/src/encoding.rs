//! Ops as bytes: format version, code, then the body in postcard.

use alloc::vec::Vec;

use serde::de::DeserializeOwned;

use crate::op::{AppendMessage, DecodeError, Op};

/// The format of an op's body. It rises when the op's encoding changes, and the old one stays readable.
const fn format_version(code: u8) -> u8 {
    match code {
        3 => 2,
        _ => 1,
    }
}

/// What the first format of op 3 did not say: brokers close segments there unless they are configured otherwise.
const SEGMENT_BYTES_V1: u64 = 256 << 20;

/// Reads one whole value. postcard reserves room for a sequence only when at least as many bytes are left as it claims
/// elements, and serde never reserves more than 1 MiB ahead, so what is allocated stays in proportion to `bytes`.
pub(crate) fn decode_whole<T: DeserializeOwned>(bytes: &[u8], malformed: &'static str) -> Result<T, DecodeError> {
    match postcard::take_from_bytes(bytes) {
        Ok((value, [])) => Ok(value),
        Ok(_) => Err(DecodeError { reason: "bytes follow the end" }),
        Err(_) => Err(DecodeError { reason: malformed }),
    }
}

fn body<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
    decode_whole(bytes, "the op's body is malformed")
}

impl Op {
    /// Format version, code, then the body in postcard.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let head = alloc::vec![format_version(self.code()), self.code()];
        let bytes = match self {
            Self::CreateTopic(op) => postcard::to_extend(op, head),
            Self::DeleteTopic(op) => postcard::to_extend(op, head),
            Self::AppendMessage(op) => postcard::to_extend(op, head),
            Self::UpdateMetadata(op) => postcard::to_extend(op, head),
            Self::RegisterBroker(op) => postcard::to_extend(op, head),
            Self::UnregisterBroker(op) => postcard::to_extend(op, head),
            Self::JoinConsumerGroup(op) => postcard::to_extend(op, head),
            Self::LeaveConsumerGroup(op) => postcard::to_extend(op, head),
            Self::RebalancePartitions(op) => postcard::to_extend(op, head),
            Self::CommitOffset(op) => postcard::to_extend(op, head),
            Self::HeartbeatConsumer(op) => postcard::to_extend(op, head),
            Self::AllocateProducerIds(op) => postcard::to_extend(op, head),
            Self::DeleteGroup(op) => postcard::to_extend(op, head),
            Self::DeleteOffsets(op) => postcard::to_extend(op, head),
            Self::ExpireOffsets(op) => postcard::to_extend(op, head),
            Self::ConfigureGroup(op) => postcard::to_extend(op, head),
            Self::ResolveRegularExpression(op) => postcard::to_extend(op, head),
            Self::CommitOffsets(op) => postcard::to_extend(op, head),
            Self::AdvanceLogStart(op) => postcard::to_extend(op, head),
            Self::CompactLog(op) => postcard::to_extend(op, head),
        };
        // postcard fails only on sequences of unknown length, which no op has; nothing at all would be refused by `decode`.
        bytes.unwrap_or_default()
    }

    /// Reads what [`Op::encode`] wrote. Hostile bytes give an error and allocate no more than a small multiple of their length.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let [version, code, bytes @ ..] = bytes else {
            return Err(DecodeError { reason: "shorter than an op's head" });
        };
        if *version == 1 && *code == 3 {
            let (now_ms, appends) = body(bytes)?;
            return Ok(Self::AppendMessage(AppendMessage { now_ms, segment_bytes: SEGMENT_BYTES_V1, appends }));
        }
        if *version != format_version(*code) {
            return Err(DecodeError { reason: "an op of an unknown format version" });
        }
        Ok(match code {
            1 => Self::CreateTopic(body(bytes)?),
            2 => Self::DeleteTopic(body(bytes)?),
            3 => Self::AppendMessage(body(bytes)?),
            4 => Self::UpdateMetadata(body(bytes)?),
            5 => Self::RegisterBroker(body(bytes)?),
            6 => Self::UnregisterBroker(body(bytes)?),
            7 => Self::JoinConsumerGroup(body(bytes)?),
            8 => Self::LeaveConsumerGroup(body(bytes)?),
            9 => Self::RebalancePartitions(body(bytes)?),
            10 => Self::CommitOffset(body(bytes)?),
            11 => Self::HeartbeatConsumer(body(bytes)?),
            12 => Self::AllocateProducerIds(body(bytes)?),
            13 => Self::DeleteGroup(body(bytes)?),
            14 => Self::DeleteOffsets(body(bytes)?),
            15 => Self::ExpireOffsets(body(bytes)?),
            16 => Self::ConfigureGroup(body(bytes)?),
            17 => Self::ResolveRegularExpression(body(bytes)?),
            18 => Self::CommitOffsets(body(bytes)?),
            19 => Self::AdvanceLogStart(body(bytes)?),
            20 => Self::CompactLog(body(bytes)?),
            _ => return Err(DecodeError { reason: "an op of an unknown code" }),
        })
    }
}
