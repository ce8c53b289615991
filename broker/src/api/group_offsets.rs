//! OffsetCommit and OffsetFetch: what a group has committed.

use lockstep_env::Env;
use lockstep_wire::codec::{OffsetCommitRequest, OffsetCommitResponse, OffsetFetchRequest, OffsetFetchResponse};

use crate::broker::Broker;
use crate::dispatch::RequestContext;

pub(crate) async fn commit<E: Env>(
    _broker: &Broker<E>,
    _context: &RequestContext,
    _request: OffsetCommitRequest,
) -> OffsetCommitResponse {
    OffsetCommitResponse::default()
}

pub(crate) async fn fetch<E: Env>(
    _broker: &Broker<E>,
    _context: &RequestContext,
    _request: OffsetFetchRequest,
) -> OffsetFetchResponse {
    OffsetFetchResponse::default()
}
