//! What may happen next, and what it does.

use lockstep_core::op::{
    ExpiredMember, ExpiryReason, HeartbeatConsumer, LeaveConsumerGroup, RebalancePartitions, UpdateMetadata,
};
use lockstep_core::{Op, Reply, SessionTable};

use crate::clients::{ClassicClient, Client};
use crate::encoding::Group;
use crate::harness::{GROUP, WALL_MS, topic_id};
use crate::world::{Checked, NAMES, PARTITIONS, Probes, World, ensure};

/// Something that happens. `client` is an index, `lost` that the answer never arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Consumer protocol: a first heartbeat, also of a client that has given up all it had.
    Enter { client: usize, lost: bool },
    /// Consumer protocol: a heartbeat; with `done` after it gave up what it is not told to have any more.
    Beat { client: usize, done: bool, lost: bool },
    /// Consumer protocol: it leaves.
    Leave { client: usize },
    /// JoinGroup, the first one, a retry, or of somebody who wants to rebalance.
    Join { client: usize, lost: bool },
    /// The answer to a JoinGroup that waited.
    Joined { client: usize, lost: bool },
    /// SyncGroup.
    Sync { client: usize },
    /// The answer to a SyncGroup that waited.
    Synced { client: usize, lost: bool },
    /// Heartbeat of the classic protocol.
    ClassicBeat { client: usize },
    /// LeaveGroup.
    ClassicLeave { client: usize },
    /// The coordinator computes the target assignment; for the request of a client that waits for it, or for nobody.
    Assign { client: Option<usize>, lost: bool },
    /// What the leader's timers would do if the members concerned were silent: the op of this number.
    Clock { number: usize },
    /// The topic gets one more partition.
    Grow,
    /// Another leader.
    FailOver,
}

impl World {
    /// Every step that may come next.
    pub(crate) fn steps(&self) -> Vec<Step> {
        let mut steps = Vec::new();
        let both = [false, true];
        for (i, client) in self.clients.iter().enumerate() {
            match client {
                Client::Consumer(consumer) => {
                    steps.extend(both.map(|lost| Step::Enter { client: i, lost }));
                    if consumer.epoch > 0 {
                        steps.extend(both.map(|lost| Step::Beat { client: i, done: true, lost }));
                        steps.extend(both.map(|lost| Step::Beat { client: i, done: false, lost }));
                        steps.push(Step::Leave { client: i });
                    }
                    if consumer.waiting {
                        steps.extend(both.map(|lost| Step::Assign { client: Some(i), lost }));
                    }
                }
                Client::Classic(classic) => {
                    steps.extend(both.map(|lost| Step::Join { client: i, lost }));
                    match classic {
                        ClassicClient::Out | ClassicClient::Named { .. } => {}
                        ClassicClient::Joining { .. } => {
                            steps.extend(both.map(|lost| Step::Joined { client: i, lost }));
                        }
                        ClassicClient::Joined { .. } => steps.push(Step::Sync { client: i }),
                        ClassicClient::Syncing { .. } => {
                            steps.extend(both.map(|lost| Step::Synced { client: i, lost }))
                        }
                        ClassicClient::Active { .. } => steps.push(Step::ClassicBeat { client: i }),
                    }
                    if classic.id().is_some() {
                        steps.push(Step::ClassicLeave { client: i });
                    }
                }
            }
        }
        steps.push(Step::Assign { client: None, lost: false });
        steps.extend((0..self.clock_ops().len()).map(|number| Step::Clock { number }));
        if self.partitions() == PARTITIONS {
            steps.push(Step::Grow);
        }
        steps.push(Step::FailOver);
        steps
    }

    /// Takes a step and gives how many ops it took; `None` when there was nothing to do.
    pub(crate) fn take(&mut self, step: Step) -> Checked<Option<u8>> {
        let ops = match step {
            Step::Enter { client, lost } => self.enter(client, lost)?,
            Step::Beat { client, done, lost } => self.beat(client, done, lost)?,
            Step::Leave { client } => self.leave(client)?,
            Step::Join { client, lost } => self.join(client, lost)?,
            Step::Joined { client, lost } => return self.joined(client, lost),
            Step::Sync { client } => self.sync(client)?,
            Step::Synced { client, lost } => return self.synced(client, lost),
            Step::ClassicBeat { client } => self.classic_beat(client)?,
            Step::ClassicLeave { client } => self.classic_leave(client)?,
            Step::Assign { client, lost } => self.assign(client, lost)?,
            Step::Clock { number } => {
                let Some(op) = self.clock_ops().into_iter().nth(number) else { return Ok(None) };
                let reply = self.apply(&op)?;
                ensure!(reply == Reply::Done(true), "{op:?} was due and answered {reply:?}");
                1
            }
            Step::Grow => {
                let op = UpdateMetadata::AddPartitions { topic_id: topic_id(1), partitions: PARTITIONS + 1 };
                self.apply(&Op::UpdateMetadata(op))?;
                1
            }
            Step::FailOver => {
                self.fail_over();
                0
            }
        };
        self.nobody_shares()?;
        Ok(Some(ops))
    }

    /// Requests and ops that must change nothing wherever they come: those of clients that are no members any more or name an older
    /// epoch, and those of the coordinator that somebody was faster than. Gives how many.
    pub(crate) fn probe(&self, key: u128) -> Checked<u64> {
        let mut probes = 0;
        for op in self.void_ops() {
            let reply = self.changes_nothing(&op)?;
            ensure!(reply == Reply::Done(false), "{op:?} is void and was answered {reply:?}");
            probes += 1;
        }
        let due = Group::read(&self.state).is_some_and(|group| group.assignment_due());
        if !due {
            self.changes_nothing(&assign_op(None))?;
            probes += 1;
        }
        probes += self.probe_commits(key)?;
        for (i, client) in self.clients.iter().enumerate() {
            probes += match client {
                Client::Consumer(_) => self.probe_consumer(i)?,
                Client::Classic(_) => self.probe_classic(i)?,
            };
        }
        Ok(probes)
    }

    pub(crate) fn assign(&mut self, client: Option<usize>, lost: bool) -> Checked<u8> {
        match client {
            None => {
                let reply = self.apply(&assign_op(None))?;
                ensure!(matches!(reply, Reply::Done(_)), "an assignment for nobody was answered {reply:?}");
            }
            Some(client) => {
                let Reply::Heartbeat(outcome) = self.apply(&assign_op(Some(NAMES[client])))? else {
                    return Err("an assignment for a member was not answered".to_owned());
                };
                self.hear(client, outcome, lost)?;
            }
        }
        Ok(1)
    }

    /// Expiries that somebody was faster than, join phases that are over, and ops of a leader that was replaced.
    fn void_ops(&self) -> Vec<Op> {
        let mut ops = Vec::new();
        for op in self.clock_ops() {
            match op {
                Op::LeaveConsumerGroup(LeaveConsumerGroup::Expired { group_id, term, members, now_ms }) => {
                    let earlier = members
                        .iter()
                        .map(|member| ExpiredMember { last_seen: member.last_seen - 1, ..member.clone() })
                        .filter(|member| member.reason != ExpiryReason::Rebalance)
                        .collect::<Vec<_>>();
                    let another = members
                        .iter()
                        .map(|member| ExpiredMember {
                            last_seen: self.position.index + 1,
                            reason: ExpiryReason::Rebalance,
                            ..member.clone()
                        })
                        .collect();
                    let expired = |term, members| {
                        let group_id = group_id.clone();
                        Op::LeaveConsumerGroup(LeaveConsumerGroup::Expired { group_id, term, members, now_ms })
                    };
                    ops.extend([expired(term - 1, members), expired(term, earlier), expired(term, another)]);
                }
                Op::RebalancePartitions(RebalancePartitions::CompleteJoin { group_id, since, now_ms }) => {
                    let since = since - 1;
                    let op = RebalancePartitions::CompleteJoin { group_id, since, now_ms };
                    ops.push(Op::RebalancePartitions(op));
                }
                _ => {}
            }
        }
        ops
    }

    /// What the leader's timers would do, each op by itself, and all silent members at once: any of them may be the first, because any
    /// of the members may be silent. The table is that of a leader who finds this state. Its timers do what those of a table do that has
    /// followed the group, but for one thing: who waits for the leader's assignment is known to have synced.
    pub(crate) fn clock_ops(&self) -> Vec<Op> {
        let mut table = SessionTable::start(&self.state, self.position.term, 0);
        let waits = |member: &ExpiredMember| {
            self.clients.iter().zip(NAMES).any(|(client, name)| {
                matches!(client, Client::Classic(classic) if matches!(classic, ClassicClient::Syncing { .. }))
                    && client.id(name) == Some(&member.member_id)
            })
        };
        let mut ops = Vec::new();
        for op in table.expired(10_000_000, WALL_MS) {
            match op {
                Op::LeaveConsumerGroup(LeaveConsumerGroup::Expired { group_id, term, mut members, now_ms }) => {
                    members.retain(|member| !waits(member));
                    let expired = |members| {
                        let group_id = group_id.clone();
                        Op::LeaveConsumerGroup(LeaveConsumerGroup::Expired { group_id, term, members, now_ms })
                    };
                    ops.extend(members.iter().map(|member| expired(vec![member.clone()])));
                    if members.len() > 1 {
                        ops.push(expired(members));
                    }
                }
                // `Step::Assign` is there in any case.
                Op::RebalancePartitions(RebalancePartitions::Assign { .. }) => {}
                op => ops.push(op),
            }
        }
        ops
    }

    /// Commits of every member, and of somebody else, in every epoch: taken or not as Kafka's rules say. Neither they nor other signs of
    /// life change anything but what is committed and when a member was last heard from; so nothing else follows from them.
    fn probe_commits(&self, key: u128) -> Checked<u64> {
        let view = self.view();
        let latest = view.as_ref().map_or(0, |view| view.epoch);
        let mut members: Vec<String> =
            view.iter().flat_map(|view| &view.members).map(|member| member.member_id.clone()).collect();
        members.push("nobody".to_owned());
        members.sort();
        let group = Group::read(&self.state);
        let mut probes = Probes::of(self);
        for member_id in &members {
            for epoch in 0..=latest + 1 {
                for partition in 0..PARTITIONS {
                    let key = (topic_id(1), partition);
                    let due = group.as_ref().is_some_and(|group| group.takes_commit(member_id, epoch, key));
                    probes.commit(member_id, epoch, partition, due)?;
                }
            }
        }
        let seen = HeartbeatConsumer::Seen { groups: vec![(GROUP.to_owned(), members)] };
        probes.apply(&Op::HeartbeatConsumer(seen))?;
        let count = probes.count();
        probes.changed_nothing_else(self, key)?;
        Ok(count)
    }
}

pub(crate) fn assign_op(member_id: Option<&str>) -> Op {
    Op::RebalancePartitions(RebalancePartitions::Assign {
        group_id: GROUP.to_owned(),
        member_id: member_id.map(ToOwned::to_owned),
        now_ms: WALL_MS,
    })
}
