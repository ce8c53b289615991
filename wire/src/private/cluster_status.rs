//! The state of all nodes and shards.

use proto_kafka::error::Result;
use proto_kafka::protocol::buf::{ByteBuf, ByteBufMut};

use super::{JsonResponse, PrivateRequest, private_request};

/// Asks for the state of all nodes and shards. Key 32000, version 0, empty body.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterStatusRequest {}

/// Answers [`ClusterStatusRequest`].
pub type ClusterStatusResponse = JsonResponse<ClusterStatusRequest>;

impl PrivateRequest for ClusterStatusRequest {
    const NAME: &'static str = "ClusterStatusRequest";

    fn put<B: ByteBufMut>(&self, _buf: &mut B) -> Result<()> {
        Ok(())
    }

    fn get<B: ByteBuf>(_buf: &mut B) -> Result<Self> {
        Ok(Self {})
    }

    fn len(&self) -> usize {
        0
    }
}

private_request!(ClusterStatusRequest);
