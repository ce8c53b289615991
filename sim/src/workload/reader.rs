//! Readers in no group: from anywhere in a partition, at its leader or at any other broker.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;
use checker::Event;
use lockstep_client::{
    Admin, Client, ClientError, Consumer, ErrorCode, FetchConfig, OffsetAt, OffsetReset, StartAt, TopicPartition,
};
use lockstep_wire::batch::Batches;
use lockstep_wire::codec::FetchRequest;
use lockstep_wire::codec::fetch_request::{FetchPartition, FetchTopic};
use lockstep_wire::records::decode_batch;

use crate::env::{SimEnv, chance, random_below};

use super::coordinator::{PATIENCE, check, topic_name};
use super::{Context, one_of, partition_of, random_between, text_of};

/// The last version of Fetch that names topics.
const FETCH_VERSION: i16 = 11;
const BATCH_LEN_MAX: usize = 64 << 20;

/// What a reader reads.
#[derive(Clone, Debug)]
pub struct Reader {
    /// Topics.
    pub topics: Vec<String>,
    /// Nothing is removed from them: an offset up to the end must be there.
    pub is_kept: bool,
    /// Pause between two places.
    pub pause: Range<Duration>,
    /// Bytes that are asked for.
    pub len_max: i32,
}

impl Reader {
    /// A reader of some two places a second.
    #[must_use]
    pub fn new(topics: Vec<String>) -> Self {
        Self { topics, is_kept: true, pause: Duration::from_millis(200)..Duration::from_millis(800), len_max: 4 << 10 }
    }
}

/// Reads until told to finish.
pub async fn read(context: Context, config: Reader) {
    let Some(client) = context.connect().await else { return };
    while !context.finish.is_due() {
        context.pause(random_between(&config.pause)).await;
        // Whatever fails may succeed elsewhere.
        if let Err(error) = read_somewhere(&context, &config, &client).await {
            context.note(format!("reads nothing: {error}"));
        }
    }
}

async fn read_somewhere(context: &Context, config: &Reader, client: &Client<SimEnv>) -> Result<(), ClientError> {
    let Some(topic) = one_of(&config.topics) else { return Ok(()) };
    let info = Admin::new(client).describe_topic(topic).await?;
    let at = TopicPartition::new(topic.as_str(), random_below(info.partitions.len() as u64) as i32);
    let started_at_us = context.now_us();
    let ends = client.offsets(&BTreeMap::from([(at.clone(), OffsetAt::Latest)])).await?;
    let end = ends.get(&at).copied().unwrap_or(0);
    context.record(Event::EndObserved { node: None, partition: partition_of(&at), end, started_at_us });
    let start = random_below(u64::try_from(end).unwrap_or(0) + 1) as i64;
    if chance(500) {
        read_from_leader(context, config, client, &at, start).await
    } else {
        read_from_any(context, config, client, &at, start).await
    }
}

fn record(context: &Context, at: &TopicPartition, offset: i64, value: String) {
    context.record(Event::Read { partition: partition_of(at), offset, value });
}

async fn read_from_leader(
    context: &Context,
    config: &Reader,
    client: &Client<SimEnv>,
    at: &TopicPartition,
    start: i64,
) -> Result<(), ClientError> {
    let reset = if config.is_kept { OffsetReset::Fail } else { OffsetReset::Earliest };
    let fetch = FetchConfig {
        wait_max: Duration::from_millis(200),
        partition_len_max: config.len_max,
        answer_len_max: config.len_max,
        ahead_len_max: usize::try_from(config.len_max).unwrap_or(0),
        reset,
    };
    let consumer = Consumer::new(client, fetch);
    consumer.assign(&BTreeMap::from([(at.clone(), StartAt::Offset(start))])).await?;
    let messages = consumer.poll(100, Duration::from_millis(500)).await?;
    assert_begins(config, at, start, messages.first().map(|message| message.offset));
    for message in messages {
        record(context, at, message.offset, text_of(message.value.as_deref(), &message.headers));
    }
    Ok(())
}

async fn read_from_any(
    context: &Context,
    config: &Reader,
    client: &Client<SimEnv>,
    at: &TopicPartition,
    start: i64,
) -> Result<(), ClientError> {
    let connection = client.open_connection(&context.any_broker()).await?;
    let partition = FetchPartition::default()
        .with_partition(at.partition)
        .with_fetch_offset(start)
        .with_partition_max_bytes(config.len_max);
    let topic = FetchTopic::default().with_topic(topic_name(&at.topic)).with_partitions(vec![partition]);
    let request = FetchRequest::default()
        .with_max_wait_ms(200)
        .with_min_bytes(1)
        .with_max_bytes(config.len_max)
        .with_topics(vec![topic]);
    let response = connection.send(FETCH_VERSION, request)?.answer::<SimEnv>(PATIENCE).await?;
    check("Fetch", response.error_code)?;
    for partition in response.responses.into_iter().flat_map(|topic| topic.partitions) {
        let code = partition.error_code;
        assert!(
            !config.is_kept || code != ErrorCode::OffsetOutOfRange.code(),
            "{} says that {at} does not have offset {start}, which is not above its end",
            connection.address(),
        );
        check("Fetch", code)?;
        let mut records = records_of(&partition.records.unwrap_or_default());
        records.retain(|(offset, _)| *offset >= start);
        assert_begins(config, at, start, records.first().map(|(offset, _)| *offset));
        for (offset, value) in records {
            record(context, at, offset, value);
        }
    }
    Ok(())
}

/// Where nothing is removed, what is read from an offset on begins there.
fn assert_begins(config: &Reader, at: &TopicPartition, start: i64, first: Option<i64>) {
    assert!(
        !config.is_kept || first.is_none_or(|first| first == start),
        "what is read of {at} from offset {start} on begins at {first:?}"
    );
}

/// Offsets, and what the records are known by. What follows the last whole batch is left out.
fn records_of(bytes: &Bytes) -> Vec<(i64, String)> {
    let mut records = Vec::new();
    for (range, _) in Batches::new(bytes).map_while(Result::ok) {
        match decode_batch(&bytes.slice(range), BATCH_LEN_MAX) {
            Ok((header, _)) if header.is_control() => {}
            Ok((_, batch)) => records
                .extend(batch.iter().map(|record| (record.offset, text_of(record.value.as_deref(), &record.headers)))),
            Err(error) => panic!("a broker gave out a batch that is damaged: {error}"),
        }
    }
    records
}
