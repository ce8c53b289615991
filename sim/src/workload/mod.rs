//! The clients of a run, a file for each kind: what they do at random, and what of it they record.
//!
//! Every client goes on under any fault, ends soon after it is told to, and lets simulated time pass whatever it does. It panics only when
//! something is certainly wrong. It records nothing that it does not know: an outcome that was not told is recorded as unknown.

pub mod admin;
pub mod classic;
pub mod member;
pub mod observer;
pub mod produce;
pub mod reader;
pub mod regex;
pub mod zombie;

mod assignor;
mod commits;
mod coordinator;
mod heartbeats;
mod reading;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use checker::{Event, History, Partition};
use lockstep_client::{Client, ClientConfig, ClientError, TopicPartition};
use lockstep_env::{Env, select};
use lockstep_wire::records::RecordHeader;
use tokio::sync::Notify;

use crate::env::{SimEnv, chance, random_below};

/// The topic that a run is about.
pub const TOPIC: &str = "records";
/// Header of a record without a value, which says what the record is known by.
const TOMBSTONE: &str = "tombstone";
/// The group that reads it.
pub const GROUP: &str = "readers";
/// Pause before a client starts over after an error, at most.
const START_OVER: Duration = Duration::from_millis(300);

const CALM: u8 = 1;
const OVER: u8 = 2;

/// Tells clients to become calm, and later to finish. Clones tell the same clients.
#[derive(Clone, Debug, Default)]
pub struct Finish {
    stage: Arc<AtomicU8>,
    changed: Arc<Notify>,
}

impl Finish {
    /// Whims end: members stay, subscribe to everything and read without pauses; those that only disturb end.
    pub fn calm(&self) {
        self.stage.fetch_max(CALM, Ordering::Relaxed);
        self.changed.notify_waiters();
    }

    /// All finish.
    pub fn now(&self) {
        self.stage.fetch_max(OVER, Ordering::Relaxed);
        self.changed.notify_waiters();
    }

    /// Was [`Finish::now`] called?
    #[must_use]
    pub fn is_due(&self) -> bool {
        self.stage.load(Ordering::Relaxed) >= OVER
    }

    /// Was [`Finish::calm`] called, or [`Finish::now`]?
    #[must_use]
    pub fn is_calm(&self) -> bool {
        self.stage.load(Ordering::Relaxed) >= CALM
    }
}

/// What every client is given.
#[derive(Clone, Debug)]
pub struct Context {
    /// Its host.
    pub env: SimEnv,
    /// Addresses of brokers.
    pub brokers: Vec<String>,
    /// Its name, unique in the run.
    pub name: String,
    /// Where it records what it sees.
    pub history: History,
    /// When it ends.
    pub finish: Finish,
    /// For how long its client tries what fails.
    pub patience: Duration,
}

impl Context {
    /// Simulated time, by the clock of the history.
    #[must_use]
    pub fn now_us(&self) -> u64 {
        self.env.trace().now_us()
    }

    /// Records what was seen or done.
    pub fn record(&self, event: Event) {
        self.history.add(self.now_us(), &self.name, event);
    }

    /// The broker with this address: they are listed by their ids, from 1 on.
    fn node_at(&self, address: &str) -> Option<u64> {
        self.brokers.iter().zip(1..).find_map(|(broker, node)| (broker == address).then_some(node))
    }

    /// Adds to the timeline of the run, for people.
    pub fn note(&self, text: impl Into<String>) {
        self.env.trace().event(&self.name, text);
    }

    /// A client of the cluster, as soon as a broker answers; `None` when the end comes first.
    pub async fn connect(&self) -> Option<Client<SimEnv>> {
        while !self.finish.is_due() {
            match Client::connect(self.env.clone(), self.client_config()).await {
                Ok(client) => return Some(client),
                Err(_) => self.pause(START_OVER).await,
            }
        }
        None
    }

    fn client_config(&self) -> ClientConfig {
        ClientConfig { brokers: self.brokers.clone(), timeout: self.patience, client_id: self.name.clone() }
    }

    /// Sleeps, at most until the end.
    pub async fn pause(&self, duration: Duration) {
        let deadline = SimEnv::now() + duration;
        while SimEnv::now() < deadline && !self.finish.is_due() {
            let mut changed = std::pin::pin!(self.finish.changed.notified());
            changed.as_mut().enable();
            select(changed, SimEnv::sleep_until(deadline)).await;
        }
    }

    /// Sleeps, at most until all become calm.
    pub async fn pause_unless_calm(&self, duration: Duration) {
        let deadline = SimEnv::now() + duration;
        while SimEnv::now() < deadline && !self.finish.is_calm() {
            let mut changed = std::pin::pin!(self.finish.changed.notified());
            changed.as_mut().enable();
            select(changed, SimEnv::sleep_until(deadline)).await;
        }
    }

    /// True `per_mille` times in a thousand, never once all are calm.
    fn has_whim(&self, per_mille: u64) -> bool {
        // The number is drawn in any case, so that being calm changes nothing else.
        chance(per_mille) && !self.finish.is_calm()
    }

    /// Any broker.
    fn any_broker(&self) -> String {
        one_of(&self.brokers).cloned().unwrap_or_default()
    }
}

/// When a member commits what it has read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Commits {
    /// After every poll.
    Always,
    /// After a poll, so many times in a thousand, and before it gives partitions up.
    Sometimes(u64),
    /// After a pause of at most this since the last time.
    Later(Duration),
}

/// How a member of a group behaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Habits {
    /// When it commits.
    pub commits: Commits,
    /// How long a poll waits.
    pub poll: Duration,
    /// How often in a thousand polls it takes long over what it has read.
    pub slow_per_mille: u64,
    /// How long that is, at most.
    pub slow: Duration,
    /// How often in a thousand polls it works for a moment on what it has read, while it is asked for other things.
    pub busy_per_mille: u64,
    /// How long that is, at most.
    pub busy: Duration,
    /// How often in a thousand polls it leaves and comes back later.
    pub leave_per_mille: u64,
    /// How often in a thousand polls it vanishes without a word and comes back later, as another member unless it is static.
    pub vanish_per_mille: u64,
    /// How long it stays away, at most.
    pub away: Duration,
}

impl Default for Habits {
    fn default() -> Self {
        Self {
            commits: Commits::Always,
            poll: Duration::from_millis(500),
            slow_per_mille: 0,
            slow: Duration::from_secs(9),
            busy_per_mille: 0,
            busy: Duration::from_millis(900),
            leave_per_mille: 0,
            vanish_per_mille: 0,
            away: Duration::from_secs(2),
        }
    }
}

/// A commit that took longer than this ran into something, and its member makes sure of it.
const COMMIT_SLOW: Duration = Duration::from_millis(200);

/// How a life of a member ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    /// It left.
    Left,
    /// It stopped without a word.
    Vanished,
}

fn random_between(range: &Range<Duration>) -> Duration {
    let micros = range.end.saturating_sub(range.start).as_micros();
    range.start + Duration::from_micros(random_below(u64::try_from(micros).unwrap_or(u64::MAX)))
}

fn random_up_to(duration: Duration) -> Duration {
    random_between(&(Duration::ZERO..duration))
}

fn one_of<T>(list: &[T]) -> Option<&T> {
    usize::try_from(random_below(list.len() as u64)).ok().and_then(|index| list.get(index))
}

fn partition_of(at: &TopicPartition) -> Partition {
    Partition::new(&*at.topic, at.partition)
}

fn partitions_of<'a>(list: impl IntoIterator<Item = &'a TopicPartition>) -> Vec<Partition> {
    list.into_iter().map(partition_of).collect()
}

/// What a record is known by: its value, or of a tombstone what its header says.
pub(crate) fn text_of(value: Option<&[u8]>, headers: &[RecordHeader]) -> String {
    let in_header = || headers.iter().find(|(name, _)| name == TOMBSTONE)?.1.as_deref();
    String::from_utf8_lossy(value.or_else(in_header).unwrap_or_default()).into_owned()
}

/// Is it unknown, after this error, whether the broker did what it was asked for?
fn is_outcome_unknown(error: &ClientError) -> bool {
    use lockstep_client::ErrorCode;
    match error {
        ClientError::Broker { code, .. } => matches!(
            code,
            ErrorCode::NotCoordinator
                | ErrorCode::CoordinatorNotAvailable
                | ErrorCode::CoordinatorLoadInProgress
                | ErrorCode::RequestTimedOut
                | ErrorCode::NotLeaderOrFollower
                | ErrorCode::UnknownServerError
        ),
        ClientError::InvalidArgument(_) | ClientError::Encode(_) | ClientError::Unsupported { .. } => false,
        _ => true,
    }
}
