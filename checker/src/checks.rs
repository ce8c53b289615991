//! The checks, by what they are about.

mod commits;
mod forward;
mod groups;
mod messages;
mod ownership;
mod records;
mod replicas;
#[cfg(test)]
mod sample;

use crate::check::Check;

/// All of them. What explains more stands first.
pub(crate) const ALL: &[Check] = &[
    records::TIMES_ARE_SOUND,
    messages::STORED_IS_WHOLE,
    messages::NOTHING_REMOVED,
    messages::ONE_OFFSET_ONE_VALUE,
    messages::NOT_FROM_NOWHERE,
    messages::ACKNOWLEDGED_STAYS,
    messages::READ_STAYS,
    messages::DELETED_STAYS_AWAY,
    messages::STORED_ONCE,
    messages::PRODUCER_ORDER,
    messages::ACKNOWLEDGED_COMES_FIRST,
    messages::KEY_STAYS,
    ownership::ONE_OWNER,
    ownership::READ_BY_OWNER,
    ownership::CONTIGUOUS,
    ownership::BEGINS_AT_COMMITTED,
    ownership::NOTHING_SKIPPED,
    commits::ACCEPTED_OF_OWNER,
    commits::COMMITTED_STAYS,
    commits::ONLY_FORWARD,
    commits::READS_GO_FORWARD,
    groups::SAME_AT_SAME_INDEX,
    groups::EPOCH_GOES_ON,
    groups::EPOCH_HAS_ONE_ASSIGNMENT,
    groups::OWNED_ONCE,
    groups::STABLE_OWNS_ALL,
    groups::ANSWERED_BY_COORDINATOR,
    replicas::ONE_LEADER,
    replicas::END_GROWS,
    replicas::END_IS_BEHIND_ALL,
    replicas::STATE_IS_SOUND,
    replicas::REPLICAS_AGREE,
    replicas::FILES_ARE_EQUAL,
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    #[test]
    fn every_check_has_a_name_of_its_own_and_says_what_it_holds_against_the_history() {
        let names: BTreeSet<&str> = super::ALL.iter().map(|check| check.name).collect();
        assert_eq!(names.len(), super::ALL.len());
        assert!(super::ALL.iter().all(|check| check.what.len() > check.name.len()));
    }
}
