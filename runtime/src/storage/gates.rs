//! One task at a time for each segment.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::{Arc, Mutex};

use tokio::sync::OwnedMutexGuard;

use crate::storage::segment::{PartitionKey, SegmentName};
use crate::storage::store::lock;

/// What is done with a segment by one task at a time. Different segments do not wait for each other.
#[derive(Debug, Default)]
pub(crate) struct Gates {
    /// Those that somebody has entered, or waits for.
    busy: Mutex<BTreeMap<SegmentName, Busy>>,
}

#[derive(Debug, Default)]
struct Busy {
    /// How many have entered, or wait.
    count: usize,
    mutex: Arc<tokio::sync::Mutex<()>>,
}

/// Nobody else has entered while this lives.
#[derive(Debug)]
pub(crate) struct Entered<'a> {
    // Left before the gate is forgotten.
    _held: OwnedMutexGuard<()>,
    _gate: Gate<'a>,
}

#[derive(Debug)]
struct Gate<'a> {
    gates: &'a Gates,
    segment: SegmentName,
}

impl Drop for Gate<'_> {
    fn drop(&mut self) {
        if let Entry::Occupied(mut busy) = lock(&self.gates.busy).entry(self.segment) {
            busy.get_mut().count -= 1;
            if busy.get().count == 0 {
                busy.remove();
            }
        }
    }
}

impl Gates {
    fn gate(&self, segment: SegmentName) -> (Gate<'_>, Arc<tokio::sync::Mutex<()>>) {
        let mut all = lock(&self.busy);
        let busy = all.entry(segment).or_default();
        busy.count += 1;
        (Gate { gates: self, segment }, Arc::clone(&busy.mutex))
    }

    /// Waits until nobody else is in.
    pub(crate) async fn enter(&self, segment: SegmentName) -> Entered<'_> {
        let (gate, mutex) = self.gate(segment);
        let held = mutex.lock_owned().await;
        Entered { _held: held, _gate: gate }
    }

    /// `None` when somebody else is in.
    pub(crate) fn try_enter(&self, segment: SegmentName) -> Option<Entered<'_>> {
        let (gate, mutex) = self.gate(segment);
        let held = mutex.try_lock_owned().ok()?;
        Some(Entered { _held: held, _gate: gate })
    }

    /// Completes when all who have entered for a segment of this partition by now have left.
    pub(crate) async fn passed(&self, partition: PartitionKey) {
        let of_it = |segment: &&SegmentName| segment.key() == partition;
        let entered: Vec<SegmentName> = lock(&self.busy).keys().filter(of_it).copied().collect();
        for segment in entered {
            drop(self.enter(segment).await);
        }
    }
}

#[cfg(test)]
mod tests {
    use lockstep_core::TopicId;

    use super::*;

    const KEY: PartitionKey = PartitionKey { topic_id: TopicId([1; 16]), partition: 0 };

    #[tokio::test]
    async fn one_is_in_and_nothing_is_kept_of_it() {
        let gates = Gates::default();
        let [first, other] = [0, 5].map(|base_offset| SegmentName::appended(KEY, base_offset));
        let entered = gates.enter(first).await;
        assert!(gates.try_enter(first).is_none());
        assert!(gates.try_enter(other).is_some(), "another segment's");
        let mut next = Box::pin(gates.enter(first));
        let mut given_up = Box::pin(gates.enter(first));
        assert!(futures_util::poll!(&mut next).is_pending());
        assert!(futures_util::poll!(&mut given_up).is_pending());
        let mut passed = Box::pin(gates.passed(KEY));
        assert!(futures_util::poll!(&mut passed).is_pending());
        drop(given_up);
        drop(entered);
        drop(next.await);
        passed.await;
        assert!(lock(&gates.busy).is_empty());
    }
}
