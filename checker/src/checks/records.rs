//! The history itself: a recorder that writes nonsense must not make a run look good.

use crate::check::{Check, Violation, violation};
use crate::event::Event;
use crate::view::View;

pub(crate) const TIMES_ARE_SOUND: Check = Check {
    name: "the history's times are not sound",
    what: "Records stand in the order in which they became known, and no request ends before it began.",
    run: times_are_sound,
};

fn times_are_sound(view: &View<'_>) -> Result<u64, Violation> {
    let mut before_us = 0;
    for (index, record) in view.records.iter().enumerate() {
        let at_us = record.at_us;
        if at_us < before_us {
            return violation(format!("{at_us} µs comes after {before_us} µs"), [index - 1, index]);
        }
        before_us = at_us;
        if let Some(started_at_us) = started_at_us(&record.event).filter(|started_at_us| *started_at_us > at_us) {
            return violation(format!("what was known at {at_us} µs began at {started_at_us} µs"), [index]);
        }
    }
    Ok(view.records.len() as u64)
}

fn started_at_us(event: &Event) -> Option<u64> {
    match event {
        Event::EndObserved { started_at_us, .. }
        | Event::Committed { started_at_us, .. }
        | Event::CommitUnknown { started_at_us, .. }
        | Event::OffsetReset { started_at_us, .. }
        | Event::OffsetFetched { started_at_us, .. } => Some(*started_at_us),
        Event::GroupObserved(seen) => seen.started_at_us,
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::sample::{committed_from, fails, passes, sent};

    #[test]
    fn a_request_does_not_end_before_it_began() {
        passes(&TIMES_ARE_SOUND, &[sent("a"), committed_from("m", 0, 20)]);
        fails(&TIMES_ARE_SOUND, &[sent("a"), committed_from("m", 0, 21)], &[1]);
    }
}
