//! The first bytes of a connection, in both directions: who is there, and whom it wants.

use lockstep_core::NodeId;

use super::request::Lane;

/// Version of the frames and of this greeting. Nodes of different versions refuse each other.
pub const PROTOCOL_VERSION: u16 = 2;
/// Bytes of an encoded [`Hello`].
pub const HELLO_LEN: usize = 60;

const MAGIC: [u8; 4] = *b"LKSP";

/// A greeting. The node that dials greets first; the other one answers with its own, or with why it does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Protocol version of the sender.
    pub version: u16,
    /// What the connection is for.
    pub lane: Lane,
    /// In an answer: why the sender closes the connection.
    pub refusal: Option<Refusal>,
    /// The sender.
    pub node: NodeId,
    /// Whom it means to talk to.
    pub target: NodeId,
    /// The sender's incarnation.
    pub incarnation: [u8; 16],
    /// The sender's cluster.
    pub cluster_token: [u8; 16],
}

/// Why a connection is not wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The protocol versions differ.
    #[error("it speaks another protocol version")]
    Version,
    /// The tokens differ.
    #[error("it belongs to another cluster")]
    Cluster,
    /// Another node is reached under this address.
    #[error("it is not the node that was meant")]
    Target,
    /// The configuration has no such node, or it has this node's own id.
    #[error("it does not know this node")]
    Node,
}

/// Bytes that are not a greeting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HelloError {
    /// Something that is not a node of this system.
    #[error("not a greeting")]
    Magic,
    /// The checksum does not match.
    #[error("the checksum does not match")]
    Checksum,
    /// A field has an impossible value.
    #[error("a field has an impossible value")]
    Field,
}

impl Hello {
    pub(super) fn encode(&self) -> [u8; HELLO_LEN] {
        let mut encoded = [0; HELLO_LEN];
        encoded[..4].copy_from_slice(&MAGIC);
        encoded[4..6].copy_from_slice(&self.version.to_be_bytes());
        encoded[6] = self.lane.code();
        encoded[7] = match self.refusal {
            None => 0,
            Some(Refusal::Version) => 1,
            Some(Refusal::Cluster) => 2,
            Some(Refusal::Target) => 3,
            Some(Refusal::Node) => 4,
        };
        encoded[8..16].copy_from_slice(&self.node.to_be_bytes());
        encoded[16..24].copy_from_slice(&self.target.to_be_bytes());
        encoded[24..40].copy_from_slice(&self.incarnation);
        encoded[40..56].copy_from_slice(&self.cluster_token);
        let checksum = crc32c::crc32c(&encoded[..56]);
        encoded[56..].copy_from_slice(&checksum.to_be_bytes());
        encoded
    }
}

/// Decodes a greeting. Never panics. Whether its sender is wanted is another question.
pub fn decode_hello(encoded: &[u8; HELLO_LEN]) -> Result<Hello, HelloError> {
    if encoded[..4] != MAGIC {
        return Err(HelloError::Magic);
    }
    if crc32c::crc32c(&encoded[..56]).to_be_bytes() != encoded[56..] {
        return Err(HelloError::Checksum);
    }
    let refusal = match encoded[7] {
        0 => None,
        1 => Some(Refusal::Version),
        2 => Some(Refusal::Cluster),
        3 => Some(Refusal::Target),
        4 => Some(Refusal::Node),
        _ => return Err(HelloError::Field),
    };
    fn array<const N: usize>(encoded: &[u8; HELLO_LEN], at: usize) -> [u8; N] {
        let mut array = [0; N];
        array.copy_from_slice(&encoded[at..at + N]);
        array
    }
    Ok(Hello {
        version: u16::from_be_bytes(array(encoded, 4)),
        lane: Lane::from_code(encoded[6]).ok_or(HelloError::Field)?,
        refusal,
        node: u64::from_be_bytes(array(encoded, 8)),
        target: u64::from_be_bytes(array(encoded, 16)),
        incarnation: array(encoded, 24),
        cluster_token: array(encoded, 40),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_greeting_is_decoded_as_it_was_encoded(
            version in any::<u16>(),
            lane in prop::sample::select(vec![Lane::Control, Lane::Bulk]),
            refusal in prop::sample::select(vec![
                None, Some(Refusal::Version), Some(Refusal::Cluster), Some(Refusal::Target), Some(Refusal::Node),
            ]),
            (node, target) in any::<(u64, u64)>(),
            (incarnation, cluster_token) in any::<([u8; 16], [u8; 16])>(),
            at in 0..HELLO_LEN,
            flip in 1_u8..,
        ) {
            let hello = Hello { version, lane, refusal, node, target, incarnation, cluster_token };
            let mut encoded = hello.encode();
            prop_assert_eq!(decode_hello(&encoded), Ok(hello));
            encoded[at] ^= flip;
            prop_assert!(decode_hello(&encoded).is_err());
        }
    }
}
