//! Fetch.

use lockstep_env::Env;
use lockstep_wire::codec::{FetchRequest, FetchResponse};

use crate::broker::Broker;
use crate::dispatch::RequestContext;

pub(crate) async fn handle<E: Env>(
    _broker: &Broker<E>,
    _context: &RequestContext,
    _request: FetchRequest,
) -> FetchResponse {
    FetchResponse::default()
}
