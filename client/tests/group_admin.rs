//! What an administrator does with groups: brokers that keep no copy, brokers that are not Lockstep's, and resets.

mod fake;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fake::{FakeBroker, Reaction, TOPIC, coordinator, metadata, two_brokers};
use lockstep_client::{
    Admin, Client, ClientConfig, ClientError, ErrorCode, ExportedOffset, GroupExport, ResetTo, TimelineEventKind,
    TopicSelection,
};
use lockstep_env::tokio_env::TokioEnv;
use lockstep_wire::Request;
use lockstep_wire::codec::consumer_group_describe_response::{DescribedGroup, Member};
use lockstep_wire::codec::list_groups_response::ListedGroup;
use lockstep_wire::codec::list_offsets_response::{ListOffsetsPartitionResponse, ListOffsetsTopicResponse};
use lockstep_wire::codec::offset_commit_response::{OffsetCommitResponsePartition, OffsetCommitResponseTopic};
use lockstep_wire::codec::offset_fetch_response::{
    OffsetFetchResponseGroup, OffsetFetchResponsePartitions, OffsetFetchResponseTopics,
};
use lockstep_wire::codec::{
    ConsumerGroupDescribeResponse, DescribeGroupsResponse, GroupId, ListGroupsResponse, ListOffsetsResponse,
    OffsetCommitResponse, OffsetFetchResponse, StrBytes, TopicName, describe_groups_response,
};
use lockstep_wire::private::{GroupLag, GroupLagResponse, GroupTimelineResponse};

const GROUP: &str = "g";
const PARTITIONS: i32 = 3;
/// What every partition holds.
const START: i64 = 10;
const END: i64 = 100;
/// The first record at or after time t has the offset t, as far as there is one.
const TIME_OF_NOTHING: i64 = 1_000;

/// What the pretended cluster is like.
#[derive(Default)]
struct State {
    ports: Vec<i32>,
    exists: bool,
    has_members: bool,
    /// By partition, with metadata.
    committed: BTreeMap<i32, (i64, String)>,
    /// Commits are refused, as by a group that has just got a member.
    commits_refused: bool,
    /// Brokers that answer our own requests with this.
    answers: BTreeMap<i32, (GroupTimelineResponse, GroupLagResponse)>,
    /// Groups that brokers list.
    listed: BTreeMap<i32, Vec<&'static str>>,
}

type Shared = Arc<Mutex<State>>;

async fn cluster(state: State) -> (Shared, Vec<FakeBroker>) {
    let shared = Arc::new(Mutex::new(state));
    let brokers = two_brokers(&shared, react).await;
    shared.lock().expect("no panic").ports = brokers.iter().map(FakeBroker::port).collect();
    (shared, brokers)
}

fn react(state: &mut State, broker: i32, request: Request) -> Reaction {
    match request {
        Request::Metadata(_) => metadata(&state.ports, &[(1, 1); PARTITIONS as usize]).into(),
        Request::FindCoordinator(request) => coordinator(&state.ports, 1, &request).into(),
        Request::ConsumerGroupDescribe(request) => {
            let mut group = DescribedGroup::default();
            group.group_id = request.group_ids[0].clone();
            group.group_state = StrBytes::from_static_str(if state.has_members { "Stable" } else { "Empty" });
            if !state.exists {
                group.error_code = ErrorCode::GroupIdNotFound.code();
            }
            if state.has_members {
                group.members.push(Member::default());
            }
            let mut response = ConsumerGroupDescribeResponse::default();
            response.groups.push(group);
            response.into()
        }
        Request::DescribeGroups(_) => {
            let mut group = describe_groups_response::DescribedGroup::default();
            group.error_code = ErrorCode::GroupIdNotFound.code();
            let mut response = DescribeGroupsResponse::default();
            response.groups.push(group);
            response.into()
        }
        Request::OffsetFetch(request) => {
            let mut group = OffsetFetchResponseGroup::default();
            group.group_id = request.groups[0].group_id.clone();
            let mut topic = OffsetFetchResponseTopics::default();
            topic.name = TopicName(StrBytes::from_static_str(TOPIC));
            for (index, (offset, metadata)) in &state.committed {
                let mut partition = OffsetFetchResponsePartitions::default();
                partition.partition_index = *index;
                partition.committed_offset = *offset;
                partition.metadata = Some(StrBytes::from_string(metadata.clone()));
                topic.partitions.push(partition);
            }
            group.topics.push(topic);
            let mut response = OffsetFetchResponse::default();
            response.groups.push(group);
            response.into()
        }
        Request::OffsetCommit(request) => {
            assert_eq!((request.member_id.as_str(), request.generation_id_or_member_epoch), ("", -1));
            let mut topic = OffsetCommitResponseTopic::default();
            topic.name = request.topics[0].name.clone();
            for asked in &request.topics[0].partitions {
                let mut partition = OffsetCommitResponsePartition::default();
                partition.partition_index = asked.partition_index;
                if state.commits_refused {
                    partition.error_code = ErrorCode::UnknownMemberId.code();
                } else {
                    let metadata = asked.committed_metadata.as_ref().map(ToString::to_string).unwrap_or_default();
                    state.committed.insert(asked.partition_index, (asked.committed_offset, metadata));
                }
                topic.partitions.push(partition);
            }
            let mut response = OffsetCommitResponse::default();
            response.topics.push(topic);
            response.into()
        }
        Request::ListOffsets(request) => {
            let mut response = ListOffsetsResponse::default();
            let mut topic = ListOffsetsTopicResponse::default();
            topic.name = request.topics[0].name.clone();
            for asked in &request.topics[0].partitions {
                let mut partition = ListOffsetsPartitionResponse::default();
                partition.partition_index = asked.partition_index;
                partition.offset = match asked.timestamp {
                    -2 => START,
                    -1 => END,
                    TIME_OF_NOTHING.. => -1,
                    time => time,
                };
                topic.partitions.push(partition);
            }
            response.topics.push(topic);
            response.into()
        }
        Request::GroupTimeline(_) => match state.answers.get(&broker) {
            Some((timeline, _)) => timeline.clone().into(),
            None => Reaction::Close,
        },
        Request::GroupLag(request) => match state.answers.get(&broker) {
            Some((_, lag)) if lag.error_code == 0 => {
                let mut lags: Vec<GroupLag> = serde_json::from_slice(&lag.json).expect("lags");
                lags.retain(|lag| request.groups.contains(&lag.group_id));
                GroupLagResponse::new(serde_json::to_vec(&lags).expect("JSON")).into()
            }
            Some((_, lag)) => lag.clone().into(),
            None => Reaction::Close,
        },
        Request::ListGroups(_) => {
            let mut response = ListGroupsResponse::default();
            for group_id in state.listed.get(&broker).into_iter().flatten() {
                let mut group = ListedGroup::default();
                group.group_id = GroupId(StrBytes::from_static_str(group_id));
                response.groups.push(group);
            }
            response.into()
        }
        other => panic!("not expected: {other:?}"),
    }
}

async fn admin(brokers: &[FakeBroker]) -> Admin {
    let mut config = ClientConfig::for_brokers(&brokers[0].address);
    config.timeout = Duration::from_secs(10);
    Admin::new(&Client::connect(TokioEnv::new(), config).await.expect("connected"))
}

fn committed(offsets: &[(i32, i64)]) -> BTreeMap<i32, (i64, String)> {
    offsets.iter().map(|(partition, offset)| (*partition, (*offset, format!("note {partition}")))).collect()
}

fn code(error: &ClientError) -> Option<ErrorCode> {
    error.code()
}

#[tokio::test]
async fn what_one_broker_cannot_tell_another_is_asked_for() {
    let timeline = br#"{"group_id":"g","group_type":"consumer","state":"Stable","epoch":3,"rebalance_since_ms":null,"more":1,"events":[
        {"index":4,"at_ms":5,"epoch_before":2,"epoch":3,"event":"left","member_id":"m"},
        {"index":5,"at_ms":null,"epoch_before":3,"epoch":3,"event":"of_another_version","what":[1]}]}"#;
    let row = |index: i32, rest: &str| format!(r#"{{"topic":"t","partition":{index},"committed":20,{rest}}}"#);
    let known = r#""error_code":0,"start":10,"end":100,"lag":80,"lag_ms":7000"#;
    let elsewhere = r#""error_code":6,"start":null,"end":null,"lag":null,"lag_ms":null"#;
    let unknown = r#""error_code":5,"start":null,"end":null,"lag":null,"lag_ms":null"#;
    let lag = |rows: [&str; 3]| {
        let rows: Vec<String> = (0..).zip(rows).map(|(index, rest)| row(index, rest)).collect();
        GroupLagResponse::new(format!(r#"[{{"group_id":"g","error_code":0,"partitions":[{}]}}]"#, rows.join(",")))
    };
    let answers = BTreeMap::from([
        (1, (GroupTimelineResponse::refused(16), lag([known, elsewhere, unknown]))),
        (2, (GroupTimelineResponse::new(&timeline[..]), lag([elsewhere, known, unknown]))),
    ]);
    let (_, brokers) = cluster(State { exists: true, answers, ..State::default() }).await;
    let admin = admin(&brokers).await;
    for _ in 0..10 {
        let timeline = admin.explain_group(GROUP).await.expect("explained");
        assert_eq!((timeline.epoch, timeline.events.len()), (3, 2));
        assert_eq!(timeline.events[0].what, TimelineEventKind::Left { member_id: "m".to_owned() });
        assert_eq!(timeline.events[1].what, TimelineEventKind::Unknown);
        let described = admin.describe_group(GROUP).await.expect("described");
        let rows: Vec<_> = described.offsets.iter().map(|row| (row.committed, row.end, row.lag, row.lag_ms)).collect();
        let whole = (Some(20), Some(100), Some(80), Some(7_000));
        assert_eq!(rows, [whole, whole, (Some(20), None, None, None)]);
        assert_eq!((described.lag, described.lag_ms), (Some(160), Some(7_000)));
    }
}

#[tokio::test]
async fn a_group_that_does_not_exist_is_not_waited_for() {
    let answers = (1..=2).map(|id| (id, (GroupTimelineResponse::refused(69), GroupLagResponse::refused(42))));
    let (_, brokers) = cluster(State { answers: answers.collect(), ..State::default() }).await;
    let admin = admin(&brokers).await;
    let not_found = Some(ErrorCode::GroupIdNotFound);
    assert_eq!(code(&admin.explain_group(GROUP).await.expect_err("no such group")), not_found);
    assert_eq!(code(&admin.describe_group(GROUP).await.expect_err("no such group")), not_found);
    assert_eq!(code(&admin.export_group(GROUP).await.expect_err("no such group")), not_found);
    let reset = admin.reset_offsets(GROUP, ResetTo::Latest, &[], false).await;
    assert_eq!(code(&reset.expect_err("no such group")), not_found);
}

#[tokio::test]
async fn a_group_that_is_refused_leaves_the_lag_of_others_known() {
    let json = br#"[{"group_id":"","error_code":24,"partitions":[]},
        {"group_id":"g","error_code":0,"partitions":[
            {"topic":"t","partition":0,"error_code":0,"committed":1,"start":0,"end":5,"lag":4,"lag_ms":9}]},
        {"group_id":"loading","error_code":15,"partitions":[]}]"#;
    let answer = (GroupTimelineResponse::refused(16), GroupLagResponse::new(&json[..]));
    let state = State {
        listed: BTreeMap::from([(1, vec!["", "g"]), (2, vec!["loading"])]),
        answers: BTreeMap::from([(1, answer.clone()), (2, answer)]),
        ..State::default()
    };
    let (_, brokers) = cluster(state).await;
    let mut config = ClientConfig::for_brokers(&brokers[0].address);
    // In which "loading" is asked for again and again. Each broker has a part of it for its answer.
    config.timeout = Duration::from_secs(4);
    let admin = Admin::new(&Client::connect(TokioEnv::new(), config).await.expect("connected"));
    let listed = admin.list_groups_with_lag().await.expect("listed");
    let told: Vec<_> =
        listed.iter().map(|listed| (listed.group.group_id.as_str(), listed.partitions, listed.lag)).collect();
    assert_eq!(told, [("", None, None), ("g", Some(1), Some(4)), ("loading", None, None)]);
}

#[tokio::test]
async fn lag_is_shown_of_brokers_that_know_kafkas_requests_only() {
    let state = State { exists: true, committed: committed(&[(0, 20), (1, 3), (2, 500)]), ..State::default() };
    let (_, brokers) = cluster(state).await;
    let described = admin(&brokers).await.describe_group(GROUP).await.expect("described");
    let rows: Vec<_> =
        described.offsets.iter().map(|row| (row.at.partition, row.committed, row.end, row.lag, row.lag_ms)).collect();
    let expected = [
        (0, Some(20), Some(100), Some(80), None),
        // Only what is kept can be read.
        (1, Some(3), Some(100), Some(90), None),
        (2, Some(500), Some(100), Some(0), Some(0)),
    ];
    assert_eq!(rows, expected);
}

#[tokio::test]
async fn offsets_are_reset_within_what_is_kept_and_a_dry_run_changes_nothing() {
    let before = committed(&[(0, 20), (1, 50)]);
    let (shared, brokers) = cluster(State { exists: true, committed: before.clone(), ..State::default() }).await;
    let admin = admin(&brokers).await;
    let some = |partitions: &[i32]| {
        vec![TopicSelection { topic: TOPIC.to_owned(), partitions: Some(partitions.iter().copied().collect()) }]
    };
    let all = vec![TopicSelection { topic: TOPIC.to_owned(), partitions: None }];
    for (to, selection, expected) in [
        (ResetTo::Earliest, vec![], &[(0, Some(20), 10), (1, Some(50), 10)][..]),
        (ResetTo::Latest, all, &[(0, Some(20), 100), (1, Some(50), 100), (2, None, 100)]),
        (ResetTo::Offset(33), some(&[2]), &[(2, None, 33)]),
        (ResetTo::Offset(0), some(&[0]), &[(0, Some(20), 10)]),
        (ResetTo::Offset(i64::MAX), some(&[0]), &[(0, Some(20), 100)]),
        (ResetTo::Back(5), vec![], &[(0, Some(20), 15), (1, Some(50), 45)]),
        (ResetTo::Back(u64::MAX), some(&[1]), &[(1, Some(50), 10)]),
        (ResetTo::Time(70), some(&[0]), &[(0, Some(20), 70)]),
        (ResetTo::Time(TIME_OF_NOTHING), some(&[0]), &[(0, Some(20), 100)]),
    ] {
        for dry_run in [true, false] {
            shared.lock().expect("no panic").committed = before.clone();
            let changes = admin.reset_offsets(GROUP, to, &selection, dry_run).await.expect("reset");
            let told: Vec<_> = changes.iter().map(|change| (change.at.partition, change.old, change.new)).collect();
            assert_eq!(told, expected, "{to:?}");
            let after = shared.lock().expect("no panic").committed.clone();
            if dry_run {
                assert_eq!(after, before, "{to:?}");
            } else {
                for (partition, old, new) in expected {
                    let note = old.map_or_else(String::new, |_| format!("note {partition}"));
                    assert_eq!(after[partition], (*new, note), "{to:?}");
                }
            }
        }
    }
    for (to, selection) in
        [(ResetTo::Back(1), some(&[2])), (ResetTo::Latest, some(&[3])), (ResetTo::Offset(-1), vec![])]
    {
        let error = admin.reset_offsets(GROUP, to, &selection, false).await.expect_err("makes no sense");
        assert!(matches!(error, ClientError::InvalidArgument(_)), "{error}");
    }
}

#[tokio::test]
async fn offsets_of_a_group_with_members_stay() {
    let before = committed(&[(0, 20)]);
    let (shared, brokers) =
        cluster(State { exists: true, has_members: true, committed: before.clone(), ..State::default() }).await;
    let admin = admin(&brokers).await;
    let offset = ExportedOffset { topic: TOPIC.to_owned(), partition: 0, offset: 30, metadata: String::new() };
    let export = GroupExport { format: 1, group_id: GROUP.to_owned(), offsets: vec![offset] };
    // Known before anything is tried, and also when the member comes in between.
    for has_members in [true, false] {
        {
            let mut state = shared.lock().expect("no panic");
            (state.has_members, state.commits_refused) = (has_members, true);
        }
        let reset = admin.reset_offsets(GROUP, ResetTo::Latest, &[], false).await.expect_err("has members");
        let import = admin.import_group(&export, false).await.expect_err("has members");
        for error in [reset, import] {
            assert_eq!(code(&error), Some(ErrorCode::NonEmptyGroup), "{error}");
            assert!(error.to_string().contains("stop its consumers first"), "{error}");
        }
        assert_eq!(shared.lock().expect("no panic").committed, before);
    }
}

#[tokio::test]
async fn what_is_exported_comes_back_under_any_name() {
    let before = committed(&[(0, 20), (1, 50)]);
    let (shared, brokers) = cluster(State { exists: true, committed: before.clone(), ..State::default() }).await;
    let admin = admin(&brokers).await;
    let export = admin.export_group(GROUP).await.expect("exported");
    let mut export = GroupExport::from_json(&serde_json::to_vec(&export).expect("JSON")).expect("read again");
    export.group_id = "other".to_owned();
    {
        let mut state = shared.lock().expect("no panic");
        (state.exists, state.committed) = (false, BTreeMap::new());
    }
    assert_eq!(admin.import_group(&export, true).await.expect("tried").len(), 2);
    assert!(shared.lock().expect("no panic").committed.is_empty());
    admin.import_group(&export, false).await.expect("imported");
    assert_eq!(shared.lock().expect("no panic").committed, before);

    export.offsets[0].offset = 5_000;
    let changes = admin.import_group(&export, true).await.expect("tried");
    assert_eq!(changes[0].new, END, "not beyond what there is");
    export.offsets[0].partition = PARTITIONS;
    let error = admin.import_group(&export, false).await.expect_err("no such partition");
    assert_eq!(error.to_string(), "topic t has no partition 3");
    export.offsets[0].partition = 1;
    let error = admin.import_group(&export, false).await.expect_err("twice the same");
    assert!(error.to_string().contains("twice"), "{error}");
}
