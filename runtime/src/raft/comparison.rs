//! Replicas compare the checksums of their segments with one another.
//!
//! A segment that is as its own checksum says may still be wrong: what was applied there may have been something else, through a fault of the memory or of this
//! program. All replicas apply the same entries, so a segment of the same name and length has the same checksum on all of them. Where it has not, somebody
//! would read something else from another leader. Who is alone against two others stops its replica, as after any other broken invariant; where it cannot be
//! known who is right, that is said, again in every round, and left to people.

use std::time::Duration;

use lockstep_core::NodeId;
use lockstep_env::Env;

use super::message::{self, ChecksumAnswer, ChecksumAsk};
use super::replica::Replica;
use crate::peer::{Lane, PeerNetwork, PeerRequest};
use crate::storage::SegmentEntry;

const TIMEOUT: Duration = Duration::from_secs(10);

/// What the others' checksums say of this replica's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// Nobody has another one.
    Alike,
    /// Somebody has, and it is not known who is right.
    Unclear,
    /// Two others have the same one, which is another.
    Wrong,
}

fn verdict(own: u32, others: &[(NodeId, u32)]) -> Verdict {
    let alike = |checksum: u32| others.iter().filter(|(_, other)| *other == checksum).count();
    if alike(own) == others.len() {
        return Verdict::Alike;
    }
    let most = others.iter().map(|(_, other)| alike(*other)).max().unwrap_or(0);
    if most >= 2 && most > alike(own) + 1 { Verdict::Wrong } else { Verdict::Unclear }
}

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
    let (id, node_id, own) = (replica.id, replica.node_id, entry.crc32c);
    let path = replica.store.segment_path(entry.name);
    match verdict(own, &others) {
        Verdict::Alike => {}
        Verdict::Unclear => tracing::error!(
            target: "raft", node = node_id, shard = %id, path = %path.display(), own, ?others,
            "replicas differ: a segment is not the same on all nodes, and it cannot be said which of them is right"
        ),
        Verdict::Wrong => replica.stop(format!(
            "{id:?}: {} is not what the other nodes have ({others:?}, here {own}): what was applied here was something else. Once all others run, move this node's \
             directories away and start it again",
            path.display()
        )),
    }
}

/// Answers another member's question.
pub(crate) fn asked<E: Env>(replica: &Replica<E>, ask: &ChecksumAsk) -> ChecksumAnswer {
    let entry = replica.store.listed_entry(ask.segment).filter(|entry| entry.len == ask.len);
    ChecksumAnswer(entry.map(|entry| entry.crc32c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_alone_against_two_others_is_wrong() {
        for (others, expected) in [
            (vec![], Verdict::Alike),
            (vec![(2, 7), (3, 7)], Verdict::Alike),
            (vec![(2, 8)], Verdict::Unclear),
            (vec![(2, 8), (3, 9)], Verdict::Unclear),
            (vec![(2, 8), (3, 7)], Verdict::Unclear),
            (vec![(2, 8), (3, 8)], Verdict::Wrong),
            (vec![(2, 8), (3, 8), (4, 7)], Verdict::Unclear),
            (vec![(2, 8), (3, 8), (4, 7), (5, 8)], Verdict::Wrong),
        ] {
            assert_eq!(verdict(7, &others), expected, "{others:?}");
        }
    }
}
