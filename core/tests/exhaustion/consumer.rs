//! A client of the consumer protocol (KIP-848), step by step.

use lockstep_core::op::{ConsumerHeartbeat, HeartbeatConsumer, JoinConsumerGroup, LeaveConsumerGroup};
use lockstep_core::reply::HeartbeatReply;
use lockstep_core::view::HeartbeatCheck;
use lockstep_core::{GroupError, Op, Reply};

use crate::harness::{heartbeat, joining, parts, topic_partitions};
use crate::world::{Checked, NAMES, World, ensure};

impl World {
    /// The first heartbeat, or that of a client that begins anew.
    pub(crate) fn enter(&mut self, client: usize, lost: bool) -> Checked<u8> {
        let name = NAMES[client];
        self.consumer(client).drop_out();
        let before = self.view().map_or(0, |view| view.members.len());
        let known = self.has_member(name);
        let outcome = self.propose(&joining(name))?;
        let after = self.view().map_or(0, |view| view.members.len());
        ensure!(outcome.is_ok(), "a join was refused: {outcome:?}");
        ensure!(after == before + usize::from(!known), "a join made {after} members of {before}");
        self.hear(client, outcome, lost)?;
        Ok(1)
    }

    /// A heartbeat, by the leader's way: from the applied state when nothing changes.
    pub(crate) fn beat(&mut self, client: usize, done: bool, lost: bool) -> Checked<u8> {
        let name = NAMES[client];
        let consumer = self.consumer(client);
        if done {
            let told = consumer.told.clone();
            consumer.owned.retain(|partition| told.contains(partition));
        }
        let owned = topic_partitions(&consumer.owned);
        let epoch = consumer.epoch;
        let op = match (consumer.resend, done) {
            (true, _) => ConsumerHeartbeat { member_epoch: epoch, owned: Some(owned), ..joining(name) },
            (false, true) => ConsumerHeartbeat { owned: Some(owned), ..heartbeat(name, epoch) },
            // It has nothing to report while it has not done what it was told to do.
            (false, false) => heartbeat(name, epoch),
        };
        let member_epoch = self
            .view()
            .and_then(|view| Some(view.members.iter().find(|member| member.member_id == name)?.member_epoch));
        if let HeartbeatCheck::Answer(answer) = self.state.check_consumer_heartbeat(&op) {
            let mut by_op = self.clone();
            let outcome = by_op.propose(&op)?;
            ensure!(answer == outcome, "answered {answer:?} from the state, the op would have been {outcome:?}");
            ensure!(by_op.view() == self.view(), "answered from the state, but the op would have changed it");
            ensure!(
                answer.is_ok() || member_epoch != Some(epoch),
                "a member that is up to date was refused: {answer:?}"
            );
            self.hear(client, answer, lost)?;
            return Ok(0);
        }
        let outcome = self.propose(&op)?;
        ensure!(outcome.is_ok() || member_epoch != Some(epoch), "a member that is up to date was refused: {outcome:?}");
        self.hear(client, outcome, lost)?;
        Ok(1)
    }

    /// The client gives everything up and says so; whether it hears an answer makes no difference.
    pub(crate) fn leave(&mut self, client: usize) -> Checked<u8> {
        let name = NAMES[client];
        self.consumer(client).drop_out();
        let known = self.has_member(name);
        let outcome = self.propose(&heartbeat(name, -1))?;
        ensure!(outcome.is_ok() || !self.is_native(name), "a member that leaves was refused: {outcome:?}");
        ensure!(!known || outcome.is_err() || !self.has_member(name), "a member has left and is there");
        Ok(1)
    }

    fn is_native(&self, name: &str) -> bool {
        self.view()
            .is_some_and(|view| view.members.iter().any(|member| member.member_id == name && !member.speaks_classic))
    }

    fn propose(&mut self, op: &ConsumerHeartbeat) -> Checked<Result<HeartbeatReply, GroupError>> {
        match self.apply(&heartbeat_op(op))? {
            Reply::Heartbeat(outcome) => Ok(outcome),
            reply => Err(format!("a heartbeat was answered {reply:?}")),
        }
    }

    /// The client gets its answer, unless it is lost or waits for the target assignment.
    pub(crate) fn hear(&mut self, client: usize, outcome: Result<HeartbeatReply, GroupError>, lost: bool) -> Checked {
        let consumer = self.consumer(client);
        if lost {
            consumer.lose_answer();
            return Ok(());
        }
        let reply = match outcome {
            Ok(reply) => reply,
            Err(GroupError::UnknownMember | GroupError::FencedMemberEpoch | GroupError::GroupNotFound) => {
                consumer.drop_out();
                return Ok(());
            }
            Err(error) => return Err(format!("no client expects {error:?}")),
        };
        consumer.waiting = reply.assignment_due;
        if reply.assignment_due {
            return Ok(());
        }
        ensure!(reply.member_epoch >= consumer.epoch, "{} was told an older epoch: {reply:?}", NAMES[client]);
        ensure!(reply.member_epoch > 0, "{} was told that it has no epoch: {reply:?}", NAMES[client]);
        consumer.epoch = reply.member_epoch;
        consumer.resend = false;
        if let Some(assignment) = &reply.assignment {
            consumer.told = parts(assignment);
            consumer.owned.extend(&consumer.told);
        }
        Ok(())
    }

    /// Heartbeats that come late: with any other epoch than the member's, and of a member that there is not. (One with the epoch before
    /// that owns nothing it should not is the retry of a request whose answer was lost, and taken: [`Self::beat`] makes those.)
    pub(crate) fn probe_consumer(&self, client: usize) -> Checked<u64> {
        let name = NAMES[client];
        let view = self.view();
        let latest = view.as_ref().map_or(0, |view| view.epoch);
        let member = view.iter().flat_map(|view| &view.members).find(|member| member.member_id == name);
        let member_epoch = member.map(|member| member.member_epoch);
        let leaves = member.is_none().then_some(-1);
        let mut probes = 0;
        for epoch in (1..=latest + 1).chain(leaves).filter(|epoch| Some(*epoch) != member_epoch) {
            let op = heartbeat(name, epoch);
            let Reply::Heartbeat(outcome) = self.changes_nothing(&heartbeat_op(&op))? else {
                return Err(format!("{op:?} got no heartbeat's reply"));
            };
            ensure!(outcome.is_err(), "{op:?} came late and got {outcome:?}");
            if epoch > 0 {
                let answered = self.state.check_consumer_heartbeat(&op);
                ensure!(answered == HeartbeatCheck::Answer(outcome), "{op:?} is answered {answered:?}");
            }
            probes += 1;
        }
        Ok(probes)
    }
}

/// The op that carries a heartbeat.
fn heartbeat_op(op: &ConsumerHeartbeat) -> Op {
    match op.member_epoch {
        0 => Op::JoinConsumerGroup(JoinConsumerGroup::Consumer(op.clone())),
        ..0 => Op::LeaveConsumerGroup(LeaveConsumerGroup::Consumer(op.clone())),
        _ => Op::HeartbeatConsumer(HeartbeatConsumer::Consumer(op.clone())),
    }
}
