//! A group as it is described over the wire, again and again while things happen to it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use checker::{Event, GroupObserved, GroupProtocol, MemberObserved, Partition};
use lockstep_client::{Admin, Client, GroupDescription, TopicPartition};
use lockstep_env::Env;
use lockstep_env::tokio_env::{TokioEnv, TokioTask};
use tests::{PATIENCE, pause, within};

use crate::record::GroupRecord;
use crate::scene::{PARTITIONS, TOPIC};

const PAUSE_BETWEEN_LOOKS: Duration = Duration::from_millis(100);

#[derive(Debug, Default)]
struct Seen {
    descriptions: usize,
    /// Types of the group, each change once.
    types: Vec<String>,
}

/// Describes a group all the time.
pub(crate) struct Observer {
    seen: Arc<Mutex<Seen>>,
    is_over: Arc<AtomicBool>,
    task: TokioTask<()>,
}

impl Observer {
    pub(crate) fn start(client: &Client, record: &Arc<GroupRecord>) -> Self {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let is_over = Arc::new(AtomicBool::new(false));
        let look = watch(Admin::new(client), Arc::clone(record), Arc::clone(&seen), Arc::clone(&is_over));
        Self { seen, is_over, task: TokioEnv::spawn(look) }
    }

    /// The type that the group was described with last.
    pub(crate) fn last_type(&self) -> Option<String> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).types.last().cloned()
    }

    /// Stops; gives the types that the group had, in order.
    ///
    /// # Panics
    /// The group was never described.
    pub(crate) async fn finish(self) -> Vec<String> {
        self.is_over.store(true, Ordering::Relaxed);
        within("the observer stops", PATIENCE, self.task).await.expect("the observer runs to its end");
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        assert!(seen.descriptions > 0, "the group was never described");
        println!("described {} times", seen.descriptions);
        seen.types.clone()
    }
}

async fn watch(admin: Admin, record: Arc<GroupRecord>, seen: Arc<Mutex<Seen>>, is_over: Arc<AtomicBool>) {
    let mut shown = String::new();
    while !is_over.load(Ordering::Relaxed) {
        let started_at_us = record.lane().now_us();
        match admin.describe_group(record.group()).await {
            Ok(description) => {
                let summary = summary(&description);
                let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
                seen.descriptions += 1;
                if seen.types.last() != Some(&description.group_type) {
                    seen.types.push(description.group_type.clone());
                }
                drop(seen);
                record.lane().add(observed(&description, started_at_us));
                if shown != summary {
                    record.note("observer", summary.clone());
                    shown = summary;
                }
            }
            Err(error) => record.note("observer", format!("cannot describe: {error}")),
        }
        pause(PAUSE_BETWEEN_LOOKS).await;
    }
}

fn observed(description: &GroupDescription, started_at_us: u64) -> Event {
    let list = |partitions: &[TopicPartition]| -> Vec<Partition> {
        partitions.iter().map(|at| Partition::new(&*at.topic, at.partition)).collect()
    };
    let members = description.members.iter().map(|member| MemberObserved {
        id: member.member_id.clone(),
        epoch: member.epoch,
        owned: list(&member.assignment),
        target: list(&member.target),
    });
    Event::GroupObserved(GroupObserved {
        node: None,
        group: description.group_id.clone(),
        started_at_us: Some(started_at_us),
        index: None,
        protocol: if description.group_type == "classic" { GroupProtocol::Classic } else { GroupProtocol::Consumer },
        state: description.state.clone(),
        epoch: description.epoch,
        assignment_epoch: None,
        members: members.collect(),
        subscribed: (0..PARTITIONS).map(|index| Partition::new(TOPIC, index)).collect(),
    })
}

fn summary(description: &GroupDescription) -> String {
    let numbers = |list: &[TopicPartition]| list.iter().map(|at| at.partition).collect::<Vec<_>>();
    let members: Vec<String> = description
        .members
        .iter()
        .map(|member| {
            let (id, epoch) = (&member.member_id, member.epoch);
            let client = &member.client_id;
            format!("{client} {id} {epoch:?} has {:?} of {:?}", numbers(&member.assignment), numbers(&member.target))
        })
        .collect();
    let (group_type, state, epoch) = (&description.group_type, &description.state, description.epoch);
    format!("{group_type} {state} {epoch:?} {members:#?}")
}
