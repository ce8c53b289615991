//! Whole clusters on simulated time, network and disks: the same broker, runtime, core and client code as in production.

#[cfg(not(madsim))]
compile_error!(
    "the simulator needs `--cfg madsim`, which .cargo/config.toml sets; an environment variable RUSTFLAGS replaces it: \
     unset RUSTFLAGS, or add `--cfg madsim` to it"
);

pub mod cluster;
pub mod env;
pub mod faults;
pub mod scenario;
mod workload;

use std::future::Future;

use madsim::runtime::Runtime;

/// Runs a simulation to its end, on a thread of its own: hash keys and madsim's context start afresh for every run.
///
/// # Panics
/// With whatever the simulation panics with.
pub fn simulate<F, T>(seed: u64, simulation: impl FnOnce() -> F + Send + 'static) -> T
where
    F: Future<Output = T>,
    T: Send + 'static,
{
    let run =
        move || Runtime::with_seed_and_config(seed, madsim::Config::default()).block_on(async { simulation().await });
    match std::thread::Builder::new().name(format!("seed {seed}")).spawn(run) {
        Ok(thread) => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
        Err(error) => panic!("no thread for the simulation: {error}"),
    }
}
