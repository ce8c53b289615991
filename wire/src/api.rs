//! The requests that are served, each with its key, its versions, and its request and response type.

use proto_kafka::protocol::{Decodable, Encodable, HeaderVersion};

use crate::codec::*;
use crate::frame::EncodeError;
use crate::guard::GuardedBuf;
use crate::private::{
    ClusterStatusRequest, ClusterStatusResponse, GroupLagRequest, GroupLagResponse, GroupTimelineRequest,
    GroupTimelineResponse,
};
use crate::versions::VersionRange;

macro_rules! apis {
    ($($(#[$doc:meta])* $name:ident = $key:literal, advertised $advertised_min:literal, served $min:literal..=$max:literal,
        $request:ident, $response:ident;)*) => {
        /// A served request.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(i16)]
        pub enum ApiKey {
            $($(#[$doc])* $name = $key,)*
        }

        impl ApiKey {
            /// All of them, ascending.
            pub const ALL: &[ApiKey] = &[$(ApiKey::$name,)*];

            /// The request with this number on the wire, if it is served.
            pub fn from_code(code: i16) -> Option<Self> {
                match code {
                    $($key => Some(ApiKey::$name),)*
                    _ => None,
                }
            }

            /// The number on the wire.
            pub const fn code(self) -> i16 {
                self as i16
            }

            /// The name, as in Kafka's documentation.
            pub const fn name(self) -> &'static str {
                match self {
                    $(ApiKey::$name => stringify!($name),)*
                }
            }

            /// The versions that are served.
            pub const fn versions(self) -> VersionRange {
                match self {
                    $(ApiKey::$name => VersionRange { min: $min, max: $max },)*
                }
            }

            /// The lowest version named in an ApiVersions response. It is below the served minimum for Produce only:
            /// librdkafka and others stop compressing, silently, when a broker does not name its version 0.
            pub const fn advertised_version_min(self) -> i16 {
                match self {
                    $(ApiKey::$name => $advertised_min,)*
                }
            }

            /// The version of the request header that goes with a request of `version`.
            pub fn request_header_version(self, version: i16) -> i16 {
                match self {
                    $(ApiKey::$name => $request::header_version(version),)*
                }
            }

            /// The version of the response header that goes with a response of `version`. Always 0 for ApiVersions,
            /// because a client that does not know the broker's versions yet must be able to read it (KIP-511).
            pub fn response_header_version(self, version: i16) -> i16 {
                match self {
                    $(ApiKey::$name => $response::header_version(version),)*
                }
            }
        }

        /// A request's body.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Request {
            $($(#[$doc])* $name($request),)*
        }

        impl Request {
            /// Which request it is.
            pub const fn api_key(&self) -> ApiKey {
                match self {
                    $(Request::$name(_) => ApiKey::$name,)*
                }
            }

            pub(crate) fn decode(api_key: ApiKey, version: i16, body: &mut GuardedBuf) -> Result<Self, proto_kafka::error::ProtoError> {
                match api_key {
                    $(ApiKey::$name => $request::decode(body, version).map(Request::$name),)*
                }
            }

            pub(crate) fn encode<B: proto_kafka::protocol::buf::ByteBufMut>(&self, buf: &mut B, version: i16) -> Result<(), EncodeError> {
                match self {
                    $(Request::$name(body) => Ok(body.encode(buf, version)?),)*
                }
            }
        }

        $(impl From<$request> for Request {
            fn from(body: $request) -> Self {
                Request::$name(body)
            }
        })*

        /// A response's body.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Response {
            $($(#[$doc])* $name($response),)*
        }

        impl Response {
            /// Which request it answers.
            pub const fn api_key(&self) -> ApiKey {
                match self {
                    $(Response::$name(_) => ApiKey::$name,)*
                }
            }

            pub(crate) fn decode(api_key: ApiKey, version: i16, body: &mut GuardedBuf) -> Result<Self, proto_kafka::error::ProtoError> {
                match api_key {
                    $(ApiKey::$name => $response::decode(body, version).map(Response::$name),)*
                }
            }

            pub(crate) fn encode<B: proto_kafka::protocol::buf::ByteBufMut>(&self, buf: &mut B, version: i16) -> Result<(), EncodeError> {
                match self {
                    $(Response::$name(body) => Ok(body.encode(buf, version)?),)*
                }
            }

            /// An empty response to `api_key`, every field at the codec's default.
            pub fn default_of(api_key: ApiKey) -> Self {
                match api_key {
                    $(ApiKey::$name => Response::$name(Default::default()),)*
                }
            }
        }

        $(impl From<$response> for Response {
            fn from(body: $response) -> Self {
                Response::$name(body)
            }
        })*

        impl Request {
            /// An empty request, every field at the codec's default.
            pub fn default_of(api_key: ApiKey) -> Self {
                match api_key {
                    $(ApiKey::$name => Request::$name(Default::default()),)*
                }
            }
        }

        $(impl Call for $request {
            const API_KEY: ApiKey = ApiKey::$name;
            type Response = $response;

            fn from_response(response: Response) -> Option<Self::Response> {
                match response {
                    Response::$name(body) => Some(body),
                    _ => None,
                }
            }
        })*
    };
}

/// A request's type, tied to the type of its response: lets a client send one and get the other.
pub trait Call: Into<Request> {
    /// Which request it is.
    const API_KEY: ApiKey;
    /// What answers it.
    type Response;
    /// The response's body, if it answers this request.
    fn from_response(response: Response) -> Option<Self::Response>;
}

apis! {
    /// Appends record batches.
    Produce = 0, advertised 0, served 3..=13, ProduceRequest, ProduceResponse;
    /// Reads record batches.
    Fetch = 1, advertised 4, served 4..=18, FetchRequest, FetchResponse;
    /// Finds offsets by time, and the earliest and latest ones.
    ListOffsets = 2, advertised 1, served 1..=10, ListOffsetsRequest, ListOffsetsResponse;
    /// Brokers, topics, partitions and their leaders.
    Metadata = 3, advertised 0, served 0..=13, MetadataRequest, MetadataResponse;
    /// Commits a group's offsets.
    OffsetCommit = 8, advertised 2, served 2..=9, OffsetCommitRequest, OffsetCommitResponse;
    /// Reads a group's committed offsets.
    OffsetFetch = 9, advertised 1, served 1..=9, OffsetFetchRequest, OffsetFetchResponse;
    /// Finds the broker that coordinates a group or transaction.
    FindCoordinator = 10, advertised 0, served 0..=6, FindCoordinatorRequest, FindCoordinatorResponse;
    /// Joins a classic group.
    JoinGroup = 11, advertised 0, served 0..=9, JoinGroupRequest, JoinGroupResponse;
    /// Keeps a classic member's session alive.
    Heartbeat = 12, advertised 0, served 0..=4, HeartbeatRequest, HeartbeatResponse;
    /// Leaves a group.
    LeaveGroup = 13, advertised 0, served 0..=5, LeaveGroupRequest, LeaveGroupResponse;
    /// Hands out the assignment of a classic group.
    SyncGroup = 14, advertised 0, served 0..=5, SyncGroupRequest, SyncGroupResponse;
    /// Describes classic groups.
    DescribeGroups = 15, advertised 0, served 0..=6, DescribeGroupsRequest, DescribeGroupsResponse;
    /// Lists the groups that this broker coordinates.
    ListGroups = 16, advertised 0, served 0..=5, ListGroupsRequest, ListGroupsResponse;
    /// The versions that the broker serves.
    ApiVersions = 18, advertised 0, served 0..=4, ApiVersionsRequest, ApiVersionsResponse;
    /// Creates topics.
    CreateTopics = 19, advertised 2, served 2..=7, CreateTopicsRequest, CreateTopicsResponse;
    /// Deletes topics.
    DeleteTopics = 20, advertised 1, served 1..=6, DeleteTopicsRequest, DeleteTopicsResponse;
    /// Deletes the beginning of partitions.
    DeleteRecords = 21, advertised 0, served 0..=2, DeleteRecordsRequest, DeleteRecordsResponse;
    /// Gives out producer ids.
    InitProducerId = 22, advertised 0, served 0..=5, InitProducerIdRequest, InitProducerIdResponse;
    /// Finds where a leader epoch ends.
    OffsetForLeaderEpoch = 23, advertised 2, served 2..=4, OffsetForLeaderEpochRequest, OffsetForLeaderEpochResponse;
    /// Describes configurations.
    DescribeConfigs = 32, advertised 1, served 1..=4, DescribeConfigsRequest, DescribeConfigsResponse;
    /// Replaces configurations.
    AlterConfigs = 33, advertised 0, served 0..=2, AlterConfigsRequest, AlterConfigsResponse;
    /// Adds partitions to topics.
    CreatePartitions = 37, advertised 0, served 0..=3, CreatePartitionsRequest, CreatePartitionsResponse;
    /// Deletes groups without members.
    DeleteGroups = 42, advertised 0, served 0..=2, DeleteGroupsRequest, DeleteGroupsResponse;
    /// Changes single settings of configurations.
    IncrementalAlterConfigs = 44, advertised 0, served 0..=1, IncrementalAlterConfigsRequest, IncrementalAlterConfigsResponse;
    /// Deletes a group's committed offsets.
    OffsetDelete = 47, advertised 0, served 0..=0, OffsetDeleteRequest, OffsetDeleteResponse;
    /// Describes the cluster.
    DescribeCluster = 60, advertised 0, served 0..=2, DescribeClusterRequest, DescribeClusterResponse;
    /// Joins, keeps up or leaves a group of the consumer protocol (KIP-848).
    ConsumerGroupHeartbeat = 68, advertised 0, served 0..=1, ConsumerGroupHeartbeatRequest, ConsumerGroupHeartbeatResponse;
    /// Describes groups of the consumer protocol.
    ConsumerGroupDescribe = 69, advertised 0, served 0..=1, ConsumerGroupDescribeRequest, ConsumerGroupDescribeResponse;
    /// Describes partitions page by page.
    DescribeTopicPartitions = 75, advertised 0, served 0..=0, DescribeTopicPartitionsRequest, DescribeTopicPartitionsResponse;
    /// Our own: nodes and shards; see [`crate::private`].
    ClusterStatus = 32000, advertised 0, served 0..=0, ClusterStatusRequest, ClusterStatusResponse;
    /// Our own: what happened to a group lately.
    GroupTimeline = 32001, advertised 0, served 0..=0, GroupTimelineRequest, GroupTimelineResponse;
    /// Our own: how far groups are behind.
    GroupLag = 32002, advertised 0, served 0..=0, GroupLagRequest, GroupLagResponse;
}

impl ApiKey {
    /// Whether ApiVersions names it. Our own requests are not Kafka's, so that clients never wonder about them.
    pub const fn is_advertised(self) -> bool {
        !matches!(self, ApiKey::ClusterStatus | ApiKey::GroupTimeline | ApiKey::GroupLag)
    }
}
