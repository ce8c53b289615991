//! `lockstep group`.

use clap::Subcommand;
use lockstep_client::{Admin, Client, GroupDescription, TopicPartition};

use super::output::{Table, or_dash, print_json, ranges};

#[derive(Debug, Subcommand)]
pub(crate) enum GroupCommand {
    /// Lists groups of both protocols
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Deletes a group that has no members, with its committed offsets
    Delete {
        /// Group
        group: String,
    },
    /// Shows a group's members, offsets and lag
    Describe {
        /// Group
        group: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

pub(crate) async fn run(client: &Client, command: GroupCommand) -> anyhow::Result<()> {
    let admin = Admin::new(client);
    match command {
        GroupCommand::List { json } => {
            let groups = admin.list_groups().await?;
            if json {
                return print_json(&groups);
            }
            let mut table = Table::new(&["GROUP", "TYPE", "STATE"]);
            for group in groups {
                table.row(vec![group.group_id, group.group_type, group.state]);
            }
            table.print()?;
        }
        GroupCommand::Delete { group } => {
            admin.delete_group(&group).await?;
            println!("deleted group {group}");
        }
        GroupCommand::Describe { group, json } => {
            let group = admin.describe_group(&group).await?;
            if json {
                return print_json(&group);
            }
            print(&group)?;
        }
    }
    Ok(())
}

fn print(group: &GroupDescription) -> anyhow::Result<()> {
    let epoch = group.epoch.map_or_else(String::new, |epoch| format!(", epoch {epoch}"));
    println!(
        "group {}, {}, {}{epoch}, assignor {}, coordinator {}",
        group.group_id, group.group_type, group.state, group.assignor, group.coordinator
    );
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
    println!();
    members.print()?;
    let mut offsets = Table::new(&["TOPIC", "PARTITION", "COMMITTED", "END", "LAG", "MEMBER"]);
    for offset in &group.offsets {
        offsets.row(vec![
            offset.at.topic.to_string(),
            offset.at.partition.to_string(),
            or_dash(offset.committed),
            or_dash(offset.end),
            or_dash(offset.lag),
            or_dash(offset.member_id.as_ref()),
        ]);
    }
    println!();
    offsets.print()?;
    Ok(())
}

/// Partitions by topic: `orders:0-3 payments:1`.
fn assignment(partitions: &[TopicPartition]) -> String {
    let topics = partitions.chunk_by(|one, other| one.topic == other.topic);
    let text = |topic: &[TopicPartition]| format!("{}:{}", topic[0].topic, ranges(topic.iter().map(|at| at.partition)));
    topics.map(text).collect::<Vec<_>>().join(" ")
}
