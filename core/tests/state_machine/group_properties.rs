//! Consumer groups under random and hostile ops: no panic, sound invariants, equal replicas.

use std::collections::BTreeMap;

use lockstep_core::op::{
    ClassicJoin, CommitOffset, CommitOffsets, ConfigureGroup, ConsumerHeartbeat, CreateTopic, DeleteGroup,
    DeleteOffsets, ExpireOffsets, ExpiredMember, ExpiryReason, HeartbeatConsumer, JoinConsumerGroup,
    LeaveConsumerGroup, OffsetToCommit, RebalancePartitions, ResolveRegularExpression, TopicPartitions,
};
use lockstep_core::{Applied, ClusterStateMachine, Op, Position, Reply, ShardId, TopicId};
use proptest::prelude::*;

use crate::properties::config;
use crate::strategies;

fn group_id() -> impl Strategy<Value = String> {
    prop_oneof![
        20 => prop::sample::select(vec!["g", "h"]).prop_map(str::to_owned),
        1 => any::<String>(),
        1 => Just(String::new()),
    ]
}

fn member_id() -> impl Strategy<Value = String> {
    prop_oneof![
        20 => prop::sample::select(vec!["m1", "m2", "m3", "m4"]).prop_map(str::to_owned),
        2 => Just(String::new()),
        1 => any::<String>(),
    ]
}

fn instance_id() -> impl Strategy<Value = Option<String>> {
    prop_oneof![
        4 => Just(None),
        3 => prop::sample::select(vec!["i1", "i2"]).prop_map(|instance| Some(instance.to_owned())),
        1 => any::<Option<String>>(),
    ]
}

fn epoch() -> impl Strategy<Value = i32> {
    prop_oneof![8 => 0_i32..12, 3 => -3_i32..0, 1 => any::<i32>(), 1 => prop::sample::select(vec![i32::MIN, i32::MAX])]
}

fn owned() -> impl Strategy<Value = Vec<TopicPartitions>> {
    let partition = prop_oneof![12 => 0_u32..6, 1 => any::<u32>()];
    let partitions = (strategies::topic_id(), prop::collection::vec(partition, 0..5))
        .prop_map(|(topic_id, partitions)| TopicPartitions { topic_id, partitions });
    prop::collection::vec(partitions, 0..3)
}

fn heartbeat(member_epoch: impl Strategy<Value = i32>) -> impl Strategy<Value = ConsumerHeartbeat> {
    let topics = prop::collection::vec(strategies::name(), 0..4);
    let subscription = (
        prop_oneof![1 => Just(None), 3 => topics.prop_map(Some)],
        prop_oneof![
            8 => Just(None),
            1 => Just(Some(String::new())),
            2 => Just(Some("a.*".to_owned())),
            1 => any::<Option<String>>(),
        ],
        prop_oneof![
            4 => Just(None),
            3 => prop::sample::select(vec!["uniform", "range", "?"]).prop_map(|name| Some(name.to_owned())),
        ],
        prop_oneof![1 => Just(None), 2 => Just(Some(Vec::new())), 2 => owned().prop_map(Some)],
    );
    let timing = (
        prop_oneof![4 => Just(30_000), 1 => Just(-1), 1 => any::<i32>()],
        any::<u32>(),
        any::<u32>(),
        prop_oneof![6 => Just(100_u32), 1 => 0_u32..4],
        any::<i64>(),
    );
    (group_id(), member_id(), member_epoch, instance_id(), any::<Option<u8>>(), subscription, timing).prop_map(
        |(group_id, member_id, member_epoch, instance_id, rack, subscription, timing)| ConsumerHeartbeat {
            group_id,
            member_id,
            member_epoch,
            instance_id,
            rack_id: rack.map(|rack| rack.to_string()),
            rebalance_timeout_ms: timing.0,
            subscribed_topic_names: subscription.0,
            subscribed_topic_regex: subscription.1,
            server_assignor: subscription.2,
            owned: subscription.3,
            client_id: "client".to_owned(),
            client_host: "host".to_owned(),
            session_timeout_ms: timing.1,
            heartbeat_interval_ms: timing.2,
            members_max: timing.3,
            now_ms: timing.4,
        },
    )
}

/// A consumer protocol's subscription: version, topic names, no user data; sometimes anything.
fn subscription() -> impl Strategy<Value = Vec<u8>> {
    let sound = prop::collection::vec(strategies::name(), 0..3).prop_map(|names| {
        let mut bytes = vec![0, 0];
        bytes.extend((names.len() as i32).to_be_bytes());
        for name in names {
            bytes.extend((name.len() as i16).to_be_bytes());
            bytes.extend(name.bytes());
        }
        bytes.extend((-1_i32).to_be_bytes());
        bytes
    });
    prop_oneof![4 => sound, 1 => prop::collection::vec(any::<u8>(), 0..20)]
}

fn classic_join() -> impl Strategy<Value = ClassicJoin> {
    let protocol = prop::sample::select(vec!["range", "roundrobin", "sticky", ""]).prop_map(str::to_owned);
    let protocols = prop_oneof![
        6 => subscription().prop_map(|bytes| vec![("range".to_owned(), bytes)]),
        2 => prop::collection::vec((protocol, subscription()), 0..3),
    ];
    (
        (group_id(), member_id(), member_id(), instance_id()),
        (any::<u32>(), any::<u32>(), prop_oneof![3 => Just(0_u32), 1 => any::<u32>()]),
        prop_oneof![8 => Just("consumer"), 1 => Just("connect"), 1 => Just("")],
        protocols,
        any::<bool>(),
        prop_oneof![6 => Just(100_u32), 1 => 0_u32..4],
    )
        .prop_map(|(ids, times, protocol_type, protocols, require_known_member_id, members_max)| ClassicJoin {
            group_id: ids.0,
            member_id: ids.1,
            fresh_member_id: ids.2,
            instance_id: ids.3,
            client_id: "client".to_owned(),
            client_host: "host".to_owned(),
            session_timeout_ms: times.0,
            rebalance_timeout_ms: times.1,
            protocol_type: protocol_type.to_owned(),
            protocols,
            require_known_member_id,
            initial_rebalance_delay_ms: times.2,
            members_max,
            now_ms: 3,
        })
}

fn leave() -> impl Strategy<Value = LeaveConsumerGroup> {
    let reason = prop::sample::select(vec![ExpiryReason::Session, ExpiryReason::Rebalance, ExpiryReason::Pending]);
    let index = prop_oneof![4 => 0_u64..60, 1 => any::<u64>()];
    let expired = (member_id(), index, reason, any::<u64>()).prop_map(|(member_id, last_seen, reason, silent_ms)| {
        ExpiredMember { member_id, last_seen, reason, silent_ms }
    });
    prop_oneof![
        (group_id(), prop::collection::vec((member_id(), instance_id()), 0..3))
            .prop_map(|(group_id, members)| LeaveConsumerGroup::Classic { group_id, members, now_ms: 0 }),
        heartbeat(prop::sample::select(vec![-1, -2, -1, -2, 0, 3])).prop_map(LeaveConsumerGroup::Consumer),
        (group_id(), 0_u64..4, prop::collection::vec(expired, 0..3)).prop_map(|(group_id, term, members)| {
            LeaveConsumerGroup::Expired { group_id, term, members, now_ms: i64::MIN }
        }),
    ]
}

fn rebalance() -> impl Strategy<Value = RebalancePartitions> {
    let protocol_type = prop_oneof![3 => Just(None), 2 => Just(Some("consumer")), 1 => Just(Some("?"))];
    let protocol_name = prop_oneof![3 => Just(None), 2 => Just(Some("range")), 1 => Just(Some("?"))];
    let assignments = prop::collection::vec((member_id(), prop::collection::vec(any::<u8>(), 0..20)), 0..4);
    let sync = (group_id(), epoch(), member_id(), instance_id(), protocol_type, protocol_name, assignments).prop_map(
        |(group_id, generation, member_id, instance_id, protocol_type, protocol_name, assignments)| {
            RebalancePartitions::Sync {
                group_id,
                generation,
                member_id,
                instance_id,
                protocol_type: protocol_type.map(str::to_owned),
                protocol_name: protocol_name.map(str::to_owned),
                assignments,
                now_ms: 5,
            }
        },
    );
    prop_oneof![
        3 => sync,
        2 => (group_id(), prop_oneof![4 => 0_u64..60, 1 => any::<u64>()])
            .prop_map(|(group_id, since)| RebalancePartitions::CompleteJoin { group_id, since, now_ms: i64::MAX }),
        3 => (group_id(), prop::option::of(member_id()))
            .prop_map(|(group_id, member_id)| RebalancePartitions::Assign { group_id, member_id, now_ms: 7 }),
    ]
}

fn commit() -> impl Strategy<Value = CommitOffset> {
    let offset = (
        strategies::topic_id(),
        prop_oneof![8 => 0_u32..6, 1 => any::<u32>()],
        prop_oneof![8 => 0_i64..100, 1 => any::<i64>()],
        epoch(),
        prop_oneof![8 => ".{0,3}", 1 => Just("x".repeat(5000))],
    )
        .prop_map(|(topic_id, partition, offset, leader_epoch, metadata)| OffsetToCommit {
            topic_id,
            partition,
            offset,
            leader_epoch,
            metadata,
        });
    (group_id(), member_id(), instance_id(), epoch(), any::<bool>(), any::<i64>(), prop::collection::vec(offset, 0..4))
        .prop_map(|(group_id, member_id, instance_id, generation_or_epoch, knows_epochs, now_ms, offsets)| {
            CommitOffset { group_id, member_id, instance_id, generation_or_epoch, knows_epochs, now_ms, offsets }
        })
}

/// Ops of administrators and of the leader's housekeeping.
fn housekeeping() -> impl Strategy<Value = Op> {
    let groups = prop::collection::vec(group_id(), 0..3);
    let name = prop_oneof![
        3 => Just("consumer.session.timeout.ms".to_owned()),
        3 => Just("consumer.heartbeat.interval.ms".to_owned()),
        1 => any::<String>(),
    ];
    let value = prop::option::of(prop_oneof![3 => Just("7000".to_owned()), 1 => any::<String>()]);
    let topics = prop::collection::vec(strategies::topic_id(), 0..4);
    prop_oneof![
        1 => group_id().prop_map(|group_id| Op::DeleteGroup(DeleteGroup { group_id })),
        2 => (group_id(), owned()).prop_map(|(group_id, topics)| Op::DeleteOffsets(DeleteOffsets { group_id, topics })),
        2 => (any::<i64>(), any::<u64>(), groups)
            .prop_map(|(now_ms, retention_ms, groups)| Op::ExpireOffsets(ExpireOffsets { now_ms, retention_ms, groups })),
        1 => (group_id(), prop::collection::vec((name, value), 0..3))
            .prop_map(|(group_id, changes)| Op::ConfigureGroup(ConfigureGroup { group_id, changes })),
        4 => (group_id(), prop_oneof![9 => Just("a.*".to_owned()), 1 => any::<String>()], 0..6_u64, topics, any::<i64>())
            .prop_map(|(group_id, regex, metadata_version, mut topics, now_ms)| {
                if metadata_version > 0 {
                    topics.sort();
                    topics.dedup();
                }
                Op::ResolveRegularExpression(ResolveRegularExpression { group_id, regex, metadata_version, topics, now_ms })
            }),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let seen = prop::collection::vec((group_id(), prop::collection::vec(member_id(), 0..4)), 0..3);
    prop_oneof![
        3 => strategies::op(),
        6 => classic_join().prop_map(|join| Op::JoinConsumerGroup(JoinConsumerGroup::Classic(join))),
        6 => heartbeat(prop_oneof![8 => Just(0), 1 => epoch()])
            .prop_map(|join| Op::JoinConsumerGroup(JoinConsumerGroup::Consumer(join))),
        3 => leave().prop_map(Op::LeaveConsumerGroup),
        7 => rebalance().prop_map(Op::RebalancePartitions),
        4 => commit().prop_map(Op::CommitOffset),
        2 => prop::collection::vec(commit(), 0..5).prop_map(|commits| Op::CommitOffsets(CommitOffsets { commits })),
        3 => housekeeping(),
        1 => seen.prop_map(|groups| Op::HeartbeatConsumer(HeartbeatConsumer::Seen { groups })),
        6 => heartbeat(epoch()).prop_map(|beat| Op::HeartbeatConsumer(HeartbeatConsumer::Consumer(beat))),
    ]
}

/// A shard with three topics, and where its log ends.
fn with_topics() -> (ClusterStateMachine, Position) {
    let mut state = ClusterStateMachine::new(ShardId(0), 1);
    let mut position = Position { term: 1, index: 0 };
    for (id, name) in (1_u8..).zip(["a", "b", "c"]) {
        position.index += 1;
        let create =
            CreateTopic { topic_id: TopicId([id; 16]), name: name.to_owned(), partitions: 3, configs: BTreeMap::new() };
        state.apply(position, &Op::CreateTopic(create), 0).unwrap();
    }
    (state, position)
}

/// Asks everything that can be asked about groups; any answer will do.
fn ask_everything(state: &ClusterStateMachine, group_id: &str, member_id: &str, instance_id: Option<&str>, epoch: i32) {
    let _ = state.group(group_id);
    let _ = state.committed_offsets(group_id);
    let _ = state.check_offset_fetch(group_id, member_id, epoch);
    let _ = state.join_progress(group_id, member_id, epoch);
    let _ = state.sync_progress(group_id, member_id, epoch);
    let _ = state.check_sync(group_id, member_id, instance_id, epoch, Some("consumer"), None);
    let _ = state.check_heartbeat(group_id, member_id, instance_id, epoch);
    let _ = state.heartbeat_reply(group_id, member_id);
    let _ = state.group_timeline(group_id);
    let _ = state.group_regexes(group_id);
    let _ = state.groups_to_expire(i64::MAX, 0, None, 3);
    for listing in state.groups() {
        assert!(state.group(&listing.group_id).is_some_and(|view| view.members.len() == listing.members));
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn replicas_of_groups_stay_sound_and_equal(
        steps in prop::collection::vec((op(), prop::bool::weighted(0.1), prop::bool::weighted(0.1)), 1..60),
        question in (group_id(), member_id(), instance_id(), epoch()),
        beat in heartbeat(epoch()),
    ) {
        let (mut first, mut position) = with_topics();
        let mut second = first.clone();
        for (op, restored, elected) in steps {
            position.term += u64::from(elected);
            position.index += 1;
            if restored {
                let bytes = second.snapshot();
                second = ClusterStateMachine::restore(&bytes).unwrap();
                prop_assert_eq!(second.snapshot(), bytes);
            }
            prop_assert_eq!(&Op::decode(&op.encode()).unwrap(), &op);
            let applied = first.apply(position, &op, 100).unwrap();
            prop_assert_eq!(second.apply(position, &op, 100).unwrap(), applied);
            first.check_invariants().unwrap();
            prop_assert_eq!(first.digest(), second.digest());
            ask_everything(&first, &question.0, &question.1, question.2.as_deref(), question.3);
            let _ = first.check_consumer_heartbeat(&beat);
        }
    }

    #[test]
    fn commits_that_share_an_op_do_what_they_do_apart(
        steps in prop::collection::vec(op(), 0..40),
        commits in prop::collection::vec(commit(), 0..10),
        expires in any::<bool>(),
    ) {
        let (mut apart, mut position) = with_topics();
        for op in steps {
            position.index += 1;
            apart.apply(position, &op, 100).unwrap();
        }
        let mut together = apart.clone();
        let last_seen = position.index;
        let at = |index| Position { index, ..position };

        let mut effects = Vec::new();
        let mut outcomes = Vec::new();
        for (index, commit) in (last_seen + 1..).zip(&commits) {
            let applied = apart.apply(at(index), &Op::CommitOffset(commit.clone()), 0).unwrap();
            let Reply::Commit(outcome) = applied.reply else { panic!("not a commit's reply: {:?}", applied.reply) };
            outcomes.push(Some(outcome));
            for effect in applied.effects {
                if !effects.contains(&effect) {
                    effects.push(effect);
                }
            }
        }
        let gathered = Op::CommitOffsets(CommitOffsets { commits: commits.clone() });
        let applied = together.apply(at(last_seen + 1), &gathered, 0).unwrap();
        prop_assert_eq!(applied, Applied { reply: Reply::Commits(outcomes), effects });
        together.check_invariants().unwrap();

        // Those who were heard from outlive an expiry that does not know of it; the others do not.
        let mut next = last_seen + 100;
        let groups: Vec<_> = apart.groups().into_iter().map(|group| group.group_id).collect();
        let members_of = |group_id: &String| -> Vec<String> {
            apart.group(group_id).into_iter().flat_map(|view| view.members).map(|member| member.member_id).collect()
        };
        let mut ops = Vec::new();
        for group_id in &groups {
            let expired = |member_id| ExpiredMember { member_id, last_seen, reason: ExpiryReason::Session, silent_ms: 1 };
            let members = members_of(group_id).into_iter().map(expired).collect();
            let (group_id, term) = (group_id.clone(), position.term);
            ops.push(Op::LeaveConsumerGroup(LeaveConsumerGroup::Expired { group_id, term, members, now_ms: 9 }));
        }
        if !expires {
            ops.clear();
        }
        // When the indexes at which members were last heard from are the same, everything is.
        let groups = groups.iter().map(|group_id| (group_id.clone(), members_of(group_id))).collect();
        ops.push(Op::HeartbeatConsumer(HeartbeatConsumer::Seen { groups }));
        for op in ops {
            next += 1;
            prop_assert_eq!(together.apply(at(next), &op, 0).unwrap(), apart.apply(at(next), &op, 0).unwrap());
        }
        prop_assert_eq!(together.digest(), apart.digest());
        prop_assert_eq!(together.snapshot(), apart.snapshot());
    }

    #[test]
    fn other_shards_leave_a_group_alone(op in op()) {
        // Three shards: at most one of them owns the group.
        let changed = (0..3).filter(|shard| {
            let mut state = ClusterStateMachine::new(ShardId(*shard), 3);
            state.apply(Position { term: 1, index: 1 }, &op, 100).unwrap();
            !state.groups().is_empty()
        });
        prop_assert!(changed.count() <= 1);
    }
}
