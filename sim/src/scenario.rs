//! One run: a cluster and its clients while faults happen, then without faults until everything has come to rest, then the checks.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use checker::{Broken, Event, Header, History, check_all};
use lockstep_env::{Env, Task};
use lockstep_runtime::Durability;

use crate::choices::{Case, Choices, Deletion};
use crate::clients::Clients;
use crate::cluster::{Cluster, ClusterOptions};
use crate::convergence::{self, Counted, within};
use crate::env::SimEnv;
use crate::env::disk::DiskOptions;
use crate::env::net::LinkOptions;
use crate::env::trace::{Event as TraceEvent, Trace};
use crate::faults::{self, Victims};
use crate::inspector::Inspector;
use crate::workload::{GROUP, TOPIC, admin};

/// What a run gives.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What was run.
    pub case: Case,
    /// What the clients saw, and what the cluster held in the end.
    pub history: History,
    /// Number and hash of all events of the world.
    pub fingerprint: (u64, u64),
    /// The last events.
    pub timeline: Vec<TraceEvent>,
    /// How many faults happened.
    pub faults: u64,
    /// How long it took in simulated time.
    pub simulated: Duration,
    /// Which promise was broken; `None`: none.
    pub verdict: Option<String>,
}

/// What is known of a run so far: all that is left of one that panics.
struct Seen {
    trace: Trace,
    history: History,
    faults: u64,
}

type Witness = Arc<Mutex<Option<Seen>>>;

/// Runs a case. A panic of the code under test is a broken promise too.
#[must_use]
pub fn run(case: &Case) -> Outcome {
    let witness = Witness::default();
    let (seed, choices, seen) = (case.seed, case.choices.clone(), witness.clone());
    let verdict = match crate::simulate(case.seed, move || drive(seed, choices, seen)) {
        Ok(verdict) => verdict,
        Err(panic) => Some(format!("a panic: {panic}")),
    };
    let seen = witness.lock().unwrap_or_else(PoisonError::into_inner).take();
    let (trace, history, faults) = match seen {
        Some(Seen { trace, history, faults }) => (Some(trace), history, faults),
        None => (None, History::new(Header::default()), 0),
    };
    let timeline = trace.as_ref().map(Trace::events).unwrap_or_default();
    Outcome {
        case: case.clone(),
        history,
        fingerprint: trace.as_ref().map(Trace::fingerprint).unwrap_or_default(),
        faults,
        simulated: timeline.last().map_or(Duration::ZERO, |event| event.at),
        timeline,
        verdict,
    }
}

async fn drive(seed: u64, choices: Choices, witness: Witness) -> Option<String> {
    let options = ClusterOptions {
        nodes: choices.nodes,
        shards: choices.shards,
        scrub_interval: choices.scrub_interval(),
        compaction_check_interval: choices.compaction_check_interval(),
        timing: choices.timing,
        durability: if choices.acknowledges_from_memory { Durability::Replicated } else { Durability::Fsync },
        ..ClusterOptions::default()
    };
    let cluster = Cluster::new(options, LinkOptions::default(), DiskOptions::default());
    let history = History::new(Header { seed: Some(seed), ..Header::default() });
    *witness.lock().unwrap_or_else(PoisonError::into_inner) =
        Some(Seen { trace: cluster.trace().clone(), history: history.clone(), faults: 0 });
    let inspector = Inspector::default();
    let watching = SimEnv::spawn(inspector.clone().watch(cluster.clone()));
    let played = play(&cluster, &choices, &history, &inspector, &witness).await;
    watching.abort();
    // What was seen inside comes first: what clients see follows from it.
    let verdict = inspector.verdict().and(played).err();
    let last = verdict.clone().unwrap_or_else(|| "all checks hold".to_owned());
    cluster.trace().event("verdict", last);
    cluster.end().await;
    verdict
}

async fn play(
    cluster: &Cluster,
    choices: &Choices,
    history: &History,
    inspector: &Inspector,
    witness: &Witness,
) -> Result<(), String> {
    for id in cluster.ids() {
        cluster.start(id);
    }
    convergence::led(cluster).await?;
    let mut clients = Clients::start(cluster, choices, history).await?;

    // Safety: whatever goes wrong, no promise is broken.
    let begun = SimEnv::now();
    let victims = Victims::new(cluster.clone(), clients.machines.clone(), inspector.clone());
    let happened = faults::play(&victims, &choices.faults).await;
    if let Some(seen) = &mut *witness.lock().unwrap_or_else(PoisonError::into_inner) {
        seen.faults = happened;
    }
    SimEnv::sleep_until(begun + Duration::from_millis(choices.safety_ms)).await;
    within("clients get on", convergence::busy(history, choices.operations_least, Counted::Done)).await?;
    if let Some(node) = choices.gone {
        faults::leave_dead(cluster, node).await;
    }
    cluster.trace().event("faults", "no more");

    // Liveness: nothing goes wrong any more, and everything comes to rest.
    clients.calm();
    let counted = if choices.deletion == Deletion::Never { Counted::Due } else { Counted::Done };
    let enough = convergence::busy(history, choices.operations_in_all, counted);
    within("clients get on after the faults", enough).await?;
    within("producers know the outcome of every record", clients.written()).await?;
    if let Some(error) = cluster.ids().into_iter().find_map(|id| cluster.start_error(id)) {
        return Err(format!("a broker does not start again: {error}"));
    }
    convergence::led(cluster).await?;
    convergence::voting(cluster).await?;
    convergence::whole(cluster).await?;
    if matches!(choices.deletion, Deletion::BySize | Deletion::ByAge) || choices.deletion.is_compaction() {
        let addresses = cluster.addresses();
        let kept = admin::keep_all(&clients.client, &addresses, TOPIC);
        within("the topic is told to keep its records", kept).await?;
    }
    let stored = within("everything can be read", convergence::read_all(&clients.client, choices.deletion)).await??;
    let done = convergence::group_done(cluster, &clients.client, &stored, clients.members);
    within("the group is stable and has read everything", done).await??;
    let committed = convergence::committed(&clients.client, &stored);
    let committed = within("the committed offsets can be read", committed).await??;
    within("the clients end", clients.end()).await?;
    let settled = if choices.deletion.is_compaction() { Deletion::Compaction } else { Deletion::Never };
    // A record that nobody waits for (`acks=0`) may have been stored, and read by a member, after the rest. Nothing is deleted any more.
    let stored = within("everything can be read again", convergence::read_all(&clients.client, settled)).await??;
    let at_us = cluster.trace().now_us();
    for (partition, log) in &stored {
        history.add_final_records(at_us, "end", partition, (log.start, log.end), &log.records);
        let (group, offset) = (GROUP.to_owned(), committed.get(partition).copied());
        history.add(at_us, "end", Event::FinalCommitted { group, partition: partition.clone(), offset });
    }
    convergence::replicas(cluster, history).await?;
    inspector.record_coordinators(cluster, history);
    check_all(&history.records()).map(|_| ()).map_err(|broken| broken_text(cluster, history, &broken))
}

/// Puts the records that show a violation into the timeline.
fn broken_text(cluster: &Cluster, history: &History, broken: &Broken) -> String {
    history.with_records(|records| {
        for record in broken.records.iter().filter_map(|index| records.get(*index)) {
            cluster.trace().event_at(Duration::from_micros(record.at_us), &record.lane, format!("{:?}", record.event));
        }
    });
    broken.to_string()
}
