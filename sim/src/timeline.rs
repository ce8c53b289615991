//! A run as people read it: one line an event, with a column for each node that shows whether it is up.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use crate::env::trace::Event;
use crate::scenario::Outcome;

/// Events that a short timeline may have.
const SHORT: usize = 15;

/// All events that were kept.
#[must_use]
pub fn whole(outcome: &Outcome) -> String {
    render(outcome, &outcome.timeline.iter().collect::<Vec<_>>())
}

/// The events that matter most, at most fifteen: faults, nodes that go and come, and how it ended.
#[must_use]
pub fn short(outcome: &Outcome) -> String {
    let weight = |event: &Event| match event.lane.as_str() {
        "verdict" => 3,
        "faults" => 2,
        "network" => 1,
        lane if is_node(lane) => 1,
        _ => 0,
    };
    let mut chosen: BTreeSet<usize> = BTreeSet::new();
    for least in (1..=3).rev() {
        // The last ones of each weight are nearest to what went wrong.
        for (index, event) in outcome.timeline.iter().enumerate().rev() {
            if chosen.len() < SHORT && weight(event) == least {
                chosen.insert(index);
            }
        }
    }
    render(outcome, &chosen.into_iter().map(|index| &outcome.timeline[index]).collect::<Vec<_>>())
}

fn is_node(lane: &str) -> bool {
    lane.strip_prefix('n').is_some_and(|number| number.parse::<u64>().is_ok())
}

fn render(outcome: &Outcome, events: &[&Event]) -> String {
    let mut lanes: Vec<String> = (1..=outcome.case.choices.nodes).map(|node| format!("n{node}")).collect();
    let clients: BTreeSet<&str> = events.iter().map(|event| event.lane.as_str()).collect();
    lanes.extend(clients.into_iter().filter(|lane| !is_node(lane) && is_client(lane)).map(str::to_owned));
    let mut marks: BTreeMap<&str, char> = lanes.iter().map(|lane| (lane.as_str(), '│')).collect();
    let mut text = String::new();
    let _ = write!(text, "{:>12}  ", "seconds");
    for lane in &lanes {
        let _ = write!(text, "{lane:<4}");
    }
    text.push('\n');
    for event in events {
        if let Some(mark) = marks.get_mut(event.lane.as_str()) {
            *mark = match event.text.as_str() {
                text if text.starts_with("host down") => 'x',
                "host up" => '·',
                "serving" | "goes on" => '│',
                "paused" => '=',
                _ => *mark,
            };
        }
        let _ = write!(text, "{:>12.6}  ", event.at.as_secs_f64());
        for lane in &lanes {
            let mark = if *lane == event.lane { '●' } else { marks[lane.as_str()] };
            let _ = write!(text, "{mark:<4}");
        }
        let _ = writeln!(text, "{:<8} {}", event.lane, event.text);
    }
    text
}

fn is_client(lane: &str) -> bool {
    let mut chars = lane.chars();
    chars.next().is_some_and(|first| first.is_ascii_lowercase())
        && !chars.as_str().is_empty()
        && chars.all(|c| c.is_ascii_digit())
}
