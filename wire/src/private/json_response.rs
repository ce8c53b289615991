//! What answers every request of our own.

use std::marker::PhantomData;

use bytes::{Buf, BufMut, Bytes};
use proto_kafka::error::{ProtoError, Result};
use proto_kafka::protocol::buf::{ByteBuf, ByteBufMut};
use proto_kafka::protocol::{Decodable, Encodable, HeaderVersion};

use super::check_version;

/// Answers the request `R`: `error_code` (i16), then a length (u32) and as many bytes of JSON.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JsonResponse<R> {
    /// Kafka's error code, 0 for none.
    pub error_code: i16,
    /// A JSON document; empty after an error.
    pub json: Bytes,
    request: PhantomData<R>,
}

impl<R> JsonResponse<R> {
    /// An answer.
    pub fn new(json: impl Into<Bytes>) -> Self {
        Self { error_code: 0, json: json.into(), request: PhantomData }
    }

    /// A refusal.
    pub fn refused(error_code: i16) -> Self {
        Self { error_code, json: Bytes::new(), request: PhantomData }
    }
}

impl<R> HeaderVersion for JsonResponse<R> {
    fn header_version(_version: i16) -> i16 {
        0
    }
}

impl<R> Encodable for JsonResponse<R> {
    fn encode<B: ByteBufMut>(&self, buf: &mut B, version: i16) -> Result<()> {
        check_version(version, "JsonResponse")?;
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

impl<R> Decodable for JsonResponse<R> {
    fn decode<B: ByteBuf>(buf: &mut B, version: i16) -> Result<Self> {
        check_version(version, "JsonResponse")?;
        let error_code = Buf::try_get_i16(buf)?;
        let len = Buf::try_get_u32(buf)?;
        Ok(Self { error_code, json: buf.try_get_bytes(len as usize)?, request: PhantomData })
    }
}
