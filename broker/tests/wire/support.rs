//! A broker in single mode on a free port, and a client that sends one frame at a time.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use lockstep_broker::{Broker, BrokerConfig};
use lockstep_core::ShardId;
use lockstep_env::tokio_env::TokioEnv;
use lockstep_env::{Env, timeout};
use lockstep_runtime::NodeConfig;
use lockstep_wire::api::Call;
use lockstep_wire::codec::create_topics_request::{CreatableTopic, CreatableTopicConfig};
use lockstep_wire::codec::fetch_request::{FetchPartition, FetchTopic};
use lockstep_wire::codec::produce_request::{PartitionProduceData, TopicProduceData};
use lockstep_wire::codec::{
    BrokerId, CreateTopicsRequest, FetchRequest, FetchResponse, MetadataRequest, ProduceRequest, TopicName,
};
use lockstep_wire::{ApiKey, BatchBuilder, Compression, Request, Response, frame};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Nothing in these tests takes so long unless it is broken.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct TestBroker {
    pub(crate) broker: Broker<TokioEnv>,
    _directory: tempfile::TempDir,
}

impl TestBroker {
    pub(crate) async fn start() -> Self {
        Self::start_with(|_| ()).await
    }

    pub(crate) async fn start_with(change: impl FnOnce(&mut BrokerConfig)) -> Self {
        let directory = tempfile::tempdir().expect("temporary directory");
        let mut config = BrokerConfig::single(directory.path());
        config.port = 0;
        config.node.shards = 2;
        config.node.journal_file_bytes = 4 << 20;
        config.groups.initial_rebalance_delay_ms = 0;
        change(&mut config);
        let broker = Broker::start(TokioEnv::new(), config).await.expect("start");
        let ready = async {
            let node = broker.node();
            while node.directory(|directory| directory.brokers.is_empty())
                || !(0..node.shard_count())
                    .all(|shard| node.shard(ShardId(shard)).is_some_and(|shard| shard.serving().is_ok()))
            {
                TokioEnv::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout::<TokioEnv, _>(PATIENCE, ready).await.expect("the broker elects itself");
        Self { broker, _directory: directory }
    }

    /// One node of three of which the others never answer: it belongs to no cluster.
    pub(crate) async fn start_without_peers() -> Self {
        let directory = tempfile::tempdir().expect("temporary directory");
        // Port 1 is nobody's.
        let peers = ["127.0.0.1:0", "127.0.0.1:1", "localhost:1"].map(str::to_owned);
        let peers = (1..).zip(peers).collect();
        let node = NodeConfig::new(1, peers, directory.path().join("raft"), directory.path().join("partitions"));
        let mut config = BrokerConfig::new(node);
        config.port = 0;
        config.http_port = Some(0);
        let broker = Broker::start(TokioEnv::new(), config).await.expect("start");
        Self { broker, _directory: directory }
    }

    pub(crate) async fn connect(&self) -> TestClient {
        TestClient::new(TcpStream::connect(self.broker.address()).await.expect("connect"))
    }

    /// A topic of so many partitions.
    pub(crate) async fn create_topic(&self, name: &str, partitions: i32) {
        Self::create_topic_at(&mut self.connect().await, name, partitions).await;
    }

    /// The same at any broker.
    pub(crate) async fn create_topic_at(client: &mut TestClient, name: &str, partitions: i32) {
        let topic = CreatableTopic::default()
            .with_name(TopicName(name.to_owned().into()))
            .with_num_partitions(partitions)
            .with_replication_factor(-1);
        create(client, topic).await;
    }
}

pub(crate) struct TestClient {
    pub(crate) stream: TcpStream,
    next_id: i32,
}

impl TestClient {
    pub(crate) fn new(stream: TcpStream) -> Self {
        Self { stream, next_id: 1 }
    }

    pub(crate) async fn call<C: Call>(&mut self, version: i16, request: C) -> C::Response {
        let id = self.send(version, request).await;
        let (correlation_id, response) = self.receive(C::API_KEY, version).await.expect("a response");
        assert_eq!(correlation_id, id);
        C::from_response(response).expect("the response to this request")
    }

    pub(crate) async fn send<C: Call>(&mut self, version: i16, request: C) -> i32 {
        self.send_request(version, &request.into()).await
    }

    pub(crate) async fn send_request(&mut self, version: i16, request: &Request) -> i32 {
        let id = self.next_id;
        self.next_id += 1;
        let frame = frame::encode_request(version, id, Some("test"), request).expect("encode");
        self.stream.write_all(&frame.into_bytes()).await.expect("write");
        id
    }

    /// `None`: the broker has closed the connection.
    pub(crate) async fn receive(&mut self, api_key: ApiKey, version: i16) -> Option<(i32, Response)> {
        let frame = self.receive_frame().await?;
        Some(frame::decode_response(api_key, version, frame).expect("decode"))
    }

    pub(crate) async fn receive_frame(&mut self) -> Option<Bytes> {
        let receiving = async {
            let len = self.stream.read_i32().await.ok()?;
            let mut frame = BytesMut::zeroed(usize::try_from(len).expect("length"));
            self.stream.read_exact(&mut frame).await.ok()?;
            Some(frame.freeze())
        };
        timeout::<TokioEnv, _>(PATIENCE, receiving).await.expect("an answer or an end in time")
    }

    pub(crate) async fn is_closed(&mut self) -> bool {
        self.receive_frame().await.is_none()
    }
}

/// A topic of one partition, with settings.
pub(crate) async fn create_configured(client: &mut TestClient, name: &str, configs: &[(&str, &str)]) {
    let configs = configs.iter().map(|(name, value)| {
        CreatableTopicConfig::default()
            .with_name((*name).to_owned().into())
            .with_value(Some((*value).to_owned().into()))
    });
    let topic = CreatableTopic::default()
        .with_name(TopicName(name.to_owned().into()))
        .with_num_partitions(1)
        .with_replication_factor(-1)
        .with_configs(configs.collect());
    create(client, topic).await;
}

/// Creates a topic, across elections.
async fn create(client: &mut TestClient, topic: CreatableTopic) {
    const REQUEST_TIMED_OUT: i16 = 7;
    const TOPIC_ALREADY_EXISTS: i16 = 36;
    const NOT_CONTROLLER: i16 = 41;
    let creating = async {
        let mut may_exist = false;
        loop {
            let request = CreateTopicsRequest::default().with_topics(vec![topic.clone()]).with_timeout_ms(10_000);
            let answer = client.call(7, request).await;
            match answer.topics[0].error_code {
                0 => return,
                NOT_CONTROLLER => {}
                // Its leader went while it was under way: it may or may not have been made.
                REQUEST_TIMED_OUT => may_exist = true,
                TOPIC_ALREADY_EXISTS if may_exist => return,
                other => panic!("error {other}: {:?}", answer.topics[0].error_message),
            }
            TokioEnv::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout::<TokioEnv, _>(PATIENCE, creating).await.expect("the topic is created");
}

/// A batch of these values.
pub(crate) fn batch(values: &[&str]) -> Bytes {
    let mut builder = BatchBuilder::new();
    for (timestamp, value) in (1_000..).zip(values) {
        builder.push(timestamp, None, Some(value.as_bytes()), &[]);
    }
    builder.finish(Compression::None, None).expect("batch")
}

pub(crate) fn produce(topic: &str, partition: i32, acks: i16, records: Bytes) -> ProduceRequest {
    let partition = PartitionProduceData::default().with_index(partition).with_records(Some(records));
    let topic =
        TopicProduceData::default().with_name(TopicName(topic.to_owned().into())).with_partition_data(vec![partition]);
    ProduceRequest::default().with_acks(acks).with_timeout_ms(10_000).with_topic_data(vec![topic])
}

pub(crate) fn fetch(topic: &str, partition: i32, offset: i64, max_wait_ms: i32) -> FetchRequest {
    let partition = FetchPartition::default()
        .with_partition(partition)
        .with_fetch_offset(offset)
        .with_partition_max_bytes(1 << 20)
        .with_current_leader_epoch(-1);
    let topic = FetchTopic::default().with_topic(TopicName(topic.to_owned().into())).with_partitions(vec![partition]);
    FetchRequest::default()
        .with_replica_id(BrokerId(-1))
        .with_max_wait_ms(max_wait_ms)
        .with_min_bytes(1)
        .with_max_bytes(1 << 20)
        .with_session_epoch(-1)
        .with_topics(vec![topic])
}

pub(crate) fn metadata(topics: &[&str], may_create: bool) -> MetadataRequest {
    let topics = topics.iter().map(|name| {
        lockstep_wire::codec::metadata_request::MetadataRequestTopic::default()
            .with_name(Some(TopicName((*name).to_owned().into())))
    });
    MetadataRequest::default().with_topics(Some(topics.collect())).with_allow_auto_topic_creation(may_create)
}

/// The values in the first partition of a Fetch response.
pub(crate) fn values(response: &FetchResponse) -> Vec<String> {
    let partition = &response.responses[0].partitions[0];
    assert_eq!(partition.error_code, 0);
    let records = partition.records.clone().expect("records are never null");
    let mut values = Vec::new();
    for found in lockstep_wire::batch::Batches::new(&records) {
        let (range, _) = found.expect("a sound batch");
        let (_, records) = lockstep_wire::records::decode_batch(&records.slice(range), 1 << 20).expect("decode");
        values.extend(
            records
                .iter()
                .map(|record| String::from_utf8_lossy(record.value.as_deref().unwrap_or_default()).into_owned()),
        );
    }
    values
}
