//! Clusters of real broker processes to test against.
//!
//! [`Cluster::start`] writes configuration files, starts `broker` once for each node on ports of the loopback interface, and waits until
//! the cluster serves. Processes are killed, frozen and started again by number: nodes count from 1. Whatever is waited for is a condition
//! with a deadline ([`wait_until`]). When a test fails, the end of every node's log is printed.

mod binaries;
pub mod cli;
pub mod cluster;
pub mod http;
pub mod load;
pub mod readers;
pub mod recorder;
mod wait;
pub mod wire;

pub use binaries::{broker_binary, lockstep_binary};
pub use cluster::Cluster;
pub use load::Load;
pub use ports::free_port;
pub use readers::Readers;
pub use recorder::{Lane, MemberLane, Recorder, still_assigned};
pub use wait::{PATIENCE, StallMeter, pause, wait_until, wait_until_ok, within};
pub use wire::WireConnection;
