//! What a batch costs the processor on its way into the journal and out of it: `cargo bench -p lockstep-runtime --bench journal_encoding`.
//!
//! Nothing is written. How long an append takes until it is durable, beside its floor, is measured by `cargo bench -p lockstep-broker --bench hot_path`.

#![allow(missing_docs, reason = "a program")]

use std::hint::black_box;

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use lockstep_core::{Position, ShardId};

use format::{HEADER_BYTES, Header, Identity, Kind, RECORD_BYTES, Record, encode_head, padding};

// The file itself, so that the format stays the journal's own affair.
#[path = "../src/journal/format.rs"]
#[allow(dead_code, reason = "files and their names are not measured")]
mod format;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Entries of a batch and bytes of each: a record or a commit by itself, many that came together, and few that are long.
const BATCHES: [(usize, usize); 5] = [(1, 128), (1, 1 << 10), (64, 1 << 10), (1_000, 1 << 10), (8, 512 << 10)];

const IDENTITY: Identity = Identity { generation: 7, sequence: 99, salt: 0x9e37_79b9_7f4a_7c15, next_salt: 3 };

/// The buffers that are handed to the disk for these entries, their CRCs computed as the journal does: by whoever appends.
fn encode(entries: &[Bytes]) -> Vec<Bytes> {
    let record = |(number, payload): (usize, &Bytes)| Record {
        kind: Kind::Entry,
        shard: ShardId(3),
        position: Some(Position { term: 4, index: number as u64 }),
        payload_len: payload.len() as u32,
        payload_crc: crc32c::crc32c(payload),
    };
    let records: Vec<Record> = entries.iter().enumerate().map(record).collect();
    let mut buffers = Vec::with_capacity(entries.len() + 2);
    buffers.push(encode_head(IDENTITY, &records));
    buffers.extend(entries.iter().cloned());
    let len: usize = buffers.iter().map(Bytes::len).sum();
    buffers.push(padding(len as u64));
    buffers
}

/// Everything that a start checks of a batch; how many entries there are.
fn check(batch: &[u8]) -> Option<usize> {
    let header = Header::decode(batch)?;
    let (table, mut payloads) = batch.get(HEADER_BYTES..)?.split_at_checked(header.records as usize * RECORD_BYTES)?;
    if crc32c::crc32c(table) != header.table_crc {
        return None;
    }
    for row in table.chunks(RECORD_BYTES) {
        let record = Record::decode(row).ok()?;
        let (payload, rest) = payloads.split_at_checked(record.payload_len as usize)?;
        if crc32c::crc32c(payload) != record.payload_crc {
            return None;
        }
        payloads = rest;
    }
    Some(header.records as usize)
}

fn encoding(c: &mut Criterion) {
    let mut group = c.benchmark_group("journal batch");
    for (count, len) in BATCHES {
        let entries: Vec<Bytes> = (0..count).map(|number| Bytes::from(vec![number as u8; len])).collect();
        let batch = encode(&entries).concat();
        assert_eq!(check(&batch), Some(count), "what is encoded is a batch");
        group.throughput(Throughput::Bytes((count * len) as u64));
        group.bench_function(format!("encode {count} entries of {len} bytes"), |b| {
            b.iter(|| encode(black_box(&entries)));
        });
        group.bench_function(format!("check {count} entries of {len} bytes"), |b| b.iter(|| check(black_box(&batch))));
    }
}

criterion_group!(journal_encoding, encoding);
criterion_main!(journal_encoding);
