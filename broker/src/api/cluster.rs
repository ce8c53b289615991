//! DescribeCluster, and our own ClusterStatus.

use std::time::Duration;

use lockstep_env::Env;
use lockstep_wire::codec::describe_cluster_response::DescribeClusterBroker;
use lockstep_wire::codec::{DescribeClusterRequest, DescribeClusterResponse};
use lockstep_wire::private::{ClusterStatusRequest, ClusterStatusResponse};

use crate::api::private::json_response;
use crate::broker::Broker;
use crate::cluster_view::ClusterView;
use crate::dispatch::RequestContext;
use crate::error_code::ErrorCode;

/// How long nodes may take to tell their state.
const STATUS_TIMEOUT: Duration = Duration::from_secs(2);
/// DescribeCluster asks about brokers (1) or about KRaft controllers (2), which there are none of (KIP-919).
const ENDPOINT_TYPE_BROKERS: i8 = 1;
const ENDPOINT_TYPE_CONTROLLERS: i8 = 2;

pub(crate) async fn describe<E: Env>(
    broker: &Broker<E>,
    context: &RequestContext,
    request: DescribeClusterRequest,
) -> DescribeClusterResponse {
    let refuse = |error: ErrorCode, message: &'static str| {
        DescribeClusterResponse::default().with_error_code(error.code()).with_error_message(Some(message.into()))
    };
    if context.api_version >= 1 && request.endpoint_type == ENDPOINT_TYPE_CONTROLLERS {
        return refuse(ErrorCode::MismatchedEndpointType, "This is a broker, not a controller.");
    }
    if context.api_version >= 1 && request.endpoint_type != ENDPOINT_TYPE_BROKERS {
        return refuse(ErrorCode::UnsupportedEndpointType, "Unknown type of endpoint.");
    }
    let view = ClusterView::take(broker);
    let brokers = view
        .brokers
        .values()
        .filter(|known| known.alive || (context.api_version >= 2 && request.include_fenced_brokers))
        .map(|known| {
            let entry = DescribeClusterBroker::default()
                .with_broker_id(known.broker_id())
                .with_host(known.host())
                .with_port(i32::from(known.record.port))
                .with_rack(known.rack());
            if context.api_version >= 2 { entry.with_is_fenced(!known.alive) } else { entry }
        })
        .collect();
    let mut response = DescribeClusterResponse::default()
        .with_error_message(None)
        .with_cluster_id(view.cluster_id.into())
        .with_controller_id(view.controller)
        .with_brokers(brokers);
    if request.include_cluster_authorized_operations {
        response.cluster_authorized_operations = crate::cluster_view::CLUSTER_OPERATIONS;
    }
    response
}

pub(crate) async fn status<E: Env>(
    broker: &Broker<E>,
    _context: &RequestContext,
    _request: ClusterStatusRequest,
) -> ClusterStatusResponse {
    let status = broker.node().cluster_status(STATUS_TIMEOUT).await;
    json_response(Ok(status))
}
