//! Whole clusters on simulated time, network and disks: the same broker, runtime, core and client code as in production.

#[cfg(not(madsim))]
compile_error!(
    "the simulator needs `--cfg madsim`, which .cargo/config.toml sets; an environment variable RUSTFLAGS replaces it: \
     unset RUSTFLAGS, or add `--cfg madsim` to it"
);

pub mod cluster;
pub mod env;
