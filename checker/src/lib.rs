//! What clients saw, as data, and what must be true of it: used by the simulator, by the tests against real processes and by
//! the property tests, and able to check again what was recorded earlier.

pub mod check;
pub mod history;

pub use check::{Broken, Stored};
pub use history::{Event, History};
