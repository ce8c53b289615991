//! Frames: a length of four bytes, a header, a body.
//!
//! A connection reads the length, then the first four bytes of the frame, asks [`request_len_max`] whether such a
//! request may be that long, reads the rest, and calls [`decode_request`]. Bytes that follow a body that was understood
//! are ignored, as Apache Kafka ignores them; [`RequestHeader::trailing_len`] tells.

use std::io::IoSlice;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use proto_kafka::protocol::{Decodable, Encodable, SegmentedBuf, StrBytes};
use thiserror::Error;

use crate::api::{ApiKey, Request, Response};
use crate::guard::{Budget, GuardedBuf};

/// No request may be longer, its length prefix not counted: Kafka's default of `socket.request.max.bytes`.
pub const REQUEST_LEN_MAX: usize = 100 * 1024 * 1024;
/// No response is accepted that is longer.
pub const RESPONSE_LEN_MAX: usize = 256 * 1024 * 1024;
/// Key, version and correlation id: what every request begins with.
pub const REQUEST_PREFIX_LEN: usize = 8;

/// What stands before a request's body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestHeader {
    /// Which request.
    pub api_key: ApiKey,
    /// Its version, which is also the version to answer in.
    pub api_version: i16,
    /// To be repeated in the response.
    pub correlation_id: i32,
    /// What the client calls itself. Free text.
    pub client_id: Option<StrBytes>,
    /// Bytes that followed the body and were ignored. Not 0 is a sign of a client that speaks another version than it
    /// says.
    pub trailing_len: usize,
}

/// Why a frame was not understood.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum FrameError {
    /// Shorter than the header: there is nobody to answer.
    #[error("a frame of {len} bytes is shorter than its header")]
    TooShort {
        /// Bytes of the frame.
        len: usize,
    },
    /// The cap of its kind of request or response is exceeded.
    #[error("a frame of {len} bytes is longer than the {len_max} allowed here")]
    TooLong {
        /// Bytes of the frame.
        len: usize,
        /// Bytes allowed.
        len_max: usize,
    },
    /// A request that is not served. Kafka closes the connection.
    #[error("unknown API key {api_key}")]
    UnknownApiKey {
        /// Key.
        api_key: i16,
        /// From the header.
        correlation_id: i32,
    },
    /// ApiVersions of a version that is not served: to be answered in version 0 with error 35 and the table (KIP-511).
    #[error("unsupported version {api_version} of ApiVersions")]
    UnsupportedApiVersions {
        /// Version asked for.
        api_version: i16,
        /// From the header.
        correlation_id: i32,
    },
    /// A version that is not served. There is no response that the client could read; Kafka closes the connection.
    #[error("unsupported version {api_version} of {}", api_key.name())]
    UnsupportedVersion {
        /// Request.
        api_key: ApiKey,
        /// Version asked for.
        api_version: i16,
        /// From the header.
        correlation_id: i32,
    },
    /// Header or body break the format, or ask for more memory than such a frame may.
    #[error("malformed {} version {api_version}: {reason}", api_key.name())]
    Malformed {
        /// Request.
        api_key: ApiKey,
        /// Version.
        api_version: i16,
        /// What is wrong.
        reason: String,
    },
}

/// A message could not be encoded: a field is set that the version does not have, or something is too long.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("cannot encode: {0}")]
pub struct EncodeError(String);

impl From<proto_kafka::error::ProtoError> for EncodeError {
    fn from(error: proto_kafka::error::ProtoError) -> Self {
        Self(error.to_string())
    }
}

/// An encoded frame: its bytes, length prefix included, in pieces to be written one after another. Records are pieces
/// of their own, shared with the message and not copied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EncodedFrame {
    /// The pieces. None is empty.
    pub segments: Vec<Bytes>,
}

impl EncodedFrame {
    /// Bytes in all, length prefix included.
    pub fn len(&self) -> usize {
        self.segments.iter().map(Bytes::len).sum()
    }

    /// Whether there are none; never true of a frame that was encoded.
    pub fn is_empty(&self) -> bool {
        self.segments.iter().all(Bytes::is_empty)
    }

    /// All pieces in one, copied unless there is only one.
    pub fn into_bytes(mut self) -> Bytes {
        if self.segments.len() == 1 {
            return self.segments.remove(0);
        }
        let mut bytes = BytesMut::with_capacity(self.len());
        for segment in &self.segments {
            bytes.extend_from_slice(segment);
        }
        bytes.freeze()
    }
}

/// How long a request of this key may be, in bytes without the length prefix. An unknown key gets the smallest cap,
/// enough to read the frame and refuse it.
pub fn request_len_max(api_key: i16) -> usize {
    const KIB: usize = 1024;
    const MIB: usize = 1024 * KIB;
    match ApiKey::from_code(api_key) {
        Some(ApiKey::Produce) => REQUEST_LEN_MAX,
        // A classic leader sends the assignment of every member, opaque to us; metadata that is too long is to get its error.
        Some(ApiKey::SyncGroup | ApiKey::JoinGroup) => 16 * MIB,
        Some(ApiKey::Fetch) => 8 * MIB,
        Some(
            ApiKey::Metadata
            | ApiKey::ListOffsets
            | ApiKey::OffsetCommit
            | ApiKey::OffsetFetch
            | ApiKey::OffsetDelete
            | ApiKey::OffsetForLeaderEpoch
            | ApiKey::CreateTopics
            | ApiKey::DescribeTopicPartitions
            | ApiKey::GroupLag,
        ) => 4 * MIB,
        Some(
            ApiKey::ConsumerGroupHeartbeat
            | ApiKey::ConsumerGroupDescribe
            | ApiKey::DescribeGroups
            | ApiKey::DeleteGroups
            | ApiKey::DescribeConfigs
            | ApiKey::AlterConfigs
            | ApiKey::IncrementalAlterConfigs
            | ApiKey::CreatePartitions
            | ApiKey::DeleteTopics
            | ApiKey::DeleteRecords
            | ApiKey::LeaveGroup,
        ) => MIB,
        Some(ApiKey::FindCoordinator) => 256 * KIB,
        Some(
            ApiKey::Heartbeat
            | ApiKey::ListGroups
            | ApiKey::ApiVersions
            | ApiKey::InitProducerId
            | ApiKey::DescribeCluster
            | ApiKey::ClusterStatus
            | ApiKey::GroupTimeline,
        )
        | None => 64 * KIB,
    }
}

/// Decodes a request. `frame` is what follows the length prefix. The records of a Produce request stay slices of
/// `frame`.
///
/// # Errors
/// See [`FrameError`]; all but [`FrameError::UnsupportedApiVersions`] should close the connection.
pub fn decode_request(frame: Bytes) -> Result<(RequestHeader, Request), FrameError> {
    let len = frame.len();
    let mut prefix = &frame[..];
    if len < REQUEST_PREFIX_LEN {
        return Err(FrameError::TooShort { len });
    }
    let api_key_code = prefix.get_i16();
    let api_version = prefix.get_i16();
    let correlation_id = prefix.get_i32();
    let Some(api_key) = ApiKey::from_code(api_key_code) else {
        return Err(FrameError::UnknownApiKey { api_key: api_key_code, correlation_id });
    };
    if !api_key.versions().contains(api_version) {
        return Err(match api_key {
            ApiKey::ApiVersions => FrameError::UnsupportedApiVersions { api_version, correlation_id },
            _ => FrameError::UnsupportedVersion { api_key, api_version, correlation_id },
        });
    }
    let len_max = request_len_max(api_key_code);
    if len > len_max {
        return Err(FrameError::TooLong { len, len_max });
    }
    let malformed = |error: proto_kafka::error::ProtoError| FrameError::Malformed {
        api_key,
        api_version,
        reason: error.to_string(),
    };
    let mut buf = GuardedBuf::new(frame, Budget::REQUEST);
    let header = proto_kafka::messages::RequestHeader::decode(&mut buf, api_key.request_header_version(api_version))
        .map_err(malformed)?;
    let request = Request::decode(api_key, api_version, &mut buf).map_err(malformed)?;
    let header = RequestHeader {
        api_key,
        api_version,
        correlation_id,
        client_id: header.client_id,
        trailing_len: buf.unread_len(),
    };
    Ok((header, request))
}

/// Encodes a response, length prefix included.
///
/// # Errors
/// A field is set that `api_version` does not have, or the response is longer than 2 GiB.
pub fn encode_response(
    api_version: i16,
    correlation_id: i32,
    response: &Response,
) -> Result<EncodedFrame, EncodeError> {
    let api_key = response.api_key();
    let mut header = proto_kafka::messages::ResponseHeader::default();
    header.correlation_id = correlation_id;
    let header_version = api_key.response_header_version(api_version);
    let shared: Vec<Bytes> = match response {
        Response::Fetch(fetch) => {
            let partitions = fetch.responses.iter().flat_map(|topic| &topic.partitions);
            partitions.filter_map(|partition| partition.records.clone()).collect()
        }
        Response::ClusterStatus(answer) => vec![answer.json.clone()],
        Response::GroupTimeline(answer) => vec![answer.json.clone()],
        Response::GroupLag(answer) => vec![answer.json.clone()],
        _ => {
            return encode_copied(|buf| {
                header.encode(buf, header_version)?;
                response.encode(buf, api_version)
            });
        }
    };
    encode_shared(&shared, |buf| {
        header.encode(buf, header_version)?;
        response.encode(buf, api_version)
    })
}

/// Encodes a request, length prefix included.
///
/// # Errors
/// A field is set that `api_version` does not have, or the request is longer than 2 GiB.
pub fn encode_request(
    api_version: i16,
    correlation_id: i32,
    client_id: Option<&str>,
    request: &Request,
) -> Result<EncodedFrame, EncodeError> {
    let api_key = request.api_key();
    let mut header = proto_kafka::messages::RequestHeader::default();
    header.request_api_key = api_key.code();
    header.request_api_version = api_version;
    header.correlation_id = correlation_id;
    header.client_id = client_id.map(|id| StrBytes::from_string(id.to_owned()));
    let header_version = api_key.request_header_version(api_version);
    let Request::Produce(produce) = request else {
        return encode_copied(|buf| {
            header.encode(buf, header_version)?;
            request.encode(buf, api_version)
        });
    };
    let partitions = produce.topic_data.iter().flat_map(|topic| &topic.partition_data);
    let shared: Vec<Bytes> = partitions.filter_map(|partition| partition.records.clone()).collect();
    encode_shared(&shared, |buf| {
        header.encode(buf, header_version)?;
        request.encode(buf, api_version)
    })
}

fn prefix_of(frame_len: usize) -> Result<i32, EncodeError> {
    i32::try_from(frame_len - 4).map_err(|_| EncodeError(format!("{frame_len} bytes are too long for a frame")))
}

/// Runs `write` on a plain buffer: the frame is one piece.
fn encode_copied(write: impl FnOnce(&mut BytesMut) -> Result<(), EncodeError>) -> Result<EncodedFrame, EncodeError> {
    let mut buf = BytesMut::with_capacity(256);
    buf.put_i32(0);
    write(&mut buf)?;
    let prefix = prefix_of(buf.len())?;
    buf[..4].copy_from_slice(&prefix.to_be_bytes());
    Ok(EncodedFrame { segments: vec![buf.freeze()] })
}

/// Runs `write` on a segmented buffer and takes its pieces. Those at the same address as the next of `shared`, which
/// are all the byte fields of the message, are handed on uncopied; the codec's buffer only lends its pieces, so the
/// small ones between them are copied.
fn encode_shared(
    shared: &[Bytes],
    write: impl FnOnce(&mut SegmentedBuf) -> Result<(), EncodeError>,
) -> Result<EncodedFrame, EncodeError> {
    let mut buf = SegmentedBuf::new();
    buf.put_i32(0);
    write(&mut buf)?;
    let len = buf.remaining();
    buf.patch_i32(0, prefix_of(len)?)?;

    let mut chunks = vec![IoSlice::new(&[]); 2 * shared.len() + 2];
    let chunks_len = buf.chunks_vectored(&mut chunks);
    let mut shared = shared.iter().filter(|bytes| !bytes.is_empty()).peekable();
    let mut segments = Vec::with_capacity(chunks_len);
    for chunk in chunks[..chunks_len].iter().filter(|chunk| !chunk.is_empty()) {
        let same = shared.next_if(|bytes| std::ptr::eq(bytes.as_ptr(), chunk.as_ptr()) && bytes.len() == chunk.len());
        segments.push(same.cloned().unwrap_or_else(|| Bytes::copy_from_slice(chunk)));
    }
    let frame = EncodedFrame { segments };
    assert_eq!(frame.len(), len, "all pieces of the frame were taken");
    Ok(frame)
}

/// Correlation id of a response: what every response begins with. `frame` is what follows the length prefix.
///
/// # Errors
/// [`FrameError::TooShort`].
pub fn response_correlation_id(frame: &[u8]) -> Result<i32, FrameError> {
    let bytes = frame.first_chunk().ok_or(FrameError::TooShort { len: frame.len() })?;
    Ok(i32::from_be_bytes(*bytes))
}

/// Decodes a response to a request of this key and version. `frame` is what follows the length prefix. Gives the
/// correlation id too. ApiVersions may be answered in version 0 whatever was asked for (KIP-511), which is recognised
/// by its error code.
///
/// # Errors
/// The frame breaks the format, or is longer than [`RESPONSE_LEN_MAX`].
pub fn decode_response(api_key: ApiKey, api_version: i16, frame: Bytes) -> Result<(i32, Response), FrameError> {
    const UNSUPPORTED_VERSION: i16 = 35;
    let len = frame.len();
    if len > RESPONSE_LEN_MAX {
        return Err(FrameError::TooLong { len, len_max: RESPONSE_LEN_MAX });
    }
    let correlation_id = response_correlation_id(&frame)?;
    let malformed = |error: proto_kafka::error::ProtoError| FrameError::Malformed {
        api_key,
        api_version,
        reason: error.to_string(),
    };
    let is_downgraded =
        api_key == ApiKey::ApiVersions && frame.get(4..6).is_some_and(|code| code == UNSUPPORTED_VERSION.to_be_bytes());
    let api_version = if is_downgraded { 0 } else { api_version };
    let mut buf = GuardedBuf::new(frame, Budget::RESPONSE);
    proto_kafka::messages::ResponseHeader::decode(&mut buf, api_key.response_header_version(api_version))
        .map_err(malformed)?;
    let response = Response::decode(api_key, api_version, &mut buf).map_err(malformed)?;
    Ok((correlation_id, response))
}
