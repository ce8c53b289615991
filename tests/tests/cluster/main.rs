//! What users of a cluster notice, against real processes.

mod client;
mod command_line;
mod configuration;
mod coordinator;
mod failures;
mod groups;
mod hostile_bytes;
mod http;
mod retention;
