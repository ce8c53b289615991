//! Stores on a disk in memory that can lose power.

pub(crate) mod batch;
mod crash;
mod failed_syncs;
mod install;
mod lifecycle;
mod memory_env;
mod read;
mod real_disk;
mod repair;
mod scenario;
mod stalls;
