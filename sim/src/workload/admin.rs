//! Administrators: topics come, grow, go and come again by the same name; groups without members are reset, deleted and configured.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use checker::{Event, Partition};
use lockstep_client::{
    Admin, Client, ClientError, ErrorCode, NewTopic, OffsetAt, ResetTo, TopicPartition, TopicSelection,
};
use lockstep_wire::codec::create_partitions_request::CreatePartitionsTopic;
use lockstep_wire::codec::incremental_alter_configs_request::{AlterConfigsResource, AlterableConfig};
use lockstep_wire::codec::{CreatePartitionsRequest, IncrementalAlterConfigsRequest};

use lockstep_env::Env;

use crate::env::{SimEnv, chance, random_below};

use super::commits::{Identity, commit_error, commit_request};
use super::coordinator::{Coordinator, check, text, topic_name};
use super::{Context, one_of, partition_of, random_between};

/// Kind of the resource that a topic's configuration belongs to.
const TOPIC_RESOURCE: i8 = 2;
/// Kind of the resource that a group's configuration belongs to.
const GROUP_RESOURCE: i8 = 32;
/// Group of the offsets of topics that come and go; nobody records anything of it.
const KEEPER: &str = "keeper";
const KEEPER_VERSION: i16 = 8;
const PATIENCE: Duration = Duration::from_secs(10);

/// What an administrator meddles with.
#[derive(Clone, Debug)]
pub struct Administrator {
    /// Names of topics of its own, which it creates and deletes; nobody else may record anything of them.
    pub topics: Vec<String>,
    /// Topics that get more partitions, and how many at most.
    pub growing: Vec<(String, i32)>,
    /// Topics of which it deletes the oldest records; readers must know that these may be gone.
    pub trims: Vec<String>,
    /// Groups whose offsets of a topic it resets, when they have no members.
    pub resets: Vec<(String, String)>,
    /// Groups that it deletes, when they have no members, with all topics that they read.
    pub deletes: Vec<(String, Vec<String>)>,
    /// Groups whose heartbeat interval and session time-out it changes.
    pub configures: Vec<String>,
    /// Pause between two deeds.
    pub pause: Range<Duration>,
}

impl Administrator {
    /// One with nothing but topics of its own.
    #[must_use]
    pub fn new(topics: Vec<String>) -> Self {
        Self {
            topics,
            growing: Vec::new(),
            trims: Vec::new(),
            resets: Vec::new(),
            deletes: Vec::new(),
            configures: Vec::new(),
            pause: Duration::from_millis(300)..Duration::from_millis(900),
        }
    }
}

/// Meddles until all are to be calm.
pub async fn administer(context: Context, config: Administrator) {
    let Some(client) = context.connect().await else { return };
    let mut deeds = Vec::new();
    deeds.extend(config.topics.iter().map(Deed::Topic));
    deeds.extend(config.growing.iter().map(|(topic, max)| Deed::Grow(topic, *max)));
    deeds.extend(config.trims.iter().map(Deed::Trim));
    deeds.extend(config.resets.iter().map(|(group, topic)| Deed::Reset(group, topic)));
    deeds.extend(config.deletes.iter().map(|(group, topics)| Deed::Delete(group, topics)));
    deeds.extend(config.configures.iter().map(Deed::Configure));
    while !context.finish.is_calm() {
        context.pause_unless_calm(random_between(&config.pause)).await;
        let Some(deed) = one_of(&deeds).filter(|_| !context.finish.is_calm()) else { continue };
        let outcome = match deed {
            Deed::Topic(topic) => change_topic(&context, &client, topic).await,
            Deed::Grow(topic, max) => grow(&context, &client, topic, *max).await,
            Deed::Trim(topic) => trim(&context, &client, topic).await,
            Deed::Reset(group, topic) => reset(&context, &client, group, topic).await,
            Deed::Delete(group, topics) => delete(&context, &client, group, topics).await,
            Deed::Configure(group) => configure(&context, &client, group).await,
        };
        // That the state of things does not allow it, or that nobody answers, is part of the game.
        context.note(format!("{deed:?}: {}", outcome.err().map_or("done".to_owned(), |error| error.to_string())));
    }
}

#[derive(Debug)]
enum Deed<'a> {
    Topic(&'a String),
    Grow(&'a String, i32),
    Trim(&'a String),
    Reset(&'a String, &'a String),
    Delete(&'a String, &'a Vec<String>),
    Configure(&'a String),
}

/// Creates the topic, or deletes it, or does both. A group without members commits something for it before, which goes with it, and after.
async fn change_topic(context: &Context, client: &Client<SimEnv>, topic: &str) -> Result<(), ClientError> {
    let admin = Admin::new(client);
    // It may not be there, or not everywhere yet.
    let _ = keep_offset(context, client, topic).await;
    let create = || async { admin.create_topic(&NewTopic::new(topic, 1 + random_below(4) as i32)).await.map(drop) };
    match create().await {
        Err(error) if error.code() == Some(ErrorCode::TopicAlreadyExists) => {
            admin.delete_topic(topic).await?;
            if !chance(700) {
                return Ok(());
            }
            create().await?;
            // A group with offsets and without members is what many checkpoints then hold.
            keep_offset(context, client, topic).await
        }
        outcome => outcome,
    }
}

/// Commits for the topic's first partition in the name of a group without members.
async fn keep_offset(context: &Context, client: &Client<SimEnv>, topic: &str) -> Result<(), ClientError> {
    let (life, group, member_id) = (context.name.clone(), KEEPER.to_owned(), String::new());
    let keeper = Identity { life, group, member_id, instance_id: None, epoch: -1 };
    let request = commit_request(&keeper, KEEPER_VERSION, &BTreeMap::from([(TopicPartition::new(topic, 0), 0)]));
    let mut coordinator = Coordinator::new(context, client, KEEPER);
    let response = coordinator.ask(KEEPER_VERSION, PATIENCE, request, |_| 0).await?;
    check("OffsetCommit", commit_error(&response))
}

async fn grow(context: &Context, client: &Client<SimEnv>, topic: &str, max: i32) -> Result<(), ClientError> {
    let count = Admin::new(client).describe_topic(topic).await?.partitions.len() as i32;
    if count >= max {
        return Ok(());
    }
    let more = CreatePartitionsTopic::default()
        .with_name(topic_name(topic))
        .with_count(count + 1 + random_below((max - count) as u64) as i32)
        .with_assignments(None);
    let request = CreatePartitionsRequest::default().with_topics(vec![more]).with_timeout_ms(5_000);
    let connection = client.open_connection(&context.any_broker()).await?;
    let response = connection.call(PATIENCE, |_| request).await?;
    check("CreatePartitions", response.results.first().map_or(0, |result| result.error_code))
}

/// Deletes some of a partition's oldest records, seldom all.
async fn trim(context: &Context, client: &Client<SimEnv>, topic: &str) -> Result<(), ClientError> {
    let admin = Admin::new(client);
    let count = admin.describe_topic(topic).await?.partitions.len() as u64;
    let at = TopicPartition::new(topic, random_below(count) as i32);
    let ask = |place| BTreeMap::from([(at.clone(), place)]);
    let start = client.offsets(&ask(OffsetAt::Earliest)).await?.get(&at).copied().unwrap_or(0);
    let end = client.offsets(&ask(OffsetAt::Latest)).await?.get(&at).copied().unwrap_or(0);
    assert!(start <= end, "{at} begins at {start}, above its end {end}");
    let all = chance(50);
    let before = if all { end } else { (start + random_below(12) as i64).min(end) };
    // What comes meanwhile goes too.
    let must_stay = if all { i64::MAX } else { before };
    context.record(Event::Truncated { partition: partition_of(&at), start: must_stay });
    let wanted = BTreeMap::from([(at.clone(), (!all).then_some(before))]);
    match admin.delete_records(&wanted).await {
        Ok(starts) => {
            let now = starts.get(&at).copied().unwrap_or(-1);
            assert!(now >= before, "{at} begins at {now} although all before {before} was deleted");
            Ok(())
        }
        Err(error) => {
            assert_ne!(
                error.code(),
                Some(ErrorCode::OffsetOutOfRange),
                "{at} does not have {before} of {start}..{end}"
            );
            Err(error)
        }
    }
}

/// Lets nothing expire any more; tries any broker until one does it.
pub async fn keep_all(client: &Client<SimEnv>, brokers: &[String], topic: &str) {
    loop {
        let kept = [("retention.ms", "-1"), ("retention.bytes", "-1"), ("cleanup.policy", "delete")];
        let configs = kept.map(|(name, value)| {
            AlterableConfig::default().with_name(text(name)).with_config_operation(0).with_value(Some(text(value)))
        });
        let resource = AlterConfigsResource::default()
            .with_resource_type(TOPIC_RESOURCE)
            .with_resource_name(text(topic))
            .with_configs(configs.to_vec());
        let request = IncrementalAlterConfigsRequest::default().with_resources(vec![resource]);
        let attempt = async {
            let broker = one_of(brokers).cloned().unwrap_or_default();
            let connection = client.open_connection(&broker).await?;
            let response = connection.call(PATIENCE, |_| request).await?;
            check("IncrementalAlterConfigs", response.responses.first().map_or(0, |result| result.error_code))
        };
        if attempt.await.is_ok() {
            return;
        }
        SimEnv::sleep(Duration::from_millis(100)).await;
    }
}

async fn reset(context: &Context, client: &Client<SimEnv>, group: &str, topic: &str) -> Result<(), ClientError> {
    let admin = Admin::new(client);
    let count = admin.describe_topic(topic).await?.partitions.len() as u64;
    let partition = random_below(count) as i32;
    let selection = [TopicSelection { topic: topic.to_owned(), partitions: Some([partition].into()) }];
    let wanted = ResetTo::Offset(random_below(20) as i64);
    let changes = admin.reset_offsets(group, wanted, &selection, true).await?;
    // The end only moves up, so what is within the partition now stays what it is.
    let Some(new) = changes.first().map(|change| change.new) else { return Ok(()) };
    let started_at_us = context.now_us();
    let outcome = admin.reset_offsets(group, ResetTo::Offset(new), &selection, false).await;
    let is_acknowledged = outcome.is_ok();
    let partition = Partition::new(topic, partition);
    context.record(Event::OffsetReset {
        group: group.to_owned(),
        partition,
        offset: Some(new),
        started_at_us,
        is_acknowledged,
    });
    outcome.map(drop)
}

async fn delete(context: &Context, client: &Client<SimEnv>, group: &str, topics: &[String]) -> Result<(), ClientError> {
    let admin = Admin::new(client);
    let mut partitions = Vec::new();
    for topic in topics {
        let info = admin.describe_topic(topic).await?;
        partitions.extend(info.partitions.iter().map(|info| Partition::new(topic.as_str(), info.index)));
    }
    let started_at_us = context.now_us();
    let outcome = admin.delete_group(group).await;
    for partition in partitions {
        // An attempt before the last may have done it.
        context.record(Event::OffsetReset {
            group: group.to_owned(),
            partition,
            offset: None,
            started_at_us,
            is_acknowledged: outcome.is_ok(),
        });
    }
    outcome
}

async fn configure(context: &Context, client: &Client<SimEnv>, group: &str) -> Result<(), ClientError> {
    let set = |name: &str, value: u64| {
        AlterableConfig::default()
            .with_name(text(name))
            .with_config_operation(0)
            .with_value(Some(text(&value.to_string())))
    };
    let configs = vec![
        set("consumer.heartbeat.interval.ms", 300 + random_below(700)),
        set("consumer.session.timeout.ms", 2_050 + random_below(1_000)),
    ];
    let resource = AlterConfigsResource::default()
        .with_resource_type(GROUP_RESOURCE)
        .with_resource_name(text(group))
        .with_configs(configs);
    let request = IncrementalAlterConfigsRequest::default().with_resources(vec![resource]);
    let connection = client.open_connection(&context.any_broker()).await?;
    let response = connection.call(PATIENCE, |_| request).await?;
    check("IncrementalAlterConfigs", response.responses.first().map_or(0, |result| result.error_code))
}
