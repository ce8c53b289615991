//! CreateTopics.

use lockstep_env::Env;
use lockstep_wire::codec::{CreateTopicsRequest, CreateTopicsResponse};

use crate::broker::Broker;
use crate::dispatch::RequestContext;

pub(crate) async fn handle<E: Env>(
    _broker: &Broker<E>,
    _context: &RequestContext,
    _request: CreateTopicsRequest,
) -> CreateTopicsResponse {
    CreateTopicsResponse::default()
}
