//! Requests over one connection, a fixed number of them under way, with as little work for each as can be.
//!
//! One task encodes, writes, reads and decodes: what measures shares its processors with what is measured.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bytes::{Buf, Bytes, BytesMut};
use lockstep_env::tokio_env::TokioEnv;
use lockstep_env::{Connection, Env, timeout};
use lockstep_wire::frame::{RESPONSE_LEN_MAX, decode_response, encode_request};
use lockstep_wire::{ApiKey, Request, Response};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::cli::latency::Latencies;

/// Longest wait for anything to come.
const PATIENCE: Duration = Duration::from_secs(30);
const BUFFER_LEN: usize = 64 << 10;
/// Bytes that stand before each frame and tell its length.
const PREFIX_LEN: usize = 4;

/// Where requests come from.
pub(super) trait Requests {
    /// The next one; `None` when there are no more.
    fn next(&mut self) -> Option<&Request>;
}

/// A connection of its own, over which requests of one kind and version go.
pub(super) struct Pipeline {
    connection: Connection<TokioEnv>,
    api_key: ApiKey,
    api_version: i16,
    incoming: BytesMut,
    next_correlation_id: i32,
    /// When each request under way was sent, the first one first, with its correlation id.
    under_way: VecDeque<(i32, Instant)>,
}

impl Pipeline {
    /// Connects. That the broker serves the version is to be known already.
    pub(super) async fn open(env: &TokioEnv, address: &str, api_key: ApiKey, version: i16) -> anyhow::Result<Self> {
        let connecting = timeout::<TokioEnv, _>(PATIENCE, env.connect(address)).await;
        let connection = connecting.with_context(|| format!("connecting to {address}"))??;
        Ok(Self {
            connection,
            api_key,
            api_version: version,
            incoming: BytesMut::with_capacity(BUFFER_LEN),
            next_correlation_id: 0,
            under_way: VecDeque::new(),
        })
    }

    /// Keeps `window` requests under way until there are no more, and adds how long each took. `answered` gets the answers, in
    /// order.
    pub(super) async fn run(
        mut self,
        window: usize,
        latencies: &Latencies,
        requests: &mut (impl Requests + Send),
        mut answered: impl FnMut(&Response) + Send,
    ) -> anyhow::Result<()> {
        let mut outgoing = BytesMut::with_capacity(BUFFER_LEN);
        loop {
            while self.under_way.len() < window
                && let Some(request) = requests.next()
            {
                let frame = encode_request(self.api_version, self.next_correlation_id, Some("lockstep-cli"), request)?;
                for segment in &frame.segments {
                    outgoing.extend_from_slice(segment);
                }
                self.under_way.push_back((self.next_correlation_id, TokioEnv::now()));
                self.next_correlation_id = self.next_correlation_id.wrapping_add(1);
            }
            if self.under_way.is_empty() {
                return Ok(());
            }
            if !outgoing.is_empty() {
                self.connection.writer.write_all(&outgoing).await?;
                self.connection.writer.flush().await?;
                outgoing.clear();
            }
            let reading = self.connection.reader.read_buf(&mut self.incoming);
            if timeout::<TokioEnv, _>(PATIENCE, reading).await.context("no answer")?? == 0 {
                bail!("closed by the broker");
            }
            while let Some(frame) = self.frame()? {
                let (correlation_id, response) = decode_response(self.api_key, self.api_version, frame)?;
                match self.under_way.pop_front() {
                    Some((expected, sent_at)) if expected == correlation_id => {
                        latencies.add(TokioEnv::now() - sent_at);
                    }
                    _ => bail!("an answer to nothing that was asked"),
                }
                answered(&response);
            }
        }
    }

    /// The next whole frame that has come, without its prefix.
    fn frame(&mut self) -> anyhow::Result<Option<Bytes>> {
        let Some(prefix) = self.incoming.first_chunk::<PREFIX_LEN>() else { return Ok(None) };
        let len = u32::from_be_bytes(*prefix) as usize;
        if len > RESPONSE_LEN_MAX {
            bail!("an answer of {len} bytes");
        }
        if self.incoming.len() < PREFIX_LEN + len {
            return Ok(None);
        }
        self.incoming.advance(PREFIX_LEN);
        Ok(Some(self.incoming.split_to(len).freeze()))
    }
}
