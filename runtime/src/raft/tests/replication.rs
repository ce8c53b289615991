//! Three replicas.

use std::collections::BTreeMap;

use bytes::Bytes;
use lockstep_core::op::AllocateProducerIds;
use lockstep_core::{Op, Reply};
use lockstep_env::timeout;
use lockstep_env::tokio_env::TokioEnv;

use super::cluster::{Cluster, ELECTION_TIMEOUT_MAX, PATIENCE, append_op, eventually, fill_of};
use crate::error::ProposeError;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn followers_hold_what_was_acknowledged() {
    let cluster = Cluster::start(3, 1).await;
    cluster.create_topic().await;
    for n in 0..20 {
        assert_eq!(cluster.append(n, 5_000).await, i64::from(n));
    }
    let (leader, told) = cluster
        .under_one_leader(0, async |leader| {
            let index = cluster.on_leader(0, async |shard| shard.read_index().await).await;
            let mut told = Vec::new();
            for node in 1..=3 {
                let shard = cluster.node(node).shard(0);
                assert!(shard.wait_applied(index, PATIENCE).await);
                if node != leader {
                    told.push((shard.id(), shard.serving(), shard.read_index().await));
                }
            }
            told
        })
        .await;
    assert_eq!(told.len(), 2);
    for (shard, serving, read_index) in told {
        assert_eq!(serving, Err(ProposeError::NotLeader { shard, leader: Some(leader) }));
        assert!(read_index.is_err());
    }
    cluster.assert_same_records(&[1, 2, 3], 20).await;
    cluster.assert_equal(0).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_node_takes_over_and_a_returned_one_catches_up() {
    let mut cluster = Cluster::start(3, 1).await;
    cluster.create_topic().await;
    for n in 0..5 {
        cluster.append(n, 100).await;
    }
    let led = async |cluster: &Cluster| {
        cluster.under_one_leader(0, async |leader| cluster.node(leader).shard(0).raft_status().term).await
    };
    let (first, term) = led(&cluster).await;
    cluster.stop_node(first).await;
    let (second, next_term) = led(&cluster).await;
    assert_ne!(second, first);
    assert!(next_term > term);
    for n in 5..10 {
        assert_eq!(cluster.append(n, 100).await, i64::from(n));
    }
    cluster.start_node(first).await;
    cluster.level(0).await;
    cluster.assert_same_records(&[1, 2, 3], 10).await;
    cluster.assert_equal(0).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn entries_count_as_heard_only_while_every_member_answers_them() {
    let mut cluster = Cluster::start(3, 1).await;
    cluster.create_topic().await;
    for attempt in 1.. {
        let (leader, term) =
            cluster.under_one_leader(0, async |leader| cluster.node(leader).shard(0).raft_status().term).await;
        let silence = |cluster: &Cluster| cluster.node(leader).shard(0).longest_silence();
        let leads_still = |cluster: &Cluster| cluster.node(leader).shard(0).raft_status().term == term;
        let all_answer = |cluster: &Cluster| silence(cluster).is_some_and(|silence| silence < ELECTION_TIMEOUT_MAX);
        eventually("all members answer", || all_answer(&cluster) || !leads_still(&cluster)).await;

        let gone = if leader == 3 { 2 } else { 3 };
        cluster.stop_node(gone).await;
        let mut number = 0;
        let waiting = async {
            // Entries flow, and the others' answers do not make up for it.
            while silence(&cluster).is_some_and(|silence| silence < ELECTION_TIMEOUT_MAX * 2) {
                cluster.append(number, 100).await;
                number = number.wrapping_add(1);
            }
        };
        assert!(timeout::<TokioEnv, _>(PATIENCE, waiting).await.is_ok());
        let stayed = cluster.leader(0).await == leader && leads_still(&cluster);
        cluster.start_node(gone).await;
        if !stayed {
            // Where all nodes stand still for longer than an election takes, nobody leads for long.
            assert!(attempt < 10, "the other one answers, and the leader does not stay");
            continue;
        }
        eventually("all answer again", || all_answer(&cluster) || !leads_still(&cluster)).await;
        if leads_still(&cluster) {
            break;
        }
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_without_a_quorum_stops_serving_and_says_so() {
    let mut cluster = Cluster::start(3, 1).await;
    let leader = cluster.leader(0).await;
    let others: Vec<u64> = [1, 2, 3].into_iter().filter(|node| *node != leader).collect();
    let shard = cluster.node(leader).shard(0);
    for node in others {
        cluster.stop_node(node).await;
    }
    let lost = shard.propose(Op::AllocateProducerIds(AllocateProducerIds { count: 1 }), Bytes::new());
    eventually("the lease lapses", || shard.serving().is_err()).await;
    assert_eq!(shard.serving(), Err(ProposeError::NotLeader { shard: shard.id(), leader: None }));
    assert_eq!(shard.leader(), None);
    assert!(matches!(lost.await, Err(ProposeError::Unknown(_) | ProposeError::NotLeader { .. })));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_when_leaders_go_while_many_write() {
    let mut cluster = Cluster::start(3, 1).await;
    cluster.create_topic().await;
    let mut acknowledged: BTreeMap<i64, u8> = BTreeMap::new();
    for round in 0..3_u8 {
        let leader = cluster.leader(0).await;
        let shard = cluster.node(leader).shard(0);
        let proposals: Vec<_> = (0..60)
            .map(|n| {
                let fill = round * 60 + n;
                let (op, payload) = append_op(fill, 2_000);
                (fill, shard.propose(op, payload))
            })
            .collect();
        drop(shard);
        // Some of them are under way when their leader goes.
        cluster.stop_node(leader).await;
        for (fill, proposal) in proposals {
            match proposal.await {
                Ok(Reply::Append(outcomes)) => {
                    let offset = outcomes[0].as_ref().unwrap().base_offset;
                    assert_eq!(acknowledged.insert(offset, fill), None, "offset {offset} was given twice");
                }
                Ok(reply) => panic!("{reply:?}"),
                Err(_) => {}
            }
        }
        cluster.append(255, 10).await;
        cluster.start_node(leader).await;
        cluster.level(0).await;
    }
    cluster.assert_equal(0).await;
    let records = cluster.records(1).await;
    cluster.assert_same_records(&[1, 2, 3], records.len()).await;
    for (offset, fill) in acknowledged {
        assert_eq!(fill_of(&records[offset as usize]), fill, "what was acknowledged at {offset} is there");
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_moves_to_the_node_it_is_handed_to() {
    let cluster = Cluster::start(3, 2).await;
    let leader = cluster.leader(1).await;
    cluster.level(1).await;
    let heir = leader % 3 + 1;
    let shard = cluster.node(leader).shard(1);
    shard.transfer_leader(heir).await;
    assert!(shard.serving().is_err());
    eventually("the heir leads", || cluster.node(heir).shard(1).serving().is_ok()).await;
    eventually("the former leader follows", || shard.leader().is_some_and(|(node, _)| node == heir)).await;
    let reply = cluster.propose(0, Op::AllocateProducerIds(AllocateProducerIds { count: 1 }), Bytes::new()).await;
    assert!(matches!(reply, Reply::ProducerIds { .. }));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_come_and_go() {
    let cluster = Cluster::start(3, 1).await;
    cluster.create_topic().await;
    let leader = cluster.leader(0).await;
    let other = leader % 3 + 1;
    let member = cluster.node(leader).shard(0).raft_status().voters[&other].clone();
    let status = cluster
        .on_leader(0, async |shard| {
            shard.remove_member(other).await?;
            Ok(shard.raft_status())
        })
        .await;
    assert!(!status.voters.contains_key(&other));
    assert!(!status.learners.contains_key(&other));
    cluster.append(1, 10).await;
    cluster.on_leader(0, async |shard| shard.add_learner(other, member.clone()).await).await;
    eventually("the learner holds the log", || cluster.is_level_learner(0, other)).await;
    let status = cluster
        .on_leader(0, async |shard| {
            shard.promote(other).await?;
            Ok(shard.raft_status())
        })
        .await;
    assert_eq!(status.voters[&other], member);
    cluster.assert_equal(0).await;
    cluster.stop().await;
}
