//! What a member of a group without our own consumer has, and reads of it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use checker::Event;
use lockstep_client::{Client, ClientError, Consumer, FetchConfig, OffsetAt, OffsetReset, StartAt, TopicPartition};

use crate::env::SimEnv;

use super::{Context, partition_of, partitions_of, text_of};

/// Records given out by one poll, at most.
const POLL_MAX: usize = 500;

/// The partitions of one life of a member, with what it has read of them. It records what it is given, reads and gives up.
pub(super) struct Reading {
    context: Context,
    group: String,
    /// The name of the life.
    life: String,
    consumer: Consumer<SimEnv>,
    /// Where to read on.
    next: BTreeMap<TopicPartition, StartAt>,
    /// Read and not committed: the next offset to read.
    pub(super) done: BTreeMap<TopicPartition, i64>,
}

impl Reading {
    pub(super) fn new(context: &Context, client: &Client<SimEnv>, group: &str, life: &str) -> Self {
        let config = FetchConfig { reset: OffsetReset::Earliest, ..FetchConfig::default() };
        Self {
            context: context.clone(),
            group: group.to_owned(),
            life: life.to_owned(),
            consumer: Consumer::new(client, config),
            next: BTreeMap::new(),
            done: BTreeMap::new(),
        }
    }

    fn record(&self, event: impl FnOnce(String, String) -> Event) {
        self.context.record(event(self.group.clone(), self.life.clone()));
    }

    /// The partitions that it has.
    pub(super) fn has(&self) -> BTreeSet<TopicPartition> {
        self.next.keys().cloned().collect()
    }

    /// These are added, each to be read from what is committed, or from its start if nothing is.
    ///
    /// # Errors
    /// A partition is not there to be read; it is counted among those that it has all the same.
    pub(super) async fn add(
        &mut self,
        new: &BTreeMap<TopicPartition, Option<i64>>,
        epoch: i32,
    ) -> Result<(), ClientError> {
        let partitions = partitions_of(new.keys());
        self.record(|group, member| Event::Assigned { group, member, partitions, epoch: Some(epoch) });
        for (at, committed) in new {
            let start = committed.map_or(StartAt::Place(OffsetAt::Earliest), StartAt::Offset);
            self.next.insert(at.clone(), start);
        }
        self.consumer.assign(&self.next).await
    }

    /// These are read no more. Unless they are lost, what was read of them must have been committed, and nobody else have been told.
    pub(super) async fn release(&mut self, gone: &BTreeSet<TopicPartition>, is_lost: bool) {
        if gone.is_empty() {
            return;
        }
        self.next.retain(|at, _| !gone.contains(at));
        self.done.retain(|at, _| !gone.contains(at));
        // Those that stay are known to be there.
        let _ = self.consumer.assign(&self.next).await;
        let partitions = partitions_of(gone);
        self.record(|group, member| Event::Released { group, member, partitions, is_lost });
    }

    /// All that it has is given up.
    pub(super) async fn release_all(&mut self, is_lost: bool) {
        let all = self.has();
        self.release(&all, is_lost).await;
    }

    /// Reads on, for `timeout` at most when there is nothing.
    pub(super) async fn poll(&mut self, timeout: Duration) -> Result<(), ClientError> {
        if self.next.is_empty() {
            self.context.pause(timeout).await;
            return Ok(());
        }
        for message in self.consumer.poll(POLL_MAX, timeout).await? {
            let value = text_of(message.value.as_deref(), &message.headers);
            let at = TopicPartition::new(message.topic, message.partition);
            // Given up while it could not be said so.
            if !self.next.contains_key(&at) {
                continue;
            }
            let (partition, offset) = (partition_of(&at), message.offset);
            self.record(|group, member| Event::Polled { group, member, partition, offset, value });
            self.next.insert(at.clone(), StartAt::Offset(offset + 1));
            self.done.insert(at, offset + 1);
        }
        Ok(())
    }
}
