//! Replicas compare the checksums of their segments with one another.
//!
//! A segment that is as its own checksum says may still be wrong: what was applied there may have been something else, through a fault of the memory or of this
//! program. All replicas apply the same entries, so a segment of the same name and length has the same checksum on all of them. Where it has not, somebody
//! would read something else from another leader. Who is right cannot be known, not even from two that agree: one of them may have been filled from the
//! other. So it is said, again in every round, and left to people.

use std::time::Duration;

use lockstep_env::Env;

use super::message::{self, ChecksumAnswer, ChecksumAsk};
use super::replica::Replica;
use crate::peer::{Lane, PeerNetwork, PeerRequest};
use crate::storage::SegmentEntry;

const TIMEOUT: Duration = Duration::from_secs(10);

/// Compares a segment, which is as its own checksum says, with the other members' copies. One that says the same is enough.
pub(crate) async fn compare<E: Env>(replica: &Replica<E>, peers: &PeerNetwork<E>, entry: &SegmentEntry) {
    let mut others = Vec::new();
    for (node, incarnation) in replica.others() {
        let ask = ChecksumAsk { segment: entry.name, len: entry.len };
        let request = PeerRequest {
            kind: message::SEGMENT_CHECKSUM,
            shard: replica.id.0,
            body: message::encode(&ask),
            payload: Vec::new(),
        };
        // Who cannot be asked now, or does not have it like this, says nothing.
        let Ok((body, _)) = peers.call(node, Some(incarnation), Lane::Bulk, request, TIMEOUT).await else { continue };
        let Ok(ChecksumAnswer(Some(checksum))) = message::decode(&body) else { continue };
        others.push((node, checksum));
        if others.len() == 1 && checksum == entry.crc32c {
            return;
        }
    }
    if others.iter().any(|(_, checksum)| *checksum != entry.crc32c) {
        tracing::error!(
            target: "raft", node = replica.node_id, shard = %replica.id, path = %replica.store.segment_path(entry.name).display(),
            own = entry.crc32c, ?others,
            "replicas differ: a segment is not the same on all nodes"
        );
    }
}

/// Answers another member's question.
pub(crate) fn asked<E: Env>(replica: &Replica<E>, ask: &ChecksumAsk) -> ChecksumAnswer {
    let entry = replica.store.listed_entry(ask.segment).filter(|entry| entry.len == ask.len);
    ChecksumAnswer(entry.map(|entry| entry.crc32c))
}
