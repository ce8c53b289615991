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
    // Members of groups.
    /// A member's session ran out and the group went on without it.
    SessionExpired,
    /// A member that was told its id did not come back with it.
    PendingMemberExpired,
    /// A member did not give up its partitions (or did not join again) in time and was removed.
    RevocationTimedOut,
    /// A member never asked for its part of a generation's assignment and was removed.
    SyncTimedOut,
    /// A join phase ended without members that had not joined again.
    JoinPhaseTimedOut,
    /// An expiry was applied after what it waited for had happened.
    ExpiryVoid,
    /// An expiry that one leader proposed was put into the log of another one's term.
    ExpiryOfFormerTermVoid,
    /// A new classic member was told to come back with the id that it was given.
    MemberIdHandedOut,
    /// A heartbeat named an epoch that is neither the member's own nor the one whose answer may be lost.
    MemberEpochFenced,
    /// A heartbeat named the epoch before, because the answer with the new one was lost.
    PreviousEpochAccepted,
    /// A member came back after its session had ended.
    UnknownMemberRefused,
    /// A static member went for a while.
    StaticMemberParked,
    /// A new process took a static member's place.
    StaticMemberReplaced,
    /// The process whose place was taken asked for something.
    StaleStaticMemberFenced,
    /// A process came with the instance id of one that still runs.
    InstanceIdInUse,
    /// Nobody was left in a join phase but static members that are away.
    OnlyAbsentStaticMembersLeft,
    /// The first join phase of a group was extended because members kept coming.
    InitialDelayExtended,
    // Groups.
    /// A member reached its epoch and had to wait for partitions that others still held.
    PartitionAwaitedFromAnotherMember,
    /// A member gave up partitions while the next assignment was not computed yet.
    RevokedWhileTargetIsBehind,
    /// A classic group with members became a consumer group.
    GroupUpgraded,
    /// A consumer group became a classic group because only classic members were left.
    GroupDowngraded,
    /// A group without members changed its protocol and kept its epoch.
    EmptyGroupChangedProtocol,
    /// Topics that a group reads came, grew or went.
    EpochRaisedByTopics,
    /// What a regular expression matches was found out.
    RegexResolved,
    /// What a regular expression matches came with a version of the directory that is not this one.
    RegexResolutionOutOfTurn,
    // Committed offsets.
    /// A commit of another generation was refused.
    StaleGenerationRefused,
    /// A commit was refused because the generation's assignment was missing.
    CommitDuringRebalanceRefused,
    /// A commit named an epoch before the partition was assigned.
    CommitOfStaleEpochRefused,
    /// A commit named a former epoch in which the member had the partitions already.
    CommitOfFormerEpochAccepted,
    /// A topic was deleted for which a group had committed offsets.
    TopicDeletedWithOffsets,
    /// Committed offsets were dropped because of their age.
    OffsetsExpired,
    // Producers.
    /// A batch was sent again and recognised.
    DuplicateBatchRecognised,
    /// A batch was sent again that is too old to be remembered, but known to be stored.
    ForgottenDuplicateRecognised,
    /// A batch came before the one it follows.
    OutOfOrderSequenceRefused,
    /// A producer's former epoch was refused.
    ProducerEpochFenced,
    /// A producer began a new epoch.
    ProducerEpochRaised,
    // The state as a whole.
    /// A state was read from a snapshot.
    SnapshotRestored,
    /// News of topics came to a shard that has another version of the directory than it begins with, or has it already.
    MetadataFeedOutOfTurn,
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
