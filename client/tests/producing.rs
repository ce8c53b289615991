//! What a producer does when brokers refuse, fall silent and go.

mod fake;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use fake::{FakeBroker, Reaction, TOPIC, TOPIC_ID, metadata};
use lockstep_client::{Acks, Client, ClientConfig, ClientError, ErrorCode, Producer, ProducerConfig, ProducerRecord};
use lockstep_env::tokio_env::TokioEnv;
use lockstep_wire::codec::produce_response::{PartitionProduceResponse, TopicProduceResponse};
use lockstep_wire::codec::{InitProducerIdResponse, ProduceRequest, ProduceResponse, ProducerId};
use lockstep_wire::records::decode_batch;
use lockstep_wire::{BatchHeader, Request};

/// A batch that arrived: partition, header, values.
#[derive(Clone, Debug)]
struct Arrived {
    broker: i32,
    header: BatchHeader,
    values: Vec<String>,
}

/// The state of a pretended cluster.
#[derive(Default)]
struct Cluster {
    ports: Vec<i32>,
    leaders: Vec<(i32, i32)>,
    arrived: Vec<Arrived>,
    producer_ids: i64,
    /// A broker that is cut off from the other, and still believes this of the leaders.
    cut_off: Option<(i32, Vec<(i32, i32)>)>,
}

type Shared = Arc<Mutex<Cluster>>;

/// Two brokers. `react` says what becomes of the nth batch, counted from 0: the error code, or `None` for silence.
async fn cluster(react: impl Fn(usize, &Arrived) -> Option<i16> + Send + Sync + 'static) -> (Shared, Vec<FakeBroker>) {
    let shared: Shared = Arc::default();
    let react = Arc::new(react);
    let mut brokers = Vec::new();
    for id in 1..=2 {
        let cluster = Arc::clone(&shared);
        let react = Arc::clone(&react);
        let broker = FakeBroker::start(move |request| {
            let mut cluster = cluster.lock().expect("no test panicked");
            match request {
                Request::Metadata(_) => match &cluster.cut_off {
                    Some((broker, leaders)) if *broker == id => metadata(&cluster.ports, leaders).into(),
                    _ => metadata(&cluster.ports, &cluster.leaders).into(),
                },
                Request::InitProducerId(_) => {
                    cluster.producer_ids += 1;
                    let mut response = InitProducerIdResponse::default();
                    response.producer_id = ProducerId(cluster.producer_ids);
                    response.producer_epoch = 0;
                    response.into()
                }
                Request::Produce(request) => produce(&mut cluster, id, &request, &*react),
                other => panic!("nobody asked for {other:?}"),
            }
        });
        brokers.push(broker.await);
    }
    let mut state = shared.lock().expect("no test panicked");
    state.ports = brokers.iter().map(FakeBroker::port).collect();
    state.leaders = vec![(1, 1)];
    drop(state);
    (shared, brokers)
}

fn produce(
    cluster: &mut Cluster,
    broker: i32,
    request: &ProduceRequest,
    react: &dyn Fn(usize, &Arrived) -> Option<i16>,
) -> Reaction {
    let mut response = ProduceResponse::default();
    for topic in &request.topic_data {
        assert_eq!(topic.topic_id, TOPIC_ID);
        let mut answer = TopicProduceResponse::default();
        answer.topic_id = TOPIC_ID;
        for partition in &topic.partition_data {
            let records = partition.records.clone().expect("records");
            let (header, records) = decode_batch(&records, 1 << 20).expect("a good batch");
            let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
            let values = records.iter().map(|record| text(record.value.as_deref().unwrap_or_default())).collect();
            let arrived = Arrived { broker, header, values };
            let number = cluster.arrived.len();
            cluster.arrived.push(arrived.clone());
            let Some(code) = react(number, &arrived) else { return Reaction::Silence };
            let mut row = PartitionProduceResponse::default();
            row.index = partition.index;
            row.error_code = code;
            row.base_offset = if code == 0 { 1_000 + i64::from(header.base_sequence) } else { -1 };
            answer.partition_responses.push(row);
        }
        response.responses.push(answer);
    }
    response.into()
}

async fn producer(brokers: &[FakeBroker], config: ProducerConfig) -> (Client, Producer) {
    let addresses: Vec<_> = brokers.iter().map(|broker| broker.address.clone()).collect();
    let mut client_config = ClientConfig::for_brokers(&addresses.join(","));
    client_config.timeout = Duration::from_secs(20);
    let client = Client::connect(TokioEnv::new(), client_config).await.expect("connects");
    let producer = Producer::new(&client, config).expect("a good configuration");
    (client, producer)
}

fn record(value: &str) -> ProducerRecord {
    ProducerRecord::new(TOPIC, value.to_owned().into_bytes())
}

#[tokio::test]
async fn acknowledged_records_have_their_offsets_in_order() {
    let (cluster, brokers) = cluster(|_, _| Some(0)).await;
    let (_client, producer) = producer(&brokers, ProducerConfig::default()).await;
    let mut deliveries = Vec::new();
    for number in 0..1_000 {
        deliveries.push(producer.send(&record(&number.to_string())).await.expect("taken"));
    }
    for (number, delivery) in (0..).zip(deliveries) {
        assert_eq!(delivery.await.expect("acknowledged").offset, Some(1_000 + number));
    }
    assert_eq!(producer.acknowledged(), 1_000);
    let values: Vec<String> =
        cluster.lock().expect("no panic").arrived.iter().flat_map(|batch| batch.values.clone()).collect();
    assert_eq!(values, (0..1_000).map(|number| number.to_string()).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_batch_follows_its_partition_to_the_new_leader_with_its_sequence() {
    let (cluster, brokers) = cluster(|number, arrived| {
        let is_former_leader = number == 0 || arrived.broker == 1;
        Some(if is_former_leader { ErrorCode::NotLeaderOrFollower.code() } else { 0 })
    })
    .await;
    let (_client, producer) = producer(&brokers, ProducerConfig::default()).await;
    // Known before the leader changes.
    let delivery = producer.send(&record("one")).await.expect("taken");
    cluster.lock().expect("no panic").leaders = vec![(2, 2)];
    assert_eq!(delivery.await.expect("acknowledged").offset, Some(1_000));
    let arrived = cluster.lock().expect("no panic").arrived.clone();
    let (first, last) = (&arrived[0], &arrived[arrived.len() - 1]);
    assert_eq!((first.broker, last.broker), (1, 2));
    assert_eq!(first.header, last.header, "the very same batch");
}

#[tokio::test]
async fn a_broker_that_is_cut_off_and_names_former_leaders_is_not_asked_for_ever() {
    let (cluster, brokers) =
        cluster(|_, arrived| Some(if arrived.broker == 1 { ErrorCode::NotLeaderOrFollower.code() } else { 0 })).await;
    {
        let mut cluster = cluster.lock().expect("no panic");
        cluster.cut_off = Some((1, vec![(1, 1)]));
        cluster.leaders = vec![(2, 2)];
    }
    let (_client, producer) = producer(&brokers, ProducerConfig::default()).await;
    for number in 0..20 {
        let delivery = producer.send(&record(&number.to_string())).await.expect("taken");
        assert_eq!(delivery.await.expect("acknowledged").offset, Some(1_000 + number));
    }
}

#[tokio::test]
async fn silence_is_not_success_and_the_same_batch_is_sent_again() {
    let (cluster, brokers) = cluster(|number, _| if number == 0 { None } else { Some(0) }).await;
    // A third of it is how long an answer is waited for: the second must not seem lost, too.
    let config = ProducerConfig { delivery_timeout: Duration::from_secs(12), ..ProducerConfig::default() };
    let (_client, producer) = producer(&brokers, config).await;
    let delivery = producer.send(&record("one")).await.expect("taken").await;
    assert_eq!(delivery.expect("acknowledged in the end").offset, Some(1_000));
    let arrived = cluster.lock().expect("no panic").arrived.clone();
    assert_eq!(arrived.len(), 2);
    assert_eq!(arrived[0].header, arrived[1].header);
}

#[tokio::test]
async fn a_record_that_is_refused_fails_alone() {
    let (cluster, brokers) =
        cluster(|_, arrived| Some(if arrived.values == ["bad"] { ErrorCode::MessageTooLarge.code() } else { 0 })).await;
    // A batch for each record.
    let config = ProducerConfig { batch_len_max: 1, linger: Duration::ZERO, ..ProducerConfig::default() };
    let (_client, producer) = producer(&brokers, config).await;
    producer.send(&record("good")).await.expect("taken").await.expect("acknowledged");
    let error = producer.send(&record("bad")).await.expect("taken").await.expect_err("refused");
    assert_eq!(error.code(), Some(ErrorCode::MessageTooLarge));
    producer.send(&record("good")).await.expect("taken").await.expect("acknowledged");
    let error = producer.flush().await.expect_err("tells of the one that failed");
    assert_eq!(error.code(), Some(ErrorCode::MessageTooLarge));
    producer.flush().await.expect("tells once");
    let sequences: Vec<_> =
        cluster.lock().expect("no panic").arrived.iter().map(|batch| batch.header.base_sequence).collect();
    assert_eq!(sequences, [0, 1, 1], "the next takes the number of the one refused");
}

#[tokio::test]
async fn a_lost_batch_fails_in_time_and_the_producer_goes_on_under_another_id() {
    let (cluster, brokers) = cluster(|_, arrived| if arrived.values == ["lost"] { None } else { Some(0) }).await;
    let config = ProducerConfig { delivery_timeout: Duration::from_secs(2), ..ProducerConfig::default() };
    let (_client, producer) = producer(&brokers, config).await;
    let error = producer.send(&record("lost")).await.expect("taken").await.expect_err("no answer");
    assert!(matches!(error, ClientError::TimedOut { .. }), "{error}");
    producer.send(&record("next")).await.expect("taken").await.expect("acknowledged");
    let arrived = cluster.lock().expect("no panic").arrived.clone();
    let last = arrived.last().expect("arrived");
    assert_eq!((last.header.producer_id, last.header.base_sequence), (2, 0));
}

#[tokio::test]
async fn an_idempotent_producer_needs_all_acknowledgements() {
    let (_cluster, brokers) = cluster(|_, _| Some(0)).await;
    let (client, _producer) = producer(&brokers, ProducerConfig::default()).await;
    let config = ProducerConfig { acks: Acks::Leader, ..ProducerConfig::default() };
    assert!(matches!(Producer::new(&client, config), Err(ClientError::InvalidArgument(_))));
}

#[tokio::test]
async fn a_partition_that_does_not_exist_is_an_error_at_once() {
    let (_cluster, brokers) = cluster(|_, _| Some(0)).await;
    let (_client, producer) = producer(&brokers, ProducerConfig::default()).await;
    let error = producer.send(&record("x").with_partition(1)).await.expect_err("one partition only");
    assert!(error.to_string().contains("1 partitions"), "{error}");
}

#[tokio::test]
async fn sending_waits_while_memory_is_full_and_loses_nothing() {
    let (cluster, brokers) = cluster(|_, _| Some(0)).await;
    let config = ProducerConfig { memory_len_max: 10_000, batch_len_max: 2_000, ..ProducerConfig::default() };
    let (_client, producer) = producer(&brokers, config).await;
    for number in 0..2_000 {
        producer.send(&record(&format!("{number:0100}"))).await.expect("taken");
    }
    producer.flush().await.expect("all acknowledged");
    let count: usize = cluster.lock().expect("no panic").arrived.iter().map(|batch| batch.values.len()).sum();
    assert_eq!(count, 2_000);
}

#[tokio::test]
async fn a_client_goes_to_another_broker_when_the_first_is_gone() {
    let (_cluster, mut brokers) = cluster(|_, _| Some(0)).await;
    let (client, _producer) = producer(&brokers, ProducerConfig::default()).await;
    for gone in [0, 0] {
        client.topic(TOPIC, false).await.expect("answered by one of them");
        if brokers.len() > 1 {
            drop(brokers.remove(gone));
        }
    }
    client.topic(TOPIC, false).await.expect("answered by the one that is left");
    // From the beginning, with a broker in the list that nobody has heard of.
    let config = ClientConfig::for_brokers(&format!("127.0.0.1:1,{}", brokers[0].address));
    Client::connect(TokioEnv::new(), config).await.expect("connects to the second");
}
