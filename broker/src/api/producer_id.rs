//! InitProducerId: an identity for idempotent producers (KIP-98).

use lockstep_env::Env;
use lockstep_wire::codec::{InitProducerIdRequest, InitProducerIdResponse, ProducerId};

use crate::broker::Broker;
use crate::dispatch::RequestContext;
use crate::error_code::ErrorCode;

pub(crate) async fn handle<E: Env>(
    broker: &Broker<E>,
    context: &RequestContext,
    request: InitProducerIdRequest,
) -> InitProducerIdResponse {
    let refuse = |error: ErrorCode| {
        InitProducerIdResponse::default()
            .with_error_code(error.code())
            .with_producer_id(ProducerId(-1))
            .with_producer_epoch(-1)
    };
    if let Some(transactional_id) = &request.transactional_id {
        if transactional_id.is_empty() {
            return refuse(ErrorCode::InvalidRequest);
        }
        tracing::warn!(
            client = context.client_id,
            transactional_id = &***transactional_id,
            "a client wants transactions, which are not offered"
        );
        // Every client takes this one as final and tells its user; others would be tried again for ever.
        return refuse(ErrorCode::TransactionalIdAuthorizationFailed);
    }
    // A producer without transactions that lost track of its sequence numbers simply gets another identity (KIP-360).
    match broker.node().producer_id().await {
        Ok(id) => InitProducerIdResponse::default().with_producer_id(ProducerId(id)).with_producer_epoch(0),
        Err(error) => {
            tracing::debug!(%error, "no producer id");
            refuse(ErrorCode::of_producer_id(&error))
        }
    }
}
