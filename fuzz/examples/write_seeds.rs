//! Writes the committed seeds. Only wanted after a change of a format: `cargo run -p fuzz --example write_seeds`.

use std::fs;
use std::path::Path;

use bytes::Bytes;
use fuzz::{Input, arbitrary_op};
use lockstep_core::{ClusterStateMachine, Position, ShardId};
use lockstep_env::tokio_env::TokioEnv;
use lockstep_runtime::peer::frame::{FrameHead, FrameKind, encode_frame};
use lockstep_runtime::{Durability, Journal, JournalOptions};
use lockstep_wire::frame::{encode_request, encode_response};
use lockstep_wire::records::ProducerStamp;
use lockstep_wire::{ApiKey, BatchBuilder, Compression, Request, Response};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

#[tokio::main]
async fn main() {
    frames();
    batches();
    peers();
    states();
    journals().await;
}

fn write(target: &str, name: &str, bytes: &[u8]) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    fs::create_dir_all(&folder).expect("the folder");
    fs::write(folder.join(name), bytes).expect("the seed");
}

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    StdRng::seed_from_u64(seed).fill_bytes(&mut bytes);
    bytes
}

fn batch(compression: Compression) -> Bytes {
    let mut builder = BatchBuilder::new();
    let header = (Bytes::from_static(b"trace"), Some(Bytes::from_static(b"7")));
    for number in 0..4_i64 {
        let headers = [header.clone(), (Bytes::from_static(b"none"), None)];
        builder.push(1_700_000_000_000 + number, Some(b"key"), Some(b"a value, a value, a value"), &headers);
    }
    let stamp = ProducerStamp { producer_id: 7, producer_epoch: 0, base_sequence: 3 };
    builder.finish(compression, Some(stamp)).expect("it can be compressed")
}

fn frames() {
    for &api_key in ApiKey::ALL {
        let versions = api_key.versions();
        let mut named = vec![versions.max];
        if versions.min != versions.max {
            named.push(versions.min);
        }
        for version in named {
            let frame = encode_request(version, 7, Some("seed"), &Request::default_of(api_key)).expect("encoded");
            write("request_frame", &format!("{}-{version}", api_key.name()), &frame.into_bytes()[4..]);
        }
        let position = ApiKey::ALL.iter().position(|key| *key == api_key).expect("it is one of them");
        let frame = encode_response(versions.max, 7, &Response::default_of(api_key)).expect("encoded");
        let version = u8::try_from(versions.max - versions.min).expect("versions are few");
        let head = vec![u8::try_from(position).expect("keys are few"), version];
        write("response_frame", api_key.name(), &[&head, &frame.into_bytes()[4..]].concat());
    }
}

fn batches() {
    for compression in [Compression::None, Compression::Gzip, Compression::Snappy, Compression::Lz4, Compression::Zstd]
    {
        write("record_batch", &format!("{compression:?}").to_lowercase(), &batch(compression));
    }
    for compression in [Compression::Gzip, Compression::Snappy, Compression::Lz4, Compression::Zstd] {
        let bytes = compression.compress(&b"again and again ".repeat(40)).expect("compressed");
        write("record_batch", &format!("only-{compression:?}").to_lowercase(), &bytes);
    }
}

fn peers() {
    for kind in [FrameKind::Ping, FrameKind::Request, FrameKind::Reply, FrameKind::Fault, FrameKind::WrongIncarnation] {
        let payload = [Bytes::from_static(b"payload")];
        let frame = encode_frame(&FrameHead::new(kind, 9), b"body", &payload, 1 << 10).expect("encoded");
        write("peer_frame", &format!("{kind:?}").to_lowercase(), &[&frame[..], b"payload"].concat());
    }
    write("peer_frame", "greeting", &[&b"LKSP\x00\x01\x00\x00"[..], &[0; 52]].concat());
}

fn states() {
    for seed in 0..6_u64 {
        let bytes = noise(seed, 900);
        write("apply", &format!("noise-{seed}"), &bytes);
        let mut input = Input::new(&bytes);
        let mut state = ClusterStateMachine::new(ShardId(0), 2);
        for index in 1..60 {
            let op = arbitrary_op(&mut input);
            if index <= 8 {
                write("op", &format!("{seed}-{index}-code-{}", op.code()), &op.encode());
            }
            state.apply(Position { term: 1, index }, &op, 256).expect("no op breaks an invariant");
        }
        write("snapshot", &format!("after-{seed}"), &state.snapshot());
    }
    write("snapshot", "empty", &ClusterStateMachine::new(ShardId(1), 2).snapshot());
}

/// What a journal's first file holds, without the zeros at its end.
async fn journal_with(entries: u64, changes: impl AsyncFnOnce(&Journal<TokioEnv>)) -> Vec<u8> {
    let directory = tempfile::tempdir().expect("a directory");
    let options =
        JournalOptions { file_bytes: 16 << 10, cache_bytes_per_shard: 1 << 10, durability: Durability::Fsync };
    let journal = Journal::open(TokioEnv::new(), directory.path(), options).await.expect("opened");
    for shard in [ShardId(0), ShardId(2)] {
        let log = journal.shard(shard);
        log.save_vote(Bytes::from_static(b"vote")).await.expect("saved");
        let list = (1..=entries)
            .map(|index| (Position { term: 1, index }, vec![Bytes::from(format!("entry {index} of {shard}"))]))
            .collect();
        log.append(list, Box::new(|outcome| outcome.expect("durable")));
    }
    changes(&journal).await;
    journal.close().await;
    let mut bytes = fs::read(directory.path().join(format!("{:016x}.journal", 1))).expect("the first file");
    let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    bytes.truncate(end);
    bytes
}

async fn journals() {
    let with_choice = |choice: u8, bytes: &[u8]| [&[choice], bytes].concat();
    let plain = journal_with(3, async |_| {}).await;
    write("journal", "entries", &with_choice(0, &plain));
    let cut = journal_with(5, async |journal| {
        journal.shard(ShardId(0)).truncate_after(Some(2));
        journal.shard(ShardId(2)).purge(Position { term: 1, index: 3 });
        journal.shard(ShardId(2)).save_committed(Position { term: 1, index: 4 });
    })
    .await;
    write("journal", "cut-and-purged", &with_choice(0, &cut));
    write("journal", "torn", &with_choice(0, &plain[..plain.len() - plain.len() / 3]));
    write("journal", "nothing", &[0]);
}
