//! Topics of which each key's last record is kept, as clients see them.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::support::{PATIENCE, TestBroker, TestClient, batch, create_configured, fetch, produce};
use lockstep_env::tokio_env::TokioEnv;
use lockstep_env::{Env, timeout};
use lockstep_wire::batch::Batches;
use lockstep_wire::records::decode_batch;
use lockstep_wire::{BatchBuilder, Compression};

const INVALID_RECORD: i16 = 87;

fn keyed(records: &[(&str, Option<&str>)], compression: Compression) -> bytes::Bytes {
    let mut builder = BatchBuilder::new();
    for (timestamp, (key, value)) in (1_000..).zip(records) {
        builder.push(timestamp, Some(key.as_bytes()), value.map(str::as_bytes), &[]);
    }
    builder.finish(compression, None).expect("batch")
}

/// Offset → key and value, read as a consumer reads: from where the batches before ended.
async fn read(client: &mut TestClient, topic: &str) -> BTreeMap<i64, (String, Option<String>)> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let mut found = BTreeMap::new();
    let mut next = 0;
    loop {
        let response = client.call(11, fetch(topic, 0, next, 0)).await;
        let partition = &response.responses[0].partitions[0];
        assert_eq!(partition.error_code, 0);
        let bytes = partition.records.clone().unwrap_or_default();
        for batch in Batches::new(&bytes) {
            let (range, _) = batch.expect("a sound batch");
            let (header, records) = decode_batch(&bytes.slice(range), 1 << 20).expect("decode");
            next = header.last_offset() + 1;
            for record in records {
                let key = text(record.key.as_deref().unwrap_or_default());
                found.insert(record.offset, (key, record.value.as_deref().map(text)));
            }
        }
        if next >= partition.high_watermark {
            return found;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_record_of_each_key_is_kept_where_the_topic_asks_for_it() {
    let broker = TestBroker::start_with(|config| {
        config.node.compaction_check_interval = Duration::from_millis(10);
        config.node.disk_reserve_bytes = 0;
        config.node.cache_bytes = 0;
    })
    .await;
    let mut client = broker.connect().await;
    let small = [("min.cleanable.dirty.ratio", "0"), ("segment.bytes", "600")];
    create_configured(&mut client, "compacted", &[&[("cleanup.policy", "compact")], &small[..]].concat()).await;
    create_configured(&mut client, "kept", &small).await;
    let compressions = [Compression::None, Compression::Gzip, Compression::Snappy, Compression::Lz4, Compression::Zstd];
    for number in 0..40 {
        let (a, b) = (format!("a{number}"), format!("b{number}"));
        let rare = format!("key {number}");
        let records: &[(&str, Option<&str>)] = if number % 10 == 0 {
            &[("alice", Some(&a)), (&rare, Some("once")), ("bob", Some(&b))]
        } else {
            &[("alice", Some(&a)), ("bob", Some(&b))]
        };
        for topic in ["compacted", "kept"] {
            let records = keyed(records, compressions[number % compressions.len()]);
            let response = client.call(9, produce(topic, 0, -1, records)).await;
            assert_eq!(response.responses[0].partition_responses[0].error_code, 0);
        }
    }
    let all = read(&mut client, "kept").await;
    assert_eq!(all.len(), 84, "nothing is removed unasked");
    // The last segments are not compacted, so a few records of the same key are left there.
    let compacting = async {
        loop {
            let left = read(&mut client, "compacted").await;
            assert!(left.iter().all(|(offset, record)| all[offset] == *record), "what is left is where it was");
            let of = |name: &str| left.values().filter(|(key, _)| key == name).count();
            for rare in ["key 0", "key 10", "key 20", "key 30"] {
                assert_eq!(of(rare), 1, "{rare}");
            }
            if of("alice") <= 6 && of("bob") <= 6 {
                return left;
            }
            TokioEnv::sleep(Duration::from_millis(10)).await;
        }
    };
    let left = timeout::<TokioEnv, _>(PATIENCE, compacting).await.expect("the log is compacted");
    assert_eq!(left.last_key_value(), all.last_key_value());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compacted_topic_takes_no_record_without_a_key() {
    let broker = TestBroker::start().await;
    let mut client = broker.connect().await;
    create_configured(&mut client, "compacted", &[("cleanup.policy", "compact,delete")]).await;
    for version in 3..=12 {
        let response = client.call(version, produce("compacted", 0, -1, batch(&["no key"]))).await;
        let partition = &response.responses[0].partition_responses[0];
        assert_eq!((partition.error_code, partition.base_offset), (INVALID_RECORD, -1), "Produce {version}");
        let message = partition.error_message.as_deref().unwrap_or_default();
        assert_eq!(message.contains("without a key"), version >= 8, "Produce {version}: {message}");
    }
    let records = keyed(&[("a", Some("1")), ("b", None)], Compression::Zstd);
    let response = client.call(9, produce("compacted", 0, -1, records)).await;
    assert_eq!(response.responses[0].partition_responses[0].base_offset, 0);
}
