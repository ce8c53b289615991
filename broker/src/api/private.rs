//! What the answers to all requests of our own have in common.

use std::time::Duration;

use lockstep_core::{ShardId, shard_of_group};
use lockstep_env::Env;
use lockstep_runtime::Shard;
use lockstep_wire::private::JsonResponse;
use serde::Serialize;

use crate::broker::Broker;
use crate::error_code::ErrorCode;

/// How long a leader with a majority may be looked for. A broker that was cut off waits so long for the others, and then says
/// that it does not know.
pub(crate) const READ_TIMEOUT: Duration = Duration::from_secs(2);

/// An answer as JSON, or a refusal.
pub(crate) fn json_response<R>(outcome: Result<impl Serialize, ErrorCode>) -> JsonResponse<R> {
    match outcome.map(|answer| serde_json::to_vec(&answer)) {
        Ok(Ok(json)) => JsonResponse::new(json),
        Ok(Err(error)) => {
            tracing::error!(%error, "an answer cannot be written as JSON");
            JsonResponse::refused(ErrorCode::UnknownServerError.code())
        }
        Err(error) => JsonResponse::refused(error.code()),
    }
}

/// The shard that a group is in, which has a copy here. Any id may be that of a group: one is made under the empty id by commits of
/// those that are no members, as in Kafka.
pub(crate) fn shard_to_read<E: Env>(broker: &Broker<E>, group_id: &str) -> Result<ShardId, ErrorCode> {
    let id = shard_of_group(group_id, broker.node().shard_count());
    if broker.node().shard(id).is_some() { Ok(id) } else { Err(ErrorCode::NotCoordinator) }
}

/// This broker's copy of a shard, after it has applied everything that was committed before the call. Works on any broker that
/// has a copy: nothing that it tells is older than the question.
pub(crate) async fn up_to_date<E: Env>(broker: &Broker<E>, id: ShardId) -> Result<Shard<E>, ErrorCode> {
    broker.node().linearizable(id, READ_TIMEOUT).await.map_err(|error| {
        tracing::info!(shard = %id, %error, "a read of groups or partitions is refused");
        ErrorCode::of_group_read(&error)
    })?;
    broker.node().shard(id).ok_or(ErrorCode::NotCoordinator)
}
