//! `lockstep consume`.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, BufWriter, Write};
use std::time::{Duration, Instant};

use anyhow::bail;
use clap::Args;
use lockstep_client::{
    Client, Consumer, FetchConfig, GroupConsumer, GroupConsumerConfig, GroupEvent, Message, OffsetAt, OffsetReset,
    StartAt, TopicPartition,
};
use lockstep_env::tokio_env::TokioEnv;
use lockstep_env::{Either, Env, select};
use serde_json::json;

const POLL_COUNT: usize = 10_000;
const POLL_TIMEOUT: Duration = Duration::from_millis(500);
const COMMIT_INTERVAL: Duration = Duration::from_secs(1);

#[derive(Debug, Args)]
pub(crate) struct ConsumeArguments {
    /// Topic to read; several with a group
    #[arg(required = true)]
    topics: Vec<String>,
    /// Share the topics with the other members of this group, and commit what was written out
    #[arg(long, short)]
    group: Option<String>,
    /// Read this partition only
    #[arg(long, short, conflicts_with = "group")]
    partition: Option<i32>,
    /// Begin at the first message that is kept; with a group, where it has no offset yet
    #[arg(long)]
    from_beginning: bool,
    /// Begin at this offset
    #[arg(long, conflicts_with_all = ["group", "from_beginning"])]
    offset: Option<i64>,
    /// Stop after so many messages
    #[arg(long, short = 'n')]
    count: Option<u64>,
    /// Stop at what was the end when reading began
    #[arg(long, short)]
    exit_at_end: bool,
    /// What to write for each message: %k key, %v value, %t topic, %p partition, %o offset, %T timestamp, %% percent,
    /// \n \t \\
    #[arg(long, short, default_value = "%v\\n", conflicts_with = "json")]
    format: String,
    /// Write each message as a line of JSON
    #[arg(long)]
    json: bool,
}

/// A piece of the format.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(Vec<u8>),
    Key,
    Value,
    Topic,
    Partition,
    Offset,
    Timestamp,
}

fn parse_format(format: &str) -> anyhow::Result<Vec<Piece>> {
    let mut pieces = Vec::new();
    let mut text = String::new();
    let mut letters = format.chars();
    while let Some(letter) = letters.next() {
        let piece = match letter {
            '%' => match letters.next() {
                Some('k') => Piece::Key,
                Some('v') => Piece::Value,
                Some('t') => Piece::Topic,
                Some('p') => Piece::Partition,
                Some('o') => Piece::Offset,
                Some('T') => Piece::Timestamp,
                Some('%') => {
                    text.push('%');
                    continue;
                }
                other => bail!("format: %{} is not known", other.map_or_else(String::new, String::from)),
            },
            '\\' => {
                text.push(match letters.next() {
                    Some('n') => '\n',
                    Some('t') => '\t',
                    Some('\\') => '\\',
                    other => bail!("format: \\{} is not known", other.map_or_else(String::new, String::from)),
                });
                continue;
            }
            letter => {
                text.push(letter);
                continue;
            }
        };
        if !text.is_empty() {
            pieces.push(Piece::Text(std::mem::take(&mut text).into_bytes()));
        }
        pieces.push(piece);
    }
    if !text.is_empty() {
        pieces.push(Piece::Text(text.into_bytes()));
    }
    Ok(pieces)
}

/// Writes messages, and counts down.
struct Output<W: Write> {
    out: W,
    /// `None` for JSON.
    format: Option<Vec<Piece>>,
    left: u64,
}

impl<W: Write> Output<W> {
    /// `false` once enough was written.
    fn write(&mut self, message: &Message) -> io::Result<bool> {
        if self.left == 0 {
            return Ok(false);
        }
        let out = &mut self.out;
        match &self.format {
            None => {
                serde_json::to_writer(&mut *out, &to_json(message))?;
                out.write_all(b"\n")?;
            }
            Some(pieces) => {
                for piece in pieces {
                    match piece {
                        Piece::Text(text) => out.write_all(text)?,
                        Piece::Key => out.write_all(message.key.as_deref().unwrap_or_default())?,
                        Piece::Value => out.write_all(message.value.as_deref().unwrap_or_default())?,
                        Piece::Topic => out.write_all(message.topic.as_bytes())?,
                        Piece::Partition => write!(out, "{}", message.partition)?,
                        Piece::Offset => write!(out, "{}", message.offset)?,
                        Piece::Timestamp => write!(out, "{}", message.timestamp)?,
                    }
                }
            }
        }
        self.left -= 1;
        Ok(self.left > 0)
    }
}

/// Bytes as a string, or as hexadecimal digits if they are none.
fn bytes_to_json(bytes: &[u8]) -> serde_json::Value {
    match std::str::from_utf8(bytes) {
        Ok(text) => json!(text),
        Err(_) => json!({ "hex": bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>() }),
    }
}

fn to_json(message: &Message) -> serde_json::Value {
    let headers: Vec<_> = message
        .headers
        .iter()
        .map(|(key, value)| json!({ "key": bytes_to_json(key), "value": value.as_deref().map(bytes_to_json) }))
        .collect();
    json!({
        "topic": &*message.topic,
        "partition": message.partition,
        "offset": message.offset,
        "timestamp": message.timestamp,
        "key": message.key.as_deref().map(bytes_to_json),
        "value": message.value.as_deref().map(bytes_to_json),
        "headers": headers,
    })
}

pub(crate) async fn run(client: &Client, arguments: ConsumeArguments) -> anyhow::Result<()> {
    let format = if arguments.json { None } else { Some(parse_format(&arguments.format)?) };
    let out = BufWriter::with_capacity(1 << 16, io::stdout().lock());
    let mut output = Output { out, format, left: arguments.count.unwrap_or(u64::MAX) };
    let result = match &arguments.group {
        Some(group) => consume_in_group(client, &arguments, group, &mut output).await,
        None => consume_alone(client, &arguments, &mut output).await,
    };
    output.out.flush()?;
    result
}

async fn consume_alone(
    client: &Client,
    arguments: &ConsumeArguments,
    output: &mut Output<impl Write>,
) -> anyhow::Result<()> {
    let start = match (arguments.offset, arguments.from_beginning) {
        (Some(offset), _) => StartAt::Offset(offset),
        (None, true) => StartAt::Place(OffsetAt::Earliest),
        (None, false) => StartAt::Place(OffsetAt::Latest),
    };
    let mut partitions = BTreeMap::new();
    for name in &arguments.topics {
        let topic = client.topic(name, false).await?;
        let indexes = match arguments.partition {
            Some(partition) => vec![partition],
            None => topic.partitions.iter().map(|partition| partition.index).collect(),
        };
        partitions.extend(indexes.into_iter().map(|index| (TopicPartition::new(name.as_str(), index), start)));
    }
    let reset = if arguments.offset.is_some() { OffsetReset::Fail } else { OffsetReset::Earliest };
    let consumer = Consumer::new(client, FetchConfig { reset, ..FetchConfig::default() });
    consumer.assign(&partitions).await?;
    let ends = if arguments.exit_at_end { Some(consumer.end_offsets().await?) } else { None };
    let mut stop = std::pin::pin!(super::interrupted());
    loop {
        let messages = match select(stop.as_mut(), consumer.poll(POLL_COUNT, POLL_TIMEOUT)).await {
            Either::First(()) => return Ok(()),
            Either::Second(messages) => messages?,
        };
        for message in &messages {
            let is_before_end = ends.as_ref().is_none_or(|ends| {
                let at = TopicPartition::new(message.topic.clone(), message.partition);
                ends.get(&at).is_none_or(|&end| message.offset < end)
            });
            if is_before_end && !output.write(message)? {
                return Ok(());
            }
        }
        if messages.is_empty() {
            output.out.flush()?;
        }
        if let Some(ends) = &ends
            && is_at_end(ends, |at| consumer.position(at))
        {
            return Ok(());
        }
    }
}

fn is_at_end(ends: &BTreeMap<TopicPartition, i64>, position: impl Fn(&TopicPartition) -> Option<i64>) -> bool {
    ends.iter().all(|(at, &end)| position(at).is_some_and(|position| position >= end))
}

async fn consume_in_group(
    client: &Client,
    arguments: &ConsumeArguments,
    group: &str,
    output: &mut Output<impl Write>,
) -> anyhow::Result<()> {
    let mut config = GroupConsumerConfig::new(group, "lockstep-cli", arguments.topics.clone());
    config.fetch.reset = if arguments.from_beginning { OffsetReset::Earliest } else { OffsetReset::Latest };
    for name in &arguments.topics {
        client.topic(name, false).await?;
    }
    let consumer = GroupConsumer::new(client, config)?;
    consumer.join_group().await?;
    consumer.start_heartbeat().await?;
    let result = read_in_group(client, arguments, &consumer, output).await;
    let left = consumer.leave_group().await;
    result?;
    left?;
    Ok(())
}

/// What was written out and not committed.
#[derive(Default)]
struct Uncommitted {
    offsets: BTreeMap<TopicPartition, i64>,
    since: Option<Instant>,
}

impl Uncommitted {
    fn done(&mut self, message: &Message) {
        let at = TopicPartition::new(message.topic.clone(), message.partition);
        self.offsets.insert(at, message.offset + 1);
        self.since.get_or_insert_with(TokioEnv::now);
    }

    fn forget(&mut self, lost: &[TopicPartition]) {
        self.offsets.retain(|at, _| !lost.contains(at));
    }

    async fn commit(&mut self, consumer: &GroupConsumer, out: &mut impl Write) -> anyhow::Result<()> {
        out.flush()?;
        consumer.commit_offsets(&self.offsets).await?;
        self.offsets.clear();
        self.since = None;
        Ok(())
    }
}

async fn read_in_group(
    client: &Client,
    arguments: &ConsumeArguments,
    consumer: &GroupConsumer,
    output: &mut Output<impl Write>,
) -> anyhow::Result<()> {
    let ends = if arguments.exit_at_end { Some(ends_of(client, &arguments.topics).await?) } else { None };
    let mut reached: BTreeSet<TopicPartition> = BTreeSet::new();
    let mut messages = consumer.subscribe().await?;
    let mut uncommitted = Uncommitted::default();
    let mut stop = std::pin::pin!(super::interrupted());
    loop {
        let polled = match select(stop.as_mut(), messages.poll(POLL_TIMEOUT)).await {
            Either::First(()) => return uncommitted.commit(consumer, &mut output.out).await,
            Either::Second(polled) => polled?,
        };
        for message in &polled.messages {
            let goes_on = output.write(message)?;
            uncommitted.done(message);
            if !goes_on {
                return uncommitted.commit(consumer, &mut output.out).await;
            }
        }
        let mut is_handed_over = false;
        for event in &polled.events {
            match event {
                GroupEvent::Revoked(gone) => {
                    is_handed_over = true;
                    reached.retain(|at| !gone.contains(at));
                }
                GroupEvent::Lost(gone) => {
                    uncommitted.forget(gone);
                    reached.retain(|at| !gone.contains(at));
                    eprintln!("lost {} partitions: they may be read again by another member", gone.len());
                }
                GroupEvent::Assigned(_) => {}
            }
        }
        let is_due = uncommitted.since.is_some_and(|since| TokioEnv::now() - since >= COMMIT_INTERVAL);
        if is_handed_over || is_due || polled.messages.is_empty() {
            uncommitted.commit(consumer, &mut output.out).await?;
        }
        if let Some(ends) = &ends {
            let assignment = consumer.assignment();
            let is_done = |at: &TopicPartition| match (ends.get(at), consumer.position(at)) {
                (Some(&end), Some(position)) => position >= end,
                (None, _) => true,
                (_, None) => false,
            };
            if !assignment.is_empty() && assignment.iter().all(is_done) {
                return uncommitted.commit(consumer, &mut output.out).await;
            }
        }
    }
}

async fn ends_of(client: &Client, topics: &[String]) -> anyhow::Result<BTreeMap<TopicPartition, i64>> {
    let mut places = BTreeMap::new();
    for name in topics {
        let topic = client.topic(name, false).await?;
        let indexes = topic.partitions.iter().map(|partition| partition.index);
        places.extend(indexes.map(|index| (TopicPartition::new(name.as_str(), index), OffsetAt::Latest)));
    }
    Ok(client.offsets(&places).await?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn message() -> Message {
        Message {
            topic: Arc::from("t"),
            partition: 3,
            offset: 42,
            timestamp: 5,
            key: Some("k".into()),
            value: None,
            headers: vec![(vec![0xff].into(), None)],
        }
    }

    fn written(format: &str) -> anyhow::Result<String> {
        let mut output = Output { out: Vec::new(), format: Some(parse_format(format)?), left: 1 };
        assert!(!output.write(&message())?, "one was asked for");
        assert!(!output.write(&message())?);
        Ok(String::from_utf8(output.out)?)
    }

    #[test]
    fn formats_name_the_parts_of_a_message() -> anyhow::Result<()> {
        assert_eq!(written("%t/%p@%o %T k=%k v=%v 100%%\\n")?, "t/3@42 5 k=k v= 100%\n");
        assert!(parse_format("%x").is_err());
        assert!(parse_format("50%").is_err());
        assert!(parse_format("\\q").is_err());
        Ok(())
    }

    #[test]
    fn json_tells_null_from_empty_and_text_from_bytes() {
        let json = to_json(&message());
        assert_eq!(json["value"], serde_json::Value::Null);
        assert_eq!(json["key"], "k");
        assert_eq!(json["headers"][0]["key"]["hex"], "ff");
    }
}
