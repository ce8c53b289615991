//! Our own requests about groups: what happened to one, and how far each is behind. Any broker answers, and none with what is past.

use crate::cluster::{Cluster, until};
use crate::groups::{commit, committed, error, group_id};
use crate::groups_consumer::{heartbeat, join};
use crate::support::{TestBroker, TestClient, batch, produce};
use lockstep_env::Env;
use lockstep_env::tokio_env::TokioEnv;
use lockstep_wire::codec::{DeleteGroupsRequest, DeleteTopicsRequest, TopicName};
use lockstep_wire::private::{
    GroupLag, GroupLagRequest, GroupTimeline, GroupTimelineRequest, PartitionLag, TimelineEvent, TimelineEventKind,
};
use lockstep_wire::{BatchBuilder, Compression};

/// The timeline as bytes of JSON, or an error.
async fn timeline_json(client: &mut TestClient, group: &str) -> Result<Vec<u8>, i16> {
    let answer = client.call(0, GroupTimelineRequest { group_id: group.to_owned() }).await;
    assert_eq!(answer.json.is_empty(), answer.error_code != 0);
    if answer.error_code == 0 { Ok(answer.json.to_vec()) } else { Err(answer.error_code) }
}

async fn timeline(client: &mut TestClient, group: &str) -> GroupTimeline {
    serde_json::from_slice(&timeline_json(client, group).await.expect("a timeline")).expect("JSON")
}

async fn lags(client: &mut TestClient, groups: &[&str]) -> Result<Vec<GroupLag>, i16> {
    let groups = groups.iter().map(|group| (*group).to_owned()).collect();
    let answer = client.call(0, GroupLagRequest { groups }).await;
    if answer.error_code == 0 {
        Ok(serde_json::from_slice(&answer.json).expect("JSON"))
    } else {
        Err(answer.error_code)
    }
}

/// The lag of group `g`, which has committed for one partition.
async fn lag(client: &mut TestClient) -> PartitionLag {
    known_lag(client).await.expect("lag")
}

/// The same where it may not be known for a moment.
async fn known_lag(client: &mut TestClient) -> Result<PartitionLag, i16> {
    let lags = lags(client, &["g"]).await?;
    assert_eq!(lags.len(), 1, "{lags:?}");
    if lags[0].error_code != 0 {
        return Err(lags[0].error_code);
    }
    assert_eq!(lags[0].partitions.len(), 1, "{lags:?}");
    Ok(lags[0].partitions[0].clone())
}

/// What is told once the group's shard has a leader: until then it may be said that nothing is known, and nothing else.
async fn told_in_time<T>(what: &str, mut ask: impl AsyncFnMut() -> Result<T, i16>) -> T {
    let mut told = None;
    until(what, async || {
        match ask().await {
            Ok(answer) => told = Some(answer),
            Err(code) => assert_eq!(code, error::COORDINATOR_NOT_AVAILABLE),
        }
        told.is_some()
    })
    .await;
    told.expect("told")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_timeline_tells_who_came_what_moved_and_when_it_was_over() {
    let broker = TestBroker::start().await;
    broker.create_topic("t", 2).await;
    let mut client = broker.connect().await;
    assert_eq!(timeline_json(&mut client, "g").await, Err(error::GROUP_ID_NOT_FOUND));
    assert_eq!(timeline_json(&mut client, "").await, Err(error::GROUP_ID_NOT_FOUND));

    let joined = client.call(1, join("g", "a")).await;
    assert_eq!((joined.error_code, joined.member_epoch), (0, 1));
    until("the member has its partitions", async || timeline(&mut client, "g").await.state == "Stable").await;
    let first = timeline(&mut client, "g").await;
    assert_eq!((first.group_id.as_str(), first.group_type.as_str(), first.epoch), ("g", "consumer", 1));
    assert_eq!(first.rebalance_since_ms, None);
    let [came, assigned, settled] = first.events.as_slice() else { panic!("{first:?}") };
    let TimelineEventKind::Joined { member_id, client_id, client_host, .. } = &came.what else { panic!("{came:?}") };
    assert_eq!((member_id.as_str(), client_id.as_str(), client_host.as_str()), ("a", "test", "/127.0.0.1"));
    assert_eq!((came.epoch_before, came.epoch), (None, 1));
    let TimelineEventKind::Assigned { assignor, moves, omitted: 0 } = &assigned.what else { panic!("{assigned:?}") };
    assert_eq!((assignor.as_str(), moves.len()), ("uniform", 1));
    assert_eq!((moves[0].from.as_deref(), moves[0].to.as_deref()), (None, Some("a")));
    assert_eq!((moves[0].topics[0].topic.as_deref(), &moves[0].topics[0].partitions[..]), (Some("t"), &[0, 1][..]));
    assert!(matches!(settled.what, TimelineEventKind::Settled { after_ms: Some(_) }));
    assert!(first.events.is_sorted_by_key(|event| (event.index, event.at_ms)), "{first:?}");

    assert_eq!(client.call(1, heartbeat("g", "a", -1)).await.error_code, 0);
    let then = timeline(&mut client, "g").await;
    assert_eq!((&then.events[..3], then.state.as_str()), (&first.events[..], "Empty"));
    let Some(TimelineEvent { what: TimelineEventKind::Left { .. }, epoch_before: Some(1), epoch: 2, .. }) =
        then.events.get(3)
    else {
        panic!("{then:?}")
    };

    // A topic that is gone keeps its id.
    let request = DeleteTopicsRequest::default().with_topic_names(vec![TopicName("t".into())]).with_timeout_ms(10_000);
    assert_eq!(client.call(5, request).await.responses[0].error_code, 0);
    let last = timeline(&mut client, "g").await;
    let TimelineEventKind::Assigned { moves: now, .. } = &last.events[1].what else { panic!("{last:?}") };
    assert_eq!((now[0].topics[0].topic.as_deref(), &now[0].topics[0].topic_id), (None, &moves[0].topics[0].topic_id));

    let request = DeleteGroupsRequest::default().with_groups_names(vec![group_id("g")]);
    assert_eq!(client.call(2, request).await.results[0].error_code, 0);
    assert_eq!(timeline_json(&mut client, "g").await, Err(error::GROUP_ID_NOT_FOUND));
}

#[tokio::test(flavor = "multi_thread")]
async fn lag_is_told_in_records_and_in_time() {
    let broker = TestBroker::start().await;
    broker.create_topic("t", 2).await;
    let mut client = broker.connect().await;
    assert_eq!(lags(&mut client, &[]).await, Err(error::INVALID_REQUEST));
    let missing = lags(&mut client, &["nobody", "", "nobody"]).await.expect("lag");
    let errors: Vec<_> = missing.iter().map(|lag| (lag.group_id.as_str(), lag.error_code)).collect();
    assert_eq!(errors, [("nobody", error::GROUP_ID_NOT_FOUND), ("", error::GROUP_ID_NOT_FOUND)]);

    let now_ms = TokioEnv::new().wall_clock_ms();
    let at = |ages_ms: &[i64]| {
        let mut builder = BatchBuilder::new();
        for age_ms in ages_ms {
            builder.push(now_ms - age_ms, None, Some(b"value"), &[]);
        }
        builder.finish(Compression::None, None).expect("batch")
    };
    for batch in [at(&[9_000_000, 8_000_000]), at(&[5_000_000]), at(&[-7_000_000])] {
        let produced = client.call(9, produce("t", 0, -1, batch)).await;
        assert_eq!(produced.responses[0].partition_responses[0].error_code, 0);
    }
    for (offset, records, at_least_ms) in [
        (0, 4, 9_000_000),
        // Amid a batch: the age of its first record.
        (1, 3, 9_000_000),
        (2, 2, 5_000_000),
        // To come: its time has not been waited for.
        (3, 1, 0),
        (4, 0, 0),
        // An administrator may commit anything.
        (99, 0, 0),
    ] {
        assert_eq!(committed(&mut client, 8, commit("g", "", -1, 0, offset)).await, 0);
        let lag = lag(&mut client).await;
        assert_eq!((lag.topic.as_str(), lag.partition, lag.error_code), ("t", 0, 0));
        assert_eq!((lag.committed, lag.start, lag.end, lag.lag), (offset, Some(0), Some(4), Some(records)));
        let lag_ms = lag.lag_ms.expect("a time");
        let room = if at_least_ms == 0 { 0 } else { 600_000 };
        assert!((at_least_ms..=at_least_ms + room).contains(&lag_ms), "at {offset}: {lag_ms} ms");
    }
    let produced = client.call(9, produce("t", 1, -1, batch(&["x"]))).await;
    assert_eq!(produced.responses[0].partition_responses[0].error_code, 0);
    assert_eq!(committed(&mut client, 8, commit("h", "", -1, 1, 0)).await, 0);
    let both = lags(&mut client, &["h", "g"]).await.expect("lag");
    let told: Vec<_> = both.iter().map(|lag| (lag.group_id.as_str(), lag.partitions[0].lag)).collect();
    assert_eq!(told, [("h", Some(1)), ("g", Some(0))]);
    // Commits of those that are no members make even this group.
    assert_eq!(committed(&mut client, 8, commit("", "", -1, 0, 1)).await, 0);
    let nameless = lags(&mut client, &[""]).await.expect("lag");
    assert_eq!((nameless[0].error_code, nameless[0].partitions[0].lag), (0, Some(3)));
    assert_eq!(timeline(&mut client, "").await.group_id, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_broker_tells_the_same_right_after_a_change() {
    let cluster = Cluster::start().await;
    TestBroker::create_topic_at(&mut cluster.connect(1).await, "t", 3).await;
    let mut clients = Vec::new();
    for id in 1..=3 {
        clients.push(cluster.connect(id).await);
    }
    let mut changes: i64 = 0;
    let mut seen = 0;
    while changes < 20 {
        let coordinator = cluster.coordinator(1, "g", &[]).await;
        let mut client = cluster.connect(coordinator).await;
        // A member comes and goes; leadership may move while it is spread over the nodes.
        if client.call(1, join("g", "a")).await.error_code != 0
            || client.call(1, heartbeat("g", "a", -1)).await.error_code != 0
        {
            continue;
        }
        changes += 1;
        let mut told = Vec::new();
        for client in &mut clients {
            told.push(told_in_time("any broker answers", async || timeline_json(client, "g").await).await);
        }
        assert!(told.iter().all(|json| *json == told[0]), "{}", String::from_utf8_lossy(&told.concat()));
        let timeline: GroupTimeline = serde_json::from_slice(&told[0]).expect("JSON");
        assert!(timeline.epoch > seen && timeline.state == "Empty", "stale: {timeline:?}");
        assert!(matches!(timeline.events.last().map(|event| &event.what), Some(TimelineEventKind::Left { .. })));
        seen = timeline.epoch;

        // The same of offsets.
        if committed(&mut client, 8, commit("g", "", -1, 0, changes)).await != 0 {
            continue;
        }
        for client in &mut clients {
            let lag = told_in_time("any broker answers", async || known_lag(client).await).await;
            assert_eq!(lag.committed, changes);
        }
    }
    // Whoever has lost the majority does not tell what it remembers.
    cluster.brokers[&1].shutdown().await;
    cluster.brokers[&2].shutdown().await;
    until("the last broker knows that it is alone", async || {
        let told = timeline_json(&mut clients[2], "g").await;
        assert!(matches!(told, Ok(_) | Err(error::COORDINATOR_NOT_AVAILABLE)), "{told:?}");
        told.is_err()
    })
    .await;
    let lags = lags(&mut clients[2], &["g"]).await.expect("an answer");
    assert_eq!((lags[0].error_code, lags[0].partitions.len()), (error::COORDINATOR_NOT_AVAILABLE, 0));
    cluster.brokers[&3].shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lag_is_never_negative_while_messages_are_written_read_and_committed() {
    const RECORDS: i64 = 60;
    let cluster = Cluster::start().await;
    TestBroker::create_topic_at(&mut cluster.connect(1).await, "t", 1).await;
    let brokers: Vec<String> = cluster.brokers.values().map(|broker| broker.address()).collect();
    let connect =
        async |address: &String| TestClient::new(tokio::net::TcpStream::connect(address).await.expect("connect"));
    let writing = async {
        let mut end = 0;
        while end < RECORDS {
            // Whichever leads takes it; each offset is committed as soon as its record is acknowledged.
            for address in &brokers {
                let mut client = connect(address).await;
                let produced = client.call(9, produce("t", 0, -1, batch(&["x"]))).await;
                let answer = &produced.responses[0].partition_responses[0];
                if answer.error_code == 0 {
                    end = end.max(answer.base_offset + 1);
                }
                let coordinator = cluster.coordinator(1, "g", &[]).await;
                let mut client = cluster.connect(coordinator).await;
                let _ = committed(&mut client, 8, commit("g", "", -1, 0, end)).await;
            }
        }
    };
    let done = std::cell::Cell::new(false);
    let looking = async {
        let mut clients = Vec::new();
        for address in &brokers {
            clients.push(connect(address).await);
        }
        let (mut looks, mut newest) = (0, 0);
        while !done.get() {
            for client in &mut clients {
                for group in lags(client, &["g"]).await.expect("lag") {
                    for lag in group.partitions {
                        let (Some(end), Some(records)) = (lag.end, lag.lag) else { continue };
                        assert!(records >= 0 && lag.committed <= end, "{lag:?}");
                        assert_eq!(records, end - lag.committed, "{lag:?}");
                        assert!(lag.committed >= newest, "an older answer: {lag:?} after {newest}");
                        newest = lag.committed;
                        looks += 1;
                    }
                }
            }
        }
        looks
    };
    let writing = async {
        writing.await;
        done.set(true);
    };
    let (_, looks) = tokio::join!(writing, looking);
    assert!(looks > 10, "{looks} answers");
    for broker in cluster.brokers.values() {
        broker.shutdown().await;
    }
}
