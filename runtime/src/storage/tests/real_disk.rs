//! The same on files of the operating system.

use lockstep_core::{Position, ShardId};
use lockstep_env::tokio_env::TokioEnv;

use crate::storage::tests::scenario::{Model, Shape, model, random_entries, resolved};
use crate::storage::{Cache, Checkpoints, Installation, Manifest, PartitionStore, StoreOptions};

async fn check_reads(store: &PartitionStore<TokioEnv>, model: &Model) {
    for (key, expected) in model {
        let log = store.log(key.0, key.1).unwrap();
        let read = log.read(expected.start, usize::MAX, false).await.unwrap().concat();
        let bytes: Vec<u8> = expected.batches.iter().flat_map(|batch| batch.bytes.clone()).collect();
        assert!(read == bytes, "{key:?}");
        assert_eq!((log.start_offset(), log.end_offset()), (expected.start, expected.end));
    }
}

#[tokio::test]
async fn a_store_is_opened_again_and_installed_elsewhere() {
    let entries = random_entries(9, Shape { entries: 200, content_max: 30_000, drops: true, deletes: true });
    let expected = model(&entries);
    let options = StoreOptions::new(Cache::new(50_000));
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let shard = ShardId(0);
    let dir = here.path().join("data").join("0");

    let (checkpoints, manifest) = Checkpoints::open(TokioEnv::new(), here.path(), shard).await.unwrap();
    assert_eq!(manifest, None);
    let store = PartitionStore::open(TokioEnv::new(), &dir, options.clone(), None).await.unwrap();
    for entry in &entries {
        for effect in &entry.effects {
            store.writable().await;
            store.apply(&resolved(effect, 100_000), &entry.payload).unwrap();
        }
    }
    let view = store.prepare_checkpoint();
    let segments = store.sync_for(&view).await.unwrap();
    let position = Some(Position { term: 1, index: 200 });
    checkpoints.write(&Manifest { position, segments, ..Manifest::default() }).await.unwrap();
    store.checkpointed(view).await;
    store.close().await;

    let (_, manifest) = Checkpoints::open(TokioEnv::new(), here.path(), shard).await.unwrap();
    let store = PartitionStore::open(TokioEnv::new(), &dir, options.clone(), manifest.as_ref()).await.unwrap();
    check_reads(&store, &expected).await;

    let (checkpoints, _) = Checkpoints::open(TokioEnv::new(), there.path(), shard).await.unwrap();
    let dir = there.path().join("data").join("0");
    let other = PartitionStore::open(TokioEnv::new(), &dir, options.clone(), None).await.unwrap();
    let mut installation = Installation::begin(&other, manifest.unwrap()).await.unwrap();
    while let Some(range) = installation.missing().first() {
        let chunk = store.read_chunk(&range.segment, range.from, 40_000).await.unwrap();
        installation.write_chunk(&range.segment, range.from, chunk).await.unwrap();
    }
    let manifest = installation.finish(&checkpoints).await.unwrap();
    check_reads(&other, &expected).await;
    other.close().await;
    store.close().await;
    let other = PartitionStore::open(TokioEnv::new(), &dir, options, Some(&manifest)).await.unwrap();
    check_reads(&other, &expected).await;
    other.close().await;
}
