//! `lockstep topic`.

use std::collections::BTreeMap;
use std::io::{self, Write};

use anyhow::bail;
use clap::Subcommand;
use lockstep_client::{Admin, Client, NewTopic, OffsetAt, TopicPartition};
use serde::Serialize;

use super::output::{Table, or_dash, print_json, ranges};

#[derive(Debug, Subcommand)]
pub(crate) enum TopicCommand {
    /// Creates a topic
    Create {
        /// Name of the topic
        topic: String,
        /// Number of partitions; the cluster's default if not given
        #[arg(long, short)]
        partitions: Option<i32>,
        /// Number of copies; the cluster's default if not given
        #[arg(long, short)]
        replication: Option<i16>,
        /// A setting, such as retention.ms=3600000; may be given several times
        #[arg(long = "config", short = 'c', value_name = "NAME=VALUE")]
        configs: Vec<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Lists topics
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Shows a topic's partitions and settings
    Describe {
        /// Name of the topic
        topic: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Deletes the oldest messages of a partition, or of all of them
    DeleteRecords {
        /// Name of the topic
        topic: String,
        /// Partition; all if not given
        #[arg(long, short)]
        partition: Option<i32>,
        /// The first offset that is kept, or `end` to keep nothing
        #[arg(long, value_name = "OFFSET", value_parser = first_kept)]
        before: FirstKept,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Deletes a topic with all its messages
    Delete {
        /// Name of the topic
        topic: String,
    },
}

/// Where a partition shall begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FirstKept {
    Offset(i64),
    End,
}

fn first_kept(text: &str) -> Result<FirstKept, String> {
    match text.parse::<i64>() {
        Ok(offset) if offset >= 0 => Ok(FirstKept::Offset(offset)),
        _ if text == "end" => Ok(FirstKept::End),
        _ => Err("is neither an offset nor `end`".to_owned()),
    }
}

#[derive(Serialize)]
struct BegunAnew {
    topic: String,
    partition: i32,
    start: i64,
}

#[derive(Serialize)]
struct Listed {
    name: String,
    id: String,
    partitions: usize,
    replication: usize,
    is_internal: bool,
}

#[derive(Serialize)]
struct Described {
    name: String,
    id: String,
    partitions: Vec<DescribedPartition>,
    configs: Vec<lockstep_client::ConfigEntry>,
}

#[derive(Serialize)]
struct DescribedPartition {
    partition: i32,
    leader: Option<i32>,
    leader_epoch: i32,
    replicas: Vec<i32>,
    in_sync_replicas: Vec<i32>,
    start: Option<i64>,
    end: Option<i64>,
}

pub(crate) async fn run(client: &Client, command: TopicCommand) -> anyhow::Result<()> {
    let admin = Admin::new(client);
    match command {
        TopicCommand::Create { topic, partitions, replication, configs, json } => {
            let mut parsed = BTreeMap::new();
            for config in configs {
                let Some((name, value)) = config.split_once('=') else { bail!("`{config}` is not NAME=VALUE") };
                parsed.insert(name.to_owned(), value.to_owned());
            }
            let topic = NewTopic { name: topic, partitions, replication, configs: parsed };
            let created = admin.create_topic(&topic).await?;
            if json {
                return print_json(&created);
            }
            writeln!(io::stdout(), "created topic {} with {} partitions", created.name, created.partitions)?;
        }
        TopicCommand::List { json } => {
            let topics = admin.list_topics().await?;
            let listed = topics.iter().map(|topic| Listed {
                name: topic.name.to_string(),
                id: topic.id.to_string(),
                partitions: topic.partitions.len(),
                replication: topic.partitions.first().map_or(0, |partition| partition.replicas.len()),
                is_internal: topic.is_internal,
            });
            if json {
                return print_json(&listed.collect::<Vec<_>>());
            }
            let mut table = Table::new(&["TOPIC", "PARTITIONS", "REPLICATION"]);
            for topic in listed {
                table.row(vec![topic.name, topic.partitions.to_string(), topic.replication.to_string()]);
            }
            table.print()?;
        }
        TopicCommand::Describe { topic, json } => describe(client, &admin, &topic, json).await?,
        TopicCommand::DeleteRecords { topic, partition, before, json } => {
            delete_records(&admin, &topic, partition, before, json).await?;
        }
        TopicCommand::Delete { topic } => {
            admin.delete_topic(&topic).await?;
            writeln!(io::stdout(), "deleted topic {topic}")?;
        }
    }
    Ok(())
}

async fn delete_records(
    admin: &Admin,
    topic: &str,
    partition: Option<i32>,
    before: FirstKept,
    json: bool,
) -> anyhow::Result<()> {
    let partitions: Vec<i32> = match partition {
        Some(partition) => vec![partition],
        None => admin.describe_topic(topic).await?.partitions.iter().map(|partition| partition.index).collect(),
    };
    let offset = match before {
        FirstKept::Offset(offset) => Some(offset),
        FirstKept::End => None,
    };
    let before = partitions.into_iter().map(|partition| (TopicPartition::new(topic, partition), offset)).collect();
    let starts = admin.delete_records(&before).await?;
    let rows: Vec<_> = starts
        .into_iter()
        .map(|(at, start)| BegunAnew { topic: at.topic.to_string(), partition: at.partition, start })
        .collect();
    if json {
        return print_json(&rows);
    }
    let mut table = Table::new(&["TOPIC", "PARTITION", "START"]);
    for row in rows {
        table.row(vec![row.topic, row.partition.to_string(), row.start.to_string()]);
    }
    table.print()?;
    Ok(())
}

async fn describe(client: &Client, admin: &Admin, name: &str, json: bool) -> anyhow::Result<()> {
    let topic = admin.describe_topic(name).await?;
    let configs = admin.topic_configs(name).await?;
    let with_leader = || topic.partitions.iter().filter(|partition| partition.leader.is_some());
    let places = |place: OffsetAt| -> BTreeMap<TopicPartition, OffsetAt> {
        with_leader().map(|partition| (TopicPartition::new(name, partition.index), place)).collect()
    };
    let starts = client.offsets(&places(OffsetAt::Earliest)).await?;
    let ends = client.offsets(&places(OffsetAt::Latest)).await?;
    let partitions: Vec<_> = topic
        .partitions
        .iter()
        .map(|partition| {
            let at = TopicPartition::new(name, partition.index);
            DescribedPartition {
                partition: partition.index,
                leader: partition.leader,
                leader_epoch: partition.leader_epoch,
                replicas: partition.replicas.clone(),
                in_sync_replicas: partition.in_sync_replicas.clone(),
                start: starts.get(&at).copied(),
                end: ends.get(&at).copied(),
            }
        })
        .collect();
    if json {
        let described = Described { name: name.to_owned(), id: topic.id.to_string(), partitions, configs };
        return print_json(&described);
    }
    writeln!(io::stdout(), "topic {name}, id {}", topic.id)?;
    for config in configs.iter().filter(|config| !config.is_default) {
        writeln!(io::stdout(), "{}={}", config.name, or_dash(config.value.as_ref()))?;
    }
    let mut table = Table::new(&["PARTITION", "LEADER", "EPOCH", "REPLICAS", "IN-SYNC", "START", "END"]);
    for partition in partitions {
        table.row(vec![
            partition.partition.to_string(),
            or_dash(partition.leader),
            partition.leader_epoch.to_string(),
            ranges(partition.replicas),
            ranges(partition.in_sync_replicas),
            or_dash(partition.start),
            or_dash(partition.end),
        ]);
    }
    table.print()?;
    Ok(())
}
