//! `lockstep produce`.

use std::time::Duration;

use anyhow::Context;
use clap::{Args, ValueEnum};
use lockstep_client::{Acks, Client, Compression, Producer, ProducerConfig};
use lockstep_env::{Either, Env, select};
use tokio::io::{AsyncBufReadExt, BufReader};

/// Bytes read from standard input at a time.
const READ_LEN: usize = 1 << 20;
/// Lines between two looks at whether sending works.
const LINES_BETWEEN_CHECKS: u64 = 4_096;

#[derive(Debug, Args)]
pub(crate) struct ProduceArguments {
    /// Topic to send to
    topic: String,
    /// What separates key and value within a line; without it lines have no key
    #[arg(long, short = 'K', value_name = "TEXT")]
    key_separator: Option<String>,
    /// Partition to send to; chosen by the key, or in turn, if not given
    #[arg(long, short)]
    partition: Option<i32>,
    /// When a message counts as acknowledged
    #[arg(long, value_enum, default_value = "all")]
    acks: AcksArgument,
    /// How batches are compressed
    #[arg(long, value_enum, default_value = "none")]
    compression: CompressionArgument,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum AcksArgument {
    /// Once it is durable on a majority
    All,
    /// Once the leader has it
    #[value(name = "1")]
    One,
    /// When it has been sent
    #[value(name = "0")]
    Zero,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum CompressionArgument {
    None,
    Gzip,
    Snappy,
    Lz4,
    Zstd,
}

impl From<CompressionArgument> for Compression {
    fn from(argument: CompressionArgument) -> Self {
        match argument {
            CompressionArgument::None => Compression::None,
            CompressionArgument::Gzip => Compression::Gzip,
            CompressionArgument::Snappy => Compression::Snappy,
            CompressionArgument::Lz4 => Compression::Lz4,
            CompressionArgument::Zstd => Compression::Zstd,
        }
    }
}

pub(crate) async fn run(client: &Client, arguments: ProduceArguments) -> anyhow::Result<()> {
    let acks = match arguments.acks {
        AcksArgument::All => Acks::All,
        AcksArgument::One => Acks::Leader,
        AcksArgument::Zero => Acks::None,
    };
    let config = ProducerConfig {
        acks,
        is_idempotent: acks == Acks::All,
        compression: arguments.compression.into(),
        delivery_timeout: client.config().timeout,
        linger: Duration::from_millis(5),
        ..ProducerConfig::default()
    };
    // A topic that does not exist should not wait for the first line.
    client.topic(&arguments.topic, true).await?;
    let producer = Producer::new(client, config)?;
    // Interrupted, it stops reading; what was read is still sent.
    let sent = match select(super::interrupted(), send_lines(client, &producer, &arguments)).await {
        Either::First(()) => Ok(()),
        Either::Second(sent) => sent,
    };
    let flushed = producer.flush().await;
    eprintln!("{} messages acknowledged", producer.acknowledged());
    sent?;
    flushed?;
    Ok(())
}

async fn send_lines(client: &Client, producer: &Producer, arguments: &ProduceArguments) -> anyhow::Result<()> {
    let mut input = BufReader::with_capacity(READ_LEN, tokio::io::stdin());
    let separator = arguments.key_separator.as_ref().map(|text| text.as_bytes()).filter(|text| !text.is_empty());
    let mut line = Vec::new();
    let mut lines: u64 = 0;
    loop {
        line.clear();
        if input.read_until(b'\n', &mut line).await.context("reading standard input")? == 0 {
            return Ok(());
        }
        let text = line.strip_suffix(b"\n").unwrap_or(&line);
        let text = text.strip_suffix(b"\r").unwrap_or(text);
        let (key, value) = match separator.and_then(|separator| Some((separator, find(text, separator)?))) {
            Some((separator, at)) => (Some(&text[..at]), &text[at + separator.len()..]),
            None => (None, text),
        };
        let timestamp = client.env().wall_clock_ms();
        producer.send_bytes(&arguments.topic, arguments.partition, key, Some(value), timestamp).await?;
        lines += 1;
        if lines.is_multiple_of(LINES_BETWEEN_CHECKS)
            && let Some(error) = producer.take_error()
        {
            return Err(error.into());
        }
    }
}

fn find(text: &[u8], separator: &[u8]) -> Option<usize> {
    text.windows(separator.len()).position(|window| window == separator)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_separator_counts() {
        assert_eq!(find(b"k::v::w", b"::"), Some(1));
        assert_eq!(find(b"kv", b"::"), None);
        assert_eq!(find(b"", b":"), None);
    }
}
