//! Consumer groups as their clients see them: the behaviours that coordinators get wrong, each by its name.

mod assignment;
mod classic;
mod consumer;
mod harness;
mod offsets;
mod protocols;
mod sessions;
