//! Requests of our own, which no Kafka client knows. They are not advertised, have version 0 only, and are answered with JSON
//! ([`JsonResponse`]) whose fields keep their names: readers must not mind fields that are added.

mod cluster_status;
mod group_lag;
mod group_timeline;
mod json_response;

pub use cluster_status::{ClusterStatusRequest, ClusterStatusResponse};
pub use group_lag::{GroupLag, GroupLagRequest, GroupLagResponse, LAG_GROUPS_MAX, PartitionLag};
pub use group_timeline::{
    GroupTimeline, GroupTimelineRequest, GroupTimelineResponse, PartitionsMoved, TimelineEvent, TimelineEventKind,
    TopicPartitions,
};
pub use json_response::JsonResponse;

use bytes::{Buf, BufMut};
use proto_kafka::error::{ProtoError, Result};
use proto_kafka::protocol::buf::{ByteBuf, ByteBufMut};

/// A request's body: plain fields one after another, big-endian.
trait PrivateRequest: Sized {
    /// For errors.
    const NAME: &'static str;

    fn put<B: ByteBufMut>(&self, buf: &mut B) -> Result<()>;
    fn get<B: ByteBuf>(buf: &mut B) -> Result<Self>;
    fn len(&self) -> usize;
}

fn check_version(version: i16, message_type: &'static str) -> Result<()> {
    if version == 0 { Ok(()) } else { Err(ProtoError::UnsupportedVersion { version, message_type }) }
}

/// A length (u16) and as many bytes of UTF-8.
fn put_text<B: ByteBufMut>(buf: &mut B, field: &'static str, text: &str) -> Result<()> {
    let len = u16::try_from(text.len()).map_err(|_| ProtoError::FieldTooLarge { field, size: text.len() })?;
    BufMut::put_u16(buf, len);
    buf.put_slice(text.as_bytes());
    Ok(())
}

fn get_text<B: ByteBuf>(buf: &mut B) -> Result<String> {
    let len = usize::from(Buf::try_get_u16(buf)?);
    let bytes = buf.try_get_bytes(len)?;
    Ok(std::str::from_utf8(&bytes)?.to_owned())
}

/// What the frame layer asks of a request, from its [`PrivateRequest`].
macro_rules! private_request {
    ($request:ident) => {
        impl proto_kafka::protocol::HeaderVersion for $request {
            /// With a client id.
            fn header_version(_version: i16) -> i16 {
                1
            }
        }

        impl proto_kafka::protocol::Encodable for $request {
            fn encode<B: proto_kafka::protocol::buf::ByteBufMut>(
                &self,
                buf: &mut B,
                version: i16,
            ) -> proto_kafka::error::Result<()> {
                $crate::private::check_version(version, <Self as $crate::private::PrivateRequest>::NAME)?;
                $crate::private::PrivateRequest::put(self, buf)
            }

            fn compute_size(&self, _version: i16) -> proto_kafka::error::Result<usize> {
                Ok($crate::private::PrivateRequest::len(self))
            }
        }

        impl proto_kafka::protocol::Decodable for $request {
            fn decode<B: proto_kafka::protocol::buf::ByteBuf>(
                buf: &mut B,
                version: i16,
            ) -> proto_kafka::error::Result<Self> {
                $crate::private::check_version(version, <Self as $crate::private::PrivateRequest>::NAME)?;
                $crate::private::PrivateRequest::get(buf)
            }
        }
    };
}
use private_request;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Request;
    use crate::frame::{decode_request, encode_request};

    fn round_trip(request: &Request) -> Option<Request> {
        let frame = encode_request(0, 7, Some("client"), request).ok()?.into_bytes();
        let (_, decoded) = decode_request(frame.slice(4..)).ok()?;
        Some(decoded)
    }

    #[test]
    fn requests_come_out_as_they_went_in() {
        let groups = vec!["a".to_owned(), String::new(), "ü".repeat(1_000)];
        for request in [
            Request::from(ClusterStatusRequest {}),
            GroupTimelineRequest { group_id: "ü".to_owned() }.into(),
            GroupTimelineRequest::default().into(),
            GroupLagRequest { groups }.into(),
            GroupLagRequest { groups: vec!["g".to_owned(); LAG_GROUPS_MAX] }.into(),
        ] {
            assert_eq!(round_trip(&request).as_ref(), Some(&request));
        }
    }

    #[test]
    fn what_is_too_long_is_not_sent_and_bytes_of_any_kind_are_refused() {
        assert_eq!(round_trip(&GroupTimelineRequest { group_id: "x".repeat(70_000) }.into()), None);
        assert_eq!(round_trip(&GroupLagRequest { groups: vec![String::new(); LAG_GROUPS_MAX + 1] }.into()), None);
        let header = |key: i16| [&key.to_be_bytes()[..], &[0, 0, 0, 0, 0, 7, 0xff, 0xff]].concat();
        for (key, body) in [
            (32001, &[][..]),
            (32001, &[0]),
            (32001, &[0, 2, b'g']),
            (32001, &[0xff, 0xff, b'g']),
            (32001, &[0, 1, 0xff]),
            (32002, &[]),
            (32002, &[0xff, 0xff]),
            (32002, &[0, 2, 0, 1, b'g']),
        ] {
            let frame = [header(key), body.to_vec()].concat();
            assert!(decode_request(frame.into()).is_err(), "{key} {body:?}");
        }
    }
}
