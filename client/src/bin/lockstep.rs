//! The command line `lockstep`: topics, groups, messages, measurements.

#[path = "../cli/mod.rs"]
mod cli;

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    cli::main()
}
