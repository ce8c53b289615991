//! Segments that are damaged on the disk of a broker that runs: nobody is given a wrong record, and every file is whole again.

use std::time::Duration;

use lockstep_client::{
    Admin, Client, ClientConfig, Consumer, FetchConfig, NewTopic, OffsetAt, Producer, ProducerConfig, ProducerRecord,
    StartAt,
};
use lockstep_env::{Env, Step};
use lockstep_probe::Mark;
use sim::choices::Case;
use sim::cluster::{Cluster, ClusterOptions, Death};
use sim::env::SimEnv;
use sim::env::disk::DiskOptions;
use sim::env::net::LinkOptions;
use sim::faults::{Fault, Planned};
use sim::{scenario, simulate, timeline};

/// Runs, each with the clients of its seed.
const SEEDS: u64 = 8;

/// A run in which hardly anything else goes wrong.
fn case(seed: u64) -> Case {
    let mut case = Case::of_seed(seed);
    let place = |step: Step| Step::ALL.iter().position(|it| *it == step).unwrap_or_default();
    let damage =
        |at_ms, node, restarts| Planned { at_ms, fault: Fault::DamagedSegment { node, restarts }, lasts_ms: 0 };
    let crash = |at_ms, step, death| {
        let fault = Fault::CrashAt { step: place(step), nth: 1, death };
        Planned { at_ms, fault, lasts_ms: 1_500 }
    };
    let first = 1 + seed % 3;
    let mut faults: Vec<Planned> = (0..14)
        .map(|number| {
            let node = 1 + (first + number) % 3;
            damage(1_500 + 400 * number, node, (seed + number).is_multiple_of(4))
        })
        .collect();
    let death = if seed.is_multiple_of(2) { Death::Power } else { Death::Process };
    faults.push(crash(2_500, Step::SegmentRepairStaged, death));
    faults.push(crash(4_500, Step::SegmentPieceFetched, death));
    faults.sort_by_key(|planned| planned.at_ms);
    case.choices.faults = faults;
    case.choices.gone = None;
    case
}

#[test]
fn damaged_segments_are_repaired_while_clients_go_on() {
    for seed in 0..SEEDS {
        let outcome = scenario::run(&case(seed));
        if let Some(verdict) = &outcome.verdict {
            panic!("seed {seed}: {verdict}\n{}", timeline::short(&outcome));
        }
    }
    for mark in [Mark::SegmentDamageFound, Mark::SegmentRepaired] {
        assert!(mark.count() >= SEEDS, "{mark:?}: {}", mark.count());
    }
    let counts = [Mark::SegmentRepairedByReader, Mark::RepairAskedNextPeer, Mark::DamageToldToPeer].map(Mark::count);
    println!("found {}, repaired {}, {counts:?}", Mark::SegmentDamageFound.count(), Mark::SegmentRepaired.count());
}

const TOPIC: &str = "records";
const RECORDS: usize = 400;
const PATIENCE: Duration = Duration::from_secs(60);

fn value(number: usize) -> String {
    format!("{number:05}").repeat(100)
}

/// Reads the topic from its start: every record, as it was written.
async fn read_all(client: &Client<SimEnv>) {
    let consumer = Consumer::new(client, FetchConfig::default());
    consumer.assign_topic(TOPIC, StartAt::Place(OffsetAt::Earliest)).await.expect("assigned");
    let deadline = SimEnv::now() + PATIENCE;
    let mut read = Vec::new();
    while read.len() < RECORDS {
        assert!(SimEnv::now() < deadline, "only {} records can be read", read.len());
        for message in consumer.poll(1_000, Duration::from_secs(1)).await.expect("polled") {
            read.push(String::from_utf8(message.value.unwrap_or_default().to_vec()).expect("text"));
        }
    }
    assert!((0..RECORDS).map(value).eq(read), "records are missing, twice there or wrong");
}

#[test]
fn who_reads_a_damaged_segment_gets_the_right_records_once_it_is_repaired() {
    for seed in 0..6 {
        simulate(seed, move || async move {
            // Nothing but reads finds damage here, and nothing is read from memory.
            let options =
                ClusterOptions { scrub_interval: Duration::ZERO, cache_bytes: 0, ..ClusterOptions::default() };
            let cluster = Cluster::new(options, LinkOptions::default(), DiskOptions::default());
            for id in cluster.ids() {
                cluster.start(id);
            }
            assert!(cluster.wait_until(PATIENCE, Cluster::all_led).await, "no leaders");
            let (env, _) = cluster.client("test");
            let config = ClientConfig { brokers: cluster.addresses(), ..ClientConfig::default() };
            let client = Client::connect(env, config).await.expect("connected");
            Admin::new(&client).create_topic(&NewTopic::new(TOPIC, 1)).await.expect("created");
            let producer = Producer::new(&client, ProducerConfig::default()).expect("a producer");
            for number in 0..RECORDS {
                let record = ProducerRecord::new(TOPIC, value(number)).with_partition(0);
                producer.send(&record).await.expect("sent").await.expect("stored");
            }
            // Broker 3 has a good copy of everything; followers are not read from, so theirs may stay damaged.
            for id in [1, 2] {
                let damaged = |cluster: &Cluster| cluster.damage_segment(id, None);
                assert!(cluster.wait_until(PATIENCE, damaged).await, "there are no closed segments");
            }
            read_all(&client).await;
            for id in [1, 2] {
                assert!(cluster.damage_segment(id, None));
            }
            read_all(&client).await;
            cluster.end().await;
        })
        .unwrap();
    }
    assert!(Mark::SegmentRepairedByReader.count() > 0);
}
