//! The 25 behaviours of consumer groups that coordinators get wrong, each a test named after its number.
//!
//! 1–12 and 22–25 (commits, fetches and deletions) are of both protocols, 13 and 14 of groups that change their protocol, 15–21 and 24 of
//! the classic protocol.

#[path = "../groups/harness.rs"]
#[allow(dead_code, reason = "the other tests use more of it")]
mod harness;

mod classic;
mod consumer;
mod migration;
mod offsets;
