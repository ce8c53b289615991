//! Random sequences of entries, and what a store must hold after them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use lockstep_core::{Effect, Position, SegmentLimits, ShardId, TopicId};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::error::StartError;
use crate::partition::{PartitionLog, ReadError};
use crate::storage::tests::batch::batch;
use crate::storage::tests::memory_env::{MemoryDisk, MemoryEnv};
use crate::storage::{Cache, Checkpoints, Manifest, PartitionStore, StoreOptions};

pub(crate) type Key = (TopicId, u32);

/// Effects of one entry, with its payload.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) effects: Vec<Effect>,
    pub(crate) payload: Bytes,
}

/// A batch as it must be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ModelBatch {
    pub(crate) base_offset: i64,
    pub(crate) next_offset: i64,
    pub(crate) max_timestamp_ms: i64,
    pub(crate) bytes: Vec<u8>,
}

/// A log as it must be read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ModelLog {
    pub(crate) start: i64,
    pub(crate) end: i64,
    /// Those with an offset at or above the start.
    pub(crate) batches: Vec<ModelBatch>,
}

pub(crate) type Model = BTreeMap<Key, ModelLog>;

/// What entries look like.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) entries: usize,
    /// Contents are shorter than this, most of them much.
    pub(crate) content_max: usize,
    pub(crate) drops: bool,
    /// Records are deleted, and topics change what their segments are like.
    pub(crate) deletes: bool,
}

pub(crate) fn random_entries(seed: u64, shape: Shape) -> Vec<Entry> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut ends: BTreeMap<Key, i64> = BTreeMap::new();
    let mut starts: BTreeMap<Key, i64> = BTreeMap::new();
    let mut limits = UNSAID;
    let mut topics = 0u8;
    let mut entries = Vec::new();
    let mut term = 1;
    for number in 0..shape.entries {
        let (mut effects, mut payload) = (Vec::new(), Vec::new());
        term += i32::from(random.random_bool(0.02));
        if number == 0 || random.random_bool(0.04) {
            topics += 1;
            for partition in 0..random.random_range(1..3) {
                let topic_id = TopicId([topics; 16]);
                effects.push(Effect::CreatePartition { topic_id, partition });
                ends.insert((topic_id, partition), 0);
            }
        }
        if shape.drops && ends.len() > 1 && random.random_bool(0.03) {
            let (topic_id, partition) = *ends.keys().nth(random.random_range(0..ends.len())).unwrap();
            ends.remove(&(topic_id, partition));
            starts.remove(&(topic_id, partition));
            effects.push(Effect::DropPartition { topic_id, partition });
        }
        if shape.deletes && random.random_bool(0.1) {
            let (&(topic_id, partition), &end) = ends.iter().nth(random.random_range(0..ends.len())).unwrap();
            let start = starts.entry((topic_id, partition)).or_default();
            if *start < end {
                let within = random.random_range(*start + 1..=end);
                *start = if random.random_bool(0.2) { end } else { within };
                effects.push(Effect::TruncateBefore { topic_id, partition, start_offset: *start });
            }
        }
        if shape.deletes && random.random_bool(0.05) {
            let bytes = random.random_bool(0.5).then(|| random.random_range(100..5_000));
            limits = SegmentLimits { bytes: bytes.unwrap_or(UNSAID.bytes), ms: random.random_range(1..300) };
        }
        for _ in 0..random.random_range(1..4) {
            let at = random.random_range(0..ends.len());
            let (&(topic_id, partition), end) = ends.iter_mut().nth(at).unwrap();
            let records = random.random_range(1..6);
            let content_max = if random.random_bool(0.1) { shape.content_max } else { shape.content_max / 10 };
            let content: Vec<u8> = (0..random.random_range(0..content_max)).map(|_| random.random()).collect();
            let sent = batch(records, random.random_range(900..1_100) + number as i64, &content);
            effects.push(Effect::Append {
                topic_id,
                partition,
                payload_start: payload.len() as u32,
                payload_len: sent.len() as u32,
                base_offset: *end,
                next_offset: *end + i64::from(records),
                leader_epoch: term,
                log_append_time_ms: random.random_bool(0.2).then_some(5_000 + number as i64),
                limits,
            });
            *end += i64::from(records);
            payload.extend(sent);
        }
        entries.push(Entry { effects, payload: Bytes::from(payload) });
    }
    entries
}

/// What the entries must lead to.
pub(crate) fn model(entries: &[Entry]) -> Model {
    let mut model = Model::new();
    for entry in entries {
        for effect in &entry.effects {
            match *effect {
                Effect::CreatePartition { topic_id, partition } => {
                    model.insert((topic_id, partition), ModelLog::default());
                }
                Effect::DropPartition { topic_id, partition } => {
                    model.remove(&(topic_id, partition)).unwrap();
                }
                Effect::Append {
                    topic_id,
                    partition,
                    payload_start,
                    payload_len,
                    base_offset,
                    next_offset,
                    leader_epoch,
                    log_append_time_ms,
                    ..
                } => {
                    let mut bytes = entry.payload[payload_start as usize..][..payload_len as usize].to_vec();
                    bytes[..8].copy_from_slice(&base_offset.to_be_bytes());
                    bytes[12..16].copy_from_slice(&leader_epoch.to_be_bytes());
                    if let Some(time_ms) = log_append_time_ms {
                        bytes[22] = 8;
                        bytes[35..43].copy_from_slice(&time_ms.to_be_bytes());
                        let crc = crc32c::crc32c(&bytes[21..]);
                        bytes[17..21].copy_from_slice(&crc.to_be_bytes());
                    }
                    let max_timestamp_ms = i64::from_be_bytes(bytes[35..43].try_into().unwrap());
                    let log = model.get_mut(&(topic_id, partition)).unwrap();
                    log.end = next_offset;
                    log.batches.push(ModelBatch { base_offset, next_offset, max_timestamp_ms, bytes });
                }
                Effect::TruncateBefore { topic_id, partition, start_offset } => {
                    let log = model.get_mut(&(topic_id, partition)).unwrap();
                    log.start = start_offset;
                    log.batches.retain(|batch| batch.next_offset > start_offset);
                }
                _ => {}
            }
        }
    }
    model
}

/// A replica of one shard: store and checkpoints, and how many entries it has applied.
pub(crate) struct Replica {
    pub(crate) disk: MemoryDisk,
    pub(crate) store: PartitionStore<MemoryEnv>,
    pub(crate) segment_bytes: u64,
    pub(crate) checkpoints: Checkpoints<MemoryEnv>,
    pub(crate) applied: usize,
}

pub(crate) const STORE_DIR: &str = "/data/3";

/// What topics say that say nothing: [`resolved`] knows better.
const UNSAID: SegmentLimits = SegmentLimits { bytes: u64::MAX, ms: 604_800_000 };

/// The effect as `core` makes it where segments of topics that say nothing end at `segment_bytes`.
pub(crate) fn resolved(effect: &Effect, segment_bytes: u64) -> Effect {
    let mut effect = effect.clone();
    if let Effect::Append { limits, .. } = &mut effect {
        limits.bytes = limits.bytes.min(segment_bytes);
    }
    effect
}

/// How a replica keeps its segments, and where they end.
#[derive(Clone)]
pub(crate) struct Options {
    pub(crate) store: StoreOptions,
    pub(crate) segment_bytes: u64,
}

impl Options {
    pub(crate) fn new(segment_bytes: u64, cache: Arc<Cache>) -> Self {
        Self { store: StoreOptions::new(cache), segment_bytes }
    }
}

/// Segments of 3,000 bytes and room for 2,000 in memory.
pub(crate) fn small() -> Options {
    let store = StoreOptions { open_files_max: 3, ..StoreOptions::new(Cache::new(2_000)) };
    Options { store, segment_bytes: 3_000 }
}

impl Replica {
    pub(crate) async fn open(disk: &MemoryDisk, options: Options) -> Result<Self, StartError> {
        let env = MemoryEnv { disk: disk.clone() };
        let (checkpoints, manifest) = Checkpoints::open(env.clone(), Path::new("/raft"), ShardId(3)).await?;
        let store = PartitionStore::open(env, Path::new(STORE_DIR), options.store, manifest.as_ref()).await?;
        let applied = manifest.and_then(|manifest| manifest.position).map_or(0, |position| position.index as usize);
        Ok(Self { disk: disk.clone(), store, segment_bytes: options.segment_bytes, checkpoints, applied })
    }

    /// Where its segments end.
    pub(crate) fn limits(&self) -> SegmentLimits {
        SegmentLimits { bytes: self.segment_bytes, ..UNSAID }
    }

    /// Appends a batch of one record.
    pub(crate) fn append(&self, key: Key, base_offset: i64, payload: Vec<u8>) -> Result<(), String> {
        let effect = Effect::Append {
            topic_id: key.0,
            partition: key.1,
            payload_start: 0,
            payload_len: payload.len() as u32,
            base_offset,
            next_offset: base_offset + 1,
            leader_epoch: 1,
            log_append_time_ms: None,
            limits: self.limits(),
        };
        self.store.apply(&effect, &Bytes::from(payload))
    }

    /// Applies the entries that are not applied yet.
    pub(crate) fn apply(&mut self, entries: &[Entry]) -> Result<(), String> {
        for entry in &entries[self.applied..] {
            for effect in &entry.effects {
                self.store.apply(&resolved(effect, self.segment_bytes), &entry.payload)?;
            }
            self.applied += 1;
        }
        Ok(())
    }

    pub(crate) async fn checkpoint(&self) -> std::io::Result<Manifest> {
        let view = self.store.prepare_checkpoint();
        let segments = self.store.sync_for(&view).await?;
        let manifest = Manifest {
            position: Some(Position { term: 1, index: self.applied as u64 }),
            membership: Bytes::from_static(b"members"),
            core_snapshot: Bytes::from(format!("state after {}", self.applied)),
            segments,
        };
        self.checkpoints.write(&manifest).await?;
        self.store.checkpointed(view).await;
        self.removed().await;
        Ok(manifest)
    }

    /// Waits until what may be removed is.
    pub(crate) async fn removed(&self) {
        self.store.inner.remove_dropped().await;
    }

    pub(crate) fn log(&self, key: Key) -> PartitionLog<MemoryEnv> {
        self.store.log(key.0, key.1).unwrap()
    }

    /// The segments' content by path.
    pub(crate) fn log_files(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut files = self.disk.files();
        files.retain(|path, _| path.extension().is_some_and(|extension| extension == "log"));
        files
    }

    /// Everything in the model can be read, and nothing else.
    pub(crate) async fn check_reads(&self, model: &Model) {
        let view = self.store.prepare_checkpoint();
        let mut present: Vec<Key> =
            view.segments.iter().map(|(partition, _)| (partition.key.topic_id, partition.key.partition)).collect();
        present.dedup();
        assert_eq!(present, model.keys().copied().collect::<Vec<_>>());
        for (key, expected) in model {
            let log = self.log(*key);
            assert_eq!((log.start_offset(), log.end_offset()), (expected.start, expected.end), "{key:?}");
            let below = log.read(expected.start - 1, 1, true).await;
            assert!(matches!(below, Err(ReadError::OutOfRange { start, .. }) if start == expected.start), "{below:?}");
            let read = log.read(expected.start, usize::MAX, false).await.unwrap().concat();
            let expected: Vec<u8> = expected.batches.iter().flat_map(|batch| batch.bytes.clone()).collect();
            assert!(read == expected, "{key:?}: {} bytes read, {} expected", read.len(), expected.len());
        }
    }
}

/// The segments that the entries must lead to.
pub(crate) async fn reference_files(entries: &[Entry], options: Options) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut replica = Replica::open(&MemoryDisk::default(), options).await.unwrap();
    replica.apply(entries).unwrap();
    replica.checkpoint().await.unwrap();
    replica.store.close().await;
    replica.log_files()
}

/// Names what differs, not the content.
#[track_caller]
pub(crate) fn assert_same_files(
    found: &BTreeMap<PathBuf, Vec<u8>>,
    expected: &BTreeMap<PathBuf, Vec<u8>>,
    context: &str,
) {
    let lengths = |files: &BTreeMap<PathBuf, Vec<u8>>, path: &PathBuf| files.get(path).map(Vec::len);
    let paths: BTreeSet<_> = found.keys().chain(expected.keys()).collect();
    let differing: Vec<_> = paths
        .into_iter()
        .filter(|path| found.get(*path) != expected.get(*path))
        .map(|path| (path.display().to_string(), lengths(found, path), lengths(expected, path)))
        .collect();
    assert!(differing.is_empty(), "{context}: file, length found, length expected: {differing:?}");
}
