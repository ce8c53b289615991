//! Whole clusters on simulated time, network and disks: the same broker, runtime, core and client code as in production.

#[cfg(not(madsim))]
compile_error!(
    "the simulator needs `--cfg madsim`, which .cargo/config.toml sets; an environment variable RUSTFLAGS replaces it: \
     unset RUSTFLAGS, or add `--cfg madsim` to it"
);

pub mod choices;
mod clients;
pub mod cluster;
mod convergence;
pub mod env;
pub mod faults;
mod inspector;
pub mod power;
pub mod scenario;
pub mod seeds;
pub mod shrink;
pub mod sweep;
pub mod timeline;
pub mod workload;

use std::future::Future;

use madsim::runtime::Runtime;

/// Runs a simulation to its end, on a thread of its own: hash keys and madsim's context start afresh for every run.
///
/// # Errors
/// The message of a panic of the simulation.
///
/// # Panics
/// No thread can be started.
pub fn simulate<F, T>(seed: u64, simulation: impl FnOnce() -> F + Send + 'static) -> Result<T, String>
where
    F: Future<Output = T>,
    T: Send + 'static,
{
    let run =
        move || Runtime::with_seed_and_config(seed, madsim::Config::default()).block_on(async { simulation().await });
    let thread = match std::thread::Builder::new().name(format!("seed {seed}")).spawn(run) {
        Ok(thread) => thread,
        Err(error) => panic!("no thread for the simulation: {error}"),
    };
    thread.join().map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
    })
}
