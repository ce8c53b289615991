//! The members of one group, each a task, and what is known of all of them together.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use lockstep_client::{Admin, ClientError, ErrorCode, error_name};
use lockstep_env::tokio_env::TokioEnv;
use lockstep_env::{Env, select};
use lockstep_wire::codec::{
    ConsumerGroupDescribeRequest, ConsumerGroupHeartbeatRequest, ConsumerGroupHeartbeatResponse, GroupId, StrBytes,
    consumer_group_describe_response as described,
};
use tokio::sync::Notify;

use super::connections::Connections;
use super::member::{Change, Member, Partition};
use crate::cli::latency::Latencies;

/// A request that was not answered, or not by the coordinator, is tried again after so long.
pub(super) const RETRY_AFTER: Duration = Duration::from_millis(100);
/// Longest wait for the answer to a heartbeat, which may have to wait for others of its connection.
const PATIENCE: Duration = Duration::from_secs(20);
/// How often it is looked whether a group has settled. When it did is known exactly.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// A farewell is said so often while the coordinator moves.
const FAREWELLS_MAX: usize = 10;
/// Longest wait for all members' farewells.
const FAREWELL_PATIENCE: Duration = Duration::from_secs(60);

/// What the groups of a measurement share.
pub(super) struct Setting {
    pub(super) connections: Connections,
    pub(super) topic: String,
    /// Partitions of the topic.
    pub(super) partitions: usize,
    /// How often members send heartbeats.
    pub(super) pace: Duration,
    pub(super) tally: Tally,
    next_user: AtomicUsize,
}

/// What is counted of all heartbeats, while counting is on; faults always.
pub(super) struct Tally {
    pub(super) is_counting: AtomicBool,
    pub(super) latencies: Latencies,
    /// Members that were told they are none, or not of this epoch.
    pub(super) fenced: AtomicU64,
    /// Heartbeats without an answer, or with another error.
    pub(super) failed: AtomicU64,
    /// Times that a member was given what another one owned.
    pub(super) owned_twice: AtomicU64,
    last_failure: Mutex<Option<String>>,
}

impl Tally {
    fn new() -> Self {
        Self {
            is_counting: AtomicBool::new(false),
            latencies: Latencies::new(),
            fenced: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            owned_twice: AtomicU64::new(0),
            last_failure: Mutex::new(None),
        }
    }

    /// Why a heartbeat failed last.
    pub(super) fn last_failure(&self) -> Option<String> {
        lock(&self.last_failure).clone()
    }

    fn failed(&self, reason: String) {
        self.failed.fetch_add(1, Ordering::Relaxed);
        *lock(&self.last_failure) = Some(reason);
    }
}

impl Setting {
    pub(super) fn new(connections: Connections, topic: &str, partitions: usize, pace: Duration) -> Arc<Self> {
        let (tally, next_user) = (Tally::new(), AtomicUsize::new(0));
        Arc::new(Self { connections, topic: topic.to_owned(), partitions, pace, tally, next_user })
    }

    /// A number for who shares connections with others, evenly.
    pub(super) fn next_user(&self) -> usize {
        self.next_user.fetch_add(1, Ordering::Relaxed)
    }

    /// One request of a member, and its answer if there was one from the coordinator.
    pub(super) async fn exchange(
        &self,
        user: usize,
        request: ConsumerGroupHeartbeatRequest,
    ) -> Result<ConsumerGroupHeartbeatResponse, ClientError> {
        let group = request.group_id.to_string();
        let connection = self.connections.to_coordinator(&group, user).await?;
        let result = connection.call(PATIENCE, |_| request).await;
        let is_elsewhere = match &result {
            Ok(answer) => is_elsewhere(answer.error_code),
            Err(_) => true,
        };
        if is_elsewhere {
            self.connections.forget_coordinator(&group, connection.address());
        }
        result
    }
}

/// The broker says that the coordinator is another, or not there yet.
fn is_elsewhere(code: i16) -> bool {
    [ErrorCode::NotCoordinator, ErrorCode::CoordinatorNotAvailable].iter().any(|error| error.code() == code)
}

/// The coordinator moves, or has just come: what was asked is to be asked again, perhaps elsewhere.
pub(super) fn is_moving(code: i16) -> bool {
    is_elsewhere(code) || code == ErrorCode::CoordinatorLoadInProgress.code()
}

/// The name of what a broker answered.
pub(super) fn name_of(code: i16) -> String {
    ErrorCode::try_from_code(code).map_or_else(|| code.to_string(), error_name)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A group and its members.
pub(super) struct Crowd {
    setting: Arc<Setting>,
    group_id: String,
    ledger: Mutex<Ledger>,
    stops: Mutex<BTreeMap<String, Arc<Stop>>>,
}

/// Tells a member to leave, and that it has.
#[derive(Default)]
struct Stop {
    is_given: AtomicBool,
    given: Notify,
    has_left: AtomicBool,
}

/// What the members say of themselves.
struct Ledger {
    members: BTreeMap<String, Standing>,
    owners: BTreeMap<Partition, String>,
    /// When anything of this changed last.
    changed_at: Instant,
    /// How many partitions were taken from members that stay, since this was last set to 0.
    taken: usize,
}

#[derive(Default)]
struct Standing {
    epoch: i32,
    owned: BTreeSet<Partition>,
    is_acknowledged: bool,
}

/// All members have what they are to have.
#[derive(Clone, Copy, Debug)]
pub(super) struct Settled {
    pub(super) epoch: i32,
    /// When the last member got there.
    pub(super) at: Instant,
}

impl Crowd {
    /// Without members yet.
    pub(super) fn new(setting: &Arc<Setting>, group_id: String) -> Arc<Self> {
        let (members, owners) = (BTreeMap::new(), BTreeMap::new());
        let ledger = Ledger { members, owners, changed_at: TokioEnv::now(), taken: 0 };
        Arc::new(Self { setting: Arc::clone(setting), group_id, ledger: Mutex::new(ledger), stops: Mutex::default() })
    }

    pub(super) fn group_id(&self) -> &str {
        &self.group_id
    }

    /// One more member begins to join; its id.
    pub(super) fn join(self: &Arc<Self>) -> String {
        let member = Member::new(&self.group_id, &self.setting.topic);
        let id = member.id().to_owned();
        let stop = Arc::new(Stop::default());
        lock(&self.stops).insert(id.clone(), Arc::clone(&stop));
        lock(&self.ledger).members.insert(id.clone(), Standing::default());
        drop(TokioEnv::spawn(live(Arc::clone(self), member, stop)));
        id
    }

    /// One member begins to leave; what it owned. `None` if there is none.
    pub(super) fn leave(&self) -> Option<usize> {
        let (id, stop) = lock(&self.stops).pop_first()?;
        let mut ledger = lock(&self.ledger);
        let standing = ledger.members.remove(&id).unwrap_or_default();
        ledger.owners.retain(|_, owner| *owner != id);
        ledger.changed_at = TokioEnv::now();
        drop(ledger);
        stop.give();
        Some(standing.owned.len())
    }

    /// Partitions of a member, as far as it knows.
    pub(super) fn owned(&self, id: &str) -> BTreeSet<Partition> {
        lock(&self.ledger).members.get(id).map(|standing| standing.owned.clone()).unwrap_or_default()
    }

    /// Epoch of a member, as far as it knows.
    pub(super) fn epoch(&self, id: &str) -> i32 {
        lock(&self.ledger).members.get(id).map_or(0, |standing| standing.epoch)
    }

    /// Partitions taken from members that stayed, since the last call.
    pub(super) fn reset_taken(&self) -> usize {
        std::mem::take(&mut lock(&self.ledger).taken)
    }

    /// Waits until all members are at one epoch above `after`, what they own is acknowledged, and each partition is owned.
    pub(super) async fn settled(&self, after: i32, deadline: Instant) -> anyhow::Result<Settled> {
        loop {
            let unsettled = match lock(&self.ledger).settled(after, self.setting.partitions) {
                Ok(settled) => return Ok(settled),
                Err(unsettled) => unsettled,
            };
            if TokioEnv::now() >= deadline {
                let last = self.setting.tally.last_failure();
                let last = last.map(|last| format!("; last failure: {last}")).unwrap_or_default();
                bail!("group {} did not settle in time: {unsettled}{last}", self.group_id);
            }
            TokioEnv::sleep(LOOK_EVERY).await;
        }
    }

    /// Asks the coordinator whether it sees what the members see: the same members, each with its target, which is what it
    /// owns. `Err` says what differs.
    pub(super) async fn check_with_coordinator(&self) -> anyhow::Result<()> {
        let connection = self.setting.connections.to_coordinator(&self.group_id, 0).await?;
        let mut request = ConsumerGroupDescribeRequest::default();
        request.group_ids = vec![GroupId(StrBytes::from_string(self.group_id.clone()))];
        let answer = connection.call(PATIENCE, |_| request).await?;
        let group = answer.groups.first().context("the coordinator describes no group")?;
        if group.error_code != 0 {
            bail!("the coordinator does not describe the group: {}", name_of(group.error_code));
        }
        lock(&self.ledger).compare(group)
    }

    /// All members leave, and the group is deleted. What fails of it is only logged: groups without members go by themselves.
    pub(super) async fn disband(&self) {
        let stops: Vec<Arc<Stop>> = std::mem::take(&mut *lock(&self.stops)).into_values().collect();
        for stop in &stops {
            stop.give();
        }
        let deadline = TokioEnv::now() + FAREWELL_PATIENCE;
        while !stops.iter().all(|stop| stop.has_left.load(Ordering::Acquire)) && TokioEnv::now() < deadline {
            TokioEnv::sleep(LOOK_EVERY).await;
        }
        if let Err(error) = Admin::new(self.setting.connections.client()).delete_group(&self.group_id).await {
            tracing::warn!(group = self.group_id, %error, "the group is left behind");
        }
    }

    fn note(&self, member: &Member, change: &Change) {
        let mut ledger = lock(&self.ledger);
        let ledger = &mut *ledger;
        // It may have been told to leave meanwhile.
        let Some(standing) = ledger.members.get_mut(member.id()) else { return };
        let is_new = standing.epoch != member.epoch() || standing.is_acknowledged != member.is_acknowledged();
        if !is_new && *change == Change::default() {
            return;
        }
        standing.epoch = member.epoch();
        standing.is_acknowledged = member.is_acknowledged();
        standing.owned.clone_from(member.owned());
        for partition in &change.taken {
            if ledger.owners.get(partition).is_some_and(|owner| owner == member.id()) {
                ledger.owners.remove(partition);
            }
        }
        ledger.taken += change.taken.len();
        for partition in &change.given {
            if ledger.owners.insert(*partition, member.id().to_owned()).is_some() {
                self.setting.tally.owned_twice.fetch_add(1, Ordering::Relaxed);
            }
        }
        ledger.changed_at = TokioEnv::now();
    }
}

impl Ledger {
    fn settled(&self, after: i32, partitions: usize) -> Result<Settled, String> {
        let epochs: BTreeSet<i32> = self.members.values().map(|standing| standing.epoch).collect();
        let epoch = epochs.last().copied().unwrap_or(0);
        if epochs.len() > 1 || epoch <= after {
            let behind = self.members.values().filter(|standing| standing.epoch < epoch.max(after + 1)).count();
            return Err(format!(
                "{behind} of {} members are behind epoch {}",
                self.members.len(),
                epoch.max(after + 1)
            ));
        }
        let silent = self.members.values().filter(|standing| !standing.is_acknowledged).count();
        if silent > 0 {
            return Err(format!("{silent} members have not told what they own"));
        }
        let owned: usize = self.members.values().map(|standing| standing.owned.len()).sum();
        if owned != partitions || self.owners.len() != partitions {
            return Err(format!("{} of {partitions} partitions are owned, {owned} times", self.owners.len()));
        }
        Ok(Settled { epoch, at: self.changed_at })
    }

    fn compare(&self, group: &described::DescribedGroup) -> anyhow::Result<()> {
        if group.group_state.as_str() != "Stable" || group.group_epoch != group.assignment_epoch {
            let state = group.group_state.as_str();
            bail!("the coordinator says {state}, epoch {}, assignment {}", group.group_epoch, group.assignment_epoch);
        }
        if group.members.len() != self.members.len() {
            bail!("the coordinator knows {} members of {}", group.members.len(), self.members.len());
        }
        let partitions = |assignment: &described::Assignment| -> BTreeSet<Partition> {
            let topics = assignment.topic_partitions.iter();
            topics.flat_map(|topic| topic.partitions.iter().map(|&partition| (topic.topic_id, partition))).collect()
        };
        for member in &group.members {
            let id = member.member_id.as_str();
            let standing = self.members.get(id).with_context(|| format!("the coordinator knows a member {id}"))?;
            let (assigned, target) = (partitions(&member.assignment), partitions(&member.target_assignment));
            if assigned != target || assigned != standing.owned || member.member_epoch != standing.epoch {
                bail!(
                    "member {id}: target {}, assigned {}, owned {} partitions; epoch {} at the coordinator, {} at the member",
                    target.len(),
                    assigned.len(),
                    standing.owned.len(),
                    member.member_epoch,
                    standing.epoch
                );
            }
        }
        Ok(())
    }
}

impl Stop {
    fn give(&self) {
        self.is_given.store(true, Ordering::Release);
        self.given.notify_one();
    }
}

/// A member's life: heartbeats at the pace, at once when there is news, until it is told to leave.
async fn live(crowd: Arc<Crowd>, mut member: Member, stop: Arc<Stop>) {
    let setting = &crowd.setting;
    let user = setting.next_user();
    while !stop.is_given.load(Ordering::Acquire) {
        let sent_at = TokioEnv::now();
        let result = setting.exchange(user, member.heartbeat()).await;
        let is_answered = match result {
            Ok(answer) => take_answer(&crowd, &mut member, &answer),
            Err(error) => {
                setting.tally.failed(error.to_string());
                member.on_lost_answer();
                false
            }
        };
        if setting.tally.is_counting.load(Ordering::Relaxed) && is_answered {
            setting.tally.latencies.add(TokioEnv::now() - sent_at);
        }
        let next = match (is_answered, member.has_news()) {
            (true, true) => continue,
            (true, false) => sent_at + setting.pace,
            (false, _) => TokioEnv::now() + RETRY_AFTER,
        };
        select(stop.given.notified(), TokioEnv::sleep_until(next)).await;
    }
    if member.epoch() > 0 {
        leave(setting, user, &member).await;
    }
    stop.has_left.store(true, Ordering::Release);
}

/// Says farewell to whoever coordinates. A member that could not is removed when its session runs out.
pub(super) async fn leave(setting: &Setting, user: usize, member: &Member) {
    for _ in 0..FAREWELLS_MAX {
        match setting.exchange(user, member.farewell()).await {
            Ok(answer) if !is_moving(answer.error_code) => return,
            Ok(answer) => setting.tally.failed(name_of(answer.error_code)),
            Err(error) => setting.tally.failed(error.to_string()),
        }
        TokioEnv::sleep(RETRY_AFTER).await;
    }
}

/// False when the heartbeat is to be sent again.
fn take_answer(crowd: &Crowd, member: &mut Member, answer: &ConsumerGroupHeartbeatResponse) -> bool {
    let tally = &crowd.setting.tally;
    if answer.error_code == 0 {
        let change = member.on_answer(answer);
        crowd.note(member, &change);
        return true;
    }
    let is = |error: ErrorCode| error.code() == answer.error_code;
    if is(ErrorCode::FencedMemberEpoch) || is(ErrorCode::UnknownMemberId) || is(ErrorCode::GroupIdNotFound) {
        tally.fenced.fetch_add(1, Ordering::Relaxed);
        let taken = member.on_fenced();
        crowd.note(member, &Change { taken, given: Vec::new() });
    } else {
        tally.failed(name_of(answer.error_code));
        member.on_lost_answer();
    }
    false
}
