//! What large groups cost, op by op: `cargo bench -p lockstep-core`.
//!
//! A group of 900 members and 3,000 partitions must get its assignment within 20 ms, and a heartbeat must cost the same in a group of any
//! size. Each line names the median of several runs.

#![allow(missing_docs, reason = "a program")]

use std::collections::BTreeMap;
use std::hint::black_box;
use std::time::{Duration, Instant};

use lockstep_core::op::{
    ClassicJoin, ConsumerHeartbeat, CreateTopic, HeartbeatConsumer, JoinConsumerGroup, LeaveConsumerGroup,
    RebalancePartitions,
};
use lockstep_core::{ClusterStateMachine, Op, Position, Reply, SessionTable, ShardId, TopicId};

const GROUP: &str = "readers";
const TOPICS: u8 = 30;
const PARTITIONS: u32 = 100;
const RUNS: usize = 15;

struct Shard {
    state: ClusterStateMachine,
    position: Position,
}

impl Shard {
    fn new() -> Self {
        let mut shard =
            Self { state: ClusterStateMachine::new(ShardId(0), 1), position: Position { term: 1, index: 0 } };
        for id in 1..=TOPICS {
            shard.apply(&Op::CreateTopic(CreateTopic {
                topic_id: TopicId([id; 16]),
                name: format!("topic-{id}"),
                partitions: PARTITIONS,
                configs: BTreeMap::new(),
            }));
        }
        shard
    }

    /// A group of so many members without an assignment.
    fn with_members(members: usize, assignor: &str) -> Self {
        let mut shard = Self::new();
        for number in 0..members {
            shard.join(number, assignor);
        }
        shard
    }

    fn apply(&mut self, op: &Op) -> Reply {
        self.position.index += 1;
        self.state.apply(self.position, op, 0).expect("no invariant breaks").reply
    }

    fn join(&mut self, number: usize, assignor: &str) {
        let names = (1..=TOPICS).map(|id| format!("topic-{id}")).collect();
        let op = ConsumerHeartbeat {
            rebalance_timeout_ms: 60_000,
            subscribed_topic_names: Some(names),
            server_assignor: Some(assignor.to_owned()),
            owned: Some(Vec::new()),
            ..heartbeat(number, 0)
        };
        self.apply(&Op::JoinConsumerGroup(JoinConsumerGroup::Consumer(op)));
    }

    fn join_classic(&mut self, number: usize) {
        self.apply(&Op::JoinConsumerGroup(JoinConsumerGroup::Classic(ClassicJoin {
            group_id: GROUP.to_owned(),
            member_id: member_id(number),
            fresh_member_id: String::new(),
            instance_id: None,
            client_id: "client".to_owned(),
            client_host: "/127.0.0.1".to_owned(),
            session_timeout_ms: 45_000,
            rebalance_timeout_ms: 60_000,
            protocol_type: "consumer".to_owned(),
            protocols: vec![("range".to_owned(), subscription())],
            require_known_member_id: false,
            initial_rebalance_delay_ms: 0,
            members_max: 100_000,
            now_ms: 0,
        })));
    }

    fn seen(&mut self, number: usize) {
        let groups = vec![(GROUP.to_owned(), vec![member_id(number)])];
        self.apply(&Op::HeartbeatConsumer(HeartbeatConsumer::Seen { groups }));
    }

    fn leave(&mut self, number: usize) {
        self.apply(&Op::LeaveConsumerGroup(LeaveConsumerGroup::Consumer(heartbeat(number, -1))));
    }

    fn assign(&mut self, member: Option<usize>) {
        let member_id = member.map(member_id);
        let op = RebalancePartitions::Assign { group_id: GROUP.to_owned(), member_id, now_ms: 0 };
        self.apply(&Op::RebalancePartitions(op));
    }
}

fn member_id(number: usize) -> String {
    // As long as ids of clients are.
    format!("consumer-readers-{number:06}-4f0c7c8e-5f0b-4f4c-9c53")
}

/// What a classic consumer of the first topic says of itself, in version 0.
fn subscription() -> Vec<u8> {
    [&[0, 0, 0, 0, 0, 1, 0, 7][..], b"topic-1", &[0xff; 4]].concat()
}

fn heartbeat(number: usize, member_epoch: i32) -> ConsumerHeartbeat {
    ConsumerHeartbeat {
        group_id: GROUP.to_owned(),
        member_id: member_id(number),
        member_epoch,
        instance_id: None,
        rack_id: None,
        rebalance_timeout_ms: -1,
        subscribed_topic_names: None,
        subscribed_topic_regex: None,
        server_assignor: None,
        owned: None,
        client_id: "client".to_owned(),
        client_host: "/127.0.0.1".to_owned(),
        session_timeout_ms: 45_000,
        heartbeat_interval_ms: 5_000,
        members_max: 100_000,
        now_ms: 0,
    }
}

#[expect(clippy::disallowed_methods, reason = "a benchmark measures real time")]
fn time(work: impl FnOnce()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}

/// Prints the median of runs that each begin with a shard of their own, and of how many ops each does.
fn measure(name: &str, ops: u32, shard: &Shard, mut work: impl FnMut(&mut Shard)) {
    let mut times: Vec<Duration> = (0..RUNS)
        .map(|_| {
            let mut shard = Shard { state: shard.state.clone(), position: shard.position };
            // What the copy shares with the original is copied when it is first written: not a part of what is measured.
            shard.apply(&Op::HeartbeatConsumer(HeartbeatConsumer::Seen {
                groups: vec![(GROUP.to_owned(), vec![member_id(0)])],
            }));
            time(|| work(&mut shard)) / ops
        })
        .collect();
    times.sort_unstable();
    println!("{name:<60} {:>12.1?}", times[RUNS / 2]);
}

fn main() {
    for assignor in ["uniform", "range"] {
        let fresh = Shard::with_members(900, assignor);
        measure(&format!("{assignor}: first assignment, 900 members, 3,000 partitions"), 1, &fresh, |shard| {
            shard.assign(None);
        });
        let mut assigned = fresh;
        assigned.assign(None);
        let mut left = Shard { state: assigned.state.clone(), position: assigned.position };
        left.leave(450);
        measure(&format!("{assignor}: assignment after one member left"), 1, &left, |shard| shard.assign(None));
        let mut joined = assigned;
        joined.join(900, assignor);
        measure(&format!("{assignor}: assignment after one member joined"), 1, &joined, |shard| shard.assign(None));
    }
    for members in [100, 1_000, 10_000] {
        let mut shard = Shard::with_members(members, "uniform");
        shard.assign(None);
        measure(&format!("op 11, one sign of life in a group of {members}"), 100, &shard, |shard| {
            for _ in 0..100 {
                shard.apply(&Op::HeartbeatConsumer(HeartbeatConsumer::Seen {
                    groups: vec![(GROUP.to_owned(), vec![member_id(7)])],
                }));
            }
        });
        measure(&format!("one member reconciled in a group of {members}"), 50, &shard, |shard| {
            for number in 0..50 {
                shard.assign(Some(number));
            }
        });
        measure(&format!("a heartbeat answered from the state of {members}"), 100, &shard, |shard| {
            for _ in 0..100 {
                black_box(shard.state.check_consumer_heartbeat(&heartbeat(7, 1)));
            }
        });
        let mut left = Shard { state: shard.state.clone(), position: shard.position };
        for number in 1..members / 2 {
            left.leave(number);
        }
        measure(&format!("op 11 after half of {members} members left, unassigned"), 50, &left, |shard| {
            for _ in 0..50 {
                shard.seen(members - 1);
            }
        });
        let mut mixed = Shard::with_members(1, "uniform");
        for number in 1..members {
            mixed.join_classic(number);
        }
        mixed.assign(None);
        // One for each run: neither its making nor its end is a part of what is measured.
        let table = SessionTable::start(&mixed.state, 1, 0);
        let mut tables = vec![table; RUNS];
        let mut used = Vec::new();
        measure(&format!("op 11 with its timers, both protocols, {members} members"), 50, &mixed, |shard| {
            let mut table = tables.pop().expect("one for each run");
            for now_ms in 0..50 {
                shard.seen(7);
                table.observe(&shard.state, GROUP, now_ms);
            }
            used.push(table);
        });
        let mut classic = Shard::new();
        for number in 0..members {
            classic.join_classic(number);
        }
        let refused = ConsumerHeartbeat {
            rebalance_timeout_ms: 60_000,
            subscribed_topic_names: Some(Vec::new()),
            owned: Some(Vec::new()),
            members_max: 1,
            ..heartbeat(members, 0)
        };
        let refused = Op::JoinConsumerGroup(JoinConsumerGroup::Consumer(refused));
        measure(&format!("an upgrade refused for want of room, {members} members"), 50, &classic, |shard| {
            for _ in 0..50 {
                black_box(shard.apply(&refused));
            }
        });
        measure(&format!("digest of a group of {members}"), 100, &shard, |shard| {
            for _ in 0..100 {
                black_box(shard.state.digest());
            }
        });
    }
}
