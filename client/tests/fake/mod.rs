//! A broker whose answers a test decides, on a real socket.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use lockstep_env::tokio_env::TokioEnv;
use lockstep_env::{Env, Listener, Task};
use lockstep_wire::codec::api_versions_response::ApiVersion;
use lockstep_wire::codec::find_coordinator_response::Coordinator;
use lockstep_wire::codec::metadata_response::{
    MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic,
};
use lockstep_wire::codec::{
    ApiVersionsResponse, BrokerId, FindCoordinatorRequest, FindCoordinatorResponse, MetadataResponse, StrBytes,
    TopicName, Uuid,
};
use lockstep_wire::frame::{decode_request, encode_response};
use lockstep_wire::versions::advertised;
use lockstep_wire::{Request, Response};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// What a broker does about a request.
#[allow(dead_code, reason = "not every test has brokers that do all of this")]
pub(crate) enum Reaction {
    Answer(Response),
    /// Nothing, for ever.
    Silence,
    /// It ends the connection, as Kafka's brokers do with requests that they do not know.
    Close,
}

impl<R: Into<Response>> From<R> for Reaction {
    fn from(response: R) -> Self {
        Reaction::Answer(response.into())
    }
}

type Handler = dyn Fn(Request) -> Reaction + Send + Sync;

/// A listening broker, until dropped. Versions are negotiated without the test.
pub(crate) struct FakeBroker {
    pub(crate) address: String,
    accepting: <TokioEnv as Env>::Task<()>,
    connections: Arc<Mutex<Vec<<TokioEnv as Env>::Task<()>>>>,
}

impl Drop for FakeBroker {
    fn drop(&mut self) {
        self.accepting.abort();
        for connection in self.connections.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            connection.abort();
        }
    }
}

impl FakeBroker {
    pub(crate) async fn start(handler: impl Fn(Request) -> Reaction + Send + Sync + 'static) -> Self {
        let handler: Arc<Handler> = Arc::new(handler);
        let mut listener = TokioEnv::new().listen("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_address().expect("an address");
        let connections = Arc::new(Mutex::new(Vec::new()));
        let accepting = TokioEnv::spawn({
            let connections = Arc::clone(&connections);
            async move {
                while let Ok(connection) = listener.accept().await {
                    let handler = Arc::clone(&handler);
                    let serving = TokioEnv::spawn(async move {
                        // The client closing the connection ends it.
                        let _ = serve(connection.reader, connection.writer, &*handler).await;
                    });
                    connections.lock().unwrap_or_else(PoisonError::into_inner).push(serving);
                }
            }
        });
        Self { address, accepting, connections }
    }

    pub(crate) fn port(&self) -> i32 {
        self.address.rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port")
    }
}

async fn serve(
    mut reader: <TokioEnv as Env>::Reader,
    mut writer: <TokioEnv as Env>::Writer,
    handler: &Handler,
) -> std::io::Result<()> {
    loop {
        let len = reader.read_u32().await?;
        let mut frame = vec![0; len as usize];
        reader.read_exact(&mut frame).await?;
        let (header, request) = decode_request(Bytes::from(frame)).expect("the client speaks properly");
        assert_eq!(header.trailing_len, 0, "the client sends what it says");
        let reaction = match request {
            Request::ApiVersions(_) => api_versions().into(),
            request => handler(request),
        };
        match reaction {
            Reaction::Answer(response) => {
                let frame = encode_response(header.api_version, header.correlation_id, &response);
                writer.write_all(&frame.expect("a response of this version").into_bytes()).await?;
                writer.flush().await?;
            }
            Reaction::Silence => {}
            Reaction::Close => return Ok(()),
        }
    }
}

fn api_versions() -> ApiVersionsResponse {
    let mut response = ApiVersionsResponse::default();
    response.api_keys = advertised()
        .map(|row| {
            let mut version = ApiVersion::default();
            version.api_key = row.api_key.code();
            version.min_version = row.version_min;
            version.max_version = row.version_max;
            version
        })
        .collect();
    response
}

pub(crate) const TOPIC: &str = "t";
pub(crate) const TOPIC_ID: Uuid = Uuid::from_bytes([7; 16]);

/// Metadata with these brokers (ports by position, ids from 1) and one topic, whose partitions have these leaders.
pub(crate) fn metadata(ports: &[i32], leaders: &[(i32, i32)]) -> MetadataResponse {
    let mut response = MetadataResponse::default();
    response.cluster_id = Some(StrBytes::from_static_str("fake"));
    for (id, &port) in (1..).zip(ports) {
        let mut broker = MetadataResponseBroker::default();
        broker.node_id = BrokerId(id);
        broker.host = StrBytes::from_static_str("127.0.0.1");
        broker.port = port;
        response.brokers.push(broker);
    }
    let mut topic = MetadataResponseTopic::default();
    topic.name = Some(TopicName(StrBytes::from_static_str(TOPIC)));
    topic.topic_id = TOPIC_ID;
    for (index, &(leader, epoch)) in (0..).zip(leaders) {
        let mut partition = MetadataResponsePartition::default();
        partition.partition_index = index;
        partition.leader_id = BrokerId(leader);
        partition.leader_epoch = epoch;
        topic.partitions.push(partition);
    }
    response.topics.push(topic);
    response
}

/// Two brokers with one state, numbered 1 and 2.
#[allow(dead_code, reason = "not every test has brokers that share a state")]
pub(crate) async fn two_brokers<S: Send + 'static>(
    state: &Arc<Mutex<S>>,
    react: fn(&mut S, i32, Request) -> Reaction,
) -> Vec<FakeBroker> {
    let mut brokers = Vec::new();
    for id in 1..=2 {
        let state = Arc::clone(state);
        brokers.push(FakeBroker::start(move |request| react(&mut state.lock().expect("no panic"), id, request)).await);
    }
    brokers
}

/// Names the broker that coordinates the group asked about, by its number, the first being 1.
#[allow(dead_code, reason = "not every test has groups")]
pub(crate) fn coordinator(ports: &[i32], broker: i32, request: &FindCoordinatorRequest) -> Response {
    let mut found = Coordinator::default();
    found.key = request.coordinator_keys[0].clone();
    found.node_id = BrokerId(broker);
    found.host = StrBytes::from_static_str("127.0.0.1");
    found.port = ports[broker as usize - 1];
    let mut response = FindCoordinatorResponse::default();
    response.coordinators.push(found);
    response.into()
}
