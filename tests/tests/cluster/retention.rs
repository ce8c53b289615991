//! Records that are deleted: disks get room again, on every node alike, and what is left stays as it was through a restart.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tests::cli::stdout_of;
use tests::{Cluster, PATIENCE, wait_until};

const LINES: usize = 8_000;
const SEGMENT_BYTES: u64 = 60_000;
const RETENTION_BYTES: u64 = 120_000;

/// Segments with records, by their path below `directory`.
fn segments(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut left = vec![directory.to_path_buf()];
    while let Some(next) = left.pop() {
        // What is listed may be gone a moment later.
        for entry in fs::read_dir(&next).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                left.push(path);
            } else if path.extension().is_some_and(|extension| extension == "log")
                && let Ok(content) = fs::read(&path)
            {
                found.insert(path.strip_prefix(directory).expect("it lies below").to_path_buf(), content);
            }
        }
    }
    found
}

async fn place(cluster: &Cluster) -> (i64, i64) {
    let described = cluster.lockstep_json(&["topic", "describe", "logs"]).await;
    let partition = &described["partitions"][0];
    let offset = |name: &str| partition[name].as_i64().unwrap_or_else(|| panic!("no {name} in {partition}"));
    (offset("start"), offset("end"))
}

async fn read_all(cluster: &Cluster) -> Vec<String> {
    let format = ["--from-beginning", "--exit-at-end", "--format", "%o %v\\n"];
    let read = stdout_of(&cluster.lockstep(&[&["consume", "logs"], &format[..]].concat(), "").await);
    read.lines().map(str::to_owned).collect()
}

/// Waits until every node has the same segments of at most `bytes_max` bytes.
async fn wait_for_room(cluster: &Cluster, bytes_max: u64) {
    wait_until("disks get room, all of them alike", PATIENCE, || async {
        let of_nodes: Vec<_> = cluster.ids().map(|id| segments(&cluster.data_dir(id))).collect();
        let bytes = |segments: &BTreeMap<PathBuf, Vec<u8>>| segments.values().map(|it| it.len() as u64).sum::<u64>();
        let alike = of_nodes.windows(2).all(|pair| pair[0] == pair[1]);
        (alike && of_nodes.iter().all(|segments| bytes(segments) <= bytes_max)).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_deleted_is_gone_from_all_disks_and_what_is_left_outlives_a_restart() {
    let mut cluster = Cluster::start_with(3, |_, config| {
        config["config"]["retention_check_interval_ms"] = json!(200);
    })
    .await;
    let (segment, retention) = (format!("segment.bytes={SEGMENT_BYTES}"), format!("retention.bytes={RETENTION_BYTES}"));
    let create = ["topic", "create", "logs", "--partitions", "1", "-c", &segment, "-c", &retention];
    stdout_of(&cluster.lockstep(&create, "").await);
    let lines: Vec<String> = (0..LINES).map(|number| format!("line {number} {}", "x".repeat(80))).collect();
    // A batch is never split: what is sent at once must not be larger than a segment.
    for some in lines.chunks(LINES / 20) {
        stdout_of(&cluster.lockstep(&["produce", "logs"], some.join("\n") + "\n").await);
    }

    // Without the oldest segment it would be less than must be kept.
    wait_for_room(&cluster, RETENTION_BYTES + SEGMENT_BYTES).await;
    let (start, end) = place(&cluster).await;
    assert!(start > 0 && start < end && end == LINES as i64, "{start}..{end}");
    let kept = read_all(&cluster).await;
    let expected: Vec<String> = (start..end).map(|offset| format!("{offset} {}", lines[offset as usize])).collect();
    assert!(kept == expected, "{} lines of {start}..{end}", kept.len());

    // More on request, in the middle of a batch.
    let before = (end - 3).to_string();
    let deleted =
        cluster.lockstep_json(&["topic", "delete-records", "logs", "--partition", "0", "--before", &before]).await;
    assert_eq!(deleted, json!([{ "topic": "logs", "partition": 0, "start": end - 3 }]));
    let beyond = cluster.lockstep(&["topic", "delete-records", "logs", "--before", "1000000"], "").await;
    assert_eq!(beyond.status.code(), Some(1));
    let error = String::from_utf8_lossy(&beyond.stderr).into_owned();
    assert!(error.contains("OFFSET_OUT_OF_RANGE"), "{error}");

    for id in cluster.ids() {
        cluster.kill9(id);
    }
    for id in cluster.ids() {
        cluster.restart(id);
    }
    cluster.wait_whole().await;
    assert_eq!(place(&cluster).await, (end - 3, end));
    assert_eq!(read_all(&cluster).await, expected[expected.len() - 3..]);
    stdout_of(&cluster.lockstep(&["topic", "delete-records", "logs", "--before", "end"], "").await);
    wait_for_room(&cluster, 0).await;
    assert_eq!(place(&cluster).await, (end, end));
    assert_eq!(read_all(&cluster).await, Vec::<String>::new());
    stdout_of(&cluster.lockstep(&["produce", "logs"], "again\n").await);
    assert_eq!(read_all(&cluster).await, [format!("{end} again")]);
    cluster.wait_equal_digests().await;
    let described: Value = cluster.lockstep_json(&["topic", "describe", "logs"]).await;
    let configs = described["configs"].as_array().expect("settings");
    assert!(configs.iter().any(|config| config["name"] == "retention.bytes" && config["value"] == "120000"));
}
