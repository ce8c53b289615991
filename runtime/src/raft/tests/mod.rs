//! Shards on real disks and loopback connections, without a node around them.

mod cluster;
mod compaction;
mod groups;
mod lagging;
mod promises;
mod recovery;
mod repair;
mod replication;
mod single;
