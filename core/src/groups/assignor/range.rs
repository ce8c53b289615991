//! `range`: each topic's partitions in neighbouring runs, members in a fixed order, so that equal indexes of topics with
//! the same subscribers meet at the same member.

use alloc::vec::Vec;

use super::Input;
use crate::groups::group::Target;

pub(crate) fn assign(input: &Input<'_>) -> Vec<Target> {
    let mut targets: Vec<Target> = input.members.iter().map(|_| Target::new()).collect();
    for class in input.classes() {
        let mut order = class.members.clone();
        // Static members first and by instance id, so that a restart under a new member id moves nothing.
        order.sort_by_key(|index| {
            input
                .members
                .get(*index)
                .map(|member| (member.instance_id.is_none(), member.instance_id.unwrap_or(member.member_id)))
        });
        let takers = u32::try_from(order.len()).unwrap_or(u32::MAX).max(1);
        for (topic_id, count) in class.topics.iter().filter_map(|topic| input.topics.get(*topic)) {
            let (quota, larger) = (count / takers, count % takers);
            let mut next = 0;
            for (rank, index) in (0_u32..).zip(&order) {
                let len = quota + u32::from(rank < larger);
                if len == 0 {
                    break;
                }
                if let Some(target) = targets.get_mut(*index) {
                    target.insert(*topic_id, (next..next + len).collect());
                }
                next += len;
            }
        }
    }
    targets
}
