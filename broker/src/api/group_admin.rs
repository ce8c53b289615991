//! DescribeGroups and ListGroups.

use lockstep_env::Env;
use lockstep_wire::codec::{DescribeGroupsRequest, DescribeGroupsResponse, ListGroupsRequest, ListGroupsResponse};

use crate::broker::Broker;
use crate::dispatch::RequestContext;
use crate::error_code::ErrorCode;

pub(crate) async fn describe<E: Env>(
    _broker: &Broker<E>,
    _context: &RequestContext,
    _request: DescribeGroupsRequest,
) -> DescribeGroupsResponse {
    DescribeGroupsResponse::default()
}

pub(crate) async fn list<E: Env>(
    _broker: &Broker<E>,
    _context: &RequestContext,
    _request: ListGroupsRequest,
) -> ListGroupsResponse {
    ListGroupsResponse::default().with_error_code(ErrorCode::UnknownServerError.code())
}
