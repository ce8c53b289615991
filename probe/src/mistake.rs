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
    // The state machine.
    /// A commit of a former generation is accepted.
    CommitWithoutGenerationCheck,
    /// A commit of an epoch before the partition was assigned is accepted.
    CommitOfStaleEpoch,
    /// A partition goes to its new owner while the old one still has it.
    PartitionGivenBeforeRelease,
    /// A revocation's time goes on although the member has given everything up.
    RevocationTimeoutNotCancelled,
    /// A group whose last member went begins with the first epoch again.
    EmptyGroupRestartsEpochs,
    /// A group's committed offsets go with its last member.
    OffsetsForgottenWithLastMember,
    /// The process that takes a static member's place is not given its assignment.
    StaticReplacementLosesAssignment,
    /// SyncGroup is answered before the leader has assigned, with what the member had in the generation before.
    SyncAnsweredWithFormerAssignment,
    /// A member's session ends although it was heard from since the expiry was proposed.
    ExpiryDespiteLaterHeartbeat,
    /// Offsets that were committed for a topic stay when it is deleted.
    DeletedTopicKeepsOffsets,
    /// Partitions that are added to a topic do not raise the epoch of the groups that read it.
    AddedPartitionsUnnoticed,
    /// Of a producer's batches only the last one is recognised when it is sent again.
    OnlyLastBatchRemembered,
    /// A batch that was stored before is answered with the offset that a new one would have had.
    DuplicateAnsweredWithNewOffset,
    /// A snapshot does not hold what is remembered of producers.
    SnapshotOmitsProducers,
    /// Offsets of groups without members are not read from a snapshot.
    RestoreForgetsOffsetsOfEmptyGroups,
    /// Of a partition's leader epochs only the last one is read from a snapshot.
    RestoreForgetsLeaderEpochs,
    /// Where a partition's log begins is not read from a snapshot.
    RestoreForgetsLogStarts,
    /// An op does something else on a replica that has just read a snapshot.
    UnreplicatedStateDecides,
    // The node.
    /// Raft is told that entries are durable when they are only queued for the journal.
    AppendAcknowledgedBeforeSync,
    /// A vote is given before it is durable; it is written along with whatever comes next.
    VoteNotSynced,
    /// A journal file is written to before its new name is durable.
    JournalDirectoryNotSynced,
    /// A journal file is used again as soon as one of the shards needs it no more.
    JournalFileRecycledTooEarly,
    /// What a start finds at the journal's end counts as durable, although it may have been in the system's memory only.
    RecoveredTailNotSynced,
    /// A damaged batch of the journal is taken for its torn end, although there are later ones.
    DamageTakenForTornTail,
    /// Entries of a torn batch are taken from the journal without looking at their checksums.
    TornBatchTrusted,
    /// A checkpoint is made durable before the segments that it lists.
    CheckpointBeforeSegments,
    /// Files of deleted records are removed while the last checkpoint still lists them.
    RetentionRemovesFilesBeforeCheckpoint,
    /// A start removes files of compactions that its checkpoint does not know, although the journal may.
    StagedSegmentsRemovedAtStart,
    /// Compaction compares short hashes of keys and takes some keys for others.
    CompactionMistakesKeys,
    /// A tombstone deletes nothing, and goes when its time is over.
    TombstoneSupersedesNothing,
    /// Segments that are fetched from another replica are not compared with their checksums.
    SnapshotChecksumIgnored,
    /// A read from the middle of a batch that is in memory begins with the batch behind it.
    CachedBatchSkipped,
    /// A leader answers although it has not heard from a quorum for longer than an election takes.
    LeaseIgnored,
    /// A new leader answers before it has applied what the former one committed.
    LeaderServesBeforeItsFirstEntry,
    /// A read index is given without making sure that this node still leads.
    ReadIndexNotConfirmed,
    /// A node that leads for the second time goes on with its sessions of the first.
    SessionsKeptAcrossTerms,
    /// A vote counts although the voter's disk is not the one that holds the log.
    VoteOfAnotherDisk,
    /// A voter that is started anew votes for anybody at once, although the leader may still rely on it.
    RestartedVoterForgetsLease,
    /// A voter that may have lost what it acknowledged from its memory votes for anybody, and stands for election.
    DoubtfulReplicaVotes,
    /// A replica tells its leader that it has a snapshot which it is still installing.
    SnapshotAcknowledgedBeforeInstalled,
    // The broker.
    /// Produce is answered with success while the batch is not stored yet.
    ProduceAnsweredBeforeCommit,
    /// OffsetCommit is answered with success although the proposal failed or its outcome is unknown.
    CommitAnsweredDespiteFailure,
    /// A broker that was the group's coordinator, or only has a copy of the group, answers heartbeats.
    HeartbeatAnsweredByFormerCoordinator,
    /// A broker that was the group's coordinator, or only has a copy of the group, tells committed offsets.
    OffsetsFetchedFromFormerCoordinator,
    /// A broker that is merely behind calls an offset above its end out of range.
    OffsetOutOfRangeOnFollower,
    /// Of the batches that a fetch found in several places only the last one is sent.
    FetchDropsAllButLastBatch,
    // The client.
    /// A batch that is sent again gets the next sequence number.
    RetryTakesNewSequence,
    /// A member says that it has given up partitions while its caller still works on them.
    RevocationReportedAtOnce,
    /// A member that cannot find out what was committed begins as if nothing were.
    FailedLookupStartsAtReset,
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
