//! Produce.

use lockstep_env::Env;
use lockstep_wire::ApiKey;
use lockstep_wire::codec::{ProduceRequest, ProduceResponse};

use crate::broker::Broker;
use crate::dispatch::{Outcome, RequestContext};

/// Does this frame hold a Produce request?
pub(crate) fn is_produce(frame: &[u8]) -> bool {
    frame.first_chunk() == Some(&ApiKey::Produce.code().to_be_bytes())
}

pub(crate) async fn handle<E: Env>(_broker: Broker<E>, _context: RequestContext, _request: ProduceRequest) -> Outcome {
    Outcome::Respond(ProduceResponse::default().into())
}
