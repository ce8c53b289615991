//! Members of all kinds. Each commits what it has read a few times in a second, and all of it before it gives a partition up.

use std::sync::Arc;
use std::time::Duration;

use lockstep_client::{ClientError, GroupConsumer, GroupConsumerConfig, GroupEvent, TopicPartition};
use lockstep_env::tokio_env::{TokioEnv, TokioTask};
use lockstep_env::{Env, watch};
use rdkafka::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext, Rebalance};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message as _;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tests::{Cluster, PATIENCE, Recorder, still_assigned, within};
use tokio::sync::oneshot;

use crate::record::{GroupRecord, MemberNotes};
use crate::scene::TOPIC;

const POLL_TIMEOUT: Duration = Duration::from_millis(50);
const COMMIT_INTERVAL: Duration = Duration::from_millis(50);
/// How long a member tries to commit what it must give up.
const COMMIT_PATIENCE: Duration = Duration::from_secs(20);
const PAUSE_BETWEEN_COMMITS: Duration = Duration::from_millis(50);
/// The same for all, and long enough for no machine to be too slow.
pub(crate) const SESSION_TIMEOUT: Duration = Duration::from_secs(20);

/// What a member is.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    /// librdkafka with the classic protocol and this assignor.
    Classic(&'static str),
    /// librdkafka with the consumer protocol.
    Consumer,
    /// Our client, which speaks the consumer protocol.
    Ours,
}

/// What a member is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Read,
    /// Commit, and leave.
    Leave,
}

/// A member that reads until it is closed.
pub(crate) struct Member {
    pub(crate) name: String,
    orders: watch::Sender<Order>,
    task: TokioTask<()>,
}

impl Member {
    /// Starts a member; it joins by itself. Names must differ within a group.
    pub(crate) async fn start(
        recorder: &Recorder,
        cluster: &Cluster,
        record: &Arc<GroupRecord>,
        name: &str,
        kind: Kind,
    ) -> Self {
        let (orders, order) = watch::channel(Order::Read);
        let notes = MemberNotes::new(recorder, record, name);
        notes.note(format!("starts as {kind:?}"));
        let task = match kind {
            Kind::Classic(assignor) => {
                let mut config = librdkafka(cluster, &notes);
                config
                    .set("partition.assignment.strategy", assignor)
                    .set("session.timeout.ms", SESSION_TIMEOUT.as_millis().to_string())
                    .set("heartbeat.interval.ms", "300");
                TokioEnv::spawn(read_with_librdkafka(config, notes, order))
            }
            Kind::Consumer => {
                let mut config = librdkafka(cluster, &notes);
                config.set("group.protocol", "consumer");
                TokioEnv::spawn(read_with_librdkafka(config, notes, order))
            }
            Kind::Ours => {
                let client = cluster.client().await;
                let mut config = GroupConsumerConfig::new(notes.group(), name, vec![TOPIC.to_owned()]);
                config.session_timeout = SESSION_TIMEOUT;
                config.fetch.wait_max = Duration::from_millis(100);
                let consumer = GroupConsumer::new(&client, config).expect("the configuration is sound");
                TokioEnv::spawn(async move {
                    if let Err(error) = read(&consumer, &notes, &order).await {
                        notes.failed(error);
                    }
                })
            }
        };
        Self { name: name.to_owned(), orders, task }
    }

    /// Lets the member commit and leave.
    pub(crate) async fn close(self) {
        self.orders.send(Order::Leave).expect("the member listens");
        within(&format!("{} leaves", self.name), PATIENCE, self.task).await.expect("the member runs to its end");
    }
}

/// What the member is to do; nothing if the test has ended, by failing.
fn current(order: &watch::Receiver<Order>) -> Option<Order> {
    order.has_changed().ok().map(|_| *order.borrow())
}

async fn read(
    consumer: &GroupConsumer,
    notes: &MemberNotes,
    order: &watch::Receiver<Order>,
) -> Result<(), ClientError> {
    let mut messages = consumer.subscribe().await?;
    let mut committed_at = TokioEnv::now();
    while current(order) == Some(Order::Read) {
        let polled = messages.poll(POLL_TIMEOUT).await?;
        for (index, event) in polled.events.iter().enumerate() {
            match event {
                GroupEvent::Assigned(_) => notes.assigned(&still_assigned(&polled.events, index)),
                GroupEvent::Revoked(partitions) => {
                    let partitions = notes.had(numbers(partitions));
                    commit(consumer, notes, Some(&partitions)).await;
                    notes.revoked(&partitions);
                }
                GroupEvent::Lost(partitions) => notes.lost(&notes.had(numbers(partitions))),
            }
        }
        for message in &polled.messages {
            notes.delivered(message.partition, message.offset, text(message.value.as_deref()));
        }
        if committed_at.elapsed() >= COMMIT_INTERVAL {
            commit(consumer, notes, None).await;
            committed_at = TokioEnv::now();
        }
    }
    commit(consumer, notes, None).await;
    notes.revoked(&notes.owned());
    consumer.leave_group().await?;
    notes.note("has left");
    Ok(())
}

async fn commit(consumer: &GroupConsumer, notes: &MemberNotes, only: Option<&[i32]>) {
    let offsets = notes.uncommitted(only);
    let by_name = offsets.iter().map(|(&partition, &offset)| (TopicPartition::new(TOPIC, partition), offset)).collect();
    let started_at_us = notes.now_us();
    let outcome = consumer.commit_offsets(&by_name).await;
    notes.committed(&offsets, started_at_us, outcome.map_err(|error| error.to_string()));
}

fn numbers<'a>(partitions: impl IntoIterator<Item = &'a TopicPartition>) -> Vec<i32> {
    partitions.into_iter().map(|at| at.partition).collect()
}

fn text(bytes: Option<&[u8]>) -> String {
    String::from_utf8_lossy(bytes.unwrap_or_default()).into_owned()
}

fn librdkafka(cluster: &Cluster, notes: &MemberNotes) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", cluster.brokers())
        .set("client.id", notes.name())
        .set("group.id", notes.group())
        .set("auto.offset.reset", "earliest")
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("fetch.wait.max.ms", "100")
        .set("reconnect.backoff.max.ms", "500")
        .set("max.poll.interval.ms", "60000");
    config
}

/// librdkafka blocks, so it has a thread of its own.
async fn read_with_librdkafka(config: ClientConfig, notes: MemberNotes, order: watch::Receiver<Order>) {
    let (end, ended) = oneshot::channel();
    std::thread::spawn(move || {
        let consumer: BaseConsumer<Context> = config.create_with_context(Context { notes }).expect("a consumer");
        let notes = &consumer.context().notes;
        consumer.subscribe(&[TOPIC]).expect("subscribed");
        let mut committed_at = TokioEnv::now();
        while current(&order) == Some(Order::Read) {
            match consumer.poll(POLL_TIMEOUT) {
                Some(Ok(message)) => {
                    notes.delivered(message.partition(), message.offset(), text(message.payload()));
                }
                // It goes on by itself.
                Some(Err(error)) => notes.note(format!("news: {error}")),
                None => {}
            }
            if committed_at.elapsed() >= COMMIT_INTERVAL {
                if let Err(error) = try_commit(&consumer, None) {
                    notes.note(format!("commit failed: {error}"));
                }
                committed_at = TokioEnv::now();
            }
        }
        if current(&order) == Some(Order::Leave) {
            commit_patiently(&consumer, None);
        }
        let context = Arc::clone(consumer.context());
        // It gives up its partitions, through the callback, and leaves.
        drop(consumer);
        context.notes.note("has left");
        // A test that has failed waits for nobody.
        end.send(()).ok();
    });
    ended.await.expect("the member runs to its end");
}

fn try_commit(consumer: &BaseConsumer<Context>, only: Option<&[i32]>) -> Result<(), KafkaError> {
    let notes = &consumer.context().notes;
    let offsets = notes.uncommitted(only);
    if offsets.is_empty() {
        return Ok(());
    }
    let mut list = TopicPartitionList::new();
    for (&partition, &offset) in &offsets {
        list.add_partition_offset(TOPIC, partition, Offset::Offset(offset))?;
    }
    let started_at_us = notes.now_us();
    let outcome = consumer.commit(&list, CommitMode::Sync);
    notes.committed(&offsets, started_at_us, outcome.clone().map_err(|error| error.to_string()));
    outcome
}

/// Commits what is to be given up, with patience for a coordinator that moves.
fn commit_patiently(consumer: &BaseConsumer<Context>, only: Option<&[i32]>) {
    let start = TokioEnv::now();
    while let Err(error) = try_commit(consumer, only) {
        consumer.context().notes.note(format!("commit before giving up failed: {error}"));
        let is_member = !matches!(
            error.rdkafka_error_code(),
            Some(
                RDKafkaErrorCode::UnknownMemberId
                    | RDKafkaErrorCode::IllegalGeneration
                    | RDKafkaErrorCode::FencedMemberEpoch
            )
        );
        if !is_member || start.elapsed() > COMMIT_PATIENCE {
            return;
        }
        std::thread::park_timeout(PAUSE_BETWEEN_COMMITS);
    }
}

/// What librdkafka tells a member, in the thread that polls.
struct Context {
    notes: MemberNotes,
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.notes.note(format!("{level:?} {facility}: {message}"));
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.notes.note(format!("{error}: {reason}"));
    }
}

impl ConsumerContext for Context {
    fn pre_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        let numbers = |list: &TopicPartitionList| list.elements().iter().map(|at| at.partition()).collect::<Vec<_>>();
        match rebalance {
            Rebalance::Assign(list) => self.notes.assigned(&numbers(list)),
            Rebalance::Revoke(list) if consumer.assignment_lost() => self.notes.lost(&numbers(list)),
            Rebalance::Revoke(list) => {
                let partitions = numbers(list);
                self.notes.note(format!("is to give up {partitions:?}"));
                commit_patiently(consumer, Some(&partitions));
                self.notes.revoked(&partitions);
            }
            Rebalance::Error(error) => self.notes.failed(error),
        }
    }
}
