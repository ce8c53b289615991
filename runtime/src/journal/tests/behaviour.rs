//! What callers see.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use lockstep_core::ShardId;
use lockstep_env::{Env, timeout};
use tokio::sync::oneshot;

use super::memory_env::{MemoryDisk, MemoryEnv, MemoryTask};
use super::model::{DIR, at, open, options};
use crate::config::Durability;
use crate::error::StartError;
use crate::journal::keeper::SPARES_MAX;
use crate::journal::{Journal, JournalOptions, ShardLog};

const FILE_BYTES: u64 = 64 << 10;

async fn append(log: &ShardLog<MemoryEnv>, term: u64, index: u64, payload: impl Into<Bytes>) -> io::Result<()> {
    let (sender, outcome) = oneshot::channel();
    log.append(vec![(at(term, index), vec![payload.into()])], Box::new(move |result| sender.send(result).unwrap()));
    outcome.await.unwrap()
}

fn append_and_forget(log: &ShardLog<MemoryEnv>, term: u64, index: u64, payload: impl Into<Bytes>) {
    log.append(vec![(at(term, index), vec![payload.into()])], Box::new(drop));
}

/// Waits for something that tasks bring about.
async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    for _ in 0..100_000 {
        if condition() {
            return;
        }
        tokio::task::yield_now().await;
    }
    panic!("{what} never happened");
}

#[tokio::test]
async fn an_empty_journal_knows_nothing() {
    let journal = open(&MemoryEnv::default(), FILE_BYTES).await.unwrap();
    let log = journal.shard(ShardId(3));
    assert_eq!((log.purged(), log.last(), log.vote(), log.committed()), (None, None, None, None));
    assert_eq!(log.read(0, 10, 1000).await.unwrap(), []);
    assert_eq!((journal.files(), journal.pinned_by(), journal.bytes_since_purge(ShardId(3))), (1, None, 0));
    assert_eq!(journal.failed(), None);
}

#[tokio::test]
async fn entries_can_be_read_before_they_are_durable() {
    let journal = open(&MemoryEnv::default(), FILE_BYTES).await.unwrap();
    let log = journal.shard(ShardId(0));
    let slices = vec![Bytes::from("he"), Bytes::new(), Bytes::from("llo")];
    log.append(vec![(at(1, 0), slices), (at(1, 1), vec![])], Box::new(drop));
    let entries = log.read(0, 2, usize::MAX).await.unwrap();
    assert_eq!(entries, [(at(1, 0), Bytes::from("hello")), (at(1, 1), Bytes::new())]);
    assert_eq!(log.last(), Some(at(1, 1)));
}

#[tokio::test]
async fn entries_outside_the_cache_are_read_from_the_files() {
    let env = MemoryEnv::default();
    let journal = open(&env, FILE_BYTES).await.unwrap();
    let log = journal.shard(ShardId(0));
    let payload = |index: u64| Bytes::from(vec![index as u8; 1_000 + index as usize]);
    for index in 0..200 {
        append(&log, 1, index, payload(index)).await.unwrap();
    }
    assert!(journal.files() > 3);
    for log in [log, {
        journal.close().await;
        open(&env, FILE_BYTES).await.unwrap().shard(ShardId(0))
    }] {
        let mut next = 0;
        while next < 200 {
            let entries = log.read(next, 200, 5_000).await.unwrap_or_default();
            if entries.is_empty() {
                break;
            }
            assert!(entries.len() <= 4, "{} entries in 5,000 bytes", entries.len());
            for (position, found) in entries {
                assert_eq!((position, found), (at(1, next), payload(next)));
                next += 1;
            }
        }
        assert_eq!(next, 200);
        assert_eq!(log.read(150, 160, usize::MAX).await.unwrap().len(), 10);
        assert_eq!(log.read(7, 8, 0).await.unwrap().len(), 1, "one entry however small the limit");
    }
}

#[tokio::test]
async fn what_waits_for_one_sync_shares_the_next() {
    let journal = open(&MemoryEnv::default(), 1 << 20).await.unwrap();
    let before = journal.sync_histogram().snapshot().count;
    let mut outcomes = Vec::new();
    for shard in 0..4 {
        let log = journal.shard(ShardId(shard));
        for index in 0..100 {
            let (sender, outcome) = oneshot::channel();
            log.append(vec![(at(1, index), vec![Bytes::from("x")])], Box::new(|result| sender.send(result).unwrap()));
            outcomes.push(outcome);
        }
    }
    for outcome in outcomes {
        outcome.await.unwrap().unwrap();
    }
    assert!(journal.sync_histogram().snapshot().count - before <= 2);
}

#[tokio::test]
async fn entries_that_do_not_follow_are_refused() {
    let journal = open(&MemoryEnv::default(), FILE_BYTES).await.unwrap();
    let log = journal.shard(ShardId(0));
    append(&log, 2, 0, "a").await.unwrap();
    for (term, index) in [(2, 2), (2, 0), (1, 1)] {
        assert_eq!(append(&log, term, index, "b").await.unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
    assert_eq!(log.save_vote(Bytes::from(vec![0; 5_000])).await.unwrap_err().kind(), io::ErrorKind::InvalidInput);
    assert_eq!(log.last(), Some(at(2, 0)));
    append(&log, 2, 1, "c").await.unwrap();
    assert_eq!(journal.failed(), None);
}

#[tokio::test]
async fn an_entry_longer_than_a_file_gets_a_longer_file() {
    let env = MemoryEnv::default();
    let journal = open(&env, FILE_BYTES).await.unwrap();
    let log = journal.shard(ShardId(0));
    let long = Bytes::from(vec![9; 3 << 20]);
    append(&log, 1, 0, "short").await.unwrap();
    append(&log, 1, 1, long.clone()).await.unwrap();
    append(&log, 1, 2, "short").await.unwrap();
    journal.close().await;
    let journal = open(&env, FILE_BYTES).await.unwrap();
    let log = journal.shard(ShardId(0));
    assert_eq!(log.read(1, 2, 0).await.unwrap(), [(at(1, 1), long)]);
    log.purge(at(1, 2));
    until("recycling", || env.disk.bytes() < 6 * FILE_BYTES).await;
}

#[tokio::test]
async fn a_start_begins_with_a_short_file_and_goes_on_with_whole_ones() {
    let env = MemoryEnv::default();
    let journal = open(&env, 8 << 20).await.unwrap();
    let log = journal.shard(ShardId(0));
    for index in 0..6 {
        append(&log, 1, index, vec![7; 1 << 20]).await.unwrap();
    }
    let is_journal = |path: &&std::path::PathBuf| path.extension().is_some_and(|extension| extension == "journal");
    let lens: Vec<usize> =
        env.disk.paths().iter().filter(is_journal).map(|path| env.disk.content(path).len()).collect();
    assert_eq!(lens, [4 << 20, 8 << 20]);
    drop(journal);
    let journal = open(&env, 8 << 20).await.unwrap();
    assert_eq!(journal.shard(ShardId(0)).read(0, 10, usize::MAX).await.unwrap().len(), 6);
}

#[tokio::test]
async fn a_spare_file_that_a_crash_left_unfinished_is_not_used() {
    let env = MemoryEnv::default();
    let unfinished = Path::new(DIR).join("0000000000000009.spare");
    env.disk.set_content(&unfinished, vec![0; 4096]);
    let journal = open(&env, FILE_BYTES).await.unwrap();
    assert!(!env.disk.paths().contains(&unfinished));
    append(&journal.shard(ShardId(0)), 1, 0, "written").await.unwrap();
}

#[tokio::test]
async fn a_purge_beyond_the_end_restarts_the_log() {
    let env = MemoryEnv::default();
    let journal = open(&env, FILE_BYTES).await.unwrap();
    let log = journal.shard(ShardId(0));
    append(&log, 1, 0, "a").await.unwrap();
    log.purge(at(3, 100));
    assert_eq!((log.purged(), log.last()), (Some(at(3, 100)), Some(at(3, 100))));
    assert!(append(&log, 3, 1, "b").await.is_err());
    append(&log, 3, 101, "c").await.unwrap();
    journal.close().await;
    let log = open(&env, FILE_BYTES).await.unwrap().shard(ShardId(0));
    assert_eq!((log.purged(), log.last()), (Some(at(3, 100)), Some(at(3, 101))));
}

#[tokio::test]
async fn a_purge_to_another_history_drops_what_follows() {
    let env = MemoryEnv::default();
    let journal = open(&env, FILE_BYTES).await.unwrap();
    let log = journal.shard(ShardId(0));
    for index in 0..10 {
        append(&log, 1, index, "a").await.unwrap();
    }
    log.purge(at(4, 5));
    assert_eq!(log.last(), Some(at(4, 5)));
    append(&log, 4, 6, "b").await.unwrap();
    journal.close().await;
    let log = open(&env, FILE_BYTES).await.unwrap().shard(ShardId(0));
    assert_eq!((log.purged(), log.last()), (Some(at(4, 5)), Some(at(4, 6))));
}

#[tokio::test]
async fn a_failed_sync_is_for_good() {
    let env = MemoryEnv::default();
    let journal = open(&env, FILE_BYTES).await.unwrap();
    let log = journal.shard(ShardId(0));
    append(&log, 1, 0, "kept").await.unwrap();
    env.disk.fail_syncs(true);
    let error = append(&log, 1, 1, "lost").await.unwrap_err();
    assert!(error.to_string().contains("the disk is broken"), "{error}");
    env.disk.fail_syncs(false);
    assert!(journal.failed().unwrap().contains("the disk is broken"));
    let operations = env.disk.operations();
    assert!(append(&log, 1, 2, "refused").await.is_err());
    assert!(log.save_vote(Bytes::from("refused")).await.is_err());
    assert!(log.read(0, 1, 0).await.is_err());
    log.truncate_after(None);
    log.purge(at(1, 1));
    journal.close().await;
    assert_eq!(env.disk.operations(), operations, "a failed journal must not touch its files");

    let env = MemoryEnv { disk: env.disk.after_power_cut(5) };
    let log = open(&env, FILE_BYTES).await.unwrap().shard(ShardId(0));
    assert_eq!(log.read(0, 1, 0).await.unwrap(), [(at(1, 0), Bytes::from("kept"))]);
    assert_eq!(log.vote(), None);
}

#[tokio::test]
async fn closing_writes_what_is_queued() {
    let env = MemoryEnv::default();
    let journal = open(&env, FILE_BYTES).await.unwrap();
    let log = journal.shard(ShardId(0));
    append_and_forget(&log, 1, 0, "a");
    journal.close().await;
    journal.close().await;
    assert!(append(&log, 1, 1, "b").await.is_err());
    let journal = open(&env, FILE_BYTES).await.unwrap();
    let log = journal.shard(ShardId(0));
    assert_eq!((log.last(), log.committed()), (Some(at(1, 0)), None));
    // A committed position alone is written too when it is the last chance.
    log.save_committed(at(1, 0));
    journal.close().await;
    let log = open(&env, FILE_BYTES).await.unwrap().shard(ShardId(0));
    assert_eq!(log.committed(), Some(at(1, 0)));
}

#[tokio::test]
async fn a_journal_that_is_dropped_writes_what_is_queued() {
    let env = MemoryEnv::default();
    let journal = open(&env, FILE_BYTES).await.unwrap();
    let log = journal.shard(ShardId(0));
    let (sender, outcome) = oneshot::channel();
    log.append(vec![(at(1, 0), vec![])], Box::new(|result| sender.send(result).unwrap()));
    drop((journal, log));
    outcome.await.unwrap().unwrap();
}

#[tokio::test]
async fn committed_positions_ride_along() {
    let env = MemoryEnv::default();
    let journal = open(&env, FILE_BYTES).await.unwrap();
    let log = journal.shard(ShardId(0));
    append(&log, 1, 0, "a").await.unwrap();
    let syncs = journal.sync_histogram().snapshot().count;
    log.save_committed(at(1, 0));
    append(&log, 1, 1, "b").await.unwrap();
    assert_eq!(journal.sync_histogram().snapshot().count, syncs + 1);
    let env = MemoryEnv { disk: env.disk.after_power_cut(1) };
    let log = open(&env, FILE_BYTES).await.unwrap().shard(ShardId(0));
    assert_eq!(log.committed(), Some(at(1, 0)));
}

#[tokio::test]
async fn replicated_durability_answers_at_once_but_syncs_votes() {
    let env = MemoryEnv::default();
    let options = JournalOptions { durability: Durability::Replicated, ..options(1 << 20) };
    let journal = Journal::open(env.clone(), Path::new(DIR), options).await.unwrap();
    let log = journal.shard(ShardId(0));
    let answered = Arc::new(Mutex::new(Vec::new()));
    // The writer does not run between these calls: they are answered without it, until too much waits.
    for index in 0..70 {
        let answered = Arc::clone(&answered);
        let payload = vec![Bytes::from(vec![1; 1 << 20])];
        log.append(vec![(at(1, index), payload)], Box::new(move |_| answered.lock().unwrap().push(index)));
    }
    assert_eq!(*answered.lock().unwrap(), (0..63).collect::<Vec<_>>());
    log.save_vote(Bytes::from("vote")).await.unwrap();
    assert_eq!(*answered.lock().unwrap(), (0..70).collect::<Vec<_>>(), "answers keep the order of the calls");
    append(&log, 1, 70, "at once again").await.unwrap();
    let env = MemoryEnv { disk: env.disk.after_power_cut(3) };
    assert_eq!(open(&env, 1 << 20).await.unwrap().shard(ShardId(0)).vote(), Some(Bytes::from("vote")));
}

#[tokio::test]
async fn the_journal_does_not_grow_for_ever() {
    let env = MemoryEnv::default();
    let mut journal = open(&env, FILE_BYTES).await.unwrap();
    journal.shard(ShardId(1)).save_vote(Bytes::from("idle")).await.unwrap();
    let idle = journal.shard(ShardId(2));
    for index in 0..3 {
        append(&idle, 1, index, "never purged").await.unwrap();
    }
    drop(idle);
    let mut largest = 0;
    for index in 0..3_000 {
        let log = journal.shard(ShardId(0));
        append(&log, 1, index, vec![7; 500]).await.unwrap();
        if index % 10 == 9 {
            log.purge(at(1, index - 5));
        }
        largest = largest.max(env.disk.bytes());
        assert!(journal.files() <= 6, "{} files after {index} entries", journal.files());
        if index % 1_000 == 500 {
            journal.close().await;
            journal = open(&env, FILE_BYTES).await.unwrap();
        }
    }
    assert!(largest <= 9 * FILE_BYTES, "{largest} bytes");
    journal.close().await;
    let journal = open(&env, FILE_BYTES).await.unwrap();
    assert_eq!(journal.shard(ShardId(1)).vote(), Some(Bytes::from("idle")));
    let idle = journal.shard(ShardId(2)).read(0, 10, 1_000).await.unwrap();
    assert_eq!(idle.len(), 3);
    assert!(idle.iter().all(|(_, payload)| payload == "never purged"));
}

#[tokio::test]
async fn a_shard_that_purges_no_more_does_not_let_the_journal_grow_for_ever() {
    const ENTRIES: u64 = 20;
    let env = MemoryEnv::default();
    let journal = open(&env, FILE_BYTES).await.unwrap();
    let (busy, stopped) = (journal.shard(ShardId(0)), journal.shard(ShardId(1)));
    for index in 0..ENTRIES {
        append(&stopped, 1, index, vec![index as u8; 1_000]).await.unwrap();
    }
    // More than an eighth of a file: too much to be carried whenever one is full.
    let needed = journal.bytes_since_purge(ShardId(1));
    assert!(needed > FILE_BYTES / 8, "{needed}");
    let mut most = 0;
    for index in 0..2_000 {
        append(&busy, 1, index, vec![2; 1_000]).await.unwrap();
        busy.purge(at(1, index));
        most = most.max(journal.files() as u64);
    }
    assert!(most * FILE_BYTES > 20 * needed, "it is carried too often: {most} files");
    // Three times as much was written.
    assert!(most * FILE_BYTES < 40 * needed, "{most} files");
    journal.close().await;
    let journal = open(&env, FILE_BYTES).await.unwrap();
    let entries = journal.shard(ShardId(1)).read(0, ENTRIES, usize::MAX).await.unwrap();
    assert_eq!(entries.len() as u64, ENTRIES);
    assert!(entries.iter().all(|(position, payload)| payload[..] == [position.index as u8; 1_000]));
}

#[tokio::test]
async fn a_shard_that_pins_files_is_named() {
    let env = MemoryEnv::default();
    let journal = open(&env, FILE_BYTES).await.unwrap();
    let (busy, lagging) = (journal.shard(ShardId(0)), journal.shard(ShardId(1)));
    for index in 0..10 {
        append(&lagging, 1, index, vec![1; 3_000]).await.unwrap();
    }
    assert_eq!(journal.pinned_by(), None, "the only file is not pinned by anyone");
    for index in 0..200 {
        append(&busy, 1, index, vec![2; 1_000]).await.unwrap();
        busy.purge(at(1, index));
    }
    assert_eq!(journal.pinned_by(), Some(ShardId(1)));
    let files = journal.files();
    assert!(files > 10, "{files}");
    assert!(journal.bytes_since_purge(ShardId(1)) >= 30_000);
    assert_eq!(journal.bytes_since_purge(ShardId(0)), 0);
    lagging.purge(at(1, 9));
    until("recycling", || journal.files() == 1).await;
    assert_eq!(journal.pinned_by(), None);
    until("removal of files", || env.disk.bytes() <= (1 + SPARES_MAX as u64) * FILE_BYTES).await;
}

/// Appends until one is not answered because the disk is full, and gives that one. One that is only slow is no harm.
async fn append_until_full(log: &ShardLog<MemoryEnv>, index: &mut u64) -> MemoryTask<io::Result<()>> {
    loop {
        let log = log.clone();
        let at = *index;
        let mut appending = MemoryEnv::spawn(async move { append(&log, 1, at, vec![3; 1_000]).await });
        *index += 1;
        match timeout::<MemoryEnv, _>(Duration::from_secs(1), &mut appending).await {
            Ok(appended) => appended.unwrap().unwrap(),
            Err(_) => return appending,
        }
    }
}

#[tokio::test]
async fn a_full_disk_holds_the_journal_up_only_when_a_file_is_needed_and_until_there_is_room() {
    let env = MemoryEnv::default();
    let journal = open(&env, FILE_BYTES).await.unwrap();
    let log = journal.shard(ShardId(0));
    append(&log, 1, 0, "a").await.unwrap();
    env.disk.set_full_at(Some(env.disk.bytes()));
    let mut index = 1;
    // As long as entries are purged, the files there are will do.
    while index < 300 {
        append(&log, 1, index, vec![3; 1_000]).await.unwrap();
        log.purge(at(1, index));
        index += 1;
    }
    let waiting = append_until_full(&log, &mut index).await;
    assert!(index > 310);
    assert_eq!(journal.failed(), None);
    env.disk.set_full_at(None);
    waiting.await.unwrap().unwrap();

    env.disk.set_full_at(Some(env.disk.bytes()));
    let waiting = append_until_full(&log, &mut index).await;
    journal.close().await;
    let error = waiting.await.unwrap().unwrap_err();
    assert!(error.to_string().contains("a new journal file"), "closing does not wait for room: {error}");
    env.disk.set_full_at(None);
    let log = open(&env, FILE_BYTES).await.unwrap().shard(ShardId(0));
    assert_eq!(log.last(), Some(at(1, index - 2)));
}

#[tokio::test]
async fn an_entry_longer_than_a_file_waits_for_room_too() {
    let env = MemoryEnv::default();
    let journal = open(&env, FILE_BYTES).await.unwrap();
    let log = journal.shard(ShardId(0));
    append(&log, 1, 0, "a").await.unwrap();
    let long = || vec![7; 2 * FILE_BYTES as usize];
    let appending = |index| {
        let log = log.clone();
        MemoryEnv::spawn(async move { append(&log, 1, index, long()).await })
    };
    env.disk.set_full_at(Some(env.disk.bytes()));
    let mut waiting = appending(1);
    assert!(timeout::<MemoryEnv, _>(Duration::from_secs(3), &mut waiting).await.is_err(), "there is no room for it");
    assert_eq!(journal.failed(), None);
    env.disk.set_full_at(None);
    waiting.await.unwrap().unwrap();

    env.disk.set_full_at(Some(env.disk.bytes()));
    let mut waiting = appending(2);
    assert!(timeout::<MemoryEnv, _>(Duration::from_secs(1), &mut waiting).await.is_err(), "there is no room again");
    journal.close().await;
    let error = waiting.await.unwrap().unwrap_err();
    assert!(error.to_string().contains("a new journal file"), "closing does not wait for room: {error}");
    env.disk.set_full_at(None);
    let log = open(&env, FILE_BYTES).await.unwrap().shard(ShardId(0));
    assert_eq!(log.last(), Some(at(1, 1)));
}

#[tokio::test]
async fn sizes_that_make_no_sense_are_refused() {
    for file_bytes in [0, 4_096, 100_000, 2 << 30] {
        let error = open(&MemoryEnv::default(), file_bytes).await.unwrap_err();
        assert!(matches!(error, StartError::Config { field: "journal_file_bytes", .. }), "{error}");
    }
}

#[test]
fn handles_can_be_sent_between_threads() {
    fn is_shared<T: Send + Sync + Clone + 'static>() {}
    is_shared::<Journal<MemoryEnv>>();
    is_shared::<ShardLog<MemoryEnv>>();
    let _ = MemoryDisk::default();
}
