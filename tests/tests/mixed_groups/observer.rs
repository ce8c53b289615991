//! A group as it is described over the wire, again and again while things happen to it.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lockstep_client::{Admin, Client, GroupDescription, TopicPartition};
use lockstep_env::Env;
use lockstep_env::tokio_env::{TokioEnv, TokioTask};
use tests::{PATIENCE, pause, within};

use crate::record::GroupRecord;

const PAUSE_BETWEEN_LOOKS: Duration = Duration::from_millis(100);

#[derive(Debug, Default)]
struct Seen {
    descriptions: usize,
    /// Types of the group, each change once.
    types: Vec<String>,
    violations: Vec<String>,
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
    /// A partition was described as two members' at one time.
    pub(crate) async fn finish(self) -> Vec<String> {
        self.is_over.store(true, Ordering::Relaxed);
        within("the observer stops", PATIENCE, self.task).await.expect("the observer runs to its end");
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        assert!(seen.violations.is_empty(), "{}", seen.violations.join("\n"));
        assert!(seen.descriptions > 0, "the group was never described");
        println!("described {} times", seen.descriptions);
        seen.types.clone()
    }
}

async fn watch(admin: Admin, record: Arc<GroupRecord>, seen: Arc<Mutex<Seen>>, is_over: Arc<AtomicBool>) {
    let mut shown = String::new();
    while !is_over.load(Ordering::Relaxed) {
        match admin.describe_group(record.group()).await {
            Ok(description) => {
                let summary = summary(&description);
                let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
                seen.descriptions += 1;
                if seen.types.last() != Some(&description.group_type) {
                    seen.types.push(description.group_type.clone());
                }
                for (what, list) in [("assignment", assigned(&description)), ("target", targets(&description))] {
                    let mut once = BTreeSet::new();
                    let twice: Vec<_> = list.iter().filter(|at| !once.insert(*at)).collect();
                    if !twice.is_empty() {
                        seen.violations.push(format!("two members have {twice:?} in their {what}: {summary}"));
                    }
                }
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

fn assigned(description: &GroupDescription) -> Vec<&TopicPartition> {
    description.members.iter().flat_map(|member| &member.assignment).collect()
}

fn targets(description: &GroupDescription) -> Vec<&TopicPartition> {
    description.members.iter().flat_map(|member| &member.target).collect()
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
