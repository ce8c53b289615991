//! `lockstep group describe`.

use std::io::{self, Write};

use lockstep_client::{GroupDescription, TopicPartition};

use crate::cli::output::{Table, age, or_dash, ranges, visible};

pub(super) fn print(group: &GroupDescription) -> anyhow::Result<()> {
    let epoch = group.epoch.map_or_else(String::new, |epoch| format!(", epoch {epoch}"));
    writeln!(
        io::stdout(),
        "group {}, {}, {}{epoch}, assignor {}, coordinator {}",
        visible(&group.group_id),
        group.group_type,
        group.state,
        visible(&group.assignor),
        group.coordinator
    )?;
    let lag_ms = group.lag_ms.map_or_else(String::new, |lag_ms| format!(", {}", age(lag_ms)));
    writeln!(io::stdout(), "lag {}{lag_ms}", or_dash(group.lag))?;
    let mut members = Table::new(&["MEMBER", "CLIENT", "HOST", "EPOCH", "ASSIGNMENT"]);
    for member in &group.members {
        members.row(vec![
            member.member_id.clone(),
            member.client_id.clone(),
            member.client_host.clone(),
            or_dash(member.epoch),
            assignment(&member.assignment),
        ]);
    }
    writeln!(io::stdout())?;
    members.print()?;
    let mut offsets = Table::new(&["TOPIC", "PARTITION", "COMMITTED", "END", "LAG", "LAG TIME", "MEMBER"]);
    for offset in &group.offsets {
        offsets.row(vec![
            offset.at.topic.to_string(),
            offset.at.partition.to_string(),
            or_dash(offset.committed),
            or_dash(offset.end),
            or_dash(offset.lag),
            or_dash(offset.lag_ms.map(age)),
            or_dash(offset.member_id.as_ref()),
        ]);
    }
    writeln!(io::stdout())?;
    offsets.print()?;
    Ok(())
}

/// Partitions by topic: `orders:0-3 payments:1`.
fn assignment(partitions: &[TopicPartition]) -> String {
    let topics = partitions.chunk_by(|one, other| one.topic == other.topic);
    let text = |topic: &[TopicPartition]| format!("{}:{}", topic[0].topic, ranges(topic.iter().map(|at| at.partition)));
    topics.map(text).collect::<Vec<_>>().join(" ")
}
