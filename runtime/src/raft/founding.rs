//! The first entry of a shard's log.
//!
//! Every founder writes the same one, which names the voters, before it answers any other node: whoever gives a vote knows
//! of whom a majority must consist. (openraft's `initialize` writes it too, but stands for election at once. All founders would do
//! so at the same time, in the same term, and none would win before a time-out.)

use std::collections::BTreeMap;
use std::io;

use lockstep_core::{NodeId, Position};
use lockstep_env::Env;
use tokio::sync::oneshot;

use super::entry_codec;
use super::type_config::{Member, Membership, Payload};
use crate::journal::ShardLog;

/// Where openraft expects the entry that begins a log: before the first term.
const FIRST: Position = Position { term: 0, index: 0 };

/// Makes the log begin with these voters, durably. Does nothing to a log that has begun.
pub(crate) async fn found<E: Env>(log: &ShardLog<E>, voters: BTreeMap<NodeId, Member>) -> io::Result<()> {
    if log.last().is_some() || log.vote().is_some() {
        return Ok(());
    }
    let entry = entry_codec::encode(&Payload::Membership(Membership::from(voters)));
    let (sender, durable) = oneshot::channel();
    let done = Box::new(move |result| {
        // Nobody waits any more when the start was given up.
        let _ = sender.send(result);
    });
    log.append(vec![(FIRST, entry)], done);
    durable.await.unwrap_or_else(|_| Err(io::Error::other("the journal has stopped")))
}
