//! What a record passes through on its way, piece by piece: `cargo bench -p lockstep-broker --bench hot_path`.
//!
//! Batches are checked, ops encoded, decoded and applied, and entries written to a journal on the disk that the directory for temporary files is on.
//! Beside the journal stands its floor: the same bytes written and synced with nothing around it. (Groups have benchmarks of their own in `core`.)

#![allow(missing_docs, reason = "a program")]

use std::collections::BTreeMap;
use std::hint::black_box;
use std::os::unix::fs::FileExt;

use bytes::Bytes;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use lockstep_core::op::{AppendMessage, CommitOffset, CommitOffsets, CreateTopic, OffsetToCommit, PartitionAppend};
use lockstep_core::{ClusterStateMachine, Op, Position, ShardId, TopicId};
use lockstep_env::tokio_env::TokioEnv;
use lockstep_runtime::{Durability, Journal, JournalOptions};
use lockstep_wire::records::ProducerStamp;
use lockstep_wire::{BatchBuilder, Compression, check_batch};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const TOPIC: TopicId = TopicId([7; 16]);
const PARTITIONS: u32 = 12;
const RECORD_BYTES: usize = 1024;

/// A batch of so many records of 1 KiB.
fn batch(records: usize) -> Bytes {
    let mut builder = BatchBuilder::new();
    for number in 0..records {
        builder.push(1_700_000_000_000 + number as i64, None, Some(&[number as u8; RECORD_BYTES]), &[]);
    }
    let stamp = ProducerStamp { producer_id: 1, producer_epoch: 0, base_sequence: 0 };
    builder.finish(Compression::None, Some(stamp)).expect("nothing is compressed")
}

fn batches(c: &mut Criterion) {
    let mut group = c.benchmark_group("batch");
    for records in [1, 100] {
        let batch = batch(records);
        group.throughput(Throughput::Bytes(batch.len() as u64));
        group.bench_function(format!("check {records} records"), |b| b.iter(|| check_batch(black_box(&batch))));
    }
}

/// An op that appends so many records of an idempotent producer, each a batch, to all partitions in turn; the `round` before it appended as many.
fn append(records: u32, round: i32) -> Op {
    let len = batch(1).len() as u32;
    let appends = (0..records)
        .map(|number| PartitionAppend {
            topic_id: TOPIC,
            partition: number % PARTITIONS,
            payload_start: number * len,
            payload_len: len,
            offset_count: 1,
            producer_id: 1,
            producer_epoch: 0,
            base_sequence: round * records.div_ceil(PARTITIONS) as i32 + (number / PARTITIONS) as i32,
            max_timestamp_ms: 1_700_000_000_000,
        })
        .collect();
    Op::AppendMessage(AppendMessage { now_ms: 1_700_000_000_000, segment_bytes: 256 << 20, appends })
}

/// An op with so many commits, each of another group.
fn commits(count: usize) -> Op {
    let commit = |number| CommitOffset {
        group_id: format!("group-{number}"),
        member_id: String::new(),
        instance_id: None,
        generation_or_epoch: -1,
        knows_epochs: true,
        now_ms: 1_700_000_000_000,
        offsets: vec![OffsetToCommit {
            topic_id: TOPIC,
            partition: 0,
            offset: 42,
            leader_epoch: 1,
            metadata: String::new(),
        }],
    };
    Op::CommitOffsets(CommitOffsets { commits: (0..count).map(commit).collect() })
}

struct Shard {
    state: ClusterStateMachine,
    index: u64,
}

impl Shard {
    fn new() -> Self {
        let mut shard = Self { state: ClusterStateMachine::new(ShardId(0), 1), index: 0 };
        shard.apply(
            &Op::CreateTopic(CreateTopic {
                topic_id: TOPIC,
                name: "records".to_owned(),
                partitions: PARTITIONS,
                configs: BTreeMap::new(),
            }),
            0,
        );
        shard
    }

    fn apply(&mut self, op: &Op, payload_len: usize) {
        self.index += 1;
        let position = Position { term: 1, index: self.index };
        black_box(self.state.apply(position, op, payload_len).expect("no invariant breaks"));
    }
}

fn ops(c: &mut Criterion) {
    let mut group = c.benchmark_group("op");
    for records in [1, 120] {
        group.throughput(Throughput::Elements(records.into()));
        let op = append(records, 0);
        let encoded = op.encode();
        group.bench_function(format!("encode {records} appends"), |b| b.iter(|| black_box(&op).encode()));
        group.bench_function(format!("decode {records} appends"), |b| b.iter(|| Op::decode(black_box(&encoded))));
        let payload_len = records as usize * batch(1).len();
        group.bench_function(format!("apply {records} appends"), |b| {
            let (mut shard, mut round) = (Shard::new(), 0);
            let next = || {
                round += 1;
                append(records, round - 1)
            };
            b.iter_batched(next, |op| shard.apply(&op, payload_len), BatchSize::NumIterations(1));
        });
    }
    for count in [1, 64] {
        group.throughput(Throughput::Elements(count as u64));
        let (op, mut shard) = (commits(count), Shard::new());
        group.bench_function(format!("apply {count} commits"), |b| b.iter(|| shard.apply(&op, 0)));
    }
}

fn journal(c: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let directory = tempfile::tempdir().expect("a directory");
    let mut group = c.benchmark_group("journal");
    group.sample_size(50);
    for entries in [1, 64] {
        let payload = batch(1);
        group.throughput(Throughput::Bytes((entries * payload.len()) as u64));
        group.bench_function(format!("floor: write and sync {entries} entries"), |b| {
            let file = std::fs::File::create(directory.path().join("floor")).expect("a file");
            let bytes = vec![7; (entries * payload.len()).next_multiple_of(4096)];
            for place in 0..64 {
                file.write_all_at(&bytes, place * bytes.len() as u64).expect("written");
            }
            file.sync_data().expect("synced");
            let mut place = 0;
            b.iter(|| {
                file.write_all_at(&bytes, place * bytes.len() as u64).expect("written");
                file.sync_data().expect("synced");
                place = (place + 1) % 64;
            });
        });
        group.bench_function(format!("append {entries} entries until durable"), |b| {
            let options =
                JournalOptions { file_bytes: 64 << 20, cache_bytes_per_shard: 1 << 20, durability: Durability::Fsync };
            let path = directory.path().join(format!("journal-{entries}"));
            let journal = runtime.block_on(Journal::open(TokioEnv::new(), &path, options)).expect("a journal");
            let log = journal.shard(ShardId(0));
            // Each of criterion's calls opens the same journal again.
            let mut index = log.last().map_or(0, |last| last.index);
            b.iter(|| {
                let batch = (0..entries as u64).map(|_| {
                    index += 1;
                    (Position { term: 1, index }, vec![payload.clone()])
                });
                let (done, durable) = tokio::sync::oneshot::channel();
                let answer = move |result| {
                    let _ = done.send(result);
                };
                log.append(batch.collect(), Box::new(answer));
                log.purge(Position { term: 1, index: index.saturating_sub(1_000) });
                runtime.block_on(durable).expect("the journal lives").expect("durable");
            });
            runtime.block_on(journal.close());
        });
    }
}

criterion_group!(hot_path, batches, ops, journal);
criterion_main!(hot_path);
