//! The codec's message types. Everything else of the codec crate stays hidden.
//!
//! A field that a version does not have must be left at its default, or encoding fails. Nullable fields need care: some
//! default to an empty string rather than null (`CreatableTopicResult::error_message`), so set them explicitly.

pub use proto_kafka::error::ResponseError;
pub use proto_kafka::messages::{
    AlterConfigsRequest, AlterConfigsResponse, ApiVersionsRequest, ApiVersionsResponse, BrokerId,
    ConsumerGroupDescribeRequest, ConsumerGroupDescribeResponse, ConsumerGroupHeartbeatRequest,
    ConsumerGroupHeartbeatResponse, CreatePartitionsRequest, CreatePartitionsResponse, CreateTopicsRequest,
    CreateTopicsResponse, DeleteGroupsRequest, DeleteGroupsResponse, DeleteRecordsRequest, DeleteRecordsResponse,
    DeleteTopicsRequest, DeleteTopicsResponse, DescribeClusterRequest, DescribeClusterResponse, DescribeConfigsRequest,
    DescribeConfigsResponse, DescribeGroupsRequest, DescribeGroupsResponse, DescribeTopicPartitionsRequest,
    DescribeTopicPartitionsResponse, FetchRequest, FetchResponse, FindCoordinatorRequest, FindCoordinatorResponse,
    GroupId, HeartbeatRequest, HeartbeatResponse, IncrementalAlterConfigsRequest, IncrementalAlterConfigsResponse,
    InitProducerIdRequest, InitProducerIdResponse, JoinGroupRequest, JoinGroupResponse, LeaveGroupRequest,
    LeaveGroupResponse, ListGroupsRequest, ListGroupsResponse, ListOffsetsRequest, ListOffsetsResponse,
    MetadataRequest, MetadataResponse, OffsetCommitRequest, OffsetCommitResponse, OffsetDeleteRequest,
    OffsetDeleteResponse, OffsetFetchRequest, OffsetFetchResponse, OffsetForLeaderEpochRequest,
    OffsetForLeaderEpochResponse, ProduceRequest, ProduceResponse, ProducerId, SyncGroupRequest, SyncGroupResponse,
    TopicName, TransactionalId,
};
/// What classic members put into their opaque metadata and assignments.
pub use proto_kafka::messages::{ConsumerProtocolAssignment, ConsumerProtocolSubscription};
pub use proto_kafka::messages::{
    alter_configs_request, alter_configs_response, api_versions_request, api_versions_response,
    consumer_group_describe_request, consumer_group_describe_response, consumer_group_heartbeat_request,
    consumer_group_heartbeat_response, create_partitions_request, create_partitions_response, create_topics_request,
    create_topics_response, delete_groups_request, delete_groups_response, delete_records_request,
    delete_records_response, delete_topics_request, delete_topics_response, describe_cluster_request,
    describe_cluster_response, describe_configs_request, describe_configs_response, describe_groups_request,
    describe_groups_response, describe_topic_partitions_request, describe_topic_partitions_response, fetch_request,
    fetch_response, find_coordinator_request, find_coordinator_response, heartbeat_request, heartbeat_response,
    incremental_alter_configs_request, incremental_alter_configs_response, init_producer_id_request,
    init_producer_id_response, join_group_request, join_group_response, leave_group_request, leave_group_response,
    list_groups_request, list_groups_response, list_offsets_request, list_offsets_response, metadata_request,
    metadata_response, offset_commit_request, offset_commit_response, offset_delete_request, offset_delete_response,
    offset_fetch_request, offset_fetch_response, offset_for_leader_epoch_request, offset_for_leader_epoch_response,
    produce_request, produce_response, sync_group_request, sync_group_response,
};
pub use proto_kafka::messages::{consumer_protocol_assignment, consumer_protocol_subscription};
pub use proto_kafka::protocol::StrBytes;
pub use uuid::Uuid;
