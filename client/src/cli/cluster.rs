//! `lockstep cluster`.

use std::io::{self, Write};

use anyhow::Context;
use clap::Subcommand;
use lockstep_client::{Admin, Client};
use serde_json::Value;

use super::output::{Table, print_json};

#[derive(Debug, Subcommand)]
pub(crate) enum ClusterCommand {
    /// Shows nodes and shards: who is alive, who leads, how far each replica is
    Status {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

pub(crate) async fn run(client: &Client, command: ClusterCommand) -> anyhow::Result<()> {
    let ClusterCommand::Status { json } = command;
    let status = Admin::new(client).cluster_status().await?;
    let status: Value = serde_json::from_slice(&status).context("the status is not JSON")?;
    if json {
        return print_json(&status);
    }
    let rows = |name: &str| status.get(name).and_then(Value::as_array).cloned().unwrap_or_default();
    let mut nodes = Table::new(&["NODE", "ADDRESS", "ALIVE"]);
    for node in rows("nodes") {
        nodes.row(vec![text(&node["id"]), text(&node["address"]), text(&node["alive"])]);
    }
    nodes.print()?;
    writeln!(io::stdout())?;
    let mut shards = Table::new(&["SHARD", "LEADER", "TERM", "VOTERS", "LEARNERS", "APPLIED"]);
    for shard in rows("shards") {
        shards.row(vec![
            text(&shard["id"]),
            text(&shard["leader"]),
            text(&shard["term"]),
            text(&shard["voters"]),
            text(&shard["learners"]),
            text(&shard["applied"]),
        ]);
    }
    shards.print()?;
    Ok(())
}

/// A value as a table shows it: lists by commas, objects as `key:value`.
fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(text).collect::<Vec<_>>().join(","),
        Value::Object(fields) => {
            fields.iter().map(|(key, value)| format!("{key}:{}", text(value))).collect::<Vec<_>>().join(" ")
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_shown_in_one_line() {
        let value = serde_json::json!({"1": 5, "2": [1, 2], "3": null});
        assert_eq!(text(&value), "1:5 2:1,2 3:-");
    }
}
