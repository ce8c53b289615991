//! JoinGroup, SyncGroup, Heartbeat and LeaveGroup: the classic group protocol.

use lockstep_core::op::{ClassicJoin, JoinConsumerGroup, LeaveConsumerGroup, RebalancePartitions};
use lockstep_core::reply::ClassicJoined;
use lockstep_core::view::{JoinProgress, JoinResult, SyncProgress, SyncResult};
use lockstep_core::{GroupError, Op, Reply};
use lockstep_env::Env;
use lockstep_wire::codec::join_group_response::JoinGroupResponseMember;
use lockstep_wire::codec::leave_group_response::MemberResponse;
use lockstep_wire::codec::{
    HeartbeatRequest, HeartbeatResponse, JoinGroupRequest, JoinGroupResponse, LeaveGroupRequest, LeaveGroupResponse,
    StrBytes, SyncGroupRequest, SyncGroupResponse, Uuid,
};

use crate::api::group_coordinator::{OP_BYTES_MAX, Refused, coordinated, propose, wait_for_group, wrong_reply};
use crate::broker::Broker;
use crate::config::GroupConfig;
use crate::dispatch::RequestContext;
use crate::error_code::ErrorCode;

/// What a member says of itself, over all protocols that it offers. The group's leader is sent it for every member.
const MEMBER_BYTES_MAX: usize = 1 << 20;
/// Members of one LeaveGroup request that the log names.
const LOGGED_MEMBERS_MAX: usize = 100;
/// So much of a client's name goes into the ids of its members: an id must fit a string of the protocol with room to spare.
const CLIENT_ID_BYTES_IN_MEMBER_ID: usize = 255;

pub(crate) async fn join<E: Env>(
    broker: &Broker<E>,
    context: &RequestContext,
    request: JoinGroupRequest,
) -> JoinGroupResponse {
    let version = context.api_version;
    let group = request.group_id.to_string();
    let reason = request.reason.clone().unwrap_or_default();
    let asked_as = request.member_id.clone();
    match try_join(broker, context, &group, request).await {
        Ok(joined) => {
            let leads = joined.leader == joined.member_id;
            tracing::info!(
                group,
                member = joined.member_id,
                generation = joined.generation,
                leads,
                client = context.client_id,
                reason = &*reason,
                "JoinGroup"
            );
            answer_join(version, joined)
        }
        Err((refused, given_id)) => {
            let member_id = given_id.map_or(asked_as, StrBytes::from);
            tracing::info!(
                group,
                member = &*member_id,
                client = context.client_id,
                reason = &*reason,
                error = ?refused.error,
                "JoinGroup refused"
            );
            refuse_join(version, refused.error, member_id)
        }
    }
}

fn refuse_join(version: i16, error: ErrorCode, member_id: StrBytes) -> JoinGroupResponse {
    JoinGroupResponse::default()
        .with_error_code(error.code())
        .with_protocol_name(if version >= 7 { None } else { Some(StrBytes::default()) })
        .with_member_id(member_id)
}

fn answer_join(version: i16, joined: JoinResult) -> JoinGroupResponse {
    let mut response = JoinGroupResponse::default()
        .with_generation_id(joined.generation)
        .with_protocol_name(Some(joined.protocol_name.into()))
        .with_leader(joined.leader.into())
        .with_member_id(joined.member_id.into());
    if version >= 7 {
        response.protocol_type = Some(joined.protocol_type.into());
    }
    if joined.skip_assignment {
        if version < 9 {
            // These clients cannot be told to leave the assignment as it is; who does not lead does not assign.
            response.leader = StrBytes::default();
            return response;
        }
        response.skip_assignment = true;
    }
    response.members = joined
        .members
        .into_iter()
        .map(|(member_id, instance_id, metadata)| {
            JoinGroupResponseMember::default()
                .with_member_id(member_id.into())
                .with_group_instance_id(instance_id.filter(|_| version >= 5).map(StrBytes::from))
                .with_metadata(metadata.into())
        })
        .collect();
    response
}

/// Checks that need no state.
fn check_join(limits: &GroupConfig, group: &str, request: &JoinGroupRequest) -> Result<u32, Refused> {
    if group.is_empty() {
        return Err(ErrorCode::InvalidGroupId.into());
    }
    let session_timeout_ms = u32::try_from(request.session_timeout_ms)
        .ok()
        .filter(|timeout_ms| (limits.session_timeout_min_ms..=limits.session_timeout_max_ms).contains(timeout_ms))
        .ok_or(ErrorCode::InvalidSessionTimeout)?;
    let bytes: usize = request.protocols.iter().map(|protocol| protocol.name.len() + protocol.metadata.len()).sum();
    if bytes > MEMBER_BYTES_MAX {
        // As Kafka answers when a member does not fit the record that stores it.
        return Err(ErrorCode::UnknownServerError.into());
    }
    Ok(session_timeout_ms)
}

/// An error may come with the id that the member must use from now on.
async fn try_join<E: Env>(
    broker: &Broker<E>,
    context: &RequestContext,
    group: &str,
    request: JoinGroupRequest,
) -> Result<JoinResult, (Refused, Option<String>)> {
    let limits = &broker.config().groups;
    let without_id = |refused: Refused| (refused, None);
    let session_timeout_ms = check_join(limits, group, &request).map_err(without_id)?;
    let shard = coordinated(broker, "JoinGroup", group).map_err(without_id)?;
    let rebalance_timeout_ms = match u32::try_from(request.rebalance_timeout_ms) {
        Ok(timeout_ms) if context.api_version >= 1 => timeout_ms,
        // Version 0 has one timeout for both.
        _ => session_timeout_ms,
    };
    let op = Op::JoinConsumerGroup(JoinConsumerGroup::Classic(ClassicJoin {
        group_id: group.to_owned(),
        member_id: request.member_id.to_string(),
        fresh_member_id: fresh_member_id::<E>(&context.client_id),
        instance_id: request.group_instance_id.as_ref().map(|id| id.to_string()),
        client_id: context.client_id.clone(),
        client_host: context.client_host.to_string(),
        session_timeout_ms,
        rebalance_timeout_ms,
        protocol_type: request.protocol_type.to_string(),
        protocols: request
            .protocols
            .iter()
            .map(|protocol| (protocol.name.to_string(), protocol.metadata.to_vec()))
            .collect(),
        require_known_member_id: context.api_version >= 4 && request.group_instance_id.is_none(),
        initial_rebalance_delay_ms: limits.initial_rebalance_delay_ms,
        members_max: limits.members_max,
        now_ms: broker.env().wall_clock_ms(),
    }));
    let ClassicJoined { member_id, after_generation, .. } =
        match propose(&shard, "JoinGroup", group, op).await.map_err(without_id)? {
            Reply::ClassicJoin(Ok(joined)) => joined,
            Reply::ClassicJoin(Err(GroupError::MemberIdRequired(id))) => {
                return Err((ErrorCode::MemberIdRequired.into(), Some(id)));
            }
            Reply::ClassicJoin(Err(error)) => return Err(without_id(error.into())),
            other => return Err(without_id(wrong_reply("JoinGroup", group, &other))),
        };
    let progress = wait_for_group(&shard, "JoinGroup", group, |state| {
        match state.join_progress(group, &member_id, after_generation) {
            JoinProgress::Waiting => None,
            JoinProgress::Done(outcome) => Some(outcome),
        }
    });
    let outcome = progress.await.and_then(|outcome| outcome.map_err(Refused::from));
    // A member that was taken in keeps its id: it comes back with it when the join itself could not be finished.
    outcome.map_err(|refused| (refused, Some(member_id)))
}

fn fresh_member_id<E: Env>(client_id: &str) -> String {
    let end = client_id.floor_char_boundary(CLIENT_ID_BYTES_IN_MEMBER_ID);
    format!("{}-{}", &client_id[..end], Uuid::from_bytes(E::random_uuid()))
}

pub(crate) async fn sync<E: Env>(
    broker: &Broker<E>,
    context: &RequestContext,
    request: SyncGroupRequest,
) -> SyncGroupResponse {
    let group = request.group_id.to_string();
    let (member, generation) = (request.member_id.to_string(), request.generation_id);
    match try_sync(broker, context.api_version, &group, &member, request).await {
        Ok(synced) => {
            tracing::info!(group, member, generation, "SyncGroup");
            let response = SyncGroupResponse::default().with_assignment(synced.assignment.into());
            if context.api_version >= 5 {
                response
                    .with_protocol_type(Some(synced.protocol_type.into()))
                    .with_protocol_name(Some(synced.protocol_name.into()))
            } else {
                response
            }
        }
        Err(refused) => {
            tracing::info!(group, member, generation, error = ?refused.error, "SyncGroup refused");
            SyncGroupResponse::default().with_error_code(refused.error.code())
        }
    }
}

/// Where a SyncGroup stands before anything was done for it.
enum Arrived {
    /// The assignment it carries is what the others wait for.
    Brings,
    Waits,
}

async fn try_sync<E: Env>(
    broker: &Broker<E>,
    version: i16,
    group: &str,
    member: &str,
    request: SyncGroupRequest,
) -> Result<SyncResult, Refused> {
    if group.is_empty() {
        return Err(ErrorCode::InvalidGroupId.into());
    }
    if version >= 5 && (request.protocol_type.is_none() || request.protocol_name.is_none()) {
        return Err(ErrorCode::InconsistentGroupProtocol.into());
    }
    let shard = coordinated(broker, "SyncGroup", group)?;
    let generation = request.generation_id;
    let instance_id = request.group_instance_id.as_deref();
    let protocol_type = request.protocol_type.as_deref();
    let protocol_name = request.protocol_name.as_deref();
    let arrived = shard.read(|state| {
        state.check_sync(group, member, instance_id, generation, protocol_type, protocol_name)?;
        let brings = state.leads_classic_group(group, member)
            && state.sync_progress(group, member, generation) == SyncProgress::Waiting;
        Ok::<_, GroupError>(if brings { Arrived::Brings } else { Arrived::Waits })
    })?;
    if let Arrived::Brings = arrived {
        let bytes: usize = request.assignments.iter().map(|one| one.member_id.len() + one.assignment.len()).sum();
        if bytes > OP_BYTES_MAX {
            tracing::warn!(group, member, bytes, "SyncGroup with an assignment that is too large");
            return Err(ErrorCode::UnknownServerError.into());
        }
        let op = Op::RebalancePartitions(RebalancePartitions::Sync {
            group_id: group.to_owned(),
            generation,
            member_id: member.to_owned(),
            instance_id: instance_id.map(str::to_owned),
            protocol_type: protocol_type.map(str::to_owned),
            protocol_name: protocol_name.map(str::to_owned),
            assignments: request
                .assignments
                .iter()
                .map(|one| (one.member_id.to_string(), one.assignment.to_vec()))
                .collect(),
            now_ms: broker.env().wall_clock_ms(),
        });
        match propose(&shard, "SyncGroup", group, op).await? {
            Reply::Sync(outcome) => outcome?,
            other => return Err(wrong_reply("SyncGroup", group, &other)),
        }
    }
    shard.synced(group, member, generation);
    let progress =
        wait_for_group(&shard, "SyncGroup", group, |state| match state.sync_progress(group, member, generation) {
            SyncProgress::Waiting => None,
            SyncProgress::Done(outcome) => Some(outcome),
        });
    Ok(progress.await??)
}

pub(crate) async fn heartbeat<E: Env>(
    broker: &Broker<E>,
    _context: &RequestContext,
    request: HeartbeatRequest,
) -> HeartbeatResponse {
    let (group, member, generation) = (request.group_id.as_str(), request.member_id.as_str(), request.generation_id);
    let outcome = try_heartbeat(broker, group, member, request.group_instance_id.as_deref(), generation);
    let error = match outcome {
        Ok(()) => {
            tracing::debug!(group, member, generation, "Heartbeat");
            ErrorCode::None
        }
        Err(refused) => {
            tracing::info!(group, member, generation, error = ?refused.error, "Heartbeat refused");
            heartbeat_error(refused.error)
        }
    };
    HeartbeatResponse::default().with_error_code(error.code())
}

/// Clients take it for fatal when a heartbeat finds the coordinator loading. As in Kafka they are told that all is well: every member
/// has a fresh session once the coordinator knows its groups.
fn heartbeat_error(error: ErrorCode) -> ErrorCode {
    if error == ErrorCode::CoordinatorLoadInProgress { ErrorCode::None } else { error }
}

fn try_heartbeat<E: Env>(
    broker: &Broker<E>,
    group: &str,
    member: &str,
    instance_id: Option<&str>,
    generation: i32,
) -> Result<(), Refused> {
    if group.is_empty() {
        return Err(ErrorCode::InvalidGroupId.into());
    }
    let shard = coordinated(broker, "Heartbeat", group)?;
    let outcome = shard.read(|state| state.check_heartbeat(group, member, instance_id, generation));
    // A member that has yet to join the rebalance is alive too.
    if matches!(outcome, Ok(()) | Err(GroupError::RebalanceInProgress)) {
        shard.heartbeat(group, member);
    }
    Ok(outcome?)
}

/// Member id (may be empty), instance id and reason.
type Leaving = (String, Option<String>, Option<StrBytes>);

pub(crate) async fn leave<E: Env>(
    broker: &Broker<E>,
    context: &RequestContext,
    request: LeaveGroupRequest,
) -> LeaveGroupResponse {
    let group = request.group_id.to_string();
    let batched = context.api_version >= 3;
    let leaving: Vec<Leaving> = if batched {
        let members = request.members.into_iter();
        members
            .map(|member| {
                let instance_id = member.group_instance_id.map(|id| id.to_string());
                (member.member_id.to_string(), instance_id, member.reason)
            })
            .collect()
    } else {
        vec![(request.member_id.to_string(), None, None)]
    };
    let outcomes = match try_leave(broker, &group, &leaving).await {
        Ok(outcomes) => outcomes,
        Err(refused) => {
            tracing::info!(group, error = ?refused.error, "LeaveGroup refused");
            return LeaveGroupResponse::default().with_error_code(refused.error.code());
        }
    };
    let mut response = LeaveGroupResponse::default();
    if leaving.len() > LOGGED_MEMBERS_MAX {
        tracing::info!(group, members = leaving.len(), "LeaveGroup of many members, of which the first are named");
    }
    for (n, ((member, instance_id, reason), error)) in leaving.into_iter().zip(outcomes).enumerate() {
        let reason = reason.unwrap_or_default();
        if n < LOGGED_MEMBERS_MAX {
            tracing::info!(group, member, instance = instance_id, reason = &*reason, error = ?error, "LeaveGroup");
        }
        if batched {
            response.members.push(
                MemberResponse::default()
                    .with_member_id(member.into())
                    .with_group_instance_id(instance_id.map(StrBytes::from))
                    .with_error_code(error.code()),
            );
        } else {
            response.error_code = error.code();
        }
    }
    response
}

/// An outcome for each member, in order.
async fn try_leave<E: Env>(broker: &Broker<E>, group: &str, leaving: &[Leaving]) -> Result<Vec<ErrorCode>, Refused> {
    if group.is_empty() {
        return Err(ErrorCode::InvalidGroupId.into());
    }
    let shard = coordinated(broker, "LeaveGroup", group)?;
    let members = leaving.iter().map(|(member, instance_id, _)| (member.clone(), instance_id.clone())).collect();
    let now_ms = broker.env().wall_clock_ms();
    let op = Op::LeaveConsumerGroup(LeaveConsumerGroup::Classic { group_id: group.to_owned(), members, now_ms });
    match propose(&shard, "LeaveGroup", group, op).await? {
        Reply::ClassicLeave(Ok(outcomes)) if outcomes.len() == leaving.len() => Ok(outcomes
            .into_iter()
            .map(|outcome| outcome.map_or_else(|error| ErrorCode::of_group(&error), |()| ErrorCode::None))
            .collect()),
        // There is no such group, and so there is none of the members in it.
        Reply::ClassicLeave(Err(GroupError::UnknownMember)) => Ok(vec![ErrorCode::UnknownMemberId; leaving.len()]),
        Reply::ClassicLeave(Err(error)) => Err(error.into()),
        other => Err(wrong_reply("LeaveGroup", group, &other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use lockstep_env::tokio_env::TokioEnv;
    use lockstep_wire::codec::GroupId;
    use lockstep_wire::codec::join_group_request::JoinGroupRequestProtocol;
    use lockstep_wire::frame::encode_response;

    fn request(session_timeout_ms: i32) -> JoinGroupRequest {
        JoinGroupRequest::default().with_group_id(GroupId("g".into())).with_session_timeout_ms(session_timeout_ms)
    }

    fn result(skip_assignment: bool) -> JoinResult {
        JoinResult {
            generation: 7,
            protocol_type: "consumer".to_owned(),
            protocol_name: "range".to_owned(),
            leader: "m1".to_owned(),
            member_id: "m1".to_owned(),
            skip_assignment,
            members: vec![("m1".to_owned(), Some("i1".to_owned()), vec![1, 2])],
        }
    }

    #[test]
    fn a_heartbeat_never_fails_because_the_coordinator_is_loading() {
        assert_eq!(heartbeat_error(ErrorCode::CoordinatorLoadInProgress), ErrorCode::None);
        assert_eq!(heartbeat_error(ErrorCode::NotCoordinator), ErrorCode::NotCoordinator);
    }

    #[test]
    fn session_timeouts_have_bounds() {
        let limits = GroupConfig::default();
        for (timeout_ms, fits) in
            [(-1, false), (0, false), (5_999, false), (6_000, true), (1_800_000, true), (1_800_001, false)]
        {
            let outcome = check_join(&limits, "g", &request(timeout_ms)).map_err(|refused| refused.error);
            let expected = if fits { Ok(timeout_ms.unsigned_abs()) } else { Err(ErrorCode::InvalidSessionTimeout) };
            assert_eq!(outcome, expected, "{timeout_ms}");
        }
        let outcome = check_join(&limits, "", &request(6_000)).map_err(|refused| refused.error);
        assert_eq!(outcome, Err(ErrorCode::InvalidGroupId));
    }

    #[test]
    fn a_member_that_would_not_fit_the_log_is_refused() {
        let mut request = request(10_000);
        let protocol =
            JoinGroupRequestProtocol::default().with_metadata(Bytes::from(vec![0; MEMBER_BYTES_MAX / 2 + 1]));
        request.protocols = vec![protocol.clone()];
        assert!(check_join(&GroupConfig::default(), "g", &request).is_ok());
        request.protocols.push(protocol);
        assert!(check_join(&GroupConfig::default(), "g", &request).is_err());
    }

    #[test]
    fn join_responses_encode_in_every_version() {
        for version in 0..=9 {
            for response in [
                answer_join(version, result(false)),
                answer_join(version, result(true)),
                refuse_join(version, ErrorCode::MemberIdRequired, "m1".into()),
            ] {
                encode_response(version, 1, &response.into()).unwrap_or_else(|error| panic!("{version}: {error}"));
            }
        }
    }

    #[test]
    fn a_returning_leader_of_a_stable_group_does_not_assign() {
        let newer = answer_join(9, result(true));
        assert!(newer.skip_assignment && newer.leader == newer.member_id && newer.members.len() == 1);
        let older = answer_join(8, result(true));
        assert!(older.leader != older.member_id && older.members.is_empty());
    }

    #[test]
    fn member_ids_are_unique_and_of_bounded_length() {
        let long = "é".repeat(400);
        let (first, second) = (fresh_member_id::<TokioEnv>(&long), fresh_member_id::<TokioEnv>(&long));
        assert_ne!(first, second);
        assert!(first.len() <= CLIENT_ID_BYTES_IN_MEMBER_ID + 37);
        assert!(fresh_member_id::<TokioEnv>("kcat").starts_with("kcat-"));
    }
}
