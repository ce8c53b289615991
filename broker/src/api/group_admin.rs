//! DescribeGroups and ListGroups.

use lockstep_core::view::{GroupListing, GroupState, GroupType, GroupView};
use lockstep_env::Env;
use lockstep_runtime::ProposeError;
use lockstep_wire::codec::describe_groups_response::{DescribedGroup, DescribedGroupMember};
use lockstep_wire::codec::list_groups_response::ListedGroup;
use lockstep_wire::codec::{
    DescribeGroupsRequest, DescribeGroupsResponse, GroupId, ListGroupsRequest, ListGroupsResponse, StrBytes,
};

use crate::api::group_coordinator::{GROUP_OPERATIONS, Refused, coordinated, each_once};
use crate::broker::Broker;
use crate::dispatch::RequestContext;
use crate::error_code::ErrorCode;

/// As Kafka writes states.
pub(crate) const fn state_name(state: GroupState) -> &'static str {
    match state {
        GroupState::Empty => "Empty",
        GroupState::PreparingRebalance => "PreparingRebalance",
        GroupState::CompletingRebalance => "CompletingRebalance",
        GroupState::Assigning => "Assigning",
        GroupState::Reconciling => "Reconciling",
        GroupState::Stable => "Stable",
        GroupState::Dead => "Dead",
    }
}

/// As Kafka writes the kinds of groups in ListGroups.
pub(crate) const fn type_name(group_type: GroupType) -> &'static str {
    match group_type {
        GroupType::Classic => "classic",
        GroupType::Consumer => "consumer",
    }
}

pub(crate) async fn describe<E: Env>(
    broker: &Broker<E>,
    context: &RequestContext,
    request: DescribeGroupsRequest,
) -> DescribeGroupsResponse {
    let version = context.api_version;
    let with_operations = version >= 3 && request.include_authorized_operations;
    let groups = each_once(request.groups).into_iter().map(|group_id| {
        let mut group = match describe_group(broker, &group_id) {
            Ok(view) => answer_describe(version, view),
            Err(Refused { error: ErrorCode::GroupIdNotFound, message }) => dead(version, &message),
            Err(refused) => answer_refused(version, &refused),
        };
        if with_operations && group.error_code == ErrorCode::None.code() {
            group.authorized_operations = GROUP_OPERATIONS;
        }
        group.with_group_id(group_id)
    });
    DescribeGroupsResponse::default().with_groups(groups.collect())
}

fn describe_group<E: Env>(broker: &Broker<E>, group_id: &GroupId) -> Result<GroupView, Refused> {
    let shard = coordinated(broker, "DescribeGroups", group_id)?;
    let not_found = |message: String| Refused { error: ErrorCode::GroupIdNotFound, message: message.into() };
    let view =
        shard.read(|state| state.group(group_id)).ok_or_else(|| not_found("There is no such group.".to_owned()))?;
    match view.group_type {
        GroupType::Classic => Ok(view),
        GroupType::Consumer => Err(not_found(format!("Group {} is not a classic group.", group_id.as_str()))),
    }
}

/// A group that is not there is told as a dead one, from version 6 on with an error (KIP-1043).
fn dead(version: i16, message: &str) -> DescribedGroup {
    let group = DescribedGroup::default().with_group_state(StrBytes::from_static_str(state_name(GroupState::Dead)));
    if version >= 6 {
        group.with_error_code(ErrorCode::GroupIdNotFound.code()).with_error_message(Some(message.to_owned().into()))
    } else {
        group
    }
}

fn answer_refused(version: i16, refused: &Refused) -> DescribedGroup {
    let group = DescribedGroup::default().with_error_code(refused.error.code());
    if version >= 6 { group.with_error_message(Some(refused.message.clone().into_owned().into())) } else { group }
}

fn answer_describe(version: i16, view: GroupView) -> DescribedGroup {
    // Only a stable group has a protocol: between generations the last one's is over.
    let protocol = if view.state == GroupState::Stable { view.protocol_name } else { String::new() };
    let members = view.members.into_iter().map(|member| {
        DescribedGroupMember::default()
            .with_member_id(member.member_id.into())
            .with_group_instance_id(member.instance_id.filter(|_| version >= 4).map(StrBytes::from))
            .with_client_id(member.client_id.into())
            .with_client_host(member.client_host.into())
            .with_member_metadata(member.classic_metadata.into())
            .with_member_assignment(member.classic_assignment.into())
    });
    DescribedGroup::default()
        .with_group_state(StrBytes::from_static_str(state_name(view.state)))
        .with_protocol_type(view.protocol_type.into())
        .with_protocol_data(protocol.into())
        .with_members(members.collect())
}

/// What a ListGroups request wants to see; nothing named means everything.
struct Filter {
    states: Vec<StrBytes>,
    types: Vec<StrBytes>,
}

impl Filter {
    fn lets_pass(&self, group: &GroupListing) -> bool {
        let named = |names: &[StrBytes], name: &str| {
            names.is_empty() || names.iter().any(|wanted| wanted.eq_ignore_ascii_case(name))
        };
        named(&self.states, state_name(group.state)) && named(&self.types, type_name(group.group_type))
    }
}

pub(crate) async fn list<E: Env>(
    broker: &Broker<E>,
    context: &RequestContext,
    request: ListGroupsRequest,
) -> ListGroupsResponse {
    let filter = Filter { states: request.states_filter, types: request.types_filter };
    let mut groups = Vec::new();
    let shards = broker.node().shards();
    if shards.is_empty() {
        return ListGroupsResponse::default().with_error_code(ErrorCode::CoordinatorNotAvailable.code());
    }
    for shard in shards {
        match shard.serving() {
            Ok(_) => groups.extend(shard.read(|state| state.groups())),
            Err(ProposeError::NotLeader { .. })
                if shard.leader().is_some_and(|(leader, _)| broker.node().alive(leader)) => {}
            // Nobody answers for these groups now: a list without them would look complete.
            Err(ProposeError::NotLeader { .. }) => {
                return ListGroupsResponse::default().with_error_code(ErrorCode::CoordinatorNotAvailable.code());
            }
            Err(error) => {
                return ListGroupsResponse::default().with_error_code(ErrorCode::of_coordinator(&error).code());
            }
        }
    }
    groups.retain(|group| filter.lets_pass(group));
    groups.sort_unstable_by(|a, b| a.group_id.cmp(&b.group_id));
    answer_list(context.api_version, groups)
}

fn answer_list(version: i16, groups: Vec<GroupListing>) -> ListGroupsResponse {
    let groups = groups.into_iter().map(|group| {
        let mut listed = ListedGroup::default()
            .with_group_id(GroupId(group.group_id.into()))
            .with_protocol_type(group.protocol_type.into());
        if version >= 4 {
            listed.group_state = StrBytes::from_static_str(state_name(group.state));
        }
        if version >= 5 {
            listed.group_type = StrBytes::from_static_str(type_name(group.group_type));
        }
        listed
    });
    ListGroupsResponse::default().with_groups(groups.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use lockstep_core::view::MemberView;
    use lockstep_wire::frame::encode_response;

    fn listing(group_type: GroupType, state: GroupState) -> GroupListing {
        GroupListing { group_id: "g".to_owned(), group_type, state, protocol_type: "consumer".to_owned(), members: 1 }
    }

    fn view(state: GroupState) -> GroupView {
        let member = MemberView {
            member_id: "m".to_owned(),
            instance_id: Some("i".to_owned()),
            rack_id: None,
            client_id: "c".to_owned(),
            client_host: "/127.0.0.1".to_owned(),
            member_epoch: 3,
            subscribed_topic_names: Vec::new(),
            subscribed_topic_regex: String::new(),
            assigned: Vec::new(),
            revoking: Vec::new(),
            target: Vec::new(),
            classic_metadata: vec![1],
            classic_assignment: vec![2],
            speaks_classic: true,
        };
        GroupView {
            group_id: "g".to_owned(),
            group_type: GroupType::Classic,
            state,
            epoch: 3,
            assignment_epoch: 3,
            protocol_type: "consumer".to_owned(),
            protocol_name: "range".to_owned(),
            leader: Some("m".to_owned()),
            members: vec![member],
        }
    }

    #[test]
    fn filters_know_no_case_and_unknown_names_match_nothing() {
        let lets_pass = |states: &[&'static str], types: &[&'static str]| {
            let names = |names: &[&'static str]| names.iter().map(|name| StrBytes::from_static_str(name)).collect();
            Filter { states: names(states), types: names(types) }
                .lets_pass(&listing(GroupType::Consumer, GroupState::Reconciling))
        };
        for (states, types, expected) in [
            (&[][..], &[][..], true),
            (&["stable", "RECONCILING"], &[], true),
            (&["Stable"], &[], false),
            (&["Nonsense"], &[], false),
            (&[], &["Consumer"], true),
            (&[], &["classic"], false),
            (&["Reconciling"], &["classic"], false),
        ] {
            assert_eq!(lets_pass(states, types), expected, "{states:?} {types:?}");
        }
    }

    #[test]
    fn a_missing_group_is_dead_and_an_error_from_version_6_on() {
        for version in 0..=6 {
            let group = dead(version, "There is no such group.");
            assert_eq!(group.group_state.as_str(), "Dead");
            assert_eq!(group.error_code, if version >= 6 { 69 } else { 0 });
        }
    }

    #[test]
    fn between_generations_a_group_has_no_protocol() {
        assert_eq!(answer_describe(5, view(GroupState::Stable)).protocol_data.as_str(), "range");
        assert_eq!(answer_describe(5, view(GroupState::PreparingRebalance)).protocol_data.as_str(), "");
    }

    #[test]
    fn responses_encode_in_every_version() {
        let refused = Refused::from(ErrorCode::NotCoordinator);
        for version in 0..=6 {
            let groups = vec![
                answer_describe(version, view(GroupState::Stable)),
                dead(version, "gone"),
                answer_refused(version, &refused),
            ];
            let response = DescribeGroupsResponse::default().with_groups(groups);
            encode_response(version, 1, &response.into()).unwrap_or_else(|error| panic!("{version}: {error}"));
        }
        for version in 0..=5 {
            let response = answer_list(version, vec![listing(GroupType::Classic, GroupState::Empty)]);
            encode_response(version, 1, &response.into()).unwrap_or_else(|error| panic!("{version}: {error}"));
        }
    }
}
