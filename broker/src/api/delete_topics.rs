//! DeleteTopics.

use lockstep_env::Env;
use lockstep_wire::codec::{DeleteTopicsRequest, DeleteTopicsResponse};

use crate::broker::Broker;
use crate::dispatch::RequestContext;

pub(crate) async fn handle<E: Env>(
    _broker: &Broker<E>,
    _context: &RequestContext,
    _request: DeleteTopicsRequest,
) -> DeleteTopicsResponse {
    DeleteTopicsResponse::default()
}
