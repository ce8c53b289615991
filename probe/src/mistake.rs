//! Known bugs, each small, of the kind that is easily made.

use core::sync::atomic::{AtomicUsize, Ordering};

/// Declares the mistakes and what they are.
macro_rules! mistakes {
    ($($(#[doc = $doc:literal])+ $mistake:ident,)+) => {
        /// A bug that can be switched on, one at a time and for the whole process.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Mistake {
            $($(#[doc = $doc])+ $mistake,)+
        }

        impl Mistake {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$mistake,)+];

            /// Its name, as written in code.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$mistake => stringify!($mistake),)+
                }
            }

            /// What is wrong with it on, for people.
            #[must_use]
            pub fn meaning(self) -> &'static str {
                match self {
                    $(Self::$mistake => concat!($($doc,)+).trim_ascii(),)+
                }
            }
        }
    };
}

mistakes! {
    /// A commit of a former generation is accepted.
    CommitWithoutGenerationCheck,
}

/// 0: none; otherwise the mistake's number + 1.
static MADE: AtomicUsize = AtomicUsize::new(0);

impl Mistake {
    /// Are mistakes compiled in?
    #[must_use]
    pub const fn possible() -> bool {
        cfg!(debug_assertions)
    }

    /// Is it switched on? Never in builds without debug assertions.
    #[inline(always)]
    #[must_use]
    pub fn is_made(self) -> bool {
        cfg!(debug_assertions) && MADE.load(Ordering::Relaxed) == self as usize + 1
    }

    /// The mistake of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|mistake| mistake.name() == name)
    }

    /// Switches this mistake on, and every other off. Without effect where mistakes are not [`possible`](Self::possible).
    pub fn make(self) {
        MADE.store(self as usize + 1, Ordering::Relaxed);
    }

    /// Switches all off.
    pub fn make_none() {
        MADE.store(0, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistake_is_made_while_it_is_switched_on_and_mistakes_are_compiled_in() {
        let mistake = Mistake::CommitWithoutGenerationCheck;
        assert!(!mistake.is_made());
        mistake.make();
        assert_eq!(mistake.is_made(), Mistake::possible());
        Mistake::make_none();
        assert!(!mistake.is_made());
        assert_eq!(Mistake::named(mistake.name()), Some(mistake));
    }
}
