//! Memory for answers on their way to clients, of all connections together.
//!
//! Kafka leaves it to the kernel to read a file when a client takes what is in it. Here records are read before they are sent, and what a client does not
//! take waits in memory. So reading needs room, and room that is short is spread: with more than half of it taken, an answer has one batch only,
//! which gets everybody on; with all of it taken, fetches wait until other clients have taken theirs, or were found not to take anything.
//!
//! Lists of topics, groups or offsets may be as long, but how long is known only when they are made. So they are begun while there is any room, and
//! take what they need once they are made.

use std::sync::Arc;

use lockstep_probe::Mark;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::connection_limits::{BUDGET_UNIT_BYTES, budget_units};

/// The room there is.
#[derive(Debug)]
pub(crate) struct AnswerRoom {
    free: Arc<Semaphore>,
    all_units: usize,
}

/// Room that an answer holds until it is sent.
#[derive(Debug, Default)]
pub(crate) struct TakenRoom(Option<OwnedSemaphorePermit>);

impl AnswerRoom {
    /// Room for so many bytes.
    pub(crate) fn new(bytes_max: usize) -> Self {
        // At least one for each half.
        let all_units = (budget_units(bytes_max) as usize).max(2);
        Self { free: Arc::new(Semaphore::new(all_units)), all_units }
    }

    /// How many bytes may be read before answers have one batch only.
    fn ample_bytes(&self) -> usize {
        self.free.available_permits().saturating_sub(self.all_units / 2) * BUDGET_UNIT_BYTES
    }

    /// Is more than half of the room free?
    pub(crate) fn is_ample(&self) -> bool {
        self.ample_bytes() > 0
    }

    /// Room for up to `bytes_max` bytes of which there is plenty, and how many of them that is; perhaps none.
    pub(crate) fn take_ample(&self, bytes_max: usize) -> (TakenRoom, usize) {
        let bytes = bytes_max.min(self.ample_bytes());
        match Arc::clone(&self.free).try_acquire_many_owned(budget_units(bytes)) {
            Ok(permit) => (TakenRoom(Some(permit)), bytes),
            // Another thread was faster.
            Err(_) => (TakenRoom::default(), 0),
        }
    }

    /// Room for one batch of at most so many bytes, however little is left; waits while there is none.
    pub(crate) async fn take_for_batch(&self, bytes: usize) -> TakenRoom {
        Mark::FetchShortOfRoom.reached();
        let units = budget_units(bytes).min(u32::try_from(self.all_units / 2).unwrap_or(u32::MAX));
        TakenRoom(Arc::clone(&self.free).acquire_many_owned(units).await.ok())
    }

    /// Begins an answer of unknown length: waits while there is no room at all.
    pub(crate) async fn begin(&self) -> TakenRoom {
        TakenRoom(Arc::clone(&self.free).acquire_owned().await.ok())
    }
}

impl TakenRoom {
    /// The answer has come to so many bytes. They are taken as far as there is room.
    pub(crate) fn grow_to(&mut self, bytes: usize) {
        let Some(held) = &mut self.0 else { return };
        loop {
            let missing = (budget_units(bytes) as usize).saturating_sub(held.num_permits());
            let free = held.semaphore().available_permits();
            let units = u32::try_from(missing.min(free)).unwrap_or(u32::MAX);
            if units == 0 {
                return;
            }
            // Unless another thread was faster.
            if let Ok(more) = Arc::clone(held.semaphore()).try_acquire_many_owned(units) {
                held.merge(more);
            }
        }
    }

    /// So many bytes are needed in the end. More than were taken are found only where a batch is longer than its topic allows by now: it is there already, and
    /// is counted with the whole answer.
    pub(crate) fn settle(&mut self, bytes: usize) {
        if let Some(held) = &mut self.0 {
            let needless = held.num_permits().saturating_sub(budget_units(bytes) as usize);
            drop(held.split(needless));
        }
    }

    /// Holds what `other` holds too.
    pub(crate) fn add(&mut self, other: Self) {
        match (&mut self.0, other.0) {
            (Some(held), Some(more)) => held.merge(more),
            (held, more) => *held = held.take().or(more),
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::connection_limits::BUDGET_UNIT_BYTES as UNIT_BYTES;

    #[test]
    fn room_that_is_short_is_left_for_one_batch_each() {
        let room = AnswerRoom::new(100 * UNIT_BYTES);
        let (mut first, bytes) = room.take_ample(70 * UNIT_BYTES);
        assert_eq!((bytes, room.is_ample()), (50 * UNIT_BYTES, false));
        assert_eq!(room.take_ample(UNIT_BYTES).1, 0);
        let batch = room.take_for_batch(UNIT_BYTES + 1).now_or_never().expect("half of it is left");
        first.settle(10 * UNIT_BYTES - 5);
        assert_eq!(room.take_ample(70 * UNIT_BYTES).1, 38 * UNIT_BYTES);
        first.add(batch);
        drop(first);
        assert_eq!(room.ample_bytes(), 50 * UNIT_BYTES);
    }

    #[test]
    fn whoever_finds_none_left_waits_for_others() {
        let room = AnswerRoom::new(4 * UNIT_BYTES);
        let held: Vec<_> = std::iter::from_fn(|| room.take_for_batch(3 * UNIT_BYTES).now_or_never()).collect();
        assert_eq!(held.len(), 2, "no batch takes more than half");
        let mut waiting = Box::pin(room.take_for_batch(1));
        assert!((&mut waiting).now_or_never().is_none());
        drop(held);
        assert!(waiting.now_or_never().is_some());
    }

    #[test]
    fn answers_of_unknown_length_are_begun_while_there_is_room() {
        let room = AnswerRoom::new(4 * UNIT_BYTES);
        let mut first = room.begin().now_or_never().expect("all of it is free");
        let second = room.begin().now_or_never().expect("three units are free");
        first.grow_to(10 * UNIT_BYTES);
        let mut waiting = Box::pin(room.begin());
        assert!((&mut waiting).now_or_never().is_none(), "the first answer has taken the rest");
        drop(second);
        assert!(waiting.now_or_never().is_some());
        drop(first);
        assert_eq!(room.free.available_permits(), 4);
    }

    #[test]
    fn more_than_was_taken_changes_nothing() {
        let room = AnswerRoom::new(4 * UNIT_BYTES);
        let (mut taken, _) = room.take_ample(UNIT_BYTES);
        taken.settle(10 * UNIT_BYTES);
        drop(taken);
        assert_eq!(room.ample_bytes(), 2 * UNIT_BYTES);
    }
}
