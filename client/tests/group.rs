//! What a member of a group does: assignments, revocations, epochs that move, coordinators that change.

mod fake;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fake::{FakeBroker, Reaction, TOPIC, TOPIC_ID, coordinator, metadata, two_brokers};
use lockstep_client::{
    Client, ClientConfig, ClientError, ErrorCode, GroupConsumer, GroupConsumerConfig, GroupEvent, TopicPartition,
};
use lockstep_env::tokio_env::TokioEnv;
use lockstep_env::{Env, timeout};
use lockstep_wire::codec::consumer_group_heartbeat_response::{Assignment, TopicPartitions};
use lockstep_wire::codec::fetch_response::{FetchableTopicResponse, PartitionData};
use lockstep_wire::codec::list_offsets_response::{ListOffsetsPartitionResponse, ListOffsetsTopicResponse};
use lockstep_wire::codec::offset_commit_response::{OffsetCommitResponsePartition, OffsetCommitResponseTopic};
use lockstep_wire::codec::offset_fetch_response::{
    OffsetFetchResponseGroup, OffsetFetchResponsePartitions, OffsetFetchResponseTopics,
};
use lockstep_wire::codec::{
    ConsumerGroupHeartbeatRequest, ConsumerGroupHeartbeatResponse, FetchResponse, ListOffsetsResponse,
    OffsetCommitResponse, OffsetFetchResponse, StrBytes, TopicName,
};
use lockstep_wire::{BatchBuilder, Compression, Request};

const PARTITIONS: i32 = 4;
const COMMITTED: i64 = 5;
const END: i64 = 10;

/// A pretended coordinator.
struct State {
    ports: Vec<i32>,
    coordinator: i32,
    epoch: i32,
    /// Of every partition; there is nothing more to read from [`END`].
    committed: i64,
    /// Sent with the next heartbeat's answer.
    assignment: Option<Vec<i32>>,
    /// Errors of the next heartbeats and commits, in order.
    heartbeat_errors: Vec<i16>,
    commit_errors: Vec<i16>,
    /// So many heartbeats are not answered.
    unanswered: usize,
    heartbeats: Vec<ConsumerGroupHeartbeatRequest>,
    /// Epoch, partition, offset.
    commits: Vec<(i32, i32, i64)>,
}

type Shared = Arc<Mutex<State>>;

async fn cluster() -> (Shared, Vec<FakeBroker>) {
    let shared = Arc::new(Mutex::new(State {
        ports: Vec::new(),
        coordinator: 1,
        epoch: 1,
        committed: COMMITTED,
        assignment: Some(vec![0, 1]),
        heartbeat_errors: Vec::new(),
        commit_errors: Vec::new(),
        unanswered: 0,
        heartbeats: Vec::new(),
        commits: Vec::new(),
    }));
    let brokers = two_brokers(&shared, react).await;
    shared.lock().expect("no panic").ports = brokers.iter().map(FakeBroker::port).collect();
    (shared, brokers)
}

fn react(state: &mut State, broker: i32, request: Request) -> Reaction {
    match request {
        Request::Metadata(_) => metadata(&state.ports, &[(1, 1); PARTITIONS as usize]).into(),
        Request::FindCoordinator(request) => coordinator(&state.ports, state.coordinator, &request).into(),
        Request::ConsumerGroupHeartbeat(request) => {
            let mut response = ConsumerGroupHeartbeatResponse::default();
            response.heartbeat_interval_ms = 50;
            response.member_epoch = state.epoch;
            if broker != state.coordinator {
                response.error_code = ErrorCode::NotCoordinator.code();
                return response.into();
            }
            state.heartbeats.push(request.clone());
            if state.unanswered > 0 {
                state.unanswered -= 1;
                return Reaction::Silence;
            }
            if !state.heartbeat_errors.is_empty() {
                response.error_code = state.heartbeat_errors.remove(0);
                return response.into();
            }
            if request.member_epoch < 0 {
                response.member_epoch = request.member_epoch;
                return response.into();
            }
            if let Some(partitions) = state.assignment.take() {
                let mut topic = TopicPartitions::default();
                topic.topic_id = TOPIC_ID;
                topic.partitions = partitions;
                let mut assignment = Assignment::default();
                assignment.topic_partitions.push(topic);
                response.assignment = Some(assignment);
            }
            response.into()
        }
        Request::OffsetFetch(request) => {
            let mut group = OffsetFetchResponseGroup::default();
            group.group_id = request.groups[0].group_id.clone();
            let mut topic = OffsetFetchResponseTopics::default();
            topic.name = TopicName(StrBytes::from_static_str(TOPIC));
            for asked in request.groups[0].topics.iter().flatten() {
                for &index in &asked.partition_indexes {
                    let mut partition = OffsetFetchResponsePartitions::default();
                    partition.partition_index = index;
                    partition.committed_offset = state.committed;
                    topic.partitions.push(partition);
                }
            }
            group.topics.push(topic);
            let mut response = OffsetFetchResponse::default();
            response.groups.push(group);
            response.into()
        }
        Request::OffsetCommit(request) => {
            let code = if state.commit_errors.is_empty() { 0 } else { state.commit_errors.remove(0) };
            let mut response = OffsetCommitResponse::default();
            for asked in &request.topics {
                let mut topic = OffsetCommitResponseTopic::default();
                topic.name = asked.name.clone();
                for partition in &asked.partitions {
                    if code == 0 {
                        let epoch = request.generation_id_or_member_epoch;
                        state.commits.push((epoch, partition.partition_index, partition.committed_offset));
                    }
                    let mut row = OffsetCommitResponsePartition::default();
                    row.partition_index = partition.partition_index;
                    row.error_code = code;
                    topic.partitions.push(row);
                }
                response.topics.push(topic);
            }
            response.into()
        }
        Request::ListOffsets(request) => {
            let mut response = ListOffsetsResponse::default();
            for asked in &request.topics {
                let mut topic = ListOffsetsTopicResponse::default();
                topic.name = asked.name.clone();
                for partition in &asked.partitions {
                    let mut row = ListOffsetsPartitionResponse::default();
                    row.partition_index = partition.partition_index;
                    row.offset = 0;
                    topic.partitions.push(row);
                }
                response.topics.push(topic);
            }
            response.into()
        }
        // Ten messages in each partition.
        Request::Fetch(request) => {
            let mut response = FetchResponse::default();
            for asked in &request.topics {
                let mut topic = FetchableTopicResponse::default();
                topic.topic_id = asked.topic_id;
                for partition in &asked.partitions {
                    let mut row = PartitionData::default();
                    row.partition_index = partition.partition;
                    if partition.fetch_offset < END {
                        let mut builder = BatchBuilder::new();
                        for number in 0..END {
                            builder.push(number, None, Some(number.to_string().as_bytes()), &[]);
                        }
                        row.records = Some(builder.finish(Compression::None, None).expect("builds"));
                    }
                    topic.partitions.push(row);
                }
                response.responses.push(topic);
            }
            response.into()
        }
        other => panic!("nobody asked for {other:?}"),
    }
}

async fn consumer(brokers: &[FakeBroker], adapt: impl FnOnce(&mut GroupConsumerConfig)) -> GroupConsumer {
    let addresses: Vec<_> = brokers.iter().map(|broker| broker.address.clone()).collect();
    let mut config = ClientConfig::for_brokers(&addresses.join(","));
    config.timeout = Duration::from_secs(20);
    let client = Client::connect(TokioEnv::new(), config).await.expect("connects");
    let mut config = GroupConsumerConfig::new("g", "me", vec![TOPIC.to_owned()]);
    config.fetch.wait_max = Duration::from_millis(20);
    adapt(&mut config);
    GroupConsumer::new(&client, config).expect("a good configuration")
}

fn at(partition: i32) -> TopicPartition {
    TopicPartition::new(TOPIC, partition)
}

/// Waits until `condition` holds; a test that waits longer than this has failed.
async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let waiting = async {
        while !condition() {
            TokioEnv::sleep(Duration::from_millis(5)).await;
        }
    };
    if timeout::<TokioEnv, _>(Duration::from_secs(20), waiting).await.is_err() {
        panic!("never: {what}");
    }
}

fn reported(heartbeat: &ConsumerGroupHeartbeatRequest) -> Option<BTreeSet<i32>> {
    let topics = heartbeat.topic_partitions.as_ref()?;
    Some(topics.iter().flat_map(|topic| topic.partitions.iter().copied()).collect())
}

#[tokio::test]
async fn a_member_reads_on_from_the_committed_offset_and_commits_with_its_epoch() {
    let (state, brokers) = cluster().await;
    let consumer = consumer(&brokers, |_| {}).await;
    consumer.join_group().await.expect("joins");
    assert_eq!(consumer.member_epoch(), 1);
    assert!(consumer.member_id().starts_with("me-"));
    consumer.start_heartbeat().await.expect("runs");
    let mut messages = consumer.subscribe().await.expect("subscribes");
    let mut seen = Vec::new();
    for _ in 0..10 {
        let message = messages.next().await.expect("a message");
        seen.push((message.partition, message.offset));
    }
    seen.sort_unstable();
    assert_eq!(seen, (0..2).flat_map(|partition| (5..10).map(move |offset| (partition, offset))).collect::<Vec<_>>());
    assert_eq!(consumer.assignment(), [at(0), at(1)]);
    consumer.commit_offset(TOPIC, 1, 10).await.expect("commits");
    assert_eq!(state.lock().expect("no panic").commits, [(1, 1, 10)]);
    assert_eq!(consumer.fetch_committed_offset(TOPIC, 0).await.expect("fetched"), Some(COMMITTED));

    let first = state.lock().expect("no panic").heartbeats[0].clone();
    assert_eq!((first.member_epoch, reported(&first)), (0, Some(BTreeSet::new())));
    assert!(first.rebalance_timeout_ms > 0 && first.subscribed_topic_names.is_some());

    consumer.leave_group().await.expect("leaves");
    assert_eq!(state.lock().expect("no panic").heartbeats.last().map(|last| last.member_epoch), Some(-1));
    assert_eq!(consumer.assignment(), []);
}

#[tokio::test]
async fn a_revoked_partition_is_reported_only_after_the_caller_was_told_and_came_back() {
    let (state, brokers) = cluster().await;
    let consumer = consumer(&brokers, |_| {}).await;
    let mut messages = consumer.subscribe().await.expect("joins");
    // Messages of both are in the caller's hands.
    let mut partitions = BTreeSet::new();
    while partitions.len() < 2 {
        let polled = messages.poll(Duration::from_secs(5)).await.expect("polled");
        partitions.extend(polled.messages.iter().map(|message| message.partition));
    }
    {
        let mut state = state.lock().expect("no panic");
        state.epoch = 2;
        state.assignment = Some(vec![1, 3]);
    }
    eventually("the new assignment is noticed", || consumer.assignment() == [at(1)]).await;
    let heartbeats_then = state.lock().expect("no panic").heartbeats.len();
    eventually("more heartbeats", || state.lock().expect("no panic").heartbeats.len() > heartbeats_then + 3).await;
    let is_given_up =
        |state: &State| state.heartbeats.iter().filter_map(reported).any(|owned| owned == BTreeSet::from([1, 3]));
    assert!(!is_given_up(&state.lock().expect("no panic")), "the caller may still work on partition 0");

    let polled = messages.poll(Duration::from_secs(5)).await.expect("polled");
    assert_eq!(polled.events, [GroupEvent::Revoked(vec![at(0)])]);
    assert!(!is_given_up(&state.lock().expect("no panic")), "the caller has just been told");
    consumer.commit_offset(TOPIC, 0, 10).await.expect("what was done is committed");

    messages.poll(Duration::from_millis(1)).await.expect("polled");
    eventually("the revocation is acknowledged", || is_given_up(&state.lock().expect("no panic"))).await;
    eventually("the other one is read", || consumer.assignment() == [at(1), at(3)]).await;
    let error = consumer.commit_offset(TOPIC, 0, 10).await.expect_err("no longer its own");
    assert!(matches!(error, ClientError::InvalidArgument(_)), "{error}");
}

#[tokio::test]
async fn a_partition_that_the_caller_has_seen_nothing_of_goes_at_once() {
    let (state, brokers) = cluster().await;
    let consumer = consumer(&brokers, |_| {}).await;
    consumer.start_heartbeat().await.expect("joins");
    eventually("assigned", || consumer.assignment() == [at(0), at(1)]).await;
    state.lock().expect("no panic").assignment = Some(vec![2]);
    eventually("handed over without a poll", || {
        state.lock().expect("no panic").heartbeats.iter().filter_map(reported).any(|owned| owned == BTreeSet::from([2]))
    })
    .await;
}

#[tokio::test]
async fn a_partition_that_the_caller_was_told_of_stays_until_it_is_told_otherwise() {
    let (state, brokers) = cluster().await;
    state.lock().expect("no panic").committed = END;
    let consumer = consumer(&brokers, |_| {}).await;
    let mut messages = consumer.subscribe().await.expect("joins");
    let polled = messages.poll(Duration::from_secs(5)).await.expect("polled");
    assert_eq!((polled.events, polled.messages), (vec![GroupEvent::Assigned(vec![at(0), at(1)])], Vec::new()));
    state.lock().expect("no panic").assignment = Some(vec![1]);
    eventually("the new assignment is noticed", || consumer.assignment() == [at(1)]).await;
    let heartbeats_then = state.lock().expect("no panic").heartbeats.len();
    eventually("more heartbeats", || state.lock().expect("no panic").heartbeats.len() > heartbeats_then + 3).await;
    let is_given_up =
        |state: &State| state.heartbeats.iter().filter_map(reported).any(|owned| owned == BTreeSet::from([1]));
    assert!(!is_given_up(&state.lock().expect("no panic")), "the caller takes partition 0 for its own");

    let polled = messages.poll(Duration::from_secs(5)).await.expect("polled");
    assert_eq!(polled.events, [GroupEvent::Revoked(vec![at(0)])]);
    messages.poll(Duration::from_millis(1)).await.expect("polled");
    eventually("the revocation is acknowledged", || is_given_up(&state.lock().expect("no panic"))).await;
}

#[tokio::test]
async fn a_fenced_member_loses_its_partitions_and_joins_anew() {
    let (state, brokers) = cluster().await;
    let consumer = consumer(&brokers, |_| {}).await;
    let mut messages = consumer.subscribe().await.expect("joins");
    messages.next().await.expect("a message");
    {
        let mut state = state.lock().expect("no panic");
        state.heartbeat_errors = vec![ErrorCode::FencedMemberEpoch.code()];
        state.epoch = 7;
        state.assignment = Some(vec![3]);
    }
    let mut events = Vec::new();
    while !events.contains(&GroupEvent::Assigned(vec![at(3)])) {
        events.extend(messages.poll(Duration::from_secs(5)).await.expect("polled").events);
    }
    let lost = events.iter().position(|event| *event == GroupEvent::Lost(vec![at(0), at(1)]));
    assert!(lost.is_some(), "{events:?}");
    assert_eq!(consumer.member_epoch(), 7);
    let epochs: Vec<_> =
        state.lock().expect("no panic").heartbeats.iter().map(|heartbeat| heartbeat.member_epoch).collect();
    assert_eq!(epochs.iter().filter(|&&epoch| epoch == 0).count(), 2, "{epochs:?}");
}

/// Another member may have had it in between, and gone further.
#[tokio::test]
async fn what_was_read_before_a_partition_was_lost_is_not_committed_after_it_was_won_again() {
    let (state, brokers) = cluster().await;
    let consumer = consumer(&brokers, |_| {}).await;
    let mut messages = consumer.subscribe().await.expect("joins");
    let read = messages.next().await.expect("a message");
    {
        let mut state = state.lock().expect("no panic");
        state.heartbeat_errors = vec![ErrorCode::FencedMemberEpoch.code()];
        state.epoch = 7;
        state.assignment = Some(vec![0, 1]);
    }
    eventually("it has its partitions again", || consumer.member_epoch() == 7 && consumer.assignment().len() == 2)
        .await;
    let refused = consumer.commit_offset(TOPIC, read.partition, read.offset + 1).await;
    assert!(matches!(refused, Err(ClientError::InvalidArgument(_))), "{refused:?}");
    assert!(state.lock().expect("no panic").commits.is_empty());
    // Once the caller knows, what it reads from then on can be committed.
    let mut events = Vec::new();
    while !events.iter().any(|event| matches!(event, GroupEvent::Lost(_))) {
        events.extend(messages.poll(Duration::from_secs(5)).await.expect("polled").events);
    }
    consumer.commit_offset(TOPIC, read.partition, read.offset + 1).await.expect("commits");
}

/// It would commit what it read before, and may do so with the epoch of the time after.
#[tokio::test]
async fn nobody_is_asked_to_give_up_what_was_lost_meanwhile() {
    let (state, brokers) = cluster().await;
    let consumer = consumer(&brokers, |_| {}).await;
    let mut messages = consumer.subscribe().await.expect("joins");
    messages.next().await.expect("a message");
    state.lock().expect("no panic").assignment = Some(vec![0]);
    eventually("one is to be given up", || consumer.assignment() == [at(0)]).await;
    {
        let mut state = state.lock().expect("no panic");
        state.heartbeat_errors = vec![ErrorCode::FencedMemberEpoch.code()];
        state.epoch = 7;
        state.assignment = Some(vec![0, 1]);
    }
    eventually("it has its partitions again", || consumer.member_epoch() == 7 && consumer.assignment().len() == 2)
        .await;
    let mut events = Vec::new();
    while !events.iter().any(|event| matches!(event, GroupEvent::Lost(_))) {
        events.extend(messages.poll(Duration::from_secs(5)).await.expect("polled").events);
    }
    let asked = events.iter().any(|event| matches!(event, GroupEvent::Revoked(_)));
    assert!(!asked && events.contains(&GroupEvent::Lost(vec![at(0), at(1)])), "{events:?}");
}

#[tokio::test]
async fn a_commit_with_a_stale_epoch_is_repeated_with_the_new_one() {
    let (state, brokers) = cluster().await;
    let consumer = consumer(&brokers, |_| {}).await;
    let mut messages = consumer.subscribe().await.expect("joins");
    messages.next().await.expect("a message");
    {
        let mut state = state.lock().expect("no panic");
        state.epoch = 2;
        state.commit_errors = vec![ErrorCode::StaleMemberEpoch.code()];
    }
    consumer.commit_offset(TOPIC, 0, 6).await.expect("commits in the end");
    let commits = state.lock().expect("no panic").commits.clone();
    assert_eq!(commits.len(), 1);
    assert_eq!((commits[0].1, commits[0].2), (0, 6));
}

#[tokio::test]
async fn the_group_moves_to_another_coordinator_without_the_caller_noticing() {
    let (state, brokers) = cluster().await;
    let consumer = consumer(&brokers, |_| {}).await;
    let mut messages = consumer.subscribe().await.expect("joins");
    messages.next().await.expect("a message");
    let heartbeats_before = {
        let mut state = state.lock().expect("no panic");
        state.coordinator = 2;
        state.heartbeats.len()
    };
    eventually("heartbeats at the new one", || {
        state.lock().expect("no panic").heartbeats.len() > heartbeats_before + 1
    })
    .await;
    assert_eq!(consumer.member_epoch(), 1);
    // The first one there says everything, since it is unknown what the former coordinator had heard.
    let first = state.lock().expect("no panic").heartbeats[heartbeats_before].clone();
    assert_eq!(reported(&first), Some(BTreeSet::from([0, 1])));
    assert!(first.subscribed_topic_names.is_some());
    consumer.commit_offset(TOPIC, 0, 9).await.expect("commits there");
    assert_eq!(consumer.assignment(), [at(0), at(1)]);
}

#[tokio::test]
async fn a_coordinator_that_falls_silent_is_asked_again_and_told_everything() {
    let (state, brokers) = cluster().await;
    let consumer = consumer(&brokers, |config| config.session_timeout = Duration::from_secs(9)).await;
    let mut messages = consumer.subscribe().await.expect("joins");
    messages.next().await.expect("a message");
    let heartbeats_before = {
        let mut state = state.lock().expect("no panic");
        state.unanswered = 1;
        state.heartbeats.len()
    };
    eventually("heartbeats go on", || state.lock().expect("no panic").heartbeats.len() > heartbeats_before + 2).await;
    let again = state.lock().expect("no panic").heartbeats[heartbeats_before + 1].clone();
    assert_eq!((again.member_epoch, reported(&again)), (1, Some(BTreeSet::from([0, 1]))));
    assert!(again.subscribed_topic_names.is_some());
    assert_eq!(consumer.assignment(), [at(0), at(1)]);
}

#[tokio::test]
async fn without_contact_for_a_session_nothing_more_is_handed_out() {
    let (state, mut brokers) = cluster().await;
    let consumer = consumer(&brokers, |config| config.session_timeout = Duration::from_secs(3)).await;
    let mut messages = consumer.subscribe().await.expect("joins");
    messages.next().await.expect("a message");
    state.lock().expect("no panic").coordinator = 2;
    drop(brokers.remove(1));
    let mut events = Vec::new();
    let waiting = async {
        while events.is_empty() {
            events = messages.poll(Duration::from_secs(5)).await.expect("polled").events;
            events.retain(|event| matches!(event, GroupEvent::Lost(_)));
        }
    };
    timeout::<TokioEnv, _>(Duration::from_secs(30), waiting).await.expect("it is told in the end");
    assert_eq!(events, [GroupEvent::Lost(vec![at(0), at(1)])]);
    assert_eq!(consumer.assignment(), []);
    assert!(consumer.commit_offset(TOPIC, 0, 9).await.is_err(), "it may belong to another by now");
}

#[tokio::test]
async fn an_error_that_waiting_does_not_mend_is_told() {
    let (state, brokers) = cluster().await;
    let consumer = consumer(&brokers, |_| {}).await;
    state.lock().expect("no panic").heartbeat_errors = vec![ErrorCode::GroupMaxSizeReached.code()];
    let error = consumer.join_group().await.expect_err("full");
    assert_eq!(error.code(), Some(ErrorCode::GroupMaxSizeReached));
    let mut messages = consumer.subscribe().await.expect("joins now");
    messages.next().await.expect("a message");
    state.lock().expect("no panic").heartbeat_errors = vec![ErrorCode::GroupAuthorizationFailed.code()];
    let waiting = async {
        loop {
            if let Err(error) = messages.poll(Duration::from_secs(5)).await {
                break error;
            }
        }
    };
    let error = timeout::<TokioEnv, _>(Duration::from_secs(30), waiting).await.expect("it is told in the end");
    assert_eq!(error.code(), Some(ErrorCode::GroupAuthorizationFailed));
}
