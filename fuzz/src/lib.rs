//! Hostile bytes for everything that reads bytes from outside: one function a target, which must return whatever it is given.
//!
//! `cargo test -p fuzz` runs each target over its committed seeds in `corpus/` and over some thousand mutations of them. For
//! longer hunts there is `cargo fuzz`, which needs a nightly toolchain and a C++ compiler:
//!
//! ```text
//! cargo install cargo-fuzz
//! cargo +nightly fuzz run --features libfuzzer request_frame            until it finds something or is stopped
//! cargo +nightly fuzz run --features libfuzzer apply -- -max_total_time=600 -rss_limit_mb=2048
//! cargo +nightly fuzz tmin --features libfuzzer apply fuzz/artifacts/apply/crash-…
//! ```
//!
//! What it finds is kept: make it small, put it into `corpus/` under a name that says what it is, and `cargo test` runs it for ever.
//! After a change of a format, `cargo run -p fuzz --example write_seeds` writes the seeds anew.

mod apply;
mod input;
mod journal;
mod op;
mod peer;
mod wire;

pub use apply::{apply, snapshot};
pub use input::Input;
pub use journal::journal;
pub use op::{arbitrary_op, op};
pub use peer::peer_frame;
pub use wire::{record_batch, request_frame, response_frame};

/// A target: takes any bytes, panics when it has found a bug.
pub type Target = fn(&[u8]);

/// All targets, by the name of their folder in `corpus/`.
pub const TARGETS: &[(&str, Target)] = &[
    ("request_frame", request_frame),
    ("response_frame", response_frame),
    ("record_batch", record_batch),
    ("peer_frame", peer_frame),
    ("journal", journal),
    ("op", op),
    ("snapshot", snapshot),
    ("apply", apply),
];
