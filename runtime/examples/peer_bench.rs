//! Latency of calls between two nodes on the loopback interface, and of synced writes: `cargo run --release --example peer_bench [directory]`.
//!
//! Every figure stands beside its floor, measured in turn with it, since absolute times vary with the machine's load.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc as thread_channel;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, join_all};
use lockstep_env::tokio_env::TokioEnv;
use lockstep_env::{Disk, DiskFile, Env, Listener, OpenMode};
use lockstep_runtime::peer::{
    IncomingRequest, Lane, PeerFault, PeerHandler, PeerIdentity, PeerNetwork, PeerOptions, PeerReply, PeerRequest,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const LONG: Duration = Duration::from_secs(30);

struct Echo;

impl PeerHandler for Echo {
    fn handle(&self, _: PeerIdentity, request: IncomingRequest) -> BoxFuture<'static, Result<PeerReply, PeerFault>> {
        async { Ok(PeerReply { body: request.body, payload: Vec::new() }) }.boxed()
    }

    fn gossip(&self) -> Bytes {
        Bytes::new()
    }

    fn on_gossip(&self, _: PeerIdentity, _: Bytes) {}
}

fn report(what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e6;
    println!("{what:<58} p50 {:>8.1} µs   p90 {:>8.1} µs   p99 {:>8.1} µs", at(0.5), at(0.9), at(0.99));
}

async fn start(me: u64) -> PeerNetwork<TokioEnv> {
    let peers: BTreeMap<u64, String> = (1..=2).map(|node| (node, "127.0.0.1:1".to_owned())).collect();
    let options = PeerOptions::new(me, [me as u8; 16], [1; 16], "127.0.0.1:0".to_owned(), peers);
    PeerNetwork::start(TokioEnv::new(), options, Arc::new(Echo)).await.expect("loopback")
}

async fn calls() -> anyhow::Result<()> {
    let (one, two) = (start(1).await, start(2).await);
    one.redirect(2, two.local_address().to_owned());
    two.redirect(1, one.local_address().to_owned());
    while !one.is_connected(2) {
        TokioEnv::sleep(Duration::from_millis(5)).await;
    }

    let env = TokioEnv::new();
    let mut listener = env.listen("127.0.0.1:0").await?;
    let address = listener.local_address()?;
    drop(TokioEnv::spawn(async move {
        let mut connection = listener.accept().await?;
        let mut buffer = [0; 128];
        while connection.reader.read_exact(&mut buffer).await.is_ok() {
            connection.writer.write_all(&buffer).await?;
        }
        std::io::Result::Ok(())
    }));
    let mut raw = env.connect(&address).await?;

    let request = PeerRequest { kind: 0, shard: 0, body: vec![7; 84].into(), payload: Vec::new() };
    let (mut floor, mut control, mut bulk) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..5_000 {
        let mut buffer = [0; 128];
        let begin = TokioEnv::now();
        raw.writer.write_all(&buffer).await?;
        raw.reader.read_exact(&mut buffer).await?;
        floor.push(begin.elapsed());
        for (lane, times) in [(Lane::Control, &mut control), (Lane::Bulk, &mut bulk)] {
            let begin = TokioEnv::now();
            one.call(2, None, lane, request.clone(), LONG).await?;
            times.push(begin.elapsed());
        }
    }
    report("round trip of 128 bytes, bare TCP", floor);
    report("round trip of a small call, control lane", control);
    report("round trip of a small call, bulk lane", bulk);

    let begin = TokioEnv::now();
    for _ in 0..500 {
        let round = (0..64).map(|_| one.call(2, None, Lane::Control, request.clone(), LONG));
        for reply in join_all(round).await {
            reply?;
        }
    }
    println!("64 small calls at a time: {:.0} calls/s", 500.0 * 64.0 / begin.elapsed().as_secs_f64());

    let large = PeerRequest { payload: vec![vec![1; 1 << 20].into()], ..request.clone() };
    let begin = TokioEnv::now();
    for _ in 0..50 {
        let round = (0..8).map(|_| one.call(2, None, Lane::Bulk, large.clone(), LONG));
        for reply in join_all(round).await {
            reply?;
        }
    }
    println!("8 calls of 1 MiB at a time: {:.0} MiB/s", 50.0 * 8.0 / begin.elapsed().as_secs_f64());

    let network = one.clone();
    let loading = TokioEnv::spawn(async move {
        for _ in 0..100 {
            join_all((0..8).map(|_| network.call(2, None, Lane::Bulk, large.clone(), LONG))).await;
        }
    });
    let mut beside = Vec::new();
    for _ in 0..1_000 {
        let begin = TokioEnv::now();
        one.call(2, None, Lane::Control, request.clone(), LONG).await?;
        beside.push(begin.elapsed());
    }
    loading.await?;
    report("round trip of a small call beside bulk load", beside);
    one.shutdown().await;
    two.shutdown().await;
    Ok(())
}

/// Runs `operation` on one thread, as often as asked, with its result sent back.
fn dedicated_thread(
    mut operation: impl FnMut(u64) -> std::io::Result<()> + Send + 'static,
) -> thread_channel::Sender<(u64, tokio::sync::oneshot::Sender<std::io::Result<()>>)> {
    let (sender, receiver) = thread_channel::channel::<(u64, tokio::sync::oneshot::Sender<_>)>();
    std::thread::spawn(move || {
        while let Ok((offset, done)) = receiver.recv() {
            let _ = done.send(operation(offset));
        }
    });
    sender
}

async fn synced_writes(directory: PathBuf) -> anyhow::Result<()> {
    const LEN: u64 = 1 << 10;
    const ROUNDS: u64 = 2_000;
    let env = TokioEnv::new();
    let content = Bytes::from(vec![1; LEN as usize]);
    let mut files = Vec::new();
    for name in ["bare", "pool", "thread", "appended", "allocated"] {
        let path = directory.join(format!("peer_bench.{name}"));
        let file = env.disk().open(&path, OpenMode::Truncate).await?;
        match name {
            "appended" => {}
            "allocated" => file.allocate(ROUNDS * LEN).await?,
            _ => file.write_and_sync(0, vec![vec![0; (ROUNDS * LEN) as usize].into()]).await?,
        }
        file.sync_data().await?;
        files.push((path, file));
    }
    let open = |at: usize| File::options().write(true).open(&files[at].0);
    let bare = open(0)?;
    let in_thread = open(2)?;
    let bare_content = content.clone();
    let thread_content = content.clone();
    let thread = dedicated_thread(move |offset| {
        in_thread.write_all_at(&thread_content, offset)?;
        in_thread.sync_data()
    });
    let mut times = vec![Vec::new(); 7];
    let no_work = dedicated_thread(|_| Ok(()));
    for round in 0..ROUNDS {
        let offset = round * LEN;
        let begin = TokioEnv::now();
        bare.write_all_at(&bare_content, offset)?;
        bare.sync_data()?;
        times[0].push(begin.elapsed());
        for (slot, file) in [(1, 1), (3, 3), (4, 4)] {
            let begin = TokioEnv::now();
            files[file].1.write_and_sync(offset, vec![content.clone()]).await?;
            times[slot].push(begin.elapsed());
        }
        for (slot, thread) in [(2, &thread), (6, &no_work)] {
            let (done, wait) = tokio::sync::oneshot::channel();
            let begin = TokioEnv::now();
            thread.send((offset, done))?;
            wait.await??;
            times[slot].push(begin.elapsed());
        }
        let begin = TokioEnv::now();
        files[1].1.len().await?;
        times[5].push(begin.elapsed());
    }
    let what = [
        "write 1 KiB over written space and sync, blocking",
        "the same through DiskFile::write_and_sync",
        "the same through a thread of its own",
        "DiskFile::write_and_sync, appending",
        "DiskFile::write_and_sync into allocated, unwritten space",
        "the way to the pool and back (DiskFile::len)",
        "the way to a thread of its own and back",
    ];
    for (what, times) in what.into_iter().zip(times) {
        report(what, times);
    }
    for (path, _) in files {
        env.disk().remove_file(&path).await?;
    }
    Ok(())
}

#[tokio::main(flavor = "multi_thread")]
async fn main() -> anyhow::Result<()> {
    let directory = std::env::args_os().nth(1).map_or_else(std::env::temp_dir, PathBuf::from);
    TokioEnv::spawn(calls()).await??;
    TokioEnv::spawn(synced_writes(directory)).await??;
    Ok(())
}
