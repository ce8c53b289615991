//! Consumer groups as their clients see them, op by op.
//! The behaviours that coordinators get wrong have a test target of their own, `conformance`.

mod admin;
mod assignment;
mod classic;
mod consumer;
#[allow(dead_code, reason = "the other test targets use more of it")]
mod harness;
mod offsets;
mod protocols;
mod sessions;
