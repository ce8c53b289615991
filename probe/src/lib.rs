//! How the tests measure their own power, from inside the code under test.
//!
//! A [`Mark`] counts that a rare situation was reached: a test that never reaches it proves nothing about it. A [`Mistake`] is a
//! bug that can be switched on to see whether the tests find it; in builds without debug assertions, thus in every release build, none
//! can, and the compiler removes it.

#![no_std]

mod mark;
mod mistake;

pub use mark::Mark;
pub use mistake::Mistake;
