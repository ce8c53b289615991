//! Fetch sessions (KIP-227).

/// All sessions of a broker.
#[derive(Debug, Default)]
pub(crate) struct FetchSessions {}
