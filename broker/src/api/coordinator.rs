//! FindCoordinator: which broker coordinates a group.

use lockstep_env::Env;
use lockstep_wire::codec::{FindCoordinatorRequest, FindCoordinatorResponse};

use crate::broker::Broker;
use crate::dispatch::RequestContext;

pub(crate) async fn handle<E: Env>(
    _broker: &Broker<E>,
    _context: &RequestContext,
    _request: FindCoordinatorRequest,
) -> FindCoordinatorResponse {
    FindCoordinatorResponse::default()
}
