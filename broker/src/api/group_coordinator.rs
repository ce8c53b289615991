//! What every group request begins with: is this broker the group's coordinator? And what it says when it is not.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use lockstep_core::{ClusterStateMachine, GroupError, Op, Reply, ShardId, shard_of_group};
use lockstep_env::{Env, timeout};
use lockstep_probe::{Mark, Mistake};
use lockstep_runtime::{ProposeError, Shard};

use crate::broker::Broker;
use crate::error_code::{ErrorCode, NOT_COORDINATOR_MESSAGE};

/// An op of a group carries at most so many bytes of what clients wrote, so that it fits a frame between nodes.
pub(crate) const OP_BYTES_MAX: usize = 4 << 20;
/// Whoever waits for a group looks again after this time at the latest: that a lease ran out is no change of the group.
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(500);
/// Between two looks lies at least the first of these times, and longer, up to the second, the busier the group is.
const LOOK_PAUSE_MIN: Duration = Duration::from_millis(1);
const LOOK_PAUSE_MAX: Duration = Duration::from_millis(50);

/// Everyone may read, describe and delete groups and read and change their configuration: there are no access rules. Bits
/// are Kafka's `AclOperation` codes.
pub(crate) const GROUP_OPERATIONS: i32 = 1 << 3 | 1 << 6 | 1 << 8 | 1 << 10 | 1 << 11;

/// A group request that was refused, with a sentence for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refused {
    pub(crate) error: ErrorCode,
    pub(crate) message: Cow<'static, str>,
}

impl From<ErrorCode> for Refused {
    fn from(error: ErrorCode) -> Self {
        Self { error, message: error.message().into() }
    }
}

impl From<GroupError> for Refused {
    fn from(error: GroupError) -> Self {
        let code = ErrorCode::of_group(&error);
        match error {
            GroupError::InvalidRequest(text) => Self { error: code, message: text.into() },
            GroupError::UnsupportedRegularExpression => Self {
                error: code,
                message: "subscription by regular expression is not supported; subscribe to topics by name".into(),
            },
            _ => code.into(),
        }
    }
}

impl From<ProposeError> for Refused {
    fn from(error: ProposeError) -> Self {
        let code = ErrorCode::of_coordinator(&error);
        let message = match error {
            ProposeError::NotLeader { .. } => NOT_COORDINATOR_MESSAGE.into(),
            other => other.to_string().into(),
        };
        Self { error: code, message }
    }
}

/// What a request names, each thing once: an answer must not be larger than what there is to tell, however often a client asks.
pub(crate) fn each_once<T: Ord + Clone>(named: Vec<T>) -> Vec<T> {
    let mut seen = BTreeSet::new();
    named.into_iter().filter(|one| seen.insert(one.clone())).collect()
}

/// The shard of a group, if this broker coordinates it now. `request` is the request's name, for the log.
pub(crate) fn coordinated<E: Env>(
    broker: &Broker<E>,
    request: &'static str,
    group_id: &str,
) -> Result<Shard<E>, Refused> {
    let id = shard_of_group(group_id, broker.node().shard_count());
    let careless = Mistake::HeartbeatAnsweredByFormerCoordinator.is_made() && request.ends_with("Heartbeat")
        || Mistake::OffsetsFetchedFromFormerCoordinator.is_made() && request == "OffsetFetch";
    let serving = match broker.node().shard(id) {
        Some(shard) if careless => Ok(shard),
        Some(shard) => shard.serving().map(|_| shard),
        None => Err(not_led_here(broker, id)),
    };
    serving.map_err(|error| refusal(request, group_id, error))
}

fn not_led_here<E: Env>(broker: &Broker<E>, shard: ShardId) -> ProposeError {
    ProposeError::NotLeader { shard, leader: broker.node().leader_of(shard).map(|(leader, _)| leader) }
}

/// Logs why a request is refused on account of leadership.
fn refusal(request: &'static str, group_id: &str, error: ProposeError) -> Refused {
    match &error {
        ProposeError::NotLeader { .. } => Mark::NotCoordinatorAnswered.reached(),
        ProposeError::Loading(_) => Mark::CoordinatorLoadingAnswered.reached(),
        ProposeError::Unknown(_) => Mark::GroupOutcomeUnknown.reached(),
        _ => {}
    }
    if let ProposeError::NotLeader { shard, leader } = &error {
        tracing::info!(request, group = group_id, %shard, leader, "{NOT_COORDINATOR_MESSAGE}");
    } else {
        tracing::info!(request, group = group_id, %error, "group request refused, to be retried");
    }
    error.into()
}

/// Proposes an op of a group, by the call itself; what is returned waits for the reply.
pub(crate) fn propose<E: Env>(
    shard: &Shard<E>,
    request: &'static str,
    group_id: &str,
    op: Op,
) -> impl Future<Output = Result<Reply, Refused>> + Send + 'static + use<E> {
    let proposed = shard.propose(op, Bytes::new());
    let group_id = group_id.to_owned();
    async move { proposed.await.map_err(|error| refusal(request, &group_id, error)) }
}

/// A reply that does not belong to its op: a mistake of ours.
pub(crate) fn wrong_reply(request: &'static str, group_id: &str, reply: &Reply) -> Refused {
    tracing::error!(request, group = group_id, ?reply, "a reply of another kind");
    ErrorCode::UnknownServerError.into()
}

/// Waits until `look` finds an answer in the state of the group, for as long as this broker coordinates it.
pub(crate) async fn wait_for_group<E: Env, T>(
    shard: &Shard<E>,
    request: &'static str,
    group_id: &str,
    look: impl Fn(&ClusterStateMachine) -> Option<T>,
) -> Result<T, Refused> {
    let mut waiter = shard.watch_group(group_id);
    let mut pause = LOOK_PAUSE_MIN;
    loop {
        shard.serving().map_err(|error| refusal(request, group_id, error))?;
        if let Some(answer) = shard.read(&look) {
            return Ok(answer);
        }
        let looked = E::now();
        // Elapsed or changed: either way it looks again, but not each time when thousands of members join at once, each of
        // which changes the group for all that wait.
        let _ = timeout::<E, _>(LOOK_AGAIN_AFTER, waiter.changed()).await;
        let since = E::now().saturating_duration_since(looked);
        if since < pause {
            E::sleep(pause.saturating_sub(since)).await;
            pause = (pause * 2).min(LOOK_PAUSE_MAX);
        } else {
            pause = LOOK_PAUSE_MIN;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broker_that_does_not_coordinate_says_who_can() {
        let refused = Refused::from(ProposeError::NotLeader { shard: ShardId(1), leader: None });
        assert_eq!(refused.error, ErrorCode::NotCoordinator);
        assert_eq!(refused.message, "only leader can handle consumer group operations");
    }

    #[test]
    fn what_is_named_twice_is_told_once() {
        assert_eq!(each_once(vec!["b", "a", "b", "c", "a"]), ["b", "a", "c"]);
    }

    #[test]
    fn an_unknown_outcome_is_retriable() {
        for (error, code) in [
            (ProposeError::Unknown("leadership lost".to_owned()), ErrorCode::CoordinatorNotAvailable),
            (ProposeError::Loading(ShardId(1)), ErrorCode::CoordinatorLoadInProgress),
            (ProposeError::Stopped(ShardId(1)), ErrorCode::CoordinatorNotAvailable),
        ] {
            assert_eq!(Refused::from(error).error, code);
        }
    }

    #[test]
    fn what_is_wrong_with_a_request_is_said() {
        let refused = Refused::from(GroupError::InvalidRequest("the member id must not be empty".to_owned()));
        assert_eq!((refused.error, &*refused.message), (ErrorCode::InvalidRequest, "the member id must not be empty"));
        let refused = Refused::from(GroupError::UnsupportedRegularExpression);
        assert_eq!(refused.error, ErrorCode::UnsupportedVersion);
        assert!(refused.message.contains("regular expression"));
    }
}
