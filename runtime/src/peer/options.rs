//! What the network between nodes must be told to start.

use std::collections::BTreeMap;
use std::time::Duration;

use lockstep_core::NodeId;

/// Options of [`super::PeerNetwork::start`].
#[derive(Clone, Debug)]
pub struct PeerOptions {
    /// This node.
    pub me: NodeId,
    /// This node's disk, for ever: made when the disk was empty. Not all zeros.
    pub incarnation: [u8; 16],
    /// Nodes talk only to nodes with the same token; see [`cluster_token`].
    pub cluster_token: [u8; 16],
    /// Where to listen, `host:port`.
    pub listen: String,
    /// Where the nodes are reached, `host:port`. This node's own entry, if there is one, is not used.
    pub peers: BTreeMap<NodeId, String>,
    /// How often both ends of a connection say that they live, and gossip goes out.
    pub ping_interval: Duration,
    /// A connection on which nothing arrived for so long is closed. Several times `ping_interval`.
    pub silence_max: Duration,
    /// Longest wait for a connection to be established.
    pub connect_timeout: Duration,
}

impl PeerOptions {
    /// Usual times: ping after 100 ms, close after 2 s of silence, connect within 1 s.
    #[must_use]
    pub fn new(
        me: NodeId,
        incarnation: [u8; 16],
        cluster_token: [u8; 16],
        listen: String,
        peers: BTreeMap<NodeId, String>,
    ) -> Self {
        Self {
            me,
            incarnation,
            cluster_token,
            listen,
            peers,
            ping_interval: Duration::from_millis(100),
            silence_max: Duration::from_secs(2),
            connect_timeout: Duration::from_secs(1),
        }
    }
}

/// A token from the list of nodes: nodes whose configurations name different clusters refuse each other. 128-bit FNV-1a
/// over ids and addresses; a guard against mistakes, not against attackers.
#[must_use]
pub fn cluster_token(peers: &BTreeMap<NodeId, String>) -> [u8; 16] {
    let mut hash: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    let mut add = |byte: u8| {
        hash = (hash ^ u128::from(byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b);
    };
    for (node, address) in peers {
        node.to_be_bytes().into_iter().for_each(&mut add);
        address.bytes().for_each(&mut add);
        // No address holds this byte, so no two lists run together.
        add(0xff);
    }
    hash.to_be_bytes()
}
