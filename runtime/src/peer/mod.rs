//! The network between nodes: requests and replies, opaque to what they carry.
//!
//! Every node dials every other node twice, once per [`Lane`], and sends its requests there; replies come back on the
//! same connection. Requests are multiplexed, so none waits for another's reply. Votes and heartbeats travel on the
//! control lane and never queue behind bulk data. Whatever is queued for a connection when its writer is free leaves in
//! one write: that is what coalesces the heartbeats of all shards.
//!
//! Both ends of a connection ping, so silence means that the other end or the way to it is gone. What arrives is
//! hostile until checked: lengths are bounded before anything is allocated, every frame carries a checksum, and whatever
//! is wrong with a connection closes that connection and nothing else.

mod acceptor;
mod budget;
mod connection;
mod dialer;
pub mod frame;
mod hello;
mod network;
mod options;
mod request;

pub use hello::{HELLO_LEN, Hello, HelloError, PROTOCOL_VERSION, decode_hello};
pub use network::PeerNetwork;
pub use options::{PeerOptions, cluster_token};
pub use request::{
    FAULT_INTERNAL, FAULT_OVERLOADED, FAULT_TOO_LARGE, IncomingRequest, Lane, PeerError, PeerFault, PeerHandler,
    PeerIdentity, PeerReply, PeerRequest,
};

#[cfg(test)]
mod tests;
