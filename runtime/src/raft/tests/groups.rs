//! What the leader of a shard does for its consumer groups by itself.

use std::collections::BTreeMap;

use bytes::Bytes;
use lockstep_core::op::{
    CommitOffset, ConsumerHeartbeat, CreateTopic, DeleteOffsets, JoinConsumerGroup, OffsetToCommit, TopicPartitions,
    UpdateMetadata,
};
use lockstep_core::view::GroupState;
use lockstep_core::{Op, Reply, TopicId};
use lockstep_env::Env;
use lockstep_env::tokio_env::TokioEnv;

use super::cluster::{Cluster, TOPIC, eventually};
use crate::error::ProposeError;

fn join(member_id: &str, session_timeout_ms: u32) -> Op {
    Op::JoinConsumerGroup(JoinConsumerGroup::Consumer(ConsumerHeartbeat {
        group_id: "readers".to_owned(),
        member_id: member_id.to_owned(),
        member_epoch: 0,
        instance_id: None,
        rack_id: None,
        rebalance_timeout_ms: 30_000,
        subscribed_topic_names: Some(vec!["orders".to_owned()]),
        subscribed_topic_regex: None,
        server_assignor: None,
        owned: Some(Vec::new()),
        client_id: "test".to_owned(),
        client_host: "/127.0.0.1".to_owned(),
        session_timeout_ms,
        heartbeat_interval_ms: 100,
        members_max: 100,
        now_ms: 0,
    }))
}

/// An administrative commit.
fn commit(group: &str, offset: i64, now_ms: i64) -> Op {
    Op::CommitOffset(CommitOffset {
        group_id: group.to_owned(),
        member_id: String::new(),
        instance_id: None,
        generation_or_epoch: -1,
        knows_epochs: true,
        now_ms,
        offsets: vec![OffsetToCommit {
            topic_id: TOPIC,
            partition: 0,
            offset,
            leader_epoch: -1,
            metadata: String::new(),
        }],
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commits_that_wait_together_share_entries_and_are_answered_one_by_one() {
    const COMMITS: i64 = 600;
    let cluster = Cluster::start(3, 1).await;
    cluster.create_topic().await;
    let shard = cluster.node(cluster.leader(0).await).shard(0);
    let before = shard.applied().index;
    let now_ms = TokioEnv::new().wall_clock_ms();
    let mut pending = Vec::new();
    for offset in 1..=COMMITS {
        let op = match offset {
            // Longer than any entry may be, among others that are not.
            100 => commit(&"x".repeat(8 << 20), offset, now_ms),
            _ => commit(["g", "h", "i"][offset as usize % 3], offset, now_ms),
        };
        pending.push((offset, shard.propose(op, Bytes::new())));
    }
    for (offset, outcome) in pending {
        match outcome.await {
            Err(ProposeError::TooLarge(_)) if offset == 100 => {}
            outcome => assert_eq!(outcome, Ok(Reply::Commit(Ok(vec![Ok(())]))), "{offset}"),
        }
    }
    let entries = shard.applied().index - before;
    assert!(entries < COMMITS as u64 / 4, "{entries} entries");
    for (group, offset) in [("g", COMMITS), ("h", COMMITS - 2), ("i", COMMITS - 1)] {
        let committed = shard.read(|state| state.committed_offset(group, TOPIC, 0));
        assert_eq!(committed.map(|committed| committed.offset), Some(offset), "the last one of {group} counts");
    }
    cluster.assert_equal(0).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leader_assigns_partitions_and_expires_silent_members() {
    let cluster = Cluster::start(1, 1).await;
    cluster.create_topic().await;
    let shard = cluster.node(1).shard(0);
    let mut ticket = shard.watch_group("readers");
    let reply = cluster.propose(0, join("m-1", 400), Bytes::new()).await;
    assert!(matches!(reply, Reply::Heartbeat(Ok(_))), "{reply:?}");
    ticket.changed().await;
    let target = || {
        shard.read(|state| {
            let group = state.group("readers")?;
            group.members.first().map(|member| member.target.iter().map(|topic| topic.partitions.len()).sum::<usize>())
        })
    };
    eventually("the member is assigned the partition", || target() == Some(1)).await;
    // A member that is heard from stays for longer than its session lasts, another one goes.
    let reply = cluster.propose(0, join("m-2", 400), Bytes::new()).await;
    assert!(matches!(reply, Reply::Heartbeat(Ok(_))), "{reply:?}");
    let members = || {
        shard.heartbeat("readers", "m-2");
        shard.read(|state| {
            let members = state.group("readers").map(|group| group.members).unwrap_or_default();
            members.into_iter().map(|member| member.member_id).collect::<Vec<_>>()
        })
    };
    eventually("the silent member is gone", || members() == ["m-2"]).await;
    eventually("nobody is left once all are silent", || {
        shard.read(|state| state.group("readers").is_none_or(|group| group.state == GroupState::Empty))
    })
    .await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leader_lets_old_offsets_expire() {
    let cluster = Cluster::start(1, 1).await;
    cluster.create_topic().await;
    let shard = cluster.node(1).shard(0);
    for (group, now_ms) in [("young", TokioEnv::new().wall_clock_ms()), ("old", 0)] {
        let reply = cluster.propose(0, commit(group, 1, now_ms), Bytes::new()).await;
        assert_eq!(reply, Reply::Commit(Ok(vec![Ok(())])));
    }
    let committed = |group: &str| shard.read(|state| state.committed_offset(group, TOPIC, 0)).is_some();
    eventually("the old group is gone", || shard.read(|state| state.group("old")).is_none()).await;
    assert!(!committed("old"));
    assert!(committed("young"));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leader_finds_out_what_a_regular_expression_matches() {
    let cluster = Cluster::start(1, 1).await;
    cluster.create_topic().await;
    let shard = cluster.node(1).shard(0);
    let mut op = join("m-1", 30_000);
    if let Op::JoinConsumerGroup(JoinConsumerGroup::Consumer(join)) = &mut op {
        join.subscribed_topic_names = None;
        join.subscribed_topic_regex = Some("ord.*".to_owned());
    }
    assert!(matches!(cluster.propose(0, op, Bytes::new()).await, Reply::Heartbeat(Ok(_))));
    let resolved = |shard: &crate::shard::Shard<TokioEnv>| -> Option<Vec<TopicId>> {
        let regexes = shard.read(|state| state.group_regexes("readers"));
        regexes.into_iter().next()?.resolved.map(|(_, topics)| topics)
    };
    eventually("the subscription is resolved", || resolved(&shard) == Some(vec![TOPIC])).await;
    eventually("the member is assigned the partition", || {
        shard.read(|state| {
            let group = state.group("readers").map(|group| group.members).unwrap_or_default();
            group.iter().any(|member| member.target.iter().any(|topic| topic.topic_id == TOPIC))
        })
    })
    .await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn offsets_of_an_altered_topic_that_no_regular_expression_matches_can_be_deleted() {
    let audit = TopicId([8; 16]);
    let cluster = Cluster::start(1, 1).await;
    cluster.create_topic().await;
    let topic = CreateTopic { topic_id: audit, name: "audit".to_owned(), partitions: 1, configs: BTreeMap::new() };
    cluster.propose(0, Op::CreateTopic(topic), Bytes::new()).await;
    let commit = Op::CommitOffset(CommitOffset {
        group_id: "readers".to_owned(),
        member_id: String::new(),
        instance_id: None,
        generation_or_epoch: -1,
        knows_epochs: true,
        now_ms: TokioEnv::new().wall_clock_ms(),
        offsets: vec![OffsetToCommit {
            topic_id: audit,
            partition: 0,
            offset: 1,
            leader_epoch: -1,
            metadata: String::new(),
        }],
    });
    assert_eq!(cluster.propose(0, commit, Bytes::new()).await, Reply::Commit(Ok(vec![Ok(())])));
    let mut op = join("m-1", 30_000);
    if let Op::JoinConsumerGroup(JoinConsumerGroup::Consumer(join)) = &mut op {
        join.subscribed_topic_names = None;
        join.subscribed_topic_regex = Some("ord.*".to_owned());
    }
    assert!(matches!(cluster.propose(0, op, Bytes::new()).await, Reply::Heartbeat(Ok(_))));
    let shard = cluster.node(1).shard(0);
    let resolved = || {
        let regexes = shard.read(|state| state.group_regexes("readers"));
        regexes.into_iter().next().and_then(|regex| regex.resolved).map(|(version, _)| version)
    };
    eventually("the subscription is resolved", || resolved().is_some()).await;
    let altered = UpdateMetadata::AddPartitions { topic_id: audit, partitions: 2 };
    cluster.propose(0, Op::UpdateMetadata(altered), Bytes::new()).await;
    let version = shard.read(|state| state.directory().version);
    eventually("it is resolved again", || resolved() == Some(version)).await;
    let delete = Op::DeleteOffsets(DeleteOffsets {
        group_id: "readers".to_owned(),
        topics: vec![TopicPartitions { topic_id: audit, partitions: vec![0] }],
    });
    assert_eq!(cluster.propose(0, delete, Bytes::new()).await, Reply::Commit(Ok(vec![Ok(())])));
    cluster.stop().await;
}
