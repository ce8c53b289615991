//! JoinGroup, SyncGroup, Heartbeat and LeaveGroup: the classic group protocol.

use lockstep_env::Env;
use lockstep_wire::codec::{
    HeartbeatRequest, HeartbeatResponse, JoinGroupRequest, JoinGroupResponse, LeaveGroupRequest, LeaveGroupResponse,
    SyncGroupRequest, SyncGroupResponse,
};

use crate::broker::Broker;
use crate::dispatch::RequestContext;
use crate::error_code::ErrorCode;

pub(crate) async fn join<E: Env>(
    _broker: &Broker<E>,
    _context: &RequestContext,
    _request: JoinGroupRequest,
) -> JoinGroupResponse {
    JoinGroupResponse::default().with_error_code(ErrorCode::UnknownServerError.code())
}

pub(crate) async fn sync<E: Env>(
    _broker: &Broker<E>,
    _context: &RequestContext,
    _request: SyncGroupRequest,
) -> SyncGroupResponse {
    SyncGroupResponse::default().with_error_code(ErrorCode::UnknownServerError.code())
}

pub(crate) async fn heartbeat<E: Env>(
    _broker: &Broker<E>,
    _context: &RequestContext,
    _request: HeartbeatRequest,
) -> HeartbeatResponse {
    HeartbeatResponse::default().with_error_code(ErrorCode::UnknownServerError.code())
}

pub(crate) async fn leave<E: Env>(
    _broker: &Broker<E>,
    _context: &RequestContext,
    _request: LeaveGroupRequest,
) -> LeaveGroupResponse {
    LeaveGroupResponse::default().with_error_code(ErrorCode::UnknownServerError.code())
}
