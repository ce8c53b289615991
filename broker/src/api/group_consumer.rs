//! ConsumerGroupHeartbeat and ConsumerGroupDescribe: the consumer group protocol (KIP-848).

use lockstep_env::Env;
use lockstep_wire::codec::{
    ConsumerGroupDescribeRequest, ConsumerGroupDescribeResponse, ConsumerGroupHeartbeatRequest,
    ConsumerGroupHeartbeatResponse,
};

use crate::broker::Broker;
use crate::dispatch::RequestContext;
use crate::error_code::ErrorCode;

pub(crate) async fn heartbeat<E: Env>(
    _broker: &Broker<E>,
    _context: &RequestContext,
    _request: ConsumerGroupHeartbeatRequest,
) -> ConsumerGroupHeartbeatResponse {
    ConsumerGroupHeartbeatResponse::default().with_error_code(ErrorCode::UnknownServerError.code())
}

pub(crate) async fn describe<E: Env>(
    _broker: &Broker<E>,
    _context: &RequestContext,
    _request: ConsumerGroupDescribeRequest,
) -> ConsumerGroupDescribeResponse {
    ConsumerGroupDescribeResponse::default()
}
