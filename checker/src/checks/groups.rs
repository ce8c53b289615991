//! Groups as they were seen from outside: epochs only go on, and an epoch has one assignment.

use std::collections::{BTreeMap, BTreeSet};

use crate::check::{Check, Violation, violation};
use crate::checks::forward::{Seen, goes_back};
use crate::event::{Event, GroupObserved, GroupProtocol, Partition};
use crate::view::View;

const STABLE: &str = "Stable";
const DEAD: &str = "Dead";

type Observation<'a> = (usize, u64, &'a GroupObserved);

/// By group: record of the history, its time, and what was seen.
fn observations<'a>(view: &View<'a>) -> BTreeMap<&'a str, Vec<Observation<'a>>> {
    let mut all: BTreeMap<&str, Vec<Observation<'_>>> = BTreeMap::new();
    for (index, record) in view.records.iter().enumerate() {
        if let Event::GroupObserved(seen) = &record.event {
            all.entry(&seen.group).or_default().push((index, record.at_us, seen));
        }
    }
    all
}

/// Those of one group whose place in the log is known, in that order.
fn by_index<'a>(seen: &[Observation<'a>]) -> Vec<(u64, usize, &'a GroupObserved)> {
    let mut by_index: Vec<_> = seen.iter().filter_map(|(by, _, group)| Some((group.index?, *by, *group))).collect();
    by_index.sort_by_key(|(index, by, _)| (*index, *by));
    by_index
}

pub(crate) const SAME_AT_SAME_INDEX: Check = Check {
    name: "a group differs between nodes at one index",
    what: "State is a function of the log: whoever has applied it up to one index has the same group, also after a restart or a snapshot.",
    run: same_at_same_index,
};

fn same_at_same_index(view: &View<'_>) -> Result<u64, Violation> {
    let mut facts = 0;
    for (name, seen) in &observations(view) {
        for pair in by_index(seen).windows(2) {
            let [(index, by, one), (other_index, other_by, other)] = pair else { continue };
            if index != other_index {
                continue;
            }
            facts += 1;
            let state = |group: &GroupObserved| {
                let mut members = group.members.clone();
                members.sort_by(|one, other| one.id.cmp(&other.id));
                (group.protocol, group.state.clone(), group.epoch, group.assignment_epoch, members)
            };
            if state(one) != state(other) {
                let details = format!("{name} at index {index} is {:?} and {:?}", state(one), state(other));
                return violation(details, [*by, *other_by]);
            }
        }
    }
    Ok(facts)
}

pub(crate) const EPOCH_GOES_ON: Check = Check {
    name: "a group's epoch goes back",
    what: "A generation or epoch never regresses, across any number of failovers, as long as the group exists.",
    run: epoch_goes_on,
};

fn epoch_goes_on(view: &View<'_>) -> Result<u64, Violation> {
    let mut facts = 0;
    for (name, seen) in &observations(view) {
        facts += seen.len() as u64;
        let epochs = |group: &GroupObserved| [("epoch", group.epoch), ("assignment epoch", group.assignment_epoch)];
        // In the order of the log.
        let mut before: Option<(usize, &GroupObserved)> = None;
        for (index, by, group) in by_index(seen) {
            if group.state == DEAD {
                before = None;
                continue;
            }
            if let Some((before_by, before)) = before {
                for ((what, from), (_, to)) in epochs(before).into_iter().zip(epochs(group)) {
                    let (Some(from), Some(to)) = (from, to) else { continue };
                    if to < from && !is_new_count(what, before, group) {
                        let details = format!("{name}: {what} {to} at index {index} after {from}");
                        return violation(details, [before_by, by]);
                    }
                }
            }
            before = Some((by, group));
        }
        // In the order of time.
        let dead: Vec<(u64, u64)> = seen
            .iter()
            .filter(|(_, _, group)| group.state == DEAD)
            .map(|(_, at_us, group)| (group.started_at_us.unwrap_or(0), *at_us))
            .collect();
        let in_time: Vec<Seen<i32>> = seen
            .iter()
            .filter(|(_, _, group)| group.state != DEAD)
            .filter_map(|(by, at_us, group)| {
                Some(Seen { start_us: group.started_at_us?, end_us: *at_us, value: group.epoch?, by: *by })
            })
            .collect();
        if let Some((before, after)) = goes_back(&in_time, &dead) {
            let details = format!("{name}: epoch {} was seen, then {}", before.value, after.value);
            return violation(details, [before.by, after.by]);
        }
    }
    Ok(facts)
}

/// A group that changes its protocol has a target assignment of another kind; only its epoch goes on.
fn is_new_count(what: &str, before: &GroupObserved, now: &GroupObserved) -> bool {
    what != "epoch" && before.protocol != now.protocol
}

pub(crate) const EPOCH_HAS_ONE_ASSIGNMENT: Check = Check {
    name: "an epoch has two assignments",
    what: "A member has one assignment in an epoch or generation (KIP-848: a new target bumps the assignment epoch; classic: SyncGroup \
           gives one for each generation; a change of the protocol goes on counting).",
    run: epoch_has_one_assignment,
};

fn epoch_has_one_assignment(view: &View<'_>) -> Result<u64, Violation> {
    let mut facts = 0;
    for (name, seen) in &observations(view) {
        // Without a place in the log or in time it is not known whether an observation is of a group that was deleted since.
        if seen.iter().any(|(_, _, group)| group.state == DEAD) {
            continue;
        }
        let mut known: BTreeMap<(i32, &str), (usize, BTreeSet<&Partition>)> = BTreeMap::new();
        for (by, _, group) in seen {
            let is_at_rest = match group.protocol {
                GroupProtocol::Classic => group.state == STABLE,
                GroupProtocol::Consumer => group.epoch == group.assignment_epoch,
            };
            let Some(epoch) = group.assignment_epoch.filter(|_| is_at_rest) else { continue };
            for member in &group.members {
                facts += 1;
                let target: BTreeSet<&Partition> = member.target.iter().collect();
                let key = (epoch, member.id.as_str());
                let (before_by, before) = known.entry(key).or_insert_with(|| (*by, target.clone()));
                if *before != target {
                    let details = format!("{} of {name} has {before:?} and {target:?} in epoch {epoch}", member.id);
                    return violation(details, [*before_by, *by]);
                }
            }
        }
    }
    Ok(facts)
}

pub(crate) const OWNED_ONCE: Check = Check {
    name: "a partition is assigned to two members",
    what: "A partition has at most one owner per group at any epoch, and is in at most one member's target.",
    run: owned_once,
};

fn owned_once(view: &View<'_>) -> Result<u64, Violation> {
    let mut facts = 0;
    for (name, seen) in &observations(view) {
        for (by, _, group) in seen {
            let mut owners: BTreeMap<(&str, &Partition), &str> = BTreeMap::new();
            for member in &group.members {
                let owned = member.owned.iter().map(|partition| ("own", partition));
                for (how, partition) in owned.chain(member.target.iter().map(|partition| ("are to own", partition))) {
                    facts += 1;
                    if let Some(other) = owners.insert((how, partition), &member.id) {
                        let (one, epoch) = (&member.id, group.epoch);
                        let details = format!("{other} and {one} {how} {partition} in epoch {epoch:?} of {name}");
                        return violation(details, [*by]);
                    }
                }
            }
        }
    }
    Ok(facts)
}

pub(crate) const STABLE_OWNS_ALL: Check = Check {
    name: "a stable group has a partition without an owner",
    what: "In Stable every partition of a subscribed topic has exactly one owner, as long as there is a member \
           (a classic group that moves a partition in two rebalances, KIP-429, has none for it in between).",
    run: stable_owns_all,
};

fn stable_owns_all(view: &View<'_>) -> Result<u64, Violation> {
    let mut facts = 0;
    for (name, seen) in &observations(view) {
        for (place, (by, _, group)) in seen.iter().enumerate() {
            if group.state != STABLE || group.members.is_empty() {
                continue;
            }
            for partition in &group.subscribed {
                facts += 1;
                if owner(group, partition).is_none() && !is_handed_over(partition, seen, place) {
                    return violation(format!("nobody owns {partition} in epoch {:?} of {name}", group.epoch), [*by]);
                }
            }
        }
    }
    Ok(facts)
}

fn owner<'a>(group: &'a GroupObserved, partition: &Partition) -> Option<&'a str> {
    group.members.iter().find(|member| member.owned.contains(partition)).map(|member| member.id.as_str())
}

/// Members join again at once for the second rebalance; this leaves them time to find a new coordinator.
const HANDED_OVER_WITHIN_US: u64 = 10_000_000;

/// Whether a classic group is between two rebalances of the cooperative protocol: in the first the partition's owner
/// gives it up and stays a member, in the second somebody else gets it. So it had an owner that is still here, and the
/// group does not stay as it is now for long.
fn is_handed_over(partition: &Partition, seen: &[Observation<'_>], place: usize) -> bool {
    let (_, at_us, now) = seen[place];
    let gave_up = seen[..place].iter().rev().find_map(|(.., group)| owner(group, partition));
    let is_still_here = gave_up.is_some_and(|id| now.members.iter().any(|member| member.id == id));
    let next = seen[place + 1..].iter().find(|(.., group)| group.state != STABLE || group.members != now.members);
    let goes_on = next.is_some_and(|(_, next_us, _)| next_us.saturating_sub(at_us) <= HANDED_OVER_WITHIN_US);
    now.protocol == GroupProtocol::Classic && is_still_here && goes_on
}

pub(crate) const ANSWERED_BY_COORDINATOR: Check = Check {
    name: "a heartbeat was answered by a broker that does not coordinate the group",
    what: "Only the coordinator knows who is a member: one that was, or has a copy of the group, lets a member believe that it still is.",
    run: answered_by_coordinator,
};

fn answered_by_coordinator(view: &View<'_>) -> Result<u64, Violation> {
    let mut coordinators: BTreeMap<&str, Vec<(u64, u64, u64, usize)>> = BTreeMap::new();
    for (by, record) in view.records.iter().enumerate() {
        if let Event::Coordinated { node, group, from_us, until_us } = &record.event {
            coordinators.entry(group).or_default().push((*from_us, *until_us, *node, by));
        }
    }
    let mut facts = 0;
    for (index, record) in view.records.iter().enumerate() {
        let Event::HeartbeatAnswered { node, group, started_at_us } = &record.event else { continue };
        let mut throughout = coordinators.get(group.as_str()).into_iter().flatten();
        let Some((.., coordinator, by)) =
            throughout.find(|(from_us, until_us, ..)| *from_us <= *started_at_us && record.at_us <= *until_us)
        else {
            continue;
        };
        facts += 1;
        if coordinator != node {
            let details =
                format!("node {node} answered a heartbeat of {group} while node {coordinator} coordinated it");
            return violation(details, [*by, index]);
        }
    }
    Ok(facts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::all_broken;
    use crate::checks::sample::{fails, fails_with, history, partition, passes, seen};

    fn at(started_at_us: u64, epoch: i32) -> Event {
        Event::GroupObserved(GroupObserved { started_at_us: Some(started_at_us), ..seen(None, epoch, &[("a", &[0])]) })
    }

    fn indexed(index: u64, epoch: i32) -> Event {
        Event::GroupObserved(seen(Some(index), epoch, &[("a", &[0])]))
    }

    fn dead(index: Option<u64>, started_at_us: Option<u64>) -> Event {
        Event::GroupObserved(GroupObserved { started_at_us, state: DEAD.into(), ..seen(index, 0, &[]) })
    }

    #[test]
    fn a_group_is_the_same_wherever_the_same_was_applied() {
        let check = &SAME_AT_SAME_INDEX;
        let two = |one: GroupObserved, other: GroupObserved| [Event::GroupObserved(one), Event::GroupObserved(other)];
        let both = seen(Some(7), 3, &[("a", &[0]), ("b", &[1])]);
        passes(check, &two(both.clone(), seen(Some(7), 3, &[("b", &[1]), ("a", &[0])])));
        fails(check, &two(both.clone(), seen(Some(7), 3, &[("a", &[0])])), &[0, 1]);
        fails(check, &two(both.clone(), GroupObserved { state: "Reconciling".into(), ..both }), &[0, 1]);
    }

    #[test]
    fn a_heartbeat_is_answered_by_whoever_coordinates_the_group_all_the_while() {
        let check = &ANSWERED_BY_COORDINATOR;
        let answered = |node, started_at_us| Event::HeartbeatAnswered { node, group: "g".into(), started_at_us };
        let coordinated = |node, from_us, until_us| Event::Coordinated { node, group: "g".into(), from_us, until_us };
        // Between two coordinators it is not known who was.
        passes(
            check,
            &[answered(1, 5), answered(2, 15), answered(2, 25), coordinated(1, 0, 12), coordinated(2, 25, 50)],
        );
        fails(check, &[answered(1, 5), answered(1, 15), coordinated(1, 0, 10), coordinated(2, 12, 50)], &[1, 3]);
    }

    #[test]
    fn epochs_go_on() {
        let check = &EPOCH_GOES_ON;
        // A node that is behind tells what is past.
        passes(check, &[indexed(7, 3), indexed(9, 4), indexed(8, 3), at(35, 4), at(38, 5), at(39, 4)]);
        fails(check, &[indexed(7, 3), indexed(9, 4), indexed(8, 5)], &[1, 2]);
        fails(check, &[at(5, 4), at(15, 3)], &[0, 1]);
        passes(check, &[indexed(7, 3), dead(Some(8), None), indexed(9, 1)]);
        passes(check, &[at(5, 4), dead(None, Some(15)), at(25, 1)]);
        fails(check, &[at(5, 4), dead(None, Some(15)), at(25, 2), at(35, 1)], &[2, 3]);
    }

    #[test]
    fn an_epoch_has_one_assignment() {
        let check = &EPOCH_HAS_ONE_ASSIGNMENT;
        let moved = |epoch| Event::GroupObserved(seen(None, epoch, &[("a", &[1])]));
        passes(check, &[indexed(7, 3), moved(4), indexed(9, 5)]);
        fails(check, &[indexed(7, 3), moved(3)], &[0, 1]);
        // The target of the epoch is not computed yet.
        let before = GroupObserved { epoch: Some(4), ..seen(None, 3, &[("a", &[1])]) };
        passes(check, &[indexed(7, 3), Event::GroupObserved(before)]);
    }

    #[test]
    fn a_partition_is_assigned_once() {
        let check = &OWNED_ONCE;
        passes(check, &[Event::GroupObserved(seen(None, 3, &[("a", &[0, 1]), ("b", &[2])]))]);
        fails(check, &[Event::GroupObserved(seen(None, 3, &[("a", &[0, 1]), ("b", &[1])]))], &[0]);
        let mut targets = seen(None, 3, &[("a", &[0]), ("b", &[])]);
        for member in &mut targets.members {
            member.target = vec![partition(0)];
        }
        fails(check, &[Event::GroupObserved(targets)], &[0]);
    }

    #[test]
    fn all_partitions_of_a_stable_group_have_an_owner() {
        let check = &STABLE_OWNS_ALL;
        let subscribed = vec![partition(0), partition(1)];
        let whole = GroupObserved { subscribed: subscribed.clone(), ..seen(None, 3, &[("a", &[0]), ("b", &[1])]) };
        passes(check, &[Event::GroupObserved(whole.clone())]);
        let half = GroupObserved { subscribed, ..seen(None, 3, &[("a", &[0]), ("b", &[])]) };
        fails(check, &[Event::GroupObserved(half.clone())], &[0]);
        let later = GroupObserved { epoch: Some(4), assignment_epoch: Some(4), ..whole.clone() };
        let earlier = GroupObserved { epoch: Some(2), assignment_epoch: Some(2), ..whole.clone() };
        fails(check, &[earlier, half.clone(), later].map(Event::GroupObserved), &[1]);
        let moving = GroupObserved { state: "Reconciling".into(), ..half };
        fails_with(
            &EPOCH_HAS_ONE_ASSIGNMENT,
            &[Event::GroupObserved(whole), Event::GroupObserved(moving)],
            &[0, 1],
            &[],
        );
    }

    #[test]
    fn a_classic_group_may_move_a_partition_in_two_rebalances() {
        let check = &STABLE_OWNS_ALL;
        let classic = |state: &str, members: &[(&str, &[i32])]| {
            Event::GroupObserved(GroupObserved {
                protocol: GroupProtocol::Classic,
                state: state.into(),
                epoch: None,
                assignment_epoch: None,
                subscribed: vec![partition(0), partition(1)],
                ..seen(None, 0, members)
            })
        };
        let alone = classic(STABLE, &[("a", &[0, 1])]);
        let given_up = classic(STABLE, &[("a", &[0]), ("b", &[])]);
        let moved = classic(STABLE, &[("a", &[0]), ("b", &[1])]);
        let preparing = classic("PreparingRebalance", &[("a", &[0]), ("b", &[])]);
        passes(check, &[alone.clone(), given_up.clone(), given_up.clone(), moved.clone()]);
        passes(check, &[alone.clone(), given_up.clone(), preparing.clone()]);
        // It stays without an owner.
        fails(check, &[alone.clone(), given_up.clone(), given_up.clone()], &[1]);
        let mut late = history(&[alone.clone(), given_up.clone(), moved.clone()]);
        late[2].at_us += HANDED_OVER_WITHIN_US;
        let broken = all_broken(&late);
        assert_eq!(broken.iter().map(|broken| broken.check).collect::<Vec<_>>(), [check.name]);
        // Nobody had it, or whoever had it has left: the first rebalance gives it to another at once.
        fails(check, &[given_up.clone(), preparing], &[0]);
        let left = classic(STABLE, &[("b", &[0]), ("c", &[])]);
        fails(check, &[alone, left, moved], &[1]);
    }
}
