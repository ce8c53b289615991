//! Our own GroupTimeline: why a group rebalanced, told by any broker.

use lockstep_core::op::{ExpiryReason, TopicPartitions};
use lockstep_core::view::{self, GroupEvent, GroupEventKind};
use lockstep_core::{Directory, GroupError};
use lockstep_env::Env;
use lockstep_wire::private::{
    self as wire, GroupTimeline, GroupTimelineRequest, GroupTimelineResponse, TimelineEvent, TimelineEventKind,
};

use crate::api::group_admin::{state_name, type_name};
use crate::api::private::{json_response, shard_to_read, up_to_date};
use crate::broker::Broker;
use crate::dispatch::RequestContext;
use crate::error_code::ErrorCode;
use crate::topics;

pub(crate) async fn handle<E: Env>(
    broker: &Broker<E>,
    _context: &RequestContext,
    request: GroupTimelineRequest,
) -> GroupTimelineResponse {
    let outcome = timeline(broker, request.group_id.clone()).await;
    tracing::debug!(group = request.group_id, error = ?outcome.as_ref().err(), "GroupTimeline");
    json_response(outcome)
}

async fn timeline<E: Env>(broker: &Broker<E>, group_id: String) -> Result<GroupTimeline, ErrorCode> {
    let shard = up_to_date(broker, shard_to_read(broker, &group_id)?).await?;
    // Names are looked up in the shard's own directory: at one log position every broker gives the same answer.
    shard.read(|state| {
        let timeline =
            state.group_timeline(&group_id).ok_or_else(|| ErrorCode::of_group(&GroupError::GroupNotFound))?;
        let events = events_of(state.directory(), timeline.events);
        Ok(GroupTimeline {
            group_id: group_id.clone(),
            group_type: type_name(timeline.group_type).to_owned(),
            state: state_name(timeline.state).to_owned(),
            epoch: timeline.epoch,
            rebalance_since_ms: timeline.rebalance_since_ms,
            events,
        })
    })
}

/// An epoch never changes without an event, so that the event before tells which epoch was there.
fn events_of(directory: &Directory, events: Vec<GroupEvent>) -> Vec<TimelineEvent> {
    let mut told: Vec<TimelineEvent> = Vec::with_capacity(events.len());
    for GroupEvent { index, at_ms, epoch, what } in events {
        let epoch_before = match told.last() {
            Some(last) if last.index == index => last.epoch_before,
            Some(last) => Some(last.epoch),
            None => None,
        };
        told.push(TimelineEvent { index, at_ms, epoch_before, epoch, what: kind_of(directory, what) });
    }
    told
}

fn kind_of(directory: &Directory, what: GroupEventKind) -> TimelineEventKind {
    match what {
        GroupEventKind::Joined { member_id, instance_id, client_id, client_host } => {
            TimelineEventKind::Joined { member_id, instance_id, client_id, client_host }
        }
        GroupEventKind::Rejoined { member_id } => TimelineEventKind::Rejoined { member_id },
        GroupEventKind::Replaced { member_id, by } => TimelineEventKind::Replaced { member_id, by },
        GroupEventKind::Away { member_id } => TimelineEventKind::Away { member_id },
        GroupEventKind::Left { member_id } => TimelineEventKind::Left { member_id },
        GroupEventKind::Expired { member_id, reason, silent_ms } => {
            TimelineEventKind::Expired { member_id, reason: reason_name(reason).to_owned(), silent_ms }
        }
        GroupEventKind::Subscribed { member_id } => TimelineEventKind::Subscribed { member_id },
        GroupEventKind::RegexResolved { regex, topics } => TimelineEventKind::RegexResolved { regex, topics },
        GroupEventKind::TopicsChanged => TimelineEventKind::TopicsChanged,
        GroupEventKind::Generation { leader, members } => TimelineEventKind::Generation { leader, members },
        GroupEventKind::Assigned { assignor, moves, omitted } => {
            let moves = moves.into_iter().map(|moved| moved_of(directory, moved)).collect();
            TimelineEventKind::Assigned { assignor, moves, omitted }
        }
        GroupEventKind::Settled { after_ms } => TimelineEventKind::Settled { after_ms },
        GroupEventKind::Migrated { to } => TimelineEventKind::Migrated { to: type_name(to).to_owned() },
    }
}

/// Topics by name, as a reader looks for them; what was deleted comes last.
fn moved_of(directory: &Directory, moved: view::PartitionsMoved) -> wire::PartitionsMoved {
    let topic_of = |topic: TopicPartitions| wire::TopicPartitions {
        topic: directory.topics.get(&topic.topic_id).map(|record| record.name.clone()),
        topic_id: topics::uuid(topic.topic_id).hyphenated().to_string(),
        partitions: topic.partitions,
    };
    let mut topics: Vec<wire::TopicPartitions> = moved.partitions.into_iter().map(topic_of).collect();
    topics.sort_by(|a, b| (a.topic.is_none(), &a.topic, &a.topic_id).cmp(&(b.topic.is_none(), &b.topic, &b.topic_id)));
    wire::PartitionsMoved { from: moved.from, to: moved.to, topics }
}

const fn reason_name(reason: ExpiryReason) -> &'static str {
    match reason {
        ExpiryReason::Session => "session",
        ExpiryReason::Rebalance => "rebalance",
        ExpiryReason::Pending => "pending",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_event_tells_which_epoch_it_found() {
        let event =
            |index: u64, epoch: i32| GroupEvent { index, at_ms: None, epoch, what: GroupEventKind::TopicsChanged };
        let events = vec![event(3, 5), event(4, 6), event(4, 6), event(9, 6), event(12, 7)];
        let told = events_of(&Directory::default(), events);
        let epochs: Vec<_> = told.iter().map(|event| (event.epoch_before, event.epoch)).collect();
        assert_eq!(epochs, [(None, 5), (Some(5), 6), (Some(5), 6), (Some(6), 6), (Some(6), 7)]);
    }
}
