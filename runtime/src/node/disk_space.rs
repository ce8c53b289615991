//! Room on the disks: records are refused before there is none, so that everything else can go on.
//!
//! A node *is short of space* while less than its reserve is free where it writes. Nodes tell each other (gossip). A shard takes no records while
//! its leader is short, or so many replicas that only a minority could store them. Groups, topics and reads need little and go on.
//! A node that is short gives its shards to nodes that are not. Once there is room again, records are taken again: nothing must be restarted.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use lockstep_core::ShardId;
use lockstep_env::{Disk, Env};

use super::{Node, placement};
use lockstep_probe::Mark;

const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A node that is short stays so until this part of its reserve is free beyond it: records that come and go must not turn it back and forth.
const SLACK_PART: u64 = 8;

/// What is known of the disks.
#[derive(Debug)]
pub(super) struct DiskSpace {
    /// Of the fuller disk; `u64::MAX` while it is not known.
    free_bytes: AtomicU64,
    is_short: AtomicBool,
}

impl Default for DiskSpace {
    fn default() -> Self {
        Self { free_bytes: AtomicU64::new(u64::MAX), is_short: AtomicBool::new(false) }
    }
}

impl DiskSpace {
    pub(super) fn is_short(&self) -> bool {
        self.is_short.load(Ordering::Relaxed)
    }

    /// Takes what a look at the disks found; whether it made a difference.
    fn found(&self, free_bytes: u64, reserve_bytes: u64) -> bool {
        self.free_bytes.store(free_bytes, Ordering::Relaxed);
        let was_short = self.is_short();
        let wanted_bytes =
            if was_short { reserve_bytes.saturating_add(reserve_bytes / SLACK_PART) } else { reserve_bytes };
        self.is_short.store(free_bytes < wanted_bytes, Ordering::Relaxed);
        self.is_short() != was_short
    }
}

/// Looks at the disks for as long as the node runs.
pub(super) async fn watch<E: Env>(node: Node<E>) {
    let config = &node.inner.config;
    let mut unknown = false;
    loop {
        let mut free_bytes = u64::MAX;
        for dir in [&config.raft_dir, &config.data_dir] {
            match node.inner.env.disk().free_bytes(dir).await {
                Ok(bytes) => free_bytes = free_bytes.min(bytes),
                Err(error) if !unknown => {
                    unknown = true;
                    tracing::warn!(target: "cluster", node = node.id(), dir = %dir.display(), %error,
                        "it cannot be told how much room the disk has: records will be taken until it is full");
                }
                Err(_) => {}
            }
        }
        if node.inner.disk_space.found(free_bytes, config.disk_reserve_bytes) {
            let reserve_bytes = config.disk_reserve_bytes;
            if node.inner.disk_space.is_short() {
                Mark::DiskSpaceShort.reached();
                tracing::error!(target: "cluster", node = node.id(), free_bytes, reserve_bytes,
                    "the disk is nearly full: records are refused until there is room, everything else goes on");
            } else {
                Mark::DiskSpaceBack.reached();
                tracing::info!(target: "cluster", node = node.id(), free_bytes, reserve_bytes,
                    "the disk has room again: records are taken");
            }
            node.peers().poke_gossip();
        }
        E::sleep(LOOK_EVERY).await;
    }
}

impl<E: Env> Node<E> {
    /// Is less than the reserve free on this node's disks?
    #[must_use]
    pub fn is_short_of_space(&self) -> bool {
        self.inner.disk_space.is_short()
    }

    /// Bytes that are free on the fuller one of this node's disks, looked at once a second; `None` if that cannot be told.
    #[must_use]
    pub fn disk_free_bytes(&self) -> Option<u64> {
        let free_bytes = self.inner.disk_space.free_bytes.load(Ordering::Relaxed);
        (free_bytes != u64::MAX).then_some(free_bytes)
    }

    /// May records be added to a shard that this node leads? Not while it is short of space, nor while so many other replicas are that no majority
    /// could store them.
    #[must_use]
    pub fn takes_records(&self, shard: ShardId) -> bool {
        if self.is_short_of_space() {
            return false;
        }
        let replicas = placement::replicas(&self.inner.config, shard);
        let with_room = replicas.iter().filter(|replica| !self.is_peer_short(**replica)).count();
        with_room > replicas.len() / 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_short_until_there_is_more_than_the_reserve() {
        let space = DiskSpace::default();
        for (free_bytes, changed, short) in [
            (100, false, false),
            (79, true, true),
            (80, false, true),
            (89, false, true),
            (90, true, false),
            (80, false, false),
        ] {
            assert_eq!((space.found(free_bytes, 80), space.is_short()), (changed, short), "{free_bytes}");
        }
        assert!(!space.found(0, 0), "without a reserve it is never short");
    }
}
