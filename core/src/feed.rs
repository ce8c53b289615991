//! What shard 0 tells the other shards.

use alloc::vec::Vec;

use crate::directory::{Directory, TopicRecord};
use crate::ids::{ShardId, TopicId};
use crate::op::{Op, UpdateMetadata};
use crate::state_machine::ClusterStateMachine;

/// Partitions whose placement one incremental feed carries, so that the op stays small; the rest follows in the next. One topic is always taken.
const FEED_PARTITIONS_MAX: usize = 50_000;

impl ClusterStateMachine {
    /// On shard 0: the op that brings another shard from `version` to this directory, or nearer to it when much has changed;
    /// `None` when it is there already. A shard that lags further than deletions are remembered gets a full copy.
    #[must_use]
    pub fn feed_since(&self, version: u64) -> Option<Op> {
        let directory = &self.topics.directory;
        if self.shard != ShardId::METADATA || version >= directory.version {
            return None;
        }
        // A deletion that was forgotten had a lower version than the oldest one remembered.
        let forgotten = match directory.deleted.first() {
            Some((oldest, _)) if directory.deleted.len() >= Directory::DELETED_MAX => {
                version < oldest.saturating_sub(1)
            }
            _ => false,
        };
        Some(Op::UpdateMetadata(if forgotten { full_copy(directory, version) } else { changes(directory, version) }))
    }
}

fn full_copy(directory: &Directory, version: u64) -> UpdateMetadata {
    UpdateMetadata::Feed {
        from_version: version,
        to_version: directory.version,
        full: true,
        topics: directory.topics.values().cloned().collect(),
        deleted: Vec::new(),
        brokers: Some(directory.brokers.values().cloned().collect()),
    }
}

/// What changed after `version`, in the order of versions, up to a bound.
fn changes(directory: &Directory, version: u64) -> UpdateMetadata {
    let mut changed: Vec<&TopicRecord> = directory.topics.values().filter(|topic| topic.version > version).collect();
    changed.sort_unstable_by_key(|topic| topic.version);
    let mut partitions = 0;
    let mut topics = Vec::new();
    let mut to_version = directory.version;
    for topic in changed {
        partitions += topic.partitions.len();
        if partitions > FEED_PARTITIONS_MAX && !topics.is_empty() {
            // The version before the first change that is left out: it names one change only.
            to_version = topic.version.saturating_sub(1);
            break;
        }
        topics.push(topic.clone());
    }
    let deleted: Vec<TopicId> = directory
        .deleted
        .iter()
        .filter(|(deleted_at, _)| (version + 1..=to_version).contains(deleted_at))
        .map(|(_, id)| *id)
        .collect();
    let brokers_changed = (version + 1..=to_version).contains(&directory.brokers_version);
    let brokers = brokers_changed.then(|| directory.brokers.values().cloned().collect());
    UpdateMetadata::Feed { from_version: version, to_version, full: false, topics, deleted, brokers }
}
