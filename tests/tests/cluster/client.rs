//! Our own client: producers and members of groups.

use std::time::Duration;

use lockstep_client::{Admin, GroupConsumer, GroupConsumerConfig, GroupEvent, NewTopic, TopicPartition};
use tests::{Cluster, Load, PATIENCE, Readers, Recorder, wait_until, within};

#[tokio::test(flavor = "multi_thread")]
async fn a_member_joins_reads_commits_and_leaves_and_its_successor_goes_on_from_there() {
    let cluster = Cluster::start(3).await;
    let client = cluster.client().await;
    Admin::new(&client).create_topic(&NewTopic::new("orders", 1)).await.expect("created");
    let recorder = Recorder::new(env!("CARGO_TARGET_TMPDIR"), "client-successor");
    let load = Load::start(&recorder, &client, "orders", "a");
    wait_until("twenty messages are there", PATIENCE, || async { (load.acknowledged() >= 20).then_some(()) }).await;
    let sent = load.finish().await.acknowledged;

    let config = |name: &str| GroupConsumerConfig::new("billing", name, vec!["orders".to_owned()]);
    let first = GroupConsumer::new(&client, config("first")).expect("sound");
    first.join_group().await.expect("joined");
    assert!(first.member_epoch() > 0, "a member has an epoch");
    first.start_heartbeat().await.expect("heartbeats");
    let mut messages = first.subscribe().await.expect("subscribed");
    for expected in &sent[..10] {
        let message = within("a message comes", PATIENCE, messages.next()).await.expect("a message");
        assert_eq!(message.value.as_deref(), Some(expected.as_bytes()));
    }
    first.commit_offset("orders", 0, 10).await.expect("committed");
    assert_eq!(first.fetch_committed_offset("orders", 0).await.expect("known"), Some(10));
    let refused = first.commit_offset("orders", 7, 1).await;
    assert!(refused.is_err(), "a partition that it does not have cannot be committed");
    first.leave_group().await.expect("left");

    let group = Admin::new(&client).describe_group("billing").await.expect("described");
    assert_eq!((group.members.len(), group.state.as_str()), (0, "Empty"));

    let second = GroupConsumer::new(&client, config("second")).expect("sound");
    let mut messages = second.subscribe().await.expect("subscribed");
    let message = within("a message comes", PATIENCE, messages.next()).await.expect("a message");
    assert_eq!((message.offset, message.value.as_deref()), (10, Some(sent[10].as_bytes())));
    second.leave_group().await.expect("left");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_member_takes_its_share_and_gives_it_back_when_it_leaves() {
    let cluster = Cluster::start(3).await;
    let client = cluster.client().await;
    Admin::new(&client).create_topic(&NewTopic::new("shared", 4)).await.expect("created");
    let config = |name: &str| GroupConsumerConfig::new("sharing", name, vec!["shared".to_owned()]);
    let first = GroupConsumer::new(&client, config("first")).expect("sound");
    let mut of_first = first.subscribe().await.expect("subscribed");
    let all: Vec<_> = (0..4).map(|index| TopicPartition::new("shared", index)).collect();
    within("the only member gets everything", PATIENCE, async {
        while first.assignment() != all {
            of_first.poll(Duration::from_millis(100)).await.expect("polled");
        }
    })
    .await;

    let other_client = cluster.client().await;
    let second = GroupConsumer::new(&other_client, config("second")).expect("sound");
    let mut of_second = second.subscribe().await.expect("subscribed");
    let mut revoked = Vec::new();
    within("both have two partitions", PATIENCE, async {
        while first.assignment().len() != 2 || second.assignment().len() != 2 {
            let polled = of_first.poll(Duration::from_millis(50)).await.expect("polled");
            revoked.extend(polled.events.into_iter().filter_map(|event| match event {
                GroupEvent::Revoked(partitions) => Some(partitions),
                _ => None,
            }));
            of_second.poll(Duration::from_millis(50)).await.expect("polled");
        }
    })
    .await;
    let mut both = [first.assignment(), second.assignment()].concat();
    both.sort();
    assert_eq!(both, all, "every partition has one reader");
    assert_eq!(revoked.concat(), second.assignment(), "the first was told what it lost");

    second.leave_group().await.expect("left");
    within("the first has everything again", PATIENCE, async {
        while first.assignment() != all {
            of_first.poll(Duration::from_millis(50)).await.expect("polled");
        }
    })
    .await;
    first.leave_group().await.expect("left");
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_produced_is_stored_once_and_every_group_is_given_all_of_it() {
    let cluster = Cluster::start(3).await;
    let client = cluster.client().await;
    Admin::new(&client).create_topic(&NewTopic::new("events", 6)).await.expect("created");
    let recorder = Recorder::new(env!("CARGO_TARGET_TMPDIR"), "client-everything");
    let one = Readers::start(&recorder, &cluster, "one", "events", 2).await;
    let other = Readers::start(&recorder, &cluster, "other", "events", 3).await;
    let loads = ["a", "b"].map(|name| Load::start(&recorder, &client, "events", name));
    wait_until("some load", PATIENCE, || async { loads.iter().all(|load| load.acknowledged() >= 1_000).then_some(()) })
        .await;
    let mut sent = Vec::new();
    for load in loads {
        sent.extend(load.finish().await.acknowledged);
    }
    let lane = recorder.lane("end");
    for (group, readers) in [("one", one), ("other", other)] {
        readers.wait_for(&sent).await;
        readers.finish().await;
        lane.fetch_final_committed(&client, group, "events", 6).await;
    }
    lane.read_everything(&client, "events").await;
    let summary = recorder.check();
    println!("{summary}");
    let count = sent.len() as u64;
    assert_eq!((summary.acknowledged, summary.unknown, summary.final_records), (count, 0, count));
    assert_eq!((summary.final_partitions, summary.final_committed), (6, 2 * 6));
    assert_eq!(summary.polled, 2 * count, "nothing happened that would make a group read twice");
    assert_eq!((summary.repeated, summary.lost, summary.overlaps), (0, 0, 0));
}
