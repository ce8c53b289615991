//! What a generated run is made of.

use proptest::prelude::*;

pub(crate) const MEMBERS: u8 = 5;

/// A commit of one partition of topic 3.
#[derive(Clone, Debug)]
pub(crate) struct CommitStep {
    pub(crate) group: u8,
    pub(crate) member: Option<u8>,
    pub(crate) epoch_off: i32,
    pub(crate) partition: u32,
}

/// What a generated step does; indexes are small so that steps meet each other.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    ClassicJoin {
        group: u8,
        member: u8,
        known: bool,
        instance: Option<u8>,
        protocols: u8,
        topics: u8,
        eager: bool,
        delay: bool,
        require_id: bool,
        max: u8,
    },
    ClassicLeave {
        group: u8,
        members: Vec<(Option<u8>, Option<u8>)>,
    },
    Sync {
        group: u8,
        member: u8,
        stale: i32,
    },
    ConsumerJoin {
        group: u8,
        member: u8,
        instance: Option<u8>,
        topics: u8,
        regex: bool,
        range: bool,
    },
    ConsumerBeat {
        group: u8,
        member: u8,
        epoch_off: i32,
        owned: Owned,
        topics: Option<u8>,
        follow: bool,
    },
    ConsumerLeave {
        group: u8,
        member: u8,
        instance: Option<u8>,
        for_a_while: bool,
    },
    Assign {
        group: u8,
        member: Option<u8>,
    },
    Commit(CommitStep),
    /// Commits that share an op.
    Commits(Vec<CommitStep>),
    Seen {
        group: u8,
        members: Vec<u8>,
    },
    StaleExpiry {
        group: u8,
        member: u8,
        back: u64,
        old_term: bool,
        reason: u8,
    },
    StaleCompleteJoin {
        group: u8,
        back: u64,
    },
    Repeat {
        back: usize,
    },
    DeleteGroup {
        group: u8,
    },
    DeleteOffsets {
        group: u8,
        partition: u32,
    },
    ExpireOffsets {
        retention_ms: u64,
    },
    Configure {
        group: u8,
        session_ms: Option<u32>,
    },
    Resolve {
        group: u8,
        topics: u8,
        back: u64,
    },
    Topic {
        id: u8,
        change: u8,
    },
    Time {
        ms: u64,
    },
    Failover {
        restore: bool,
    },
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Owned {
    Unsaid,
    Nothing,
    Assigned,
    Everything,
}

pub(crate) fn step() -> impl Strategy<Value = Step> {
    let group = 0..3_u8;
    let member = 0..MEMBERS;
    let instance = || proptest::option::weighted(0.3, 0..2_u8);
    let off = || prop_oneof![6 => Just(0), 1 => Just(-1), 1 => Just(1), 1 => Just(-2)];
    let owned = prop_oneof![
        4 => Just(Owned::Assigned),
        2 => Just(Owned::Unsaid),
        1 => Just(Owned::Nothing),
        1 => Just(Owned::Everything),
    ];
    let commit = (group.clone(), proptest::option::weighted(0.8, member.clone()), off(), 0..4_u32)
        .prop_map(|(group, member, epoch_off, partition)| CommitStep { group, member, epoch_off, partition });
    prop_oneof![
        14 => (
            (group.clone(), member.clone(), any::<bool>(), instance(), 1..4_u8),
            (0..8_u8, any::<bool>(), any::<bool>(), any::<bool>(), 2..7_u8),
        )
            .prop_map(|((group, member, known, instance, protocols), (topics, eager, delay, require_id, max))| {
                Step::ClassicJoin { group, member, known, instance, protocols, topics, eager, delay, require_id, max }
            }),
        1 => group.clone().prop_map(|group| Step::DeleteGroup { group }),
        2 => (group.clone(), 0..4_u32).prop_map(|(group, partition)| Step::DeleteOffsets { group, partition }),
        2 => prop_oneof![Just(0_u64), 0..100_000_u64].prop_map(|retention_ms| Step::ExpireOffsets { retention_ms }),
        1 => (group.clone(), proptest::option::of(1_000..90_000_u32))
            .prop_map(|(group, session_ms)| Step::Configure { group, session_ms }),
        3 => (group.clone(), 0..8_u8, prop_oneof![3 => Just(0_u64), 1 => 0..4_u64])
            .prop_map(|(group, topics, back)| Step::Resolve { group, topics, back }),
        3 => (group.clone(), proptest::collection::vec((proptest::option::of(member.clone()), instance()), 1..3))
            .prop_map(|(group, members)| Step::ClassicLeave { group, members }),
        8 => (group.clone(), member.clone(), off()).prop_map(|(group, member, stale)| Step::Sync { group, member, stale }),
        10 => (group.clone(), member.clone(), instance(), 0..4_u8, proptest::bool::weighted(0.2), any::<bool>()).prop_map(
            |(group, member, instance, topics, regex, range)| Step::ConsumerJoin { group, member, instance, topics, regex, range }
        ),
        24 => (group.clone(), member.clone(), off(), owned, proptest::option::weighted(0.2, 0..4_u8), any::<bool>()).prop_map(
            |(group, member, epoch_off, owned, topics, follow)| Step::ConsumerBeat { group, member, epoch_off, owned, topics, follow }
        ),
        4 => (group.clone(), member.clone(), instance(), any::<bool>()).prop_map(
            |(group, member, instance, for_a_while)| Step::ConsumerLeave { group, member, instance, for_a_while }
        ),
        6 => (group.clone(), proptest::option::of(member.clone())).prop_map(|(group, member)| Step::Assign { group, member }),
        6 => commit.clone().prop_map(Step::Commit),
        2 => proptest::collection::vec(commit, 2..6).prop_map(Step::Commits),
        2 => (group.clone(), proptest::collection::vec(member.clone(), 1..4))
            .prop_map(|(group, members)| Step::Seen { group, members }),
        3 => (group.clone(), member, 0..20_u64, any::<bool>(), 0..3_u8).prop_map(
            |(group, member, back, old_term, reason)| Step::StaleExpiry { group, member, back, old_term, reason }
        ),
        1 => (group, 0..20_u64).prop_map(|(group, back)| Step::StaleCompleteJoin { group, back }),
        5 => (1..12_usize).prop_map(|back| Step::Repeat { back }),
        2 => (1..4_u8, 0..3_u8).prop_map(|(id, change)| Step::Topic { id, change }),
        6 => prop_oneof![0..4_000_u64, 4_000..70_000_u64, Just(10_000_000_u64)].prop_map(|ms| Step::Time { ms }),
        2 => any::<bool>().prop_map(|restore| Step::Failover { restore }),
    ]
}
