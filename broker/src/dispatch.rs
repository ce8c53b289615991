//! Which handler answers which request.

use std::sync::Arc;
use std::time::Duration;

use lockstep_env::{Env, timeout};
use lockstep_wire::{Request, Response};

use crate::answer_room::TakenRoom;
use crate::api;
use crate::broker::Broker;

/// A list for which there is no memory for so long is left to another broker: the client asks there when the connection ends.
const ROOM_PATIENCE: Duration = Duration::from_secs(5);

/// What a handler is told besides the request's body.
#[derive(Clone, Debug)]
pub(crate) struct RequestContext {
    /// The request's version; its response has the same.
    pub(crate) api_version: i16,
    /// How long the request is. A slice of it keeps so much in memory.
    pub(crate) request_bytes: usize,
    /// What the client calls itself; empty when it does not say.
    pub(crate) client_id: String,
    /// The client's address without its port, with a slash before it as Kafka's tools show it.
    pub(crate) client_host: Arc<str>,
}

/// What becomes of a request.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "nearly every request is answered: a box would be made for each")]
pub(crate) enum Outcome {
    /// It is answered. Records and lists hold room until they are sent.
    Respond(Response, TakenRoom),
    /// It wants no answer (Produce with acks=0).
    Silence,
    /// The connection ends: the only way to tell of an error where there is no answer, or no memory for one.
    Close,
}

impl Outcome {
    /// An answer that is short.
    pub(crate) fn respond(response: Response) -> Self {
        Self::Respond(response, TakenRoom::default())
    }
}

/// Handles one request. Produce, and most OffsetCommits, do not pass here: the connection begins them as soon as they have arrived.
pub(crate) async fn dispatch<E: Env>(broker: &Broker<E>, context: &RequestContext, request: Request) -> Outcome {
    tracing::trace!(
        api = request.api_key().name(),
        version = context.api_version,
        client = context.client_id,
        "request"
    );
    let room = if may_be_long(&request) {
        match timeout::<E, _>(ROOM_PATIENCE, broker.lists_room().begin()).await {
            Ok(room) => room,
            Err(_) => {
                tracing::warn!(
                    client = context.client_id,
                    host = &*context.client_host,
                    "no memory for a list: clients that do not take theirs hold it. Connection closed"
                );
                return Outcome::Close;
            }
        }
    } else {
        TakenRoom::default()
    };
    let response = match request {
        Request::Produce(request) => {
            return api::produce::begin(broker.clone(), context.clone(), request).await.finish().await;
        }
        Request::ApiVersions(request) => api::api_versions::handle(broker, context, request).await.into(),
        Request::Fetch(request) => {
            let (response, room) = api::fetch::handle(broker, context, request).await;
            return Outcome::Respond(response.into(), room);
        }
        Request::ListOffsets(request) => api::list_offsets::handle(broker, context, request).await.into(),
        Request::OffsetForLeaderEpoch(request) => api::leader_epoch::handle(broker, context, request).await.into(),
        Request::InitProducerId(request) => api::producer_id::handle(broker, context, request).await.into(),

        Request::Metadata(request) => api::metadata::handle(broker, context, request).await.into(),
        Request::DescribeTopicPartitions(request) => {
            api::topic_partitions::handle(broker, context, request).await.into()
        }
        Request::DescribeCluster(request) => api::cluster::describe(broker, context, request).await.into(),
        Request::ClusterStatus(request) => api::cluster::status(broker, context, request).await.into(),
        Request::CreateTopics(request) => api::create_topics::handle(broker, context, request).await.into(),
        Request::DeleteTopics(request) => api::delete_topics::handle(broker, context, request).await.into(),
        Request::DeleteRecords(request) => api::delete_records::handle(broker, context, request).await.into(),
        Request::CreatePartitions(request) => api::create_partitions::handle(broker, context, request).await.into(),
        Request::AlterConfigs(request) => api::alter_configs::replace(broker, context, request).await.into(),
        Request::IncrementalAlterConfigs(request) => {
            api::alter_configs::incremental(broker, context, request).await.into()
        }
        Request::DescribeConfigs(request) => api::describe_configs::handle(broker, context, request).await.into(),

        Request::FindCoordinator(request) => api::coordinator::handle(broker, context, request).await.into(),
        Request::JoinGroup(request) => api::group_classic::join(broker, context, request).await.into(),
        Request::SyncGroup(request) => api::group_classic::sync(broker, context, request).await.into(),
        Request::Heartbeat(request) => api::group_classic::heartbeat(broker, context, request).await.into(),
        Request::LeaveGroup(request) => api::group_classic::leave(broker, context, request).await.into(),
        Request::OffsetCommit(request) => api::group_offsets::begin_commit(broker, context, request).await.await.into(),
        Request::OffsetFetch(request) => api::group_offsets::fetch(broker, context, request).await.into(),
        Request::OffsetDelete(request) => api::group_deletion::offsets(broker, context, request).await.into(),
        Request::DeleteGroups(request) => api::group_deletion::groups(broker, context, request).await.into(),
        Request::ConsumerGroupHeartbeat(request) => {
            api::group_consumer::heartbeat(broker, context, request).await.into()
        }
        Request::ConsumerGroupDescribe(request) => api::group_consumer::describe(broker, context, request).await.into(),
        Request::DescribeGroups(request) => api::group_admin::describe(broker, context, request).await.into(),
        Request::ListGroups(request) => api::group_admin::list(broker, context, request).await.into(),
        Request::GroupTimeline(request) => api::group_timeline::handle(broker, context, request).await.into(),
        Request::GroupLag(request) => api::group_lag::handle(broker, context, request).await.into(),
    };
    Outcome::Respond(response, room)
}

/// Is a list asked for that grows with the cluster, its topics or its groups? How a cluster is must be told in any case.
fn may_be_long(request: &Request) -> bool {
    matches!(
        request,
        Request::Metadata(_)
            | Request::DescribeTopicPartitions(_)
            | Request::DescribeConfigs(_)
            | Request::ListOffsets(_)
            | Request::OffsetFetch(_)
            | Request::ListGroups(_)
            | Request::DescribeGroups(_)
            | Request::ConsumerGroupDescribe(_)
            | Request::GroupTimeline(_)
            | Request::GroupLag(_)
    )
}
