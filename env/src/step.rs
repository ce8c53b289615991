//! Named points in a node's work at which a simulated host can be made to die.

/// Declares the steps and what they are.
macro_rules! steps {
    ($($(#[doc = $doc:literal])+ $step:ident,)+) => {
        /// A point between two effects that a crash may separate. The code tells its environment when it gets there, see
        /// [`Env::reached`](crate::Env::reached).
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Step {
            $($(#[doc = $doc])+ $step,)+
        }

        impl Step {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$step,)+];

            /// Its name, as written in code.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$step => stringify!($step),)+
                }
            }
        }
    };
}

steps! {
    /// A leader is about to hand an op to Raft: nothing of it is in any log.
    BeforeAppend,
    /// A leader is about to send entries to a follower. They are in its own journal, or on their way into it.
    BeforeReplicate,
    /// A batch of the journal has become durable on this node, and nobody was told yet: not Raft here, not the leader.
    Journalled,
    /// A leader has applied a committed entry of a client that still waits for the reply.
    BeforeReply,
    /// A checkpoint is being written: the segments and the new manifest are durable, the manifest is not renamed into its place.
    CheckpointStaged,
    /// A checkpoint is durable; what it covers is still in the journal.
    CheckpointWritten,
    /// The journal's record that entries are no longer needed is queued; the files with them are still there.
    JournalPurged,
    /// A file of the journal that nobody needs is about to be made a spare one, or removed.
    JournalRecycled,
    /// A piece of a leader's snapshot was written beside the replica's own segments; more is missing.
    SnapshotPulled,
    /// A leader's snapshot is complete and durable beside the segments; nothing of it counts yet.
    SnapshotStaged,
    /// A leader's snapshot has become the checkpoint; its segments are not moved to their places yet.
    SnapshotAdopted,
    /// A vote is durable: a candidate has not asked the others yet, or a voter has not answered.
    VoteWritten,
    /// A change of membership was handed to the journal.
    MembershipAppended,
    /// A change of membership was applied. On a leader that changes voters it may be the first half, with the second one not proposed yet.
    MembershipApplied,
    /// A node agrees with the others on the cluster that they start, and has not written it down.
    BeforeJoin,
    /// A coordinator has looked up what a group committed: somebody waits to know where to read on.
    BeforeOffsetsAnswer,
    /// A piece of another replica's copy of a damaged segment was written beside it; more may be missing.
    SegmentPieceFetched,
    /// Another replica's copy of a damaged segment is complete and durable beside it, and has not taken its place.
    SegmentRepairStaged,
    /// A compacted segment is whole and durable, and was not moved to where it belongs.
    CompactedSegmentStaged,
    /// Compacted segments took the place of others. No checkpoint knows of it.
    CompactionApplied,
}

#[cfg(test)]
mod tests {
    use super::Step;

    #[test]
    fn a_step_is_found_by_its_place_and_has_a_name_of_its_own() {
        for (place, step) in Step::ALL.iter().enumerate() {
            assert_eq!(*step as usize, place);
            assert_eq!(Step::ALL.iter().filter(|other| other.name() == step.name()).count(), 1);
        }
    }
}
