//! What a replica promises: its vote, and what it says to hold. And what becomes of a leader when a replica does not keep it.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::TryStreamExt;
use lockstep_core::{NodeId, Position, ShardId};
use lockstep_env::tokio_env::TokioEnv;
use lockstep_env::{Env, timeout};
use openraft::storage::RaftLogReader;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::OwnedMutexGuard;

use super::cluster::{Cluster, ELECTION_TIMEOUT_MAX, PATIENCE, eventually, incarnation};
use crate::peer::{IncomingRequest, Lane, PeerFault, PeerIdentity};
use crate::raft::log_store::VoteWire;
use crate::raft::message::{self, Append, AppendAnswer, Ballot, BallotAnswer, Offer, OfferAnswer};
use crate::raft::{LogStore, Promises};
use crate::shard::Shard;

/// Asks a replica as `from` would.
async fn ask<A: DeserializeOwned>(
    shard: &Shard<TokioEnv>,
    from: NodeId,
    kind: u8,
    question: &impl Serialize,
) -> Result<A, PeerFault> {
    let request = IncomingRequest {
        kind,
        shard: 0,
        lane: Lane::Control,
        body: message::encode(question),
        payload: Bytes::new(),
        timeout: Duration::from_secs(10),
    };
    let from = PeerIdentity { node: from, incarnation: incarnation(from) };
    let answer = shard.handle_raft(from, request).await?;
    Ok(message::decode(&answer.body).unwrap())
}

/// A vote for `candidate`, who has more than anybody.
fn ballot(term: u64, candidate: NodeId, leadership_transfer: bool) -> Ballot {
    Ballot {
        vote: VoteWire { term, node: candidate, committed: false },
        last: Some(Position { term: term - 1, index: 1_000 }),
        leadership_transfer,
    }
}

/// Stops every node, `voter` first: when the others lose their leader, it must not be there to vote for another one.
async fn stop_all(cluster: &mut Cluster, voter: NodeId) {
    cluster.stop_node(voter).await;
    for node in (1..=3).filter(|node| *node != voter) {
        cluster.stop_node(node).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_voter_that_was_started_anew_keeps_its_vote_back_for_one_lease() {
    let mut cluster = Cluster::start(3, 1).await;
    cluster.create_topic().await;
    cluster.level(0).await;
    let leader = cluster.leader(0).await;
    let term = cluster.node(leader).shard(0).raft_status().term;
    let (voter, candidate) = (leader % 3 + 1, (leader + 1) % 3 + 1);
    stop_all(&mut cluster, voter).await;
    let began = TokioEnv::now();
    cluster.start_node(voter).await;
    let shard = cluster.node(voter).shard(0);
    for kind in [message::PRE_VOTE, message::VOTE] {
        let granted = async || {
            let ballot = ballot(term + 1, candidate, false);
            ask::<BallotAnswer>(&shard, candidate, kind, &ballot).await.unwrap().granted
        };
        let waiting = async {
            while !granted().await {
                TokioEnv::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout::<TokioEnv, _>(PATIENCE, waiting).await.expect("the vote is given in the end");
        assert!(TokioEnv::now() - began >= ELECTION_TIMEOUT_MAX, "the leader may rely on the voter for so long");
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_voter_that_was_started_anew_votes_for_the_leader_of_before_and_for_its_heir() {
    let mut cluster = Cluster::start(3, 1).await;
    cluster.create_topic().await;
    cluster.level(0).await;
    let leader = cluster.leader(0).await;
    let term = cluster.node(leader).shard(0).raft_status().term;
    let (voter, heir) = (leader % 3 + 1, (leader + 1) % 3 + 1);
    stop_all(&mut cluster, voter).await;
    cluster.start_node(voter).await;
    let shard = cluster.node(voter).shard(0);
    let again = ask::<BallotAnswer>(&shard, leader, message::VOTE, &ballot(term + 1, leader, false)).await;
    assert!(again.unwrap().granted);
    let after = ask::<BallotAnswer>(&shard, heir, message::VOTE, &ballot(term + 2, heir, true)).await;
    assert!(after.unwrap().granted);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_contradicts_what_was_applied_stops_the_replica() {
    let mut cluster = Cluster::start(3, 1).await;
    cluster.create_topic().await;
    cluster.append(1, 10).await;
    cluster.level(0).await;
    let leader = cluster.leader(0).await;
    let (follower, other) = (leader % 3 + 1, (leader + 1) % 3 + 1);
    for node in [leader, other] {
        cluster.stop_node(node).await;
    }
    let shard = cluster.node(follower).shard(0);
    let (applied, term) = (shard.applied(), shard.raft_status().term);
    let append = |term, previous| Append {
        vote: VoteWire { term, node: other, committed: true },
        previous: Some(previous),
        committed: None,
        entries: Vec::new(),
    };
    let answer = ask::<AppendAnswer>(&shard, other, message::APPEND, &append(term + 10, applied)).await.unwrap();
    assert!(matches!(answer, AppendAnswer::Success), "{answer:?}");
    // What a leader of the past says is no news.
    let of_another = Position { term: applied.term + 7, ..applied };
    let answer = ask::<AppendAnswer>(&shard, other, message::APPEND, &append(term + 8, of_another)).await.unwrap();
    assert!(matches!(answer, AppendAnswer::HigherVote(_)), "{answer:?}");
    assert_eq!(shard.stopped(), None);
    ask::<AppendAnswer>(&shard, other, message::APPEND, &append(term + 10, of_another)).await.unwrap_err();
    assert!(shard.stopped().is_some_and(|reason| reason.contains("was applied here")));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_that_is_started_anew_as_a_whole_has_a_leader_again() {
    let mut cluster = Cluster::start(3, 1).await;
    cluster.create_topic().await;
    cluster.append(1, 10).await;
    cluster.level(0).await;
    for _ in 0..2 {
        for node in 1..=3 {
            cluster.stop_node(node).await;
        }
        for node in 1..=3 {
            cluster.start_node(node).await;
        }
        cluster.append(2, 10).await;
    }
    cluster.assert_equal(0).await;
    cluster.assert_same_records(&[1, 2, 3], 3).await;
    cluster.stop().await;
}

/// A replica that fetched its leader's snapshot and is kept from installing it.
struct Installing {
    cluster: Cluster,
    leader: NodeId,
    late: NodeId,
    /// It covers so much.
    snapshot: u64,
    kept: Option<OwnedMutexGuard<()>>,
}

impl Installing {
    async fn begin() -> Self {
        let mut cluster = Cluster::start_with(3, 1, 64 << 10).await;
        cluster.create_topic().await;
        let late = cluster.leader(0).await % 3 + 1;
        cluster.level(0).await;
        cluster.stop_node(late).await;
        for n in 0..150 {
            cluster.append(n, 4_000).await;
        }
        let leader = cluster.leader(0).await;
        let shard = cluster.node(leader).shard(0);
        eventually("the log before is purged", || shard.raft_status().purged.is_some_and(|purged| purged > 100)).await;
        let snapshot = shard.raft_status().snapshot.unwrap();
        cluster.start_node(late).await;
        let arrived = cluster.node(late).shard(0);
        let kept = Some(arrived.hold_checkpoints().await);
        eventually("it is accepted", || arrived.accepted().is_some_and(|at| at.index >= snapshot)).await;
        Self { cluster, leader, late, snapshot, kept }
    }

    /// The snapshot offered once more, as a leader does that was not answered yet.
    fn offer(&self) -> Offer {
        Offer {
            vote: VoteWire { term: self.shard().raft_status().term, node: self.leader, committed: true },
            transmission: 1,
            position: self.cluster.node(self.late).shard(0).accepted().unwrap(),
            manifest_len: 1,
        }
    }

    /// The leader's.
    fn shard(&self) -> Shard<TokioEnv> {
        self.cluster.node(self.leader).shard(0)
    }

    fn assert_not_counted(&self) {
        let matched = self.shard().raft_status().matched.get(&self.late).copied().flatten();
        assert!(matched.is_none_or(|matched| matched < self.snapshot), "{matched:?} of {}", self.snapshot);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_is_acknowledged_only_once_it_is_installed() {
    let installing = Installing::begin().await;
    let (leader, offer) = (installing.leader, installing.offer());
    let arrived = installing.cluster.node(installing.late).shard(0);
    let answer: OfferAnswer = ask(&arrived, leader, message::INSTALL_SNAPSHOT, &offer).await.unwrap();
    assert!(matches!(answer, OfferAnswer::Pulling { .. }), "{answer:?}");
    installing.assert_not_counted();
    let Installing { cluster, kept, .. } = installing;
    drop(kept);
    cluster.assert_equal(0).await;
    let answer: OfferAnswer = ask(&arrived, leader, message::INSTALL_SNAPSHOT, &offer).await.unwrap();
    assert!(matches!(answer, OfferAnswer::Done(_)), "{answer:?}");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_whose_installation_failed_is_not_acknowledged_and_the_leader_goes_on() {
    let mut installing = Installing::begin().await;
    let (leader, late, offer) = (installing.leader, installing.late, installing.offer());
    let arrived = installing.cluster.node(late).shard(0);
    // What was fetched is gone, as after an error of the disk.
    std::fs::remove_dir_all(installing.cluster.directory(late).join("data/0/installing")).unwrap();
    installing.kept = None;
    eventually("the shard stops there", || arrived.stopped().is_some()).await;
    let answer = ask::<OfferAnswer>(&arrived, leader, message::INSTALL_SNAPSHOT, &offer).await;
    assert!(answer.is_err(), "{answer:?}");
    installing.assert_not_counted();

    let mut cluster = installing.cluster;
    cluster.stop_node(late).await;
    cluster.start_node(late).await;
    cluster.append(150, 100).await;
    cluster.assert_equal(0).await;
    cluster.assert_same_records(&[1, 2, 3], 151).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn entries_that_are_not_there_are_not_applied_as_none() {
    let cluster = Cluster::start(1, 1).await;
    cluster.create_topic().await;
    cluster.append(0, 10).await;
    let log = cluster.node(1).journal.shard(ShardId(0));
    let last = log.last().unwrap().index;
    let mut reader = LogStore::<TokioEnv>::new(log, Arc::new(Promises::at_start(None, None, true)), false);
    let mut read = async |range| -> io::Result<Vec<_>> { reader.entries_stream(range).await.try_collect().await };
    assert_eq!(read(last..last + 1).await.unwrap().len(), 1);
    assert!(read(last..last + 2).await.is_err(), "a part of the range is not the range");
    assert!(read(last + 1..last + 2).await.is_err());
    cluster.stop().await;
}

/// Copies a directory with all that is in it.
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_whose_disk_was_put_back_to_an_older_copy_does_not_take_the_leader_down() {
    let mut cluster = Cluster::start(3, 1).await;
    cluster.create_topic().await;
    cluster.append(0, 100).await;
    cluster.level(0).await;
    let leader = cluster.leader(0).await;
    let follower = leader % 3 + 1;
    let (disk, older) = (cluster.directory(follower), cluster.directory(9));
    cluster.stop_node(follower).await;
    copy(&disk, &older);
    cluster.start_node(follower).await;
    for n in 1..20 {
        cluster.append(n, 100).await;
    }
    cluster.level(0).await;
    let leader = cluster.leader(0).await;
    let shard = cluster.node(leader).shard(0);
    eventually("all is acknowledged", || {
        let status = shard.raft_status();
        status.matched.get(&follower).copied().flatten() == Some(status.last_log)
    })
    .await;
    cluster.stop_node(follower).await;
    std::fs::remove_dir_all(&disk).unwrap();
    copy(&older, &disk);
    cluster.start_node(follower).await;
    eventually("it is noticed", || shard.reverted().contains(&follower) || shard.stopped().is_some()).await;
    assert_eq!(shard.stopped(), None, "the leader goes on");
    cluster.append(20, 100).await;

    // What the node does about it: see node/membership.rs.
    let member = shard.raft_status().voters[&follower].clone();
    cluster.on_leader(0, async |shard| shard.remove_member(follower).await).await;
    cluster.on_leader(0, async |shard| shard.add_learner(follower, member.clone()).await).await;
    assert!(shard.reverted().is_empty(), "nobody expects anything of it now");
    eventually("the learner holds the log", || cluster.is_level_learner(0, follower)).await;
    cluster.on_leader(0, async |shard| shard.promote(follower).await).await;
    cluster.append(21, 100).await;
    cluster.assert_equal(0).await;
    cluster.assert_same_records(&[1, 2, 3], 22).await;
    cluster.stop().await;
}
