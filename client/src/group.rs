//! Consumer groups: as a member, and seen from outside.

mod describe;

pub use describe::{GroupDescription, GroupMember, GroupOffset};
