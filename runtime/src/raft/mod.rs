//! The binding to openraft.

pub mod env_runtime;
