//! A client of the classic protocol (JoinGroup, SyncGroup, Heartbeat, LeaveGroup), step by step.

use lockstep_core::op::{ClassicJoin, JoinConsumerGroup, LeaveConsumerGroup, RebalancePartitions};
use lockstep_core::view::{GroupState, GroupType, JoinProgress, SyncProgress};
use lockstep_core::{GroupError, Op, Reply};

use crate::clients::ClassicClient;
use crate::encoding::Group;
use crate::harness::{self, GROUP, Parts, WALL_MS, assignment, consuming};
use crate::world::{Checked, NAMES, World, ensure};

impl World {
    /// JoinGroup: with the member id if the client has one. It has given everything up before.
    pub(crate) fn join(&mut self, client: usize, lost: bool) -> Checked<u8> {
        self.classic(client).give_up(true);
        let id = self.classic(client).id().map(ToOwned::to_owned);
        let op = match &id {
            Some(id) => consuming(id, true, &[]),
            None => ClassicJoin { require_known_member_id: true, ..consuming(&self.fresh_id(client), false, &[]) },
        };
        let before = self.view().map_or(0, |view| view.members.len());
        let known = id.as_deref().is_some_and(|id| self.has_member(id));
        let reply = self.apply(&Op::JoinConsumerGroup(JoinConsumerGroup::Classic(op)))?;
        let after = self.view().map_or(0, |view| view.members.len());
        ensure!(after <= before || id.is_some() && !known, "a retried join made a member of nobody");
        let Reply::ClassicJoin(outcome) = reply else { return Err(format!("a join was answered {reply:?}")) };
        if let (Err(GroupError::UnknownMember), true) = (&outcome, known) {
            return Err("a member that joins again is unknown".to_owned());
        }
        let classic = self.classic(client);
        if lost {
            // With an id or without: it begins again where it is.
            return Ok(1);
        }
        match outcome {
            Ok(ticket) => {
                ensure!(Some(&ticket.member_id) == id.as_ref(), "{ticket:?} is somebody else's");
                *classic = ClassicClient::Joining { id: ticket.member_id, after: ticket.after_generation };
            }
            Err(GroupError::MemberIdRequired(given)) => *classic = ClassicClient::Named { id: given },
            Err(error) => self.refuse(client, &error)?,
        }
        Ok(1)
    }

    /// The least id that nobody has: two runs that differ only in what such ids are called are one.
    fn fresh_id(&self, client: usize) -> String {
        let group = Group::read(&self.state);
        let current = self.clients[client].id(NAMES[client]);
        (0..)
            .map(|number| format!("{}{number}", NAMES[client]))
            .find(|id| !group.as_ref().is_some_and(|group| group.knows(id)) && current != Some(id.as_str()))
            .unwrap_or_default()
    }

    /// What a client makes of an error.
    fn refuse(&mut self, client: usize, error: &GroupError) -> Checked {
        match error {
            GroupError::UnknownMember => self.classic(client).give_up(false),
            GroupError::RebalanceInProgress | GroupError::IllegalGeneration => self.classic(client).give_up(true),
            error => return Err(format!("no client expects {error:?}")),
        }
        Ok(())
    }

    /// The answer to the JoinGroup that waits, if it is there.
    pub(crate) fn joined(&mut self, client: usize, lost: bool) -> Checked<Option<u8>> {
        let ClassicClient::Joining { id, after } = self.classic(client).clone() else { return Ok(None) };
        let JoinProgress::Done(outcome) = self.state.join_progress(GROUP, &id, after) else { return Ok(None) };
        if lost {
            self.classic(client).give_up(true);
            return Ok(Some(0));
        }
        match outcome {
            Ok(result) => {
                ensure!(result.member_id == id, "{id} was answered as {}", result.member_id);
                let mut members: Vec<String> = result.members.into_iter().map(|(member_id, ..)| member_id).collect();
                members.sort();
                let (generation, leads) = (result.generation, result.leader == id);
                ensure!(leads != members.is_empty(), "{id} leads {members:?}");
                *self.classic(client) = ClassicClient::Joined { id, generation, leads, members };
            }
            Err(error) => self.refuse(client, &error)?,
        }
        Ok(Some(0))
    }

    /// SyncGroup: through the log with the assignment if the client leads, else answered from the state.
    pub(crate) fn sync(&mut self, client: usize) -> Checked<u8> {
        let ClassicClient::Joined { id, generation, leads, members } = self.classic(client).clone() else {
            return Ok(0);
        };
        let checked = self.state.check_sync(GROUP, &id, None, generation, Some("consumer"), None);
        if leads {
            let reply = self.apply(&self.sync_op(&id, generation, &members))?;
            ensure!(reply == Reply::Sync(checked.clone()), "{reply:?} through the log, {checked:?} from the state");
        }
        match checked {
            Ok(()) => *self.classic(client) = ClassicClient::Syncing { id, generation },
            Err(error) => self.refuse(client, &error)?,
        }
        Ok(u8::from(leads))
    }

    /// The leader gives each its part.
    fn sync_op(&self, id: &str, generation: i32, members: &[String]) -> Op {
        let partitions = self.partitions();
        let assignments = (0_u32..)
            .zip(members)
            .map(|(nth, member)| {
                let parts: Parts = (0..partitions)
                    .filter(|partition| partition % members.len() as u32 == nth)
                    .map(|partition| (1, partition))
                    .collect();
                (member.clone(), assignment(&parts))
            })
            .collect();
        Op::RebalancePartitions(RebalancePartitions::Sync {
            group_id: GROUP.to_owned(),
            generation,
            member_id: id.to_owned(),
            instance_id: None,
            protocol_type: Some("consumer".to_owned()),
            protocol_name: None,
            assignments,
            now_ms: WALL_MS,
        })
    }

    /// The answer to the SyncGroup that waits, if it is there.
    pub(crate) fn synced(&mut self, client: usize, lost: bool) -> Checked<Option<u8>> {
        let ClassicClient::Syncing { id, generation } = self.classic(client).clone() else { return Ok(None) };
        let SyncProgress::Done(outcome) = self.state.sync_progress(GROUP, &id, generation) else { return Ok(None) };
        if lost {
            self.classic(client).give_up(true);
            return Ok(Some(0));
        }
        match outcome {
            Ok(result) => {
                let state = self.view().map(|view| (view.group_type, view.state));
                ensure!(
                    state != Some((GroupType::Classic, GroupState::CompletingRebalance)),
                    "{id} was given its part before the leader shared out"
                );
                let owned = harness::assigned(&result.assignment);
                let leads = self.state.leads_classic_group(GROUP, &id);
                *self.classic(client) = ClassicClient::Active { id, generation, leads, owned };
            }
            Err(error) => self.refuse(client, &error)?,
        }
        self.nobody_shares()?;
        Ok(Some(0))
    }

    /// Heartbeat, answered from the state.
    pub(crate) fn classic_beat(&mut self, client: usize) -> Checked<u8> {
        let ClassicClient::Active { id, generation, .. } = self.classic(client).clone() else { return Ok(0) };
        let current = self.is_current(&id, generation);
        let outcome = self.state.check_heartbeat(GROUP, &id, None, generation);
        ensure!(
            current == matches!(outcome, Ok(()) | Err(GroupError::RebalanceInProgress)),
            "a heartbeat of {id} in generation {generation} was answered {outcome:?}"
        );
        if let Err(error) = outcome {
            self.refuse(client, &error)?;
        }
        Ok(0)
    }

    /// Is this the generation (classic group) or epoch (consumer group) in which this member is?
    fn is_current(&self, id: &str, generation: i32) -> bool {
        self.view().is_some_and(|view| {
            view.members
                .iter()
                .any(|member| member.member_id == id && member.speaks_classic && member.member_epoch == generation)
        })
    }

    /// LeaveGroup.
    pub(crate) fn classic_leave(&mut self, client: usize) -> Checked<u8> {
        let Some(id) = self.classic(client).id().map(ToOwned::to_owned) else { return Ok(0) };
        self.classic(client).give_up(false);
        let known = Group::read(&self.state).is_some_and(|group| group.knows(&id));
        let reply = self.apply(&leave_op(&id))?;
        let Reply::ClassicLeave(outcome) = &reply else { return Err(format!("a leave was answered {reply:?}")) };
        let left = matches!(outcome.as_deref(), Ok([Ok(())]));
        ensure!(left == known, "{id} left: {outcome:?}");
        ensure!(!Group::read(&self.state).is_some_and(|group| group.knows(&id)), "{id} has left and is there");
        Ok(1)
    }

    /// Requests that come late: of any other generation than the member is in, and of a member that there is not.
    pub(crate) fn probe_classic(&self, client: usize) -> Checked<u64> {
        let view = self.view();
        let (group_type, latest) = view.as_ref().map_or((GroupType::Classic, 0), |view| (view.group_type, view.epoch));
        let members: Vec<String> = NAMES.iter().map(|name| format!("{name}0")).collect();
        let mut probes = 0;
        let known = self.clients[client].id(NAMES[client]).map(ToOwned::to_owned);
        let stranger = format!("{}9", NAMES[client]);
        for id in known.iter().chain([&stranger]) {
            for generation in (0..=latest + 1).filter(|generation| !self.is_current(id, *generation)) {
                let beat = self.state.check_heartbeat(GROUP, id, None, generation);
                ensure!(
                    matches!(beat, Err(GroupError::UnknownMember | GroupError::IllegalGeneration)),
                    "a heartbeat of {id} in generation {generation} was answered {beat:?}"
                );
                let reply = self.changes_nothing(&self.sync_op(id, generation, &members))?;
                ensure!(matches!(reply, Reply::Sync(Err(_))), "a late SyncGroup was answered {reply:?}");
                probes += 2;
            }
        }
        let reply = self.changes_nothing(&leave_op(&stranger))?;
        ensure!(
            !matches!(&reply, Reply::ClassicLeave(Ok(outcomes)) if outcomes.iter().any(Result::is_ok)),
            "nobody left: {reply:?}"
        );
        // In a consumer group any id is taken from a member that comes with one, as in Kafka.
        if group_type == GroupType::Classic {
            let op = Op::JoinConsumerGroup(JoinConsumerGroup::Classic(consuming(&stranger, true, &[])));
            let reply = self.changes_nothing(&op)?;
            ensure!(
                reply == Reply::ClassicJoin(Err(GroupError::UnknownMember)),
                "a JoinGroup of nobody was answered {reply:?}"
            );
        }
        Ok(probes + 2)
    }
}

fn leave_op(id: &str) -> Op {
    Op::LeaveConsumerGroup(LeaveConsumerGroup::Classic {
        group_id: GROUP.to_owned(),
        members: vec![(id.to_owned(), None)],
        now_ms: WALL_MS,
    })
}
