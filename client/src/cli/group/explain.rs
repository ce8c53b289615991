//! `lockstep group explain`: a group's timeline, as one reads a log.

use std::io::{self, Write};

use lockstep_client::{GroupTimeline, PartitionsMoved, TimelineEvent, TimelineEventKind, TopicPartitions};

use crate::cli::output::{Table, age, ranges, visible};

pub(super) fn print(timeline: &GroupTimeline) -> anyhow::Result<()> {
    writeln!(
        io::stdout(),
        "group {}, {}, {}, epoch {}",
        visible(&timeline.group_id),
        timeline.group_type,
        timeline.state,
        timeline.epoch
    )?;
    if let Some(since_ms) = timeline.rebalance_since_ms {
        writeln!(io::stdout(), "rebalancing since {}", time(since_ms))?;
    }
    writeln!(io::stdout())?;
    table(timeline).print()?;
    Ok(())
}

fn table(timeline: &GroupTimeline) -> Table {
    let mut table = Table::new(&["TIME", "EPOCH", "EVENT"]);
    for event in &timeline.events {
        let mut lines = sentences(event).into_iter();
        let at = event.at_ms.map_or_else(|| "-".to_owned(), time);
        table.row(vec![at, epochs(event), lines.next().unwrap_or_default()]);
        for line in lines {
            table.row(vec![String::new(), String::new(), format!("  {line}")]);
        }
    }
    table
}

/// In UTC, to the millisecond.
fn time(at_ms: i64) -> String {
    jiff::Timestamp::from_millisecond(at_ms).map_or_else(|_| format!("@{at_ms}"), |time| format!("{time:.3}"))
}

/// What the event did to the epoch.
fn epochs(event: &TimelineEvent) -> String {
    match event.epoch_before.filter(|before| *before != event.epoch) {
        Some(before) => format!("{before}→{}", event.epoch),
        None => event.epoch.to_string(),
    }
}

/// What happened, and a line for each of the details.
fn sentences(event: &TimelineEvent) -> Vec<String> {
    let sentence = match &event.what {
        TimelineEventKind::Joined { member_id, instance_id, client_id, client_host } => {
            let instance = instance_id.as_ref().map_or_else(String::new, |id| format!(", instance {id}"));
            format!("{member_id} joined (client {client_id} at {client_host}{instance})")
        }
        TimelineEventKind::Rejoined { member_id } => format!("{member_id} joined again and asked for a new generation"),
        TimelineEventKind::Replaced { member_id, by } => {
            format!("{member_id} was replaced by {by}, a new process of it")
        }
        TimelineEventKind::Away { member_id } => format!("{member_id} left for a while; its partitions wait for it"),
        TimelineEventKind::Left { member_id } => format!("{member_id} left"),
        TimelineEventKind::Expired { member_id, reason, silent_ms } => {
            let why = match reason.as_str() {
                "session" => "no heartbeat within the session time-out",
                "rebalance" => "did not follow the rebalance within the rebalance time-out",
                "pending" => "never came back with the id that it was given",
                other => other,
            };
            let silent = if *silent_ms == 0 { String::new() } else { format!("; silent for {}", age(*silent_ms)) };
            format!("{member_id} was removed: {why}{silent}")
        }
        TimelineEventKind::Subscribed { member_id } => format!("{member_id} subscribes to other topics"),
        TimelineEventKind::RegexResolved { regex, topics } => format!("`{regex}` now matches {topics} topics"),
        TimelineEventKind::TopicsChanged => "topics that the group reads were made, deleted or grew".to_owned(),
        TimelineEventKind::Generation { leader, members } => {
            format!("generation {} of {members} members began, led by {leader}", event.epoch)
        }
        TimelineEventKind::Assigned { assignor, moves, omitted } => {
            let mut lines = vec![match (moves.as_slice(), assignor.as_str()) {
                ([], _) => "assigned; nothing moved".to_owned(),
                (_, "") => "assigned:".to_owned(),
                _ => format!("assigned by {assignor}:"),
            }];
            lines.extend(moves.iter().map(moved));
            if *omitted > 0 {
                lines.push(format!("{omitted} more partitions moved"));
            }
            return lines;
        }
        TimelineEventKind::Settled { after_ms: Some(after_ms) } => {
            format!("settled: everybody has its partitions, {} after the rebalance began", age(*after_ms))
        }
        TimelineEventKind::Settled { after_ms: None } => "settled: everybody has its partitions".to_owned(),
        TimelineEventKind::Migrated { to } => format!("the group speaks the {to} protocol from now on"),
        TimelineEventKind::Unknown => "something that this version of lockstep does not know".to_owned(),
    };
    vec![sentence]
}

fn moved(moved: &PartitionsMoved) -> String {
    let topics = moved.topics.iter().map(partitions).collect::<Vec<_>>().join(" ");
    let name = |member: &Option<String>| member.clone().unwrap_or_else(|| "nobody".to_owned());
    format!("{topics}  {} → {}", name(&moved.from), name(&moved.to))
}

fn partitions(topic: &TopicPartitions) -> String {
    let name = topic.topic.as_ref().unwrap_or(&topic.topic_id);
    format!("{name}:{}", ranges(topic.partitions.iter().filter_map(|index| i32::try_from(*index).ok())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(epoch_before: i32, epoch: i32, what: TimelineEventKind) -> TimelineEvent {
        TimelineEvent { index: 7, at_ms: Some(1_700_000_000_123), epoch_before: Some(epoch_before), epoch, what }
    }

    #[test]
    fn a_timeline_reads_as_a_story() {
        let moves = PartitionsMoved {
            from: Some("a".to_owned()),
            to: None,
            topics: vec![
                TopicPartitions {
                    topic: Some("orders".to_owned()),
                    topic_id: "id1".to_owned(),
                    partitions: vec![0, 1, 2, 5],
                },
                TopicPartitions { topic: None, topic_id: "id2".to_owned(), partitions: vec![0] },
            ],
        };
        let expired =
            TimelineEventKind::Expired { member_id: "a".to_owned(), reason: "session".to_owned(), silent_ms: 6_012 };
        let assigned = TimelineEventKind::Assigned { assignor: "uniform".to_owned(), moves: vec![moves], omitted: 3 };
        let mut changed = event(4, 5, TimelineEventKind::TopicsChanged);
        changed.at_ms = None;
        let timeline = GroupTimeline {
            group_id: "g".to_owned(),
            group_type: "consumer".to_owned(),
            state: "Stable".to_owned(),
            epoch: 5,
            rebalance_since_ms: None,
            events: vec![
                event(3, 4, expired),
                event(4, 4, assigned),
                changed,
                event(5, 5, TimelineEventKind::Settled { after_ms: Some(250) }),
            ],
        };
        assert_eq!(
            table(&timeline).to_text(),
            "TIME                      EPOCH  EVENT\n\
             2023-11-14T22:13:20.123Z  3→4    a was removed: no heartbeat within the session time-out; silent for 6.0 s\n\
             2023-11-14T22:13:20.123Z  4      assigned by uniform:\n\
             \x20                                  orders:0-2,5 id2:0  a → nobody\n\
             \x20                                  3 more partitions moved\n\
             -                         4→5    topics that the group reads were made, deleted or grew\n\
             2023-11-14T22:13:20.123Z  5      settled: everybody has its partitions, 250 ms after the rebalance began\n"
        );
    }
}
