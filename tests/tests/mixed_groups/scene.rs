//! A cluster, a topic, a producer that never stops, and groups that read.

use std::collections::BTreeSet;
use std::sync::Arc;

use lockstep_client::{Admin, Client, GroupDescription, NewTopic};
use serde_json::Value;
use tests::{Cluster, Load, PATIENCE, Recorder, wait_until};

use crate::member::{Kind, Member, SESSION_TIMEOUT};
use crate::observer::Observer;
use crate::record::{GroupRecord, ShownOnPanic};

/// What everybody reads.
pub(crate) const TOPIC: &str = "ledger";
/// In how many partitions.
pub(crate) const PARTITIONS: i32 = 6;
/// Messages that make a step of progress.
const SOME: usize = 300;

/// What is told of a group now. On the heap: without optimisation a test's nested futures would take the whole stack.
async fn described(client: &Client, group: &str) -> Option<GroupDescription> {
    Box::pin(Admin::new(client).describe_group(group)).await.ok()
}

/// A group with those members that have not left.
pub(crate) struct Group {
    pub(crate) record: Arc<GroupRecord>,
    pub(crate) members: Vec<Member>,
    observer: Observer,
    recorder: Arc<Recorder>,
    started: usize,
}

impl Group {
    /// Starts another member; it joins by itself.
    pub(crate) async fn enter(&mut self, cluster: &Cluster, kind: Kind) {
        self.started += 1;
        let what = match kind {
            Kind::Classic(_) => "classic",
            Kind::Consumer => "consumer",
            Kind::Ours => "ours",
        };
        let name = format!("{}-{what}", self.started);
        self.members.push(Member::start(&self.recorder, cluster, &self.record, &name, kind).await);
    }

    /// Lets a member leave.
    pub(crate) async fn leave(&mut self, index: usize) {
        let member = self.members.remove(index);
        self.record.note(&member.name, "is to leave");
        member.close().await;
    }

    /// Waits until the members share all partitions, and each has one.
    ///
    /// # Panics
    /// They do not within a minute.
    pub(crate) async fn wait_shared(&self) {
        let names: BTreeSet<&str> = self.members.iter().map(|member| member.name.as_str()).collect();
        wait_until(&format!("{names:?} share the partitions of {}", self.record.group()), PATIENCE, || async {
            let owners = self.record.owners();
            let owned: usize = owners.values().map(BTreeSet::len).sum();
            (owners.keys().map(String::as_str).eq(names.iter().copied()) && owned == PARTITIONS as usize).then_some(())
        })
        .await;
    }

    /// Waits until, besides, the group is stable and every member was told its epoch. A classic member that was not would drop its partitions
    /// if the group were downgraded then, as with Kafka: the generation would not be the one that it knows.
    ///
    /// # Panics
    /// As [`Group::wait_shared`].
    pub(crate) async fn wait_settled(&self, client: &Client) {
        self.wait_shared().await;
        let name = self.record.group();
        wait_until(&format!("{name} is stable with {} members", self.members.len()), PATIENCE, || async {
            let described = described(client, name).await?;
            let all_told = described.members.iter().all(|member| member.epoch == described.epoch);
            (described.state == "Stable" && all_told && described.members.len() == self.members.len()).then_some(())
        })
        .await;
    }

    /// Waits until the group is said to be of this type by both requests that tell it, and the observer has seen it: it would miss what is
    /// over before it looks again.
    ///
    /// # Panics
    /// It is not within a minute.
    pub(crate) async fn wait_type(&self, client: &Client, group_type: &str) {
        let admin = Admin::new(client);
        let name = self.record.group();
        wait_until(&format!("{name} is described and listed as {group_type}"), PATIENCE, || async {
            let described = described(client, name).await?;
            let listed = Box::pin(admin.list_groups()).await.ok()?;
            let listed = listed.into_iter().find(|listed| listed.group_id == name)?;
            let all = [Some(described.group_type), Some(listed.group_type), self.observer.last_type()];
            all.iter().all(|seen| seen.as_deref() == Some(group_type)).then_some(())
        })
        .await;
    }

    /// Waits until the group has read so many messages.
    ///
    /// # Panics
    /// It has not within a minute.
    pub(crate) async fn wait_read(&self, count: usize) {
        wait_until(&format!("{} has read {count} messages", self.record.group()), PATIENCE, || async {
            (self.record.read() >= count).then_some(())
        })
        .await;
    }
}

/// All that a test needs.
pub(crate) struct Scene {
    pub(crate) groups: Vec<Group>,
    load: Load,
    pub(crate) client: Client,
    pub(crate) cluster: Cluster,
    recorder: Arc<Recorder>,
    _shown: ShownOnPanic,
}

impl Scene {
    /// Starts everything; the groups have no members yet. `test` names the history.
    pub(crate) async fn set(test: &str, groups: &[&str]) -> Self {
        let recorder = Arc::new(Recorder::new(env!("CARGO_TARGET_TMPDIR"), test));
        let session_timeout_ms = u64::try_from(SESSION_TIMEOUT.as_millis()).expect("a short time");
        let adapt = |_, config: &mut Value| config["groups"]["session_timeout_ms"] = session_timeout_ms.into();
        let cluster = Box::pin(Cluster::start_with(3, adapt)).await;
        let client = cluster.client().await;
        Admin::new(&client).create_topic(&NewTopic::new(TOPIC, PARTITIONS)).await.expect("created");
        let load = Load::start(&recorder, &client, TOPIC, "load");
        let records: Vec<_> = groups.iter().map(|group| GroupRecord::new(&recorder, group)).collect();
        let groups = records.iter().map(|record| Group {
            record: Arc::clone(record),
            members: Vec::new(),
            observer: Observer::start(&client, record),
            recorder: Arc::clone(&recorder),
            started: 0,
        });
        let groups = groups.collect();
        let shown = ShownOnPanic(recorder.history().clone());
        Self { cluster, client, load, groups, recorder, _shown: shown }
    }

    /// Adds a line to every group's log.
    pub(crate) fn note(&self, text: &str) {
        for group in &self.groups {
            group.record.note("cluster", text);
        }
    }

    /// Some more messages are acknowledged, and every group has read all that was acknowledged by then.
    ///
    /// # Panics
    /// It does not happen within a minute.
    pub(crate) async fn wait_progress(&self) {
        let sent = self.load.acknowledged() + SOME;
        wait_until("messages are acknowledged", PATIENCE, || async {
            (self.load.acknowledged() >= sent).then_some(())
        })
        .await;
        let sent = self.load.acknowledged();
        for group in &self.groups {
            group.wait_read(sent).await;
        }
    }

    /// Ends the load, lets everybody read all and leave, and checks every group, which is of its type of `last_types` when one member is left.
    /// Gives the types that each group had.
    ///
    /// # Panics
    /// A check fails.
    pub(crate) async fn finish(self, last_types: &[&str]) -> Vec<Vec<String>> {
        let Self { cluster, client, load, groups, recorder, _shown } = self;
        let outcome = load.finish().await;
        let sent = outcome.acknowledged;
        println!("{} messages acknowledged, none for {:?} at most", sent.len(), outcome.longest_gap);
        let lane = recorder.lane("end");
        let mut types = Vec::new();
        let group_count = groups.len() as u64;
        for (mut group, last_type) in groups.into_iter().zip(last_types) {
            group.wait_read(sent.len()).await;
            group.wait_settled(&client).await;
            while group.members.len() > 1 {
                group.leave(0).await;
                group.wait_settled(&client).await;
            }
            group.wait_type(&client, last_type).await;
            let Group { record, mut members, observer, .. } = group;
            types.push(observer.finish().await);
            if let Some(last) = members.pop() {
                last.close().await;
            }
            record.check();
            lane.fetch_final_committed(&client, record.group(), TOPIC, PARTITIONS).await;
            let described = described(&client, record.group()).await.expect("described");
            assert_eq!(described.offsets.len(), PARTITIONS as usize, "{:?}", described.offsets);
            assert_eq!(described.lag, Some(0), "all that was read is committed: {:?}", described.offsets);
        }
        Box::pin(lane.read_everything(&client, TOPIC)).await;
        let summary = recorder.check();
        println!("{summary}");
        let (count, partitions) = (sent.len() as u64, PARTITIONS as u64);
        assert_eq!((summary.acknowledged, summary.final_records), (count, count));
        assert_eq!((summary.final_partitions, summary.final_committed), (partitions, group_count * partitions));
        assert_eq!(summary.polled, group_count * count, "every group has read everything once");
        assert_eq!((summary.repeated, summary.lost, summary.overlaps), (0, 0, 0), "no member was ever fenced");
        assert!(summary.committed > 0 && summary.groups_observed > 0, "{summary}");
        Box::pin(cluster.wait_equal_digests()).await;
        types
    }
}
