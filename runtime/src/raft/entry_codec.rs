//! Entries as bytes, the same in the journal and between nodes.
//!
//! An entry's position stands outside. Its bytes are: version (1), kind (1); for an op then the op's length (4, little-endian), the
//! op, and the payload up to the end; for a membership its postcard encoding. Ops and payloads are slices of what was read, never copies.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{Buf, Bytes};
use lockstep_core::NodeId;
use serde::{Deserialize, Serialize};

use super::type_config::{Command, Member, Membership, Payload};

const VERSION: u8 = 1;
const KIND_BLANK: u8 = 0;
const KIND_COMMAND: u8 = 1;
const KIND_MEMBERSHIP: u8 = 2;
/// A membership names at most some hundred nodes.
const MEMBERSHIP_BYTES_MAX: usize = 256 << 10;

/// Bytes that are not an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum EntryError {
    /// The entry ends too early.
    #[error("entry is cut short")]
    Short,
    /// Written by a version that this one does not know.
    #[error("entry version {0} is not known")]
    Version(u8),
    /// No such kind of entry.
    #[error("entry kind {0} is not known")]
    Kind(u8),
    /// A membership that cannot be.
    #[error("entry holds a malformed membership")]
    Membership,
}

impl From<EntryError> for std::io::Error {
    fn from(error: EntryError) -> Self {
        Self::new(std::io::ErrorKind::InvalidData, error)
    }
}

#[derive(Serialize, Deserialize)]
struct MembershipWire {
    /// One set of voters, two while a change is under way.
    voters: Vec<Vec<NodeId>>,
    /// Voters and learners.
    nodes: Vec<(NodeId, String, [u8; 16])>,
}

/// An entry's bytes, in parts so that a payload is not copied.
pub(crate) fn encode(payload: &Payload) -> Vec<Bytes> {
    match payload {
        Payload::Blank => vec![Bytes::from_static(&[VERSION, KIND_BLANK])],
        Payload::Normal(command) => {
            let op_len = u32::try_from(command.op.len()).expect("an op is shorter than 4 GiB");
            let mut header = Vec::with_capacity(6 + command.op.len());
            header.extend_from_slice(&[VERSION, KIND_COMMAND]);
            header.extend_from_slice(&op_len.to_le_bytes());
            header.extend_from_slice(&command.op);
            let mut parts = vec![Bytes::from(header)];
            if !command.payload.is_empty() {
                parts.push(command.payload.clone());
            }
            parts
        }
        Payload::Membership(membership) => {
            let mut bytes = vec![VERSION, KIND_MEMBERSHIP];
            bytes.extend_from_slice(&encode_membership(membership));
            vec![Bytes::from(bytes)]
        }
    }
}

/// Reads what [`encode`] wrote, its parts joined.
pub(crate) fn decode(mut bytes: Bytes) -> Result<Payload, EntryError> {
    if bytes.len() < 2 {
        return Err(EntryError::Short);
    }
    let version = bytes.get_u8();
    if version != VERSION {
        return Err(EntryError::Version(version));
    }
    match bytes.get_u8() {
        KIND_BLANK => Ok(Payload::Blank),
        KIND_COMMAND => {
            if bytes.len() < 4 {
                return Err(EntryError::Short);
            }
            let op_len = bytes.get_u32_le() as usize;
            if bytes.len() < op_len {
                return Err(EntryError::Short);
            }
            let op = bytes.split_to(op_len);
            Ok(Payload::Normal(Command { op, payload: bytes }))
        }
        KIND_MEMBERSHIP => decode_membership(&bytes).map(Payload::Membership),
        kind => Err(EntryError::Kind(kind)),
    }
}

/// A membership's bytes, also used in checkpoints.
pub(crate) fn encode_membership(membership: &Membership) -> Vec<u8> {
    let wire = MembershipWire {
        voters: membership.get_joint_config().iter().map(|voters| voters.iter().copied().collect()).collect(),
        nodes: membership.nodes().map(|(id, member)| (*id, member.address.clone(), member.incarnation)).collect(),
    };
    // Sequences of known length, strings and integers: postcard encodes them all.
    postcard::to_allocvec(&wire).unwrap_or_default()
}

/// Reads what [`encode_membership`] wrote.
pub(crate) fn decode_membership(bytes: &[u8]) -> Result<Membership, EntryError> {
    if bytes.len() > MEMBERSHIP_BYTES_MAX {
        return Err(EntryError::Membership);
    }
    let wire: MembershipWire = postcard::from_bytes(bytes).map_err(|_| EntryError::Membership)?;
    let voters: Vec<BTreeSet<NodeId>> = wire.voters.into_iter().map(BTreeSet::from_iter).collect();
    let nodes: BTreeMap<NodeId, Member> =
        wire.nodes.into_iter().map(|(id, address, incarnation)| (id, Member { address, incarnation })).collect();
    if voters.is_empty() && nodes.is_empty() {
        return Ok(Membership::default());
    }
    Membership::new(voters, nodes).map_err(|_| EntryError::Membership)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn joined(payload: &Payload) -> Bytes {
        Bytes::from(encode(payload).concat())
    }

    fn membership() -> Membership {
        let member = |n: u8| Member { address: format!("host-{n}:1"), incarnation: [n; 16] };
        let nodes = BTreeMap::from([(1, member(1)), (2, member(2)), (3, member(3)), (4, member(4))]);
        Membership::new(vec![BTreeSet::from([1, 2, 3]), BTreeSet::from([2, 3])], nodes).unwrap()
    }

    #[test]
    fn every_kind_of_entry_survives() {
        let command = Command { op: Bytes::from_static(b"\x01\x03op"), payload: Bytes::from_static(b"batches") };
        let bare = Command { op: Bytes::from_static(b"\x01\x09"), payload: Bytes::new() };
        for payload in
            [Payload::Blank, Payload::Normal(command), Payload::Normal(bare), Payload::Membership(membership())]
        {
            assert_eq!(decode(joined(&payload)).unwrap(), payload);
        }
    }

    #[test]
    fn payload_is_a_slice_of_what_was_read() {
        let payload =
            Payload::Normal(Command { op: Bytes::from_static(b"\x01\x03op"), payload: Bytes::from_static(b"batches") });
        let bytes = joined(&payload);
        let Ok(Payload::Normal(command)) = decode(bytes.clone()) else { panic!("not a command") };
        assert_eq!(command.payload.as_ptr(), bytes[bytes.len() - 7..].as_ptr());
    }

    #[test]
    fn what_is_cut_or_foreign_is_refused() {
        assert_eq!(decode(Bytes::new()), Err(EntryError::Short));
        assert_eq!(decode(Bytes::from_static(&[2, 0])), Err(EntryError::Version(2)));
        assert_eq!(decode(Bytes::from_static(&[1, 9])), Err(EntryError::Kind(9)));
        assert_eq!(decode(Bytes::from_static(&[1, 1, 255, 255, 255, 255, 0])), Err(EntryError::Short));
        let bytes = joined(&Payload::Membership(membership()));
        assert_eq!(decode(bytes.slice(..bytes.len() - 1)), Err(EntryError::Membership));
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(Bytes::from(bytes.clone()));
            let mut membership = vec![1, 2];
            membership.extend(bytes);
            let _ = decode(Bytes::from(membership));
        }
    }
}
