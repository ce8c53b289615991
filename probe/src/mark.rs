//! Rare situations, counted.

use core::sync::atomic::{AtomicU64, Ordering};

/// Declares the situations and their names.
macro_rules! marks {
    ($($(#[doc = $doc:literal])+ $mark:ident,)+) => {
        /// A rare situation that a simulation is meant to reach. Counting is one relaxed addition, for the whole process.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Mark {
            $($(#[doc = $doc])+ $mark,)+
        }

        impl Mark {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$mark,)+];

            /// What it means, for people.
            #[must_use]
            pub fn meaning(self) -> &'static str {
                match self {
                    $(Self::$mark => concat!($($doc,)+).trim_ascii(),)+
                }
            }
        }
    };
}

marks! {
    /// A member's session ran out and the group went on without it.
    SessionExpired,
}

static COUNTS: [AtomicU64; Mark::ALL.len()] = [const { AtomicU64::new(0) }; Mark::ALL.len()];

impl Mark {
    /// The situation is there now.
    #[inline]
    pub fn reached(self) {
        COUNTS[self as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// How often it was there since the process started.
    #[must_use]
    pub fn count(self) -> u64 {
        COUNTS[self as usize].load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_situation_is_counted_and_says_what_it_is() {
        let before = Mark::SessionExpired.count();
        Mark::SessionExpired.reached();
        assert!(Mark::SessionExpired.count() > before);
        assert!(Mark::ALL.iter().all(|mark| !mark.meaning().is_empty()));
    }
}
