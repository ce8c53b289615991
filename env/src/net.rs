//! Connections between nodes, and between clients and brokers.

use std::future::Future;
use std::io;

use crate::Env;

/// An established, ordered, reliable byte stream, in two halves so that reading never waits for writing.
#[derive(Debug)]
pub struct Connection<E: Env> {
    /// Bytes from the peer.
    pub reader: E::Reader,
    /// Bytes to the peer; small writes leave without delay once flushed.
    pub writer: E::Writer,
    /// The peer's address as `host:port`, for logs.
    pub peer_address: String,
}

/// Accepts connections until dropped.
pub trait Listener<E: Env>: Send + Sync + 'static {
    /// The next connection. An error concerns that one connection; accepting may go on.
    fn accept(&mut self) -> impl Future<Output = io::Result<Connection<E>>> + Send;
    /// Where it listens, as `host:port`.
    fn local_address(&self) -> io::Result<String>;
}
