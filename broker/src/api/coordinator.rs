//! FindCoordinator: which broker coordinates a group or transactional id. Both are the leader of the shard of the id.

use lockstep_core::shard_of_group;
use lockstep_env::Env;
use lockstep_wire::codec::find_coordinator_response::Coordinator;
use lockstep_wire::codec::{FindCoordinatorRequest, FindCoordinatorResponse, StrBytes};

use crate::broker::Broker;
use crate::cluster_view::{NO_BROKER, broker_id, shard_leader};
use crate::dispatch::RequestContext;
use crate::error_code::ErrorCode;

/// Kinds of keys (version 1 and later; before that all are groups).
const KEY_TYPE_GROUP: i8 = 0;
const KEY_TYPE_TRANSACTION: i8 = 1;

pub(crate) async fn handle<E: Env>(
    broker: &Broker<E>,
    context: &RequestContext,
    request: FindCoordinatorRequest,
) -> FindCoordinatorResponse {
    let version = context.api_version;
    let key_type = if version == 0 { KEY_TYPE_GROUP } else { request.key_type };
    if version >= 4 {
        let coordinators = request.coordinator_keys.into_iter().map(|key| find(broker, key_type, key)).collect();
        return FindCoordinatorResponse::default()
            .with_error_message(Some(StrBytes::default()))
            .with_coordinators(coordinators);
    }
    let found = find(broker, key_type, request.key);
    FindCoordinatorResponse::default()
        .with_error_code(found.error_code)
        .with_error_message(if version == 0 { Some(StrBytes::default()) } else { found.error_message })
        .with_node_id(found.node_id)
        .with_host(found.host)
        .with_port(found.port)
}

fn find<E: Env>(broker: &Broker<E>, key_type: i8, key: StrBytes) -> Coordinator {
    let nobody = |key: StrBytes, error: ErrorCode, message: &'static str| {
        Coordinator::default()
            .with_key(key)
            .with_node_id(NO_BROKER)
            .with_port(-1)
            .with_error_code(error.code())
            .with_error_message(Some(StrBytes::from_static_str(message)))
    };
    if key_type != KEY_TYPE_GROUP && key_type != KEY_TYPE_TRANSACTION {
        return nobody(key, ErrorCode::InvalidRequest, "This kind of coordinator is not offered by this cluster.");
    }
    let shard = shard_of_group(&key, broker.node().shard_count());
    let leader = shard_leader(broker, shard).filter(|(leader, _)| broker.node().takes_clients(*leader));
    let record =
        leader.and_then(|(leader, _)| broker.node().directory(|directory| directory.brokers.get(&leader).cloned()));
    match record {
        Some(record) => Coordinator::default()
            .with_key(key)
            .with_node_id(broker_id(record.id))
            .with_host(record.host.into())
            .with_port(i32::from(record.port))
            .with_error_message(None),
        None => {
            tracing::debug!(key = &*key, %shard, "no coordinator is known");
            nobody(key, ErrorCode::CoordinatorNotAvailable, ErrorCode::CoordinatorNotAvailable.message())
        }
    }
}
