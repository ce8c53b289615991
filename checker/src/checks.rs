//! The checks, by what they are about.

mod commits;
mod forward;
mod messages;
mod ownership;

use crate::check::Check;

/// All of them. What explains more stands first.
pub(crate) const ALL: &[Check] = &[
    messages::STORED_IS_WHOLE,
    messages::NOTHING_REMOVED,
    messages::ONE_OFFSET_ONE_VALUE,
    messages::NOT_FROM_NOWHERE,
    messages::ACKNOWLEDGED_STAYS,
    messages::READ_STAYS,
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
];
