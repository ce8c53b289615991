//! A member of a consumer group: joins, reads, commits, and leaves when interrupted.
//!
//! ```text
//! cargo run -p lockstep-client --example group_consumer -- localhost:9092 orders-readers orders
//! ```
//!
//! Start it several times: the partitions of the topic are shared among all that run.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context;
use lockstep_client::{Client, GroupConsumer, GroupConsumerConfig, GroupEvent, TopicPartition};
use lockstep_env::{Either, select};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let usage = "usage: group_consumer BROKERS GROUP TOPIC";
    let brokers = arguments.next().context(usage)?;
    let group = arguments.next().context(usage)?;
    let topic = arguments.next().context(usage)?;

    let client = Client::open(&brokers).await?;
    let consumer = GroupConsumer::new(&client, GroupConsumerConfig::new(group, "example", vec![topic]))?;
    consumer.join_group().await?;
    consumer.start_heartbeat().await?;

    let mut messages = consumer.subscribe().await?;
    let mut done: BTreeMap<TopicPartition, i64> = BTreeMap::new();
    let mut interrupted = std::pin::pin!(tokio::signal::ctrl_c());
    loop {
        let polled = match select(interrupted.as_mut(), messages.poll(Duration::from_secs(1))).await {
            Either::First(_) => break,
            Either::Second(polled) => polled?,
        };
        for message in polled.messages {
            let value = String::from_utf8_lossy(message.value.as_deref().unwrap_or_default()).into_owned();
            println!("{}/{} @{}: {value}", message.topic, message.partition, message.offset);
            done.insert(TopicPartition::new(message.topic, message.partition), message.offset + 1);
        }
        for event in polled.events {
            println!("{event:?}");
            if let GroupEvent::Lost(partitions) = event {
                // Another member may have them by now: what was not committed is its to do again.
                done.retain(|at, _| !partitions.contains(at));
            }
        }
        // Before the next poll, which lets partitions go that were revoked.
        consumer.commit_offsets(&done).await?;
        done.clear();
    }
    consumer.commit_offsets(&done).await?;
    consumer.leave_group().await?;
    Ok(())
}
