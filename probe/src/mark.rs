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
    // Who leads.
    /// A node became the leader of a shard.
    ElectionWon,
    /// A node was the leader of a shard and is not any more.
    LeadershipLost,
    /// Entries made a heartbeat needless.
    HeartbeatSpared,
    /// A leader did not hear from a quorum in time and stopped answering.
    LeaseLapsed,
    /// A leader that could not answer for a while began its members' sessions anew.
    SilenceForgiven,
    /// A stopping node handed a shard to another one.
    LeadershipHandedOver,
    /// A shard went back to the node that should lead it.
    LeadershipMovedBack,
    /// A node had nearly no room left on its disk.
    DiskSpaceShort,
    /// A node that had nearly no room left had some again.
    DiskSpaceBack,
    /// A node without room on its disk gave a shard to one that had room.
    LeadershipMovedForSpace,
    /// A vote was refused.
    VoteRefused,
    /// A voter that was started anew kept its vote back because the leader of before may rely on it.
    VoteKeptBack,
    /// A former leader's entries were refused.
    FormerLeaderRefused,
    // Replication.
    /// A follower's log did not continue where the leader's entries begin.
    AppendConflicted,
    /// A follower dropped entries that a former leader had sent it.
    LogTruncated,
    /// Appends of several requests went into one entry.
    AppendsGathered,
    /// Commits of several requests went into one entry.
    CommitsGathered,
    /// News of a commit went along with the next entries.
    CommitNewsMerged,
    /// Too much was queued on a leader, and a proposal was refused.
    ProposalQueueFull,
    /// Somebody who waited for an entry was told that its outcome is unknown, because the leader had lost its quorum.
    ProposalGivenUp,
    /// An entry was dropped that somebody waited for.
    EntryDiscarded,
    // The journal.
    /// A start found a batch that was begun and not finished.
    TornTailCut,
    /// A start found a journal file without a first batch.
    UnbegunJournalFileRemoved,
    /// A journal file was used again.
    JournalFileRecycled,
    /// An entry was written once more so that the oldest journal file could go.
    EntryCarried,
    /// The journal was full and the next file not ready yet.
    JournalWaitedForFile,
    /// The journal had no room on the disk for another file.
    JournalWaitedForRoom,
    /// Segments could not be written because the disk was full.
    SegmentsWaitedForRoom,
    /// A checkpoint could not be written because the disk was full.
    CheckpointWaitedForRoom,
    // Checkpoints and segments.
    /// A checkpoint was written.
    CheckpointTaken,
    /// A replica that lagged behind took over its leader's checkpoint.
    SnapshotInstalled,
    /// A piece of a leader's checkpoint did not come and was asked for again.
    SnapshotPieceAskedAgain,
    /// A piece was asked for of a checkpoint that the leader offers no longer.
    SnapshotNoLongerOnOffer,
    /// A replica gave up fetching one checkpoint because another one was offered.
    SnapshotPullBegunAnew,
    /// A replica went on fetching a checkpoint from where it had been interrupted.
    SnapshotPullResumed,
    /// A replica was offered what it had accepted but not made durable yet, and did not say that it had it.
    OfferHeldUntilDurable,
    /// A start ended the installation of a checkpoint that a crash had interrupted.
    InstallationResumed,
    /// A start found entries of a former leader where the leader's checkpoint, adopted just before a crash, has its end.
    SupersededLogDropped,
    /// A member that answers, but lags by more than the log may hold for it, was given a checkpoint instead.
    LaggingMemberCutOff,
    /// A read met files that were just exchanged for those of a checkpoint.
    ReadOfExchangedFiles,
    /// All records of a partition were deleted.
    LogEmptied,
    /// Part of a segment's records were deleted.
    LogStartWithinSegment,
    /// A read met a segment that was just deleted.
    ReadOfDeletedSegment,
    /// A replica that lagged behind removed segments that its leader had deleted.
    DeletedSegmentsMissedAndRemoved,
    /// A leader whose clock differs from the others' let no records expire.
    ExpiryAwaitedClock,
    /// Compacted segments took the place of others.
    LogCompacted,
    /// A compaction was proposed too late: records of its partition had been deleted, or it had been compacted again.
    CompactionOutOfDate,
    /// A compaction was given up before it was proposed.
    CompactionGivenUp,
    /// A compaction removed a tombstone whose time was over.
    TombstoneRemoved,
    /// A compaction took effect on a replica that did not have its files.
    CompactedSegmentMissing,
    /// A start found files of a compaction that its checkpoint does not know.
    StagedSegmentFoundAtStart,
    /// A segment file did not hold what was applied.
    SegmentDamageFound,
    /// A damaged segment file was replaced by another replica's copy.
    SegmentRepaired,
    /// A damaged segment file that a reader had met was replaced.
    SegmentRepairedByReader,
    /// A replica could not give a good copy of a damaged segment, and the next one was asked.
    RepairAskedNextPeer,
    /// A replica that fetched a segment told the one that gave it that it is damaged.
    DamageToldToPeer,
    /// Entries were not applied until segments had been written.
    ApplyWaitedForSegments,
    // The nodes among each other.
    /// A leader took a node out whose disk was emptied.
    EmptiedNodeRemoved,
    /// A node that does not vote was added to a shard.
    LearnerAdded,
    /// A node that had caught up was let vote.
    LearnerPromoted,
    /// A node read the directory from another shard than shard 0, whose own copy was older.
    DirectoryReadFromAnotherShard,
    /// A change of the voters was found half done, mostly because its leader died or was stopped, and is finished.
    HalfDoneMembershipChangeFinished,
    /// A request was meant for the disk that a node had before.
    RequestForFormerDiskRefused,
    /// A request was not even sent, because the node has another disk than it is meant for.
    RequestForFormerDiskNotSent,
    /// A node connected anew before its old connection was known to be gone.
    PeerConnectionReplaced,
    /// A leader's lease did not suffice for a read, and a quorum was asked.
    ReadIndexAskedOfQuorum,
    /// A read index was asked for once more.
    ReadIndexAskedAgain,
    /// No leader told a read index in time.
    ReadIndexNotFound,
    /// An op went to the leader on another node.
    OpForwarded,
    /// The outcome of an op that went to another node is not known.
    ForwardedOutcomeUnknown,
    /// A shard could not be told of topics at once.
    MetadataFeedRetried,
    // What brokers answer.
    /// A producer was told which broker leads now.
    ProducerToldOfNewLeader,
    /// A consumer was told which broker leads now.
    ConsumerToldOfNewLeader,
    /// The outcome of a Produce was not known in time.
    ProduceTimedOut,
    /// Produce waited for room in the queue of proposals.
    ProduceHeldUp,
    /// Produce was refused because the disks were nearly full.
    RecordsRefusedForSpace,
    /// A group request came to a broker that does not coordinate the group.
    NotCoordinatorAnswered,
    /// A group request came to a coordinator that has just been elected.
    CoordinatorLoadingAnswered,
    /// The outcome of a group request is not known.
    GroupOutcomeUnknown,
    /// A commit named a topic that the group's shard had not heard of.
    CoordinatorKnowsTopicLate,
    /// A fetch that waited was woken by an append.
    FetchWokenByAppend,
    /// Records came from a broker that does not lead the partition.
    FetchServedByFollower,
    /// A fetch asked for an offset above what the broker had applied, and the broker could not be sure that it is the end.
    OffsetNotAvailable,
    /// A fetch waited in vain at a broker that hears of nothing new.
    FetchRefusedLate,
    /// A fetch got one batch only, or waited, because slow clients held what is meant for answers.
    FetchShortOfRoom,
    // The client.
    /// A producer sent a batch again.
    ProducerBatchSentAgain,
    /// A producer does not know whether its batches were stored.
    ProduceAnswerLost,
    /// A producer numbered its batches anew because one that went before them was given up.
    ProducerRenumbered,
    /// A producer went on under a new id.
    ProducerTookNewIdentity,
    /// A member was told that it is none any more, and joined again.
    MemberFenced,
    /// A member did not hear from its coordinator for a session.
    MemberLostContact,
    /// A heartbeat was not answered, or not by the coordinator.
    HeartbeatAnswerLost,
    /// A member could not find out where to begin reading.
    CommittedOffsetsNotFoundOut,
    /// A commit came with an epoch that was over.
    CommitMetNewEpoch,
    /// A consumer's position was not in the log.
    FetchPositionReset,
    /// A fetch was answered after its partition had been given up or read elsewhere.
    FetchedInVain,
    /// A fetch was not answered.
    FetchFailed,
    /// A silent broker was doubted.
    BrokerDoubted,
    /// A silent broker turned out to have a successor.
    SuccessorFound,
    /// A group's coordinator was not where it was last.
    CoordinatorForgotten,
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
