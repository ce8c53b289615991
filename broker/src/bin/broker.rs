//! The binary `broker`.
fn main() {}
