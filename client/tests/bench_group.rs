//! `lockstep bench group` against brokers that do not make it easy.

mod fake;

use std::collections::VecDeque;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fake::{FakeBroker, Reaction, TOPIC, TOPIC_ID, coordinator, metadata, two_brokers};
use lockstep_client::ErrorCode;
use lockstep_env::timeout;
use lockstep_env::tokio_env::TokioEnv;
use lockstep_wire::Request;
use lockstep_wire::codec::consumer_group_heartbeat_response::{Assignment, TopicPartitions};
use lockstep_wire::codec::delete_groups_response::DeletableGroupResult;
use lockstep_wire::codec::{ConsumerGroupHeartbeatRequest, ConsumerGroupHeartbeatResponse, DeleteGroupsResponse};

const PARTITIONS: i32 = 4;
/// A measurement waits for the disk more than a thousand times.
const PATIENCE: Duration = Duration::from_secs(300);

/// What the next heartbeat meets.
enum Next {
    Refused(ErrorCode),
    /// It is taken, and its answer lost.
    Lost,
    Taken,
    Assigned,
}

struct State {
    ports: Vec<i32>,
    coordinator: i32,
    next: VecDeque<Next>,
    heartbeats: Vec<ConsumerGroupHeartbeatRequest>,
}

fn react(state: &mut State, broker: i32, request: Request) -> Reaction {
    match request {
        Request::Metadata(_) => metadata(&state.ports, &[(1, 1); PARTITIONS as usize]).into(),
        Request::FindCoordinator(request) => coordinator(&state.ports, state.coordinator, &request).into(),
        Request::ConsumerGroupHeartbeat(request) => {
            let mut response = ConsumerGroupHeartbeatResponse::default();
            response.heartbeat_interval_ms = 10;
            response.member_epoch = if request.member_epoch < 0 { request.member_epoch } else { 1 };
            if broker != state.coordinator {
                response.error_code = ErrorCode::NotCoordinator.code();
                return response.into();
            }
            state.heartbeats.push(request);
            match state.next.pop_front().unwrap_or(Next::Taken) {
                Next::Refused(error) => response.error_code = error.code(),
                Next::Lost => {
                    // Whoever is asked next is another one.
                    state.coordinator = 2;
                    return Reaction::Close;
                }
                Next::Taken => {}
                Next::Assigned => {
                    let mut topic = TopicPartitions::default();
                    topic.topic_id = TOPIC_ID;
                    topic.partitions = (0..PARTITIONS).collect();
                    let mut assignment = Assignment::default();
                    assignment.topic_partitions.push(topic);
                    response.assignment = Some(assignment);
                }
            }
            response.into()
        }
        Request::DeleteGroups(request) => {
            let mut result = DeletableGroupResult::default();
            result.group_id = request.groups_names[0].clone();
            let mut response = DeleteGroupsResponse::default();
            response.results.push(result);
            response.into()
        }
        other => panic!("nobody asked for {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn joins_are_measured_while_the_coordinator_loads_moves_and_loses_answers() {
    let next = VecDeque::from([
        Next::Refused(ErrorCode::CoordinatorLoadInProgress),
        Next::Taken,
        Next::Lost,
        Next::Refused(ErrorCode::CoordinatorNotAvailable),
        Next::Assigned,
        // The farewell.
        Next::Refused(ErrorCode::CoordinatorLoadInProgress),
        Next::Taken,
    ]);
    let shared = Arc::new(Mutex::new(State { ports: Vec::new(), coordinator: 1, next, heartbeats: Vec::new() }));
    let brokers = two_brokers(&shared, react).await;
    shared.lock().expect("no panic").ports = brokers.iter().map(FakeBroker::port).collect();

    let mut command = Command::new(env!("CARGO_BIN_EXE_lockstep"));
    command.args(["--brokers", &brokers[0].address, "bench", "group", "join", "--rounds", "1", "--topic", TOPIC]);
    command.args(["--partitions", &PARTITIONS.to_string(), "--json", "--floor-dir", env!("CARGO_TARGET_TMPDIR")]);
    let running = tokio::task::spawn_blocking(move || command.output().expect("lockstep can be started"));
    let output = timeout::<TokioEnv, _>(PATIENCE, running).await.expect("it ends").expect("no panic");
    let (told, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{error}");
    let report: serde_json::Value = serde_json::from_str(&told).expect("JSON");
    // While the coordinator loaded, nothing was asked of it.
    assert_eq!((&report["rounds"], &report["heartbeats_worst"]), (&1.into(), &4.into()), "{report}");

    let heartbeats = std::mem::take(&mut shared.lock().expect("no panic").heartbeats);
    let epochs: Vec<i32> = heartbeats.iter().map(|heartbeat| heartbeat.member_epoch).collect();
    assert_eq!(epochs, [0, 0, 1, 1, 1, -1, -1], "it joins once, and says farewell until that is heard");
    let is_full: Vec<bool> = heartbeats[..5].iter().map(|beat| beat.subscribed_topic_names.is_some()).collect();
    assert_eq!(is_full, [true, true, false, true, true], "what may not have been heard is said again");
}
