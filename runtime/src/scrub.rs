//! What lies on a disk for long may change there. A scrub reads every segment once in a while, slowly, and compares it with its checksum; what differs is
//! left to the shard's repairer (`raft/repair.rs`), which looks again and fetches the segment from another node. One that is as it should be is compared with another
//! replica's (`raft/comparison.rs`).
//!
//! On a node one segment is read at a time, whatever shard it belongs to, so that the rate is the node's. What the operating system still has in memory is read from
//! there: damage beneath it shows in a later round.

use std::sync::Arc;
use std::time::Duration;

use lockstep_env::Env;
use tokio::sync::Semaphore;

use crate::peer::PeerNetwork;
use crate::raft::{Replica, compare};
use crate::storage::check::{Checked, Pace};
use crate::storage::suspicion::FoundBy;

/// A node that has just started has other things to do.
const FIRST_ROUND_AFTER: Duration = Duration::from_secs(600);
/// Between two rounds, also when one takes longer than they should be apart.
const PAUSE_MIN: Duration = Duration::from_millis(100);

/// The task of one shard.
pub(crate) struct Scrub<E: Env> {
    pub(crate) replica: Arc<Replica<E>>,
    pub(crate) peers: PeerNetwork<E>,
    /// One permit: shards of a node take turns.
    pub(crate) turns: Arc<Semaphore>,
    /// From the beginning of one round to that of the next ([`crate::NodeConfig::scrub_interval`]); zero: there are none.
    pub(crate) interval: Duration,
    /// How fast segments are read.
    pub(crate) bytes_per_second: u64,
}

impl<E: Env> Scrub<E> {
    pub(crate) async fn run(self) {
        if self.interval.is_zero() {
            return;
        }
        let mut begins_at = E::now() + self.interval.min(FIRST_ROUND_AFTER);
        while !self.replica.is_stopped() {
            E::sleep_until(begins_at).await;
            let begun = E::now();
            self.round().await;
            begins_at = (begun + self.interval).max(E::now() + PAUSE_MIN);
        }
    }

    /// Looks at every segment that there is now.
    async fn round(&self) {
        let store = &self.replica.store;
        let mut segments = store.listed_segments();
        if segments.is_empty() {
            return;
        }
        // A node that is started again before it comes to the end must not begin with the same segments every time.
        let first = E::random_u64() % segments.len() as u64;
        segments.rotate_left(first as usize);
        let mut pace = Pace::slow::<E>(self.bytes_per_second);
        let mut damaged = 0_usize;
        let looked_at = segments.len();
        for name in segments {
            let Ok(_turn) = self.turns.acquire().await else { return };
            if self.replica.is_stopped() {
                return;
            }
            match store.check_segment(name, &mut pace).await {
                Ok(Checked::Damaged(_)) => {
                    damaged += 1;
                    store.suspect(name, FoundBy::Scrub);
                }
                Ok(Checked::Sound) => {
                    if let Some(entry) = store.listed_entry(name) {
                        compare(&self.replica, &self.peers, &entry).await;
                    }
                }
                Ok(Checked::Gone) => {}
                Err(error) => tracing::warn!(
                    target: "raft", node = self.replica.node_id, shard = %self.replica.id,
                    path = %store.segment_path(name).display(), %error,
                    "a segment cannot be compared with its checksum"
                ),
            }
        }
        tracing::debug!(
            target: "raft", node = self.replica.node_id, shard = %self.replica.id, segments = looked_at, damaged,
            "all segments were compared with their checksums"
        );
    }
}
