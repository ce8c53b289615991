//! Loopback by itself.

use std::io;
use std::time::Duration;

use lockstep_env::tokio_env::TokioEnv;
use lockstep_env::{Connection, Env, Listener};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::super::filler;
use super::RECORD_LEN;
use crate::cli::latency::Latencies;

const ROUND_TRIPS: u64 = 2_000;
/// What is sent at most, and for how long.
const BULK_LEN: u64 = 2 << 30;
const BULK_TIME: Duration = Duration::from_secs(2);
/// Bytes written and read at a time.
const BULK_BUFFER_LEN: usize = 256 << 10;

/// A record there and back, one after another.
pub(super) async fn measure_round_trip(env: &TokioEnv, latencies: &Latencies) -> io::Result<()> {
    let mut listener = env.listen("127.0.0.1:0").await?;
    let address = listener.local_address()?;
    let echo = TokioEnv::spawn(async move {
        let mut connection = listener.accept().await?;
        let mut buffer = [0; RECORD_LEN];
        // Ends with an error when the other side closes.
        loop {
            connection.reader.read_exact(&mut buffer).await?;
            connection.writer.write_all(&buffer).await?;
            connection.writer.flush().await?;
        }
        #[expect(unreachable_code, reason = "names the type of the result")]
        Ok::<(), io::Error>(())
    });
    let mut connection = env.connect(&address).await?;
    let mut buffer = [7; RECORD_LEN];
    for _ in 0..ROUND_TRIPS {
        let began_at = TokioEnv::now();
        connection.writer.write_all(&buffer).await?;
        connection.writer.flush().await?;
        connection.reader.read_exact(&mut buffer).await?;
        latencies.add(TokioEnv::now() - began_at);
    }
    drop(connection);
    // That it ended with an error is expected.
    let _ = echo.await;
    Ok(())
}

/// Bytes that one connection carried, and how long it took. Sender and receiver have a thread each, as a broker and its client have.
pub(super) async fn measure_bulk(env: &TokioEnv) -> io::Result<(u64, Duration)> {
    let mut listener = env.listen("127.0.0.1:0").await?;
    let address = listener.local_address()?;
    let sender = std::thread::spawn({
        let env = env.clone();
        move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(send(env.connect(&address)))
        }
    });
    let mut connection = listener.accept().await?;
    let mut buffer = vec![0; BULK_BUFFER_LEN];
    let began_at = TokioEnv::now();
    let mut received = 0;
    loop {
        match connection.reader.read(&mut buffer).await? {
            0 => break,
            read => received += read as u64,
        }
    }
    let took = TokioEnv::now() - began_at;
    sender.join().map_err(|_| io::Error::other("the sender panicked"))??;
    Ok((received, took))
}

async fn send(connecting: impl Future<Output = io::Result<Connection<TokioEnv>>>) -> io::Result<()> {
    let mut connection = connecting.await?;
    let content = filler(4, BULK_BUFFER_LEN);
    let ends_at = TokioEnv::now() + BULK_TIME;
    let mut left = BULK_LEN;
    while left > 0 && TokioEnv::now() < ends_at {
        connection.writer.write_all(&content).await?;
        left = left.saturating_sub(content.len() as u64);
    }
    connection.writer.flush().await?;
    connection.writer.shutdown().await
}
