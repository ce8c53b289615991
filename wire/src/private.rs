//! Requests of our own, which no Kafka client knows. They are not advertised.

use bytes::{Buf, BufMut, Bytes};
use proto_kafka::error::{ProtoError, Result};
use proto_kafka::protocol::buf::{ByteBuf, ByteBufMut};
use proto_kafka::protocol::{Decodable, Encodable, HeaderVersion};

/// Asks for the state of all nodes and shards. Key 32000, version 0, empty body.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterStatusRequest {}

/// Answers [`ClusterStatusRequest`]: `error_code` (i16), then a length (u32) and as many bytes of JSON.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterStatusResponse {
    /// Kafka's error code, 0 for none.
    pub error_code: i16,
    /// The status as a JSON document; empty after an error.
    pub json: Bytes,
}

fn check_version(version: i16, message_type: &'static str) -> Result<()> {
    if version == 0 { Ok(()) } else { Err(ProtoError::UnsupportedVersion { version, message_type }) }
}

impl HeaderVersion for ClusterStatusRequest {
    fn header_version(_version: i16) -> i16 {
        1
    }
}

impl Encodable for ClusterStatusRequest {
    fn encode<B: ByteBufMut>(&self, _buf: &mut B, version: i16) -> Result<()> {
        check_version(version, "ClusterStatusRequest")
    }

    fn compute_size(&self, _version: i16) -> Result<usize> {
        Ok(0)
    }
}

impl Decodable for ClusterStatusRequest {
    fn decode<B: ByteBuf>(_buf: &mut B, version: i16) -> Result<Self> {
        check_version(version, "ClusterStatusRequest")?;
        Ok(Self {})
    }
}

impl HeaderVersion for ClusterStatusResponse {
    fn header_version(_version: i16) -> i16 {
        0
    }
}

impl Encodable for ClusterStatusResponse {
    fn encode<B: ByteBufMut>(&self, buf: &mut B, version: i16) -> Result<()> {
        check_version(version, "ClusterStatusResponse")?;
        let len = u32::try_from(self.json.len())
            .map_err(|_| ProtoError::FieldTooLarge { field: "json", size: self.json.len() })?;
        BufMut::put_i16(buf, self.error_code);
        BufMut::put_u32(buf, len);
        buf.put_shared_bytes(self.json.clone());
        Ok(())
    }

    fn compute_size(&self, _version: i16) -> Result<usize> {
        Ok(6 + self.json.len())
    }
}

impl Decodable for ClusterStatusResponse {
    fn decode<B: ByteBuf>(buf: &mut B, version: i16) -> Result<Self> {
        check_version(version, "ClusterStatusResponse")?;
        let error_code = Buf::try_get_i16(buf)?;
        let len = Buf::try_get_u32(buf)?;
        Ok(Self { error_code, json: buf.try_get_bytes(len as usize)? })
    }
}
