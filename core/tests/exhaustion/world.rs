//! Two replicas, two clients and what must hold after every op.

use std::collections::BTreeMap;
use std::hash::Hasher;

use lockstep_core::op::{CreateTopic, RebalancePartitions};
use lockstep_core::view::{GroupState, GroupType, GroupView};
use lockstep_core::{ClusterStateMachine, GroupError, Op, Position, Reply, ShardId};
use siphasher::sip128::{Hasher128, SipHasher13};

use crate::clients::{ClassicClient, Client, ConsumerClient};
use crate::encoding::{Group, Protocol, close_gaps};
use crate::harness::{self, GROUP, Parts, commit_of, parts, topic, topic_id};

/// Partitions of the topic at the beginning.
pub(crate) const PARTITIONS: u32 = 2;
/// What the clients call themselves; member ids of the classic protocol begin with it.
pub(crate) const NAMES: [&str; 2] = ["a", "b"];

/// What must hold, or what did not.
pub(crate) type Checked<T = ()> = Result<T, String>;

/// Gives up with a message unless the condition holds.
macro_rules! ensure {
    ($holds:expr, $($message:tt)+) => {
        if !$holds {
            return Err(format!($($message)+));
        }
    };
}
pub(crate) use ensure;

/// Everything that decides what happens next.
#[derive(Clone)]
pub(crate) struct World {
    /// A replica that has been there from the beginning.
    pub(crate) state: ClusterStateMachine,
    /// A replica that was restored from a snapshot; see [`Self::restore_twin`].
    twin: ClusterStateMachine,
    pub(crate) position: Position,
    pub(crate) clients: [Client; 2],
    /// Offsets by the model: the last commit that was accepted for each partition.
    committed: BTreeMap<u32, i64>,
    /// The last epoch or generation that had its assignment, with that.
    rested: Option<(i32, BTreeMap<String, Parts>)>,
}

impl World {
    /// Two clients of the consumer protocol.
    pub(crate) fn of_consumers() -> Self {
        Self::new([(); 2].map(|()| Client::Consumer(ConsumerClient::default())))
    }

    /// Two clients of the classic protocol.
    pub(crate) fn of_classic_clients() -> Self {
        Self::new([(); 2].map(|()| Client::Classic(ClassicClient::Out)))
    }

    /// A client of the classic protocol and one of the consumer protocol: the group is upgraded and downgraded as they come and go.
    pub(crate) fn of_both() -> Self {
        Self::new([Client::Classic(ClassicClient::Out), Client::Consumer(ConsumerClient::default())])
    }

    /// A topic, and nobody in the group.
    fn new(clients: [Client; 2]) -> Self {
        let state = ClusterStateMachine::new(ShardId(0), 1);
        let mut world = Self {
            twin: state.clone(),
            state,
            position: Position { term: 1, index: 0 },
            clients,
            committed: BTreeMap::new(),
            rested: None,
        };
        world
            .apply(&Op::CreateTopic(CreateTopic {
                topic_id: topic_id(1),
                name: topic(1),
                partitions: PARTITIONS,
                configs: BTreeMap::new(),
            }))
            .expect("a topic is made");
        // Somebody who assigned partitions to itself has committed before: from here on no offset may ever be lost.
        for partition in 0..PARTITIONS {
            let offset = i64::from(partition) + 100;
            world.committed.insert(partition, offset);
            world.apply(&Op::CommitOffset(commit_of("", -1, &[(1, partition)], offset))).expect("an offset is taken");
        }
        world
    }

    pub(crate) fn consumer(&mut self, client: usize) -> &mut ConsumerClient {
        match &mut self.clients[client] {
            Client::Consumer(consumer) => consumer,
            Client::Classic(_) => panic!("client {client} speaks the classic protocol"),
        }
    }

    pub(crate) fn classic(&mut self, client: usize) -> &mut ClassicClient {
        match &mut self.clients[client] {
            Client::Classic(classic) => classic,
            Client::Consumer(_) => panic!("client {client} speaks the consumer protocol"),
        }
    }

    pub(crate) fn view(&self) -> Option<GroupView> {
        self.state.group(GROUP)
    }

    pub(crate) fn has_member(&self, member_id: &str) -> bool {
        self.view().is_some_and(|view| view.members.iter().any(|member| member.member_id == member_id))
    }

    pub(crate) fn partitions(&self) -> u32 {
        self.state.directory().topic(&topic(1)).map_or(0, |topic| topic.partitions.len() as u32)
    }

    /// The twin becomes a replica that is restored from a snapshot of this very state. This is done in every state: whatever comes next
    /// is applied to a replica with the whole history and to one that knows only what a snapshot holds, as a new leader may.
    pub(crate) fn restore_twin(&mut self) -> Checked {
        let snapshot = self.state.snapshot();
        self.twin = ClusterStateMachine::restore(&snapshot).map_err(|error| format!("no snapshot: {error:?}"))?;
        ensure!(self.twin.digest() == self.state.digest(), "the snapshot has another digest");
        ensure!(self.twin.snapshot() == snapshot, "the snapshot of what was restored is another one");
        Ok(())
    }

    /// Another leader takes over. Requests that wait are lost with the connections.
    pub(crate) fn fail_over(&mut self) {
        self.position.term += 1;
        for client in &mut self.clients {
            match client {
                Client::Consumer(client) => {
                    if client.waiting {
                        client.lose_answer();
                    }
                }
                Client::Classic(client) => {
                    if matches!(client, ClassicClient::Joining { .. } | ClassicClient::Syncing { .. }) {
                        client.give_up(true);
                    }
                }
            }
        }
    }

    /// Applies an op to both replicas and checks all that can be told without knowing who sent it.
    pub(crate) fn apply(&mut self, op: &Op) -> Checked<Reply> {
        let before = self.view();
        let digest = self.state.digest();
        self.position.index += 1;
        let applied = self.state.apply(self.position, op, 0).map_err(|violation| format!("{violation:?}"))?;
        let twin = self.twin.apply(self.position, op, 0).map_err(|violation| format!("{violation:?}"))?;
        ensure!(applied == twin, "the replicas answer {applied:?} and {twin:?}");
        ensure!(self.state.digest() == self.twin.digest(), "the replicas' digests differ");
        self.state.check_invariants().map_err(|violation| format!("{violation:?}"))?;
        let after = self.view();
        epochs_go_on(before.as_ref(), after.as_ref())?;
        self.an_epoch_has_one_assignment(after.as_ref())?;
        let remembers = matches!(&applied.reply, Reply::ClassicJoin(Err(GroupError::MemberIdRequired(_))));
        let assigns = matches!(op, Op::RebalancePartitions(RebalancePartitions::Assign { .. }));
        ensure!(
            !refused(&applied.reply) || remembers || assigns || self.state.digest() == digest,
            "refused with {:?}, and yet the state changed",
            applied.reply
        );
        self.the_last_commit_is_fetched()?;
        Ok(applied.reply)
    }

    /// An op that must change nothing, at this place of every interleaving. The world stays where it is: what follows is what would
    /// follow without it.
    pub(crate) fn changes_nothing(&self, op: &Op) -> Checked<Reply> {
        let mut state = self.state.clone();
        let position = Position { index: self.position.index + 1, ..self.position };
        let applied = state.apply(position, op, 0).map_err(|violation| format!("{violation:?}"))?;
        let reply = applied.reply;
        ensure!(state.digest() == self.state.digest(), "{op:?} was answered {reply:?} and changed the state");
        Ok(reply)
    }

    fn the_last_commit_is_fetched(&self) -> Checked {
        for partition in 0..self.partitions() {
            let fetched = self.state.committed_offset(GROUP, topic_id(1), partition).map(|committed| committed.offset);
            let last = self.committed.get(&partition).copied();
            ensure!(fetched == last, "partition {partition} is at {fetched:?}, committed was {last:?}");
        }
        Ok(())
    }

    /// No epoch or generation is used twice, whatever protocol the group speaks. It is enough to remember the last one because epochs
    /// never go back.
    fn an_epoch_has_one_assignment(&mut self, view: Option<&GroupView>) -> Checked {
        let Some(view) = view else { return Ok(()) };
        let at_rest = match view.group_type {
            GroupType::Classic => view.state == GroupState::Stable,
            GroupType::Consumer => view.epoch == view.assignment_epoch,
        };
        if !at_rest {
            return Ok(());
        }
        let assigned: BTreeMap<String, Parts> = view
            .members
            .iter()
            .map(|member| {
                let parts = match view.group_type {
                    GroupType::Classic => harness::assigned(&member.classic_assignment),
                    GroupType::Consumer => parts(&member.target),
                };
                (member.member_id.clone(), parts)
            })
            .collect();
        if let Some((epoch, before)) = &self.rested
            && *epoch == view.epoch
        {
            for (member_id, parts) in &assigned {
                let known = before.get(member_id);
                ensure!(
                    known.is_none_or(|known| known == parts),
                    "{member_id} has {parts:?} in epoch {epoch}, before it had {known:?}"
                );
            }
        }
        self.rested = Some((view.epoch, assigned));
        Ok(())
    }

    /// Whatever clients were told and have not given up: nobody works on what another one works on. A client whose member was removed
    /// may not know it yet; it was silent too long and has to find out.
    pub(crate) fn nobody_shares(&self) -> Checked {
        let mut holders: BTreeMap<(u8, u32), &str> = BTreeMap::new();
        for (client, name) in self.clients.iter().zip(NAMES) {
            let (Some(id), Some(owned)) = (client.id(name), client.owned()) else { continue };
            if owned.is_empty() || !self.has_member(id) {
                continue;
            }
            for partition in owned {
                let other = holders.insert(*partition, id);
                ensure!(other.is_none(), "partition {} belongs to {id} and to {other:?}", partition.1);
            }
        }
        Ok(())
    }

    /// The last step: the group is at rest, and the clients have shared out the topic as the group says.
    pub(crate) fn is_settled(&self) -> Checked {
        let view = self.view();
        let state = view.as_ref().map(|view| view.state);
        ensure!(state == Some(GroupState::Stable), "the group rests as {state:?}");
        let all: Parts = (0..self.partitions()).map(|partition| (1, partition)).collect();
        let owned: Vec<(u8, u32)> = self.clients.iter().filter_map(Client::owned).flatten().copied().collect();
        ensure!(
            owned.len() == all.len() && owned.into_iter().collect::<Parts>() == all,
            "the topic is not shared out: {:?}",
            self.clients
        );
        ensure!(view.is_some_and(|view| view.members.len() == 2), "somebody is in the group that nobody is");
        self.nobody_shares()
    }

    /// 128 bits of everything that decides what can happen from here on, and of nothing else; see [`Group::normalise`].
    pub(crate) fn key(&self) -> u128 {
        let mut group = Group::read(&self.state);
        let mut clients = self.clients.clone();
        // Of an epoch before the group's nothing can be assigned again.
        let current = group.as_ref().map_or(0, |group| match &group.protocol {
            Protocol::Classic(group) => group.generation,
            Protocol::Consumer(group) => group.assignment_epoch,
        });
        let mut rested = self.rested.clone().filter(|(epoch, _)| *epoch >= current);
        if let Some(group) = &mut group {
            group.normalise();
        }
        let of_group = group.iter_mut().flat_map(Group::epochs);
        let of_clients = clients.iter_mut().filter_map(Client::epoch);
        close_gaps(of_group.chain(of_clients).chain(rested.as_mut().map(|(epoch, _)| epoch)).collect());
        let all = (group, clients, rested, self.partitions());
        let mut hasher = SipHasher13::new();
        hasher.write(&postcard::to_allocvec(&all).expect("everything is encoded"));
        hasher.finish128().as_u128()
    }
}

/// Ops one after the other of which nothing follows, on a replica that is thrown away.
pub(crate) struct Probes {
    state: ClusterStateMachine,
    position: Position,
    applied: u64,
}

impl Probes {
    pub(crate) fn of(world: &World) -> Self {
        Self { state: world.state.clone(), position: world.position, applied: 0 }
    }

    pub(crate) fn apply(&mut self, op: &Op) -> Checked<Reply> {
        self.position.index += 1;
        self.applied += 1;
        let applied = self.state.apply(self.position, op, 0).map_err(|violation| format!("{violation:?}"))?;
        Ok(applied.reply)
    }

    /// A commit with an offset of its own, which must be taken and fetched if and only if it is due.
    pub(crate) fn commit(&mut self, member_id: &str, epoch: i32, partition: u32, due: bool) -> Checked {
        let fetched = |state: &ClusterStateMachine| {
            state.committed_offset(GROUP, topic_id(1), partition).map(|committed| committed.offset)
        };
        let before = fetched(&self.state);
        let offset = 1_000 + self.position.index as i64;
        let reply = self.apply(&Op::CommitOffset(commit_of(member_id, epoch, &[(1, partition)], offset)))?;
        let taken = match &reply {
            Reply::Commit(Ok(outcomes)) => *outcomes == [Ok(())],
            _ => false,
        };
        ensure!(taken == due, "a commit of {member_id} in epoch {epoch} was answered {reply:?}, due: {due}");
        let expected = if due { Some(offset) } else { before };
        ensure!(fetched(&self.state) == expected, "{:?} is fetched, not {expected:?}", fetched(&self.state));
        Ok(())
    }

    /// Nothing but what is committed, and when somebody was heard from, differs from that world.
    pub(crate) fn changed_nothing_else(self, world: &World, key: u128) -> Checked {
        self.state.check_invariants().map_err(|violation| format!("{violation:?}"))?;
        let probed = World { state: self.state, ..world.clone() };
        ensure!(probed.view() == world.view(), "what must change nothing changed the group");
        ensure!(probed.key() == key, "what must change nothing changes what can follow");
        Ok(())
    }

    pub(crate) fn count(&self) -> u64 {
        self.applied
    }
}

fn epochs_go_on(before: Option<&GroupView>, after: Option<&GroupView>) -> Checked {
    let Some(before) = before else { return Ok(()) };
    let Some(after) = after else {
        ensure!(before.epoch == 0, "the group is forgotten with its epoch {}", before.epoch);
        return Ok(());
    };
    ensure!(after.epoch >= before.epoch, "the epoch went back from {} to {}", before.epoch, after.epoch);
    if after.group_type != GroupType::Consumer || before.group_type != GroupType::Consumer {
        return Ok(());
    }
    ensure!(after.assignment_epoch >= before.assignment_epoch, "the assignment's epoch went back");
    for member in &after.members {
        let known = before.members.iter().find(|known| known.member_id == member.member_id);
        ensure!(
            known.is_none_or(|known| member.member_epoch >= known.member_epoch),
            "the epoch of {} went back",
            member.member_id
        );
    }
    Ok(())
}

fn refused(reply: &Reply) -> bool {
    match reply {
        Reply::ClassicJoin(outcome) => outcome.is_err(),
        Reply::ClassicLeave(outcome) => outcome.as_ref().map_or(true, |outcomes| outcomes.iter().all(Result::is_err)),
        Reply::Sync(outcome) => outcome.is_err(),
        Reply::Heartbeat(outcome) => outcome.is_err(),
        Reply::Commit(outcome) => outcome.is_err(),
        Reply::Done(done) => !done,
        _ => false,
    }
}
