//! What a journal promises, on a disk that loses power, tears writes and fails.

mod behaviour;
mod crash;
mod damage;
mod memory_env;
mod model;
