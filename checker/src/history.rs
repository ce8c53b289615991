//! What the clients saw, as data: it can be written as JSON lines and checked again later.

use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

/// One thing that a client saw or did, in the order in which it became known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// A producer sent a record; its outcome is not known yet.
    Sent {
        /// What was sent, unique in a history: `<producer>-<number>`.
        value: String,
    },
    /// The record is acknowledged.
    Acknowledged {
        /// The record.
        value: String,
        /// Where it is.
        partition: i32,
        /// At which offset; unknown when a retry found it stored already.
        offset: Option<i64>,
    },
    /// The producer gave up: whether the record is stored is unknown.
    Unknown {
        /// The record.
        value: String,
    },
    /// A member of the group was given partitions.
    Assigned {
        /// Member.
        member: String,
        /// Its partitions, among them those it had.
        partitions: Vec<i32>,
    },
    /// A member no longer has these, by agreement or because it was too slow.
    Released {
        /// Member.
        member: String,
        /// Partitions.
        partitions: Vec<i32>,
    },
    /// A member read a record.
    Polled {
        /// Member.
        member: String,
        /// Partition.
        partition: i32,
        /// Offset.
        offset: i64,
        /// The record.
        value: String,
    },
    /// A commit was acknowledged.
    Committed {
        /// Member.
        member: String,
        /// Partition.
        partition: i32,
        /// Next offset to read.
        offset: i64,
    },
    /// A commit failed or had no answer.
    CommitUnknown {
        /// Member.
        member: String,
        /// Partition.
        partition: i32,
        /// Next offset to read.
        offset: i64,
    },
}

/// Events of all clients of one run.
#[derive(Clone, Debug, Default)]
pub struct History {
    events: Arc<Mutex<Vec<Event>>>,
}

impl History {
    /// Adds an event.
    pub fn add(&self, event: Event) {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).push(event);
    }

    /// All events so far.
    #[must_use]
    pub fn events(&self) -> Vec<Event> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many events satisfy `which`.
    #[must_use]
    pub fn count(&self, which: impl Fn(&Event) -> bool) -> usize {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).iter().filter(|event| which(event)).count()
    }
}
