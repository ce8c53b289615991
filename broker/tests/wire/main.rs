//! A broker as clients see it: frames over TCP, one node in single mode.

mod connections;
mod records;
mod support;
mod topics;
