//! What clients and observers saw, as data, and what must be true of it: used by the simulator, by the tests against real processes and
//! by the property tests, and able to check again what was recorded earlier.
//!
//! A [`History`] is a list of [`Record`]s in the order in which they became known. [`check_all`] looks for what breaks a promise. It knows
//! nothing but the records, no clock and no cluster, and takes an outcome that is not known for what it is: neither success nor failure.

pub mod check;
mod checks;
pub mod event;
pub mod history;
mod view;

pub use check::{Broken, CHECKS, Check, Summary, all_broken, check_all};
pub use event::{Event, GroupObserved, GroupProtocol, MemberObserved, Partition, Record};
pub use history::{Header, History, HistoryError};
