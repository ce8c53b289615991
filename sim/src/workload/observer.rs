//! Observers: what brokers tell of groups and partitions, whichever is asked.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use checker::{Event, GroupObserved, GroupProtocol, MemberObserved, Partition};
use lockstep_client::{Admin, Client, ClientError, ErrorCode, OffsetAt, TopicPartition};
use lockstep_wire::api::Call;
use lockstep_wire::codec::{
    ConsumerGroupDescribeRequest, DescribeGroupsRequest, consumer_group_describe_response, describe_groups_response,
};

use crate::env::{SimEnv, chance, random_below};

use super::assignor::decode_assignment;
use super::coordinator::{PATIENCE, check, group_id};
use super::{Context, commits, one_of, partition_of, partitions_of, random_between};

/// The last version of DescribeGroups that describes a group that is not there as dead.
const DESCRIBE_VERSION: i16 = 5;

/// What an observer asks for.
#[derive(Clone, Debug)]
pub struct Observer {
    /// Groups.
    pub groups: Vec<String>,
    /// Topics, whose partitions are asked about.
    pub topics: Vec<String>,
    /// Pause between two questions.
    pub pause: Range<Duration>,
}

impl Observer {
    /// An observer with some three questions a second.
    #[must_use]
    pub fn new(groups: Vec<String>, topics: Vec<String>) -> Self {
        Self { groups, topics, pause: Duration::from_millis(150)..Duration::from_millis(500) }
    }
}

/// Asks until told to finish.
pub async fn observe(context: Context, config: Observer) {
    let Some(client) = context.connect().await else { return };
    while !context.finish.is_due() {
        context.pause(random_between(&config.pause)).await;
        let asking = Asking { context: &context, config: &config, client: &client };
        // Whatever fails may succeed elsewhere.
        if let Err(error) = asking.ask().await {
            context.note(format!("is told nothing: {error}"));
        }
    }
}

struct Asking<'a> {
    context: &'a Context,
    config: &'a Observer,
    client: &'a Client<SimEnv>,
}

impl Asking<'_> {
    async fn ask(&self) -> Result<(), ClientError> {
        let Some(group) = one_of(&self.config.groups) else { return self.ends().await };
        match random_below(6) {
            0 | 1 => self.committed(group).await,
            2 => self.classic_group(group).await,
            3 => self.consumer_group(group).await,
            4 => self.account_of(group).await,
            _ => self.ends().await,
        }
    }

    /// Sends a question to the group's coordinator, or to a broker that probably is not.
    async fn question<R: Call>(
        &self,
        group: &str,
        version: i16,
        request: R,
    ) -> Result<(u64, R::Response), ClientError> {
        let address = if chance(250) { self.context.any_broker() } else { self.client.find_coordinator(group).await? };
        let connection = self.client.open_connection(&address).await?;
        let started_at_us = self.context.now_us();
        Ok((started_at_us, connection.send(version, request)?.answer::<SimEnv>(PATIENCE).await?))
    }

    async fn partitions(&self) -> Result<Vec<TopicPartition>, ClientError> {
        let mut partitions = Vec::new();
        for topic in &self.config.topics {
            let info = Admin::new(self.client).describe_topic(topic).await?;
            partitions.extend(info.partitions.iter().map(|info| TopicPartition::new(topic.as_str(), info.index)));
        }
        Ok(partitions)
    }

    async fn committed(&self, group: &str) -> Result<(), ClientError> {
        let partitions = self.partitions().await?;
        let version = 1 + random_below(9) as i16;
        let request = commits::fetch_request(group, version, &partitions);
        let (started_at_us, response) = self.question(group, version, request).await?;
        let offsets = commits::fetched(&response)?;
        commits::record_fetched(self.context, group, &offsets, started_at_us);
        Ok(())
    }

    async fn classic_group(&self, group: &str) -> Result<(), ClientError> {
        let request = DescribeGroupsRequest::default().with_groups(vec![group_id(group)]);
        let (started_at_us, response) = self.question(group, DESCRIBE_VERSION, request).await?;
        for described in response.groups {
            check("DescribeGroups", described.error_code)?;
            // A group of the other protocol is told as a dead one.
            if described.group_state.as_str() == "Dead" {
                continue;
            }
            self.context.record(Event::GroupObserved(GroupObserved {
                node: None,
                group: group.to_owned(),
                started_at_us: Some(started_at_us),
                index: None,
                protocol: GroupProtocol::Classic,
                state: described.group_state.to_string(),
                // The generation is not told.
                epoch: None,
                assignment_epoch: None,
                members: described.members.iter().map(member_of_classic).collect(),
                subscribed: Vec::new(),
            }));
        }
        Ok(())
    }

    async fn consumer_group(&self, group: &str) -> Result<(), ClientError> {
        let request = ConsumerGroupDescribeRequest::default().with_group_ids(vec![group_id(group)]);
        let (started_at_us, response) = self.question(group, 1, request).await?;
        for described in response.groups {
            check("ConsumerGroupDescribe", described.error_code)?;
            self.context.record(Event::GroupObserved(GroupObserved {
                node: None,
                group: group.to_owned(),
                started_at_us: Some(started_at_us),
                index: None,
                protocol: GroupProtocol::Consumer,
                state: described.group_state.to_string(),
                epoch: Some(described.group_epoch),
                assignment_epoch: Some(described.assignment_epoch),
                members: members_of_consumer(&described),
                subscribed: Vec::new(),
            }));
        }
        Ok(())
    }

    /// What became of the group, and how far it is behind.
    async fn account_of(&self, group: &str) -> Result<(), ClientError> {
        let admin = Admin::new(self.client);
        let timeline = admin.explain_group(group).await?;
        let places = timeline.events.windows(2).map(|pair| (&pair[0], &pair[1]));
        for (before, after) in places {
            assert!(before.index <= after.index, "the timeline of {group} goes back: {before:?}, then {after:?}");
            assert!(before.epoch <= after.epoch, "an epoch of {group} goes back: {before:?}, then {after:?}");
        }
        let described = match admin.describe_group(group).await {
            Err(error) if error.code() == Some(ErrorCode::GroupIdNotFound) => return Ok(()),
            described => described?,
        };
        for offset in described.offsets {
            assert!(offset.lag.is_none_or(|lag| lag >= 0), "the lag of {group} in {} is {:?}", offset.at, offset.lag);
        }
        Ok(())
    }

    async fn ends(&self) -> Result<(), ClientError> {
        let partitions = self.partitions().await?;
        let places: BTreeMap<_, _> = partitions.into_iter().map(|at| (at, OffsetAt::Latest)).collect();
        let started_at_us = self.context.now_us();
        for (at, end) in self.client.offsets(&places).await? {
            self.context.record(Event::EndObserved { node: None, partition: partition_of(&at), end, started_at_us });
        }
        Ok(())
    }
}

/// Members that sent something else than an assignment are assigned nothing, as far as is known.
fn member_of_classic(member: &describe_groups_response::DescribedGroupMember) -> MemberObserved {
    let assignment = decode_assignment(member.member_assignment.clone()).unwrap_or_default();
    let assignment = partitions_of(&assignment);
    MemberObserved { id: member.member_id.to_string(), epoch: None, owned: assignment.clone(), target: assignment }
}

fn members_of_consumer(group: &consumer_group_describe_response::DescribedGroup) -> Vec<MemberObserved> {
    let list = |assignment: &consumer_group_describe_response::Assignment| -> Vec<Partition> {
        let topics = assignment.topic_partitions.iter();
        topics
            .flat_map(|topic| topic.partitions.iter().map(|index| Partition::new(topic.topic_name.as_str(), *index)))
            .collect()
    };
    let members = group.members.iter().map(|member| MemberObserved {
        id: member.member_id.to_string(),
        epoch: Some(member.member_epoch),
        owned: list(&member.assignment),
        target: list(&member.target_assignment),
    });
    members.collect()
}
