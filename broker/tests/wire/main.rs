//! A broker as clients see it: frames over TCP, one node in single mode.

mod cluster;
mod compaction;
mod connections;
mod damage;
mod filling;
mod groups;
mod groups_bad_input;
mod groups_classic;
mod groups_configs;
mod groups_consumer;
mod groups_deletion;
mod groups_timeline;
mod http;
mod records;
mod retention;
mod slow_consumers;
mod support;
mod topics;
