//! What may only grow, seen by requests that take time.

/// A value that was seen, or set, between `start_us` and `end_us`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seen<T> {
    pub(crate) start_us: u64,
    pub(crate) end_us: u64,
    pub(crate) value: T,
    /// Index of the record of the history.
    pub(crate) by: usize,
}

/// Finds two of which the second began after the first had ended, and is less. `excused`: times between whose start and end the value may
/// have been set to anything; one that has no end excuses whatever comes later.
pub(crate) fn goes_back<T: Copy + Ord>(seen: &[Seen<T>], excused: &[(u64, u64)]) -> Option<(Seen<T>, Seen<T>)> {
    let mut by_start: Vec<Seen<T>> = seen.to_vec();
    by_start.sort_by_key(|seen| seen.start_us);
    let mut by_end = by_start.clone();
    by_end.sort_by_key(|seen| seen.end_us);
    let mut excused = excused.to_vec();
    excused.sort_unstable();
    // With each: the latest end up to there.
    let mut latest_us = 0;
    let excused: Vec<(u64, u64)> = excused
        .into_iter()
        .map(|(start_us, end_us)| {
            latest_us = end_us.max(latest_us);
            (start_us, latest_us)
        })
        .collect();
    let excused_until_us = |at_us: u64| {
        let count = excused.partition_point(|(start_us, _)| *start_us <= at_us);
        count.checked_sub(1).and_then(|last| excused.get(last)).map(|(_, end_us)| *end_us)
    };
    let mut ended = by_end.into_iter().peekable();
    let mut highest: Option<Seen<T>> = None;
    for later in by_start {
        while let Some(before) = ended.next_if(|before| before.end_us < later.start_us) {
            // What the excuses so far may have replaced does not count, else the highest would hide lower ones that do.
            let is_void =
                |seen: &Seen<T>| excused_until_us(later.start_us).is_some_and(|until_us| seen.start_us <= until_us);
            highest = highest.filter(|highest| !is_void(highest));
            if !is_void(&before) && highest.is_none_or(|highest| before.value > highest.value) {
                highest = Some(before);
            }
        }
        if let Some(before) = highest
            && before.value > later.value
            && excused_until_us(later.end_us).is_none_or(|until_us| before.start_us > until_us)
        {
            return Some((before, later));
        }
    }
    None
}
