//! Records that have changed on the disk.

use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::support::{PATIENCE, TestBroker, batch, fetch, produce, values};
use lockstep_env::tokio_env::TokioEnv;
use lockstep_env::{Env, timeout};

const KAFKA_STORAGE_ERROR: i16 = 56;

/// The segment files below a directory.
fn segments(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
    let (directories, files): (Vec<_>, Vec<_>) = entries.partition(|path| path.is_dir());
    let here = files.into_iter().filter(|path| path.extension().is_some_and(|extension| extension == "log"));
    here.chain(directories.iter().flat_map(|directory| segments(directory))).collect()
}

/// Changes one byte of a file that the broker has open.
fn set_byte(path: &Path, at: usize, byte: u8) {
    let mut file = std::fs::OpenOptions::new().write(true).open(path).expect("opened");
    file.seek(SeekFrom::Start(at as u64)).expect("sought");
    file.write_all(&[byte]).expect("written");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_damaged_is_served_and_clients_are_told_to_ask_again() {
    let mut data_dir = PathBuf::new();
    let broker = TestBroker::start_with(|config| {
        config.node.cache_bytes = 0;
        data_dir.clone_from(&config.node.data_dir);
    })
    .await;
    broker.create_topic("t", 1).await;
    let mut client = broker.connect().await;
    let stored = client.call(9, produce("t", 0, -1, batch(&["precious"]))).await;
    assert_eq!(stored.responses[0].partition_responses[0].error_code, 0);
    let written = async {
        loop {
            let found = segments(&data_dir).into_iter().find_map(|path| {
                let content = std::fs::read(&path).ok().filter(|content| !content.is_empty())?;
                Some((path, content))
            });
            match found {
                Some(found) => return found,
                None => TokioEnv::sleep(Duration::from_millis(10)).await,
            }
        }
    };
    let (path, good) = timeout::<TokioEnv, _>(PATIENCE, written).await.expect("the record comes to the disk");
    assert_eq!(values(&client.call(11, fetch("t", 0, 0, 0)).await), ["precious"]);

    // A record's value; then the leader epoch, which no checksum of the batch covers.
    for at in [good.len() - 3, 14] {
        set_byte(&path, at, good[at] ^ 4);
        let response = client.call(11, fetch("t", 0, 0, 0)).await;
        let partition = &response.responses[0].partitions[0];
        assert_eq!(partition.error_code, KAFKA_STORAGE_ERROR, "byte {at}");
        assert!(partition.records.as_ref().is_none_or(|records| records.is_empty()));
        // There is no other broker to repair it from: it goes on with what it has.
        let stored = client.call(9, produce("t", 0, -1, batch(&["another"]))).await;
        assert_eq!(stored.responses[0].partition_responses[0].error_code, 0);
        let found = async {
            while broker.broker.node().scrub_counts().damaged == 0 {
                TokioEnv::sleep(Duration::from_millis(10)).await;
            }
        };
        timeout::<TokioEnv, _>(PATIENCE, found).await.expect("the damage is found");
        set_byte(&path, at, good[at]);
        assert_eq!(values(&client.call(11, fetch("t", 0, 0, 0)).await)[0], "precious");
    }
}
