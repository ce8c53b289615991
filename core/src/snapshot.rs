//! The whole state as bytes, and back.

use alloc::sync::Arc;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::encoding::decode_whole;
use crate::groups::Groups;
use crate::ids::{Position, ShardId, TopicId};
use crate::op::DecodeError;
use crate::partitions::{Partition, Partitions};
use crate::producers::{Producer, ProducerKey, Producers};
use crate::state_machine::ClusterStateMachine;
use crate::topics::{TopicRows, Topics};
use lockstep_probe::{Mark, Mistake};

/// The format of snapshots. It rises when anything in [`Body`] changes its encoding.
const FORMAT_VERSION: u8 = 2;

/// What a snapshot holds: rows in ascending order, without what is derived from them.
#[derive(Serialize, Deserialize)]
struct Body<P, R, G> {
    shard: ShardId,
    shard_count: u16,
    applied: Position,
    topics: TopicRows,
    partitions: Vec<((TopicId, u32), P)>,
    producers: Vec<(ProducerKey, R)>,
    groups: G,
}

impl ClusterStateMachine {
    /// The state as bytes, versioned; equal states give equal bytes.
    #[must_use]
    pub fn snapshot(&self) -> Vec<u8> {
        let omitted = if Mistake::SnapshotOmitsProducers.is_made() { usize::MAX } else { 0 };
        let body = Body {
            shard: self.shard,
            shard_count: self.shard_count,
            applied: self.applied,
            topics: TopicRows::from(&*self.topics),
            partitions: self.partitions.rows().iter().map(|(key, row)| (*key, &**row)).collect(),
            producers: self.partitions.producers.rows().skip(omitted).collect(),
            groups: &self.groups,
        };
        // postcard fails only on sequences of unknown length, which no row has; nothing at all would be refused by `restore`.
        postcard::to_extend(&body, alloc::vec![FORMAT_VERSION]).unwrap_or_default()
    }

    /// The state from bytes made by [`Self::snapshot`]; hostile bytes give an error.
    pub fn restore(bytes: &[u8]) -> Result<Self, DecodeError> {
        let [version, bytes @ ..] = bytes else {
            return Err(DecodeError { reason: "an empty snapshot" });
        };
        if *version != FORMAT_VERSION {
            return Err(DecodeError { reason: "a snapshot of an unknown format version" });
        }
        let body: Body<Partition, Producer, Groups> = decode_whole(bytes, "the snapshot is malformed")?;
        let refuse = |reason| DecodeError { reason };
        let producers = Producers::from_rows(body.producers).map_err(refuse)?;
        let state = Self {
            shard: body.shard,
            shard_count: body.shard_count,
            applied: body.applied,
            topics: Arc::new(Topics::from_rows(body.topics).map_err(refuse)?),
            partitions: Partitions::from_rows(body.partitions, producers).map_err(refuse)?,
            groups: body.groups,
        };
        match state.check_invariants() {
            Ok(()) => {
                Mark::SnapshotRestored.reached();
                Ok(state)
            }
            Err(_) => Err(refuse("the snapshot breaks an invariant")),
        }
    }
}
