//! Compression of records.
//!
//! Decompressed output is capped while it is produced: a few bytes may claim, or really unfold to, gigabytes.

use std::io::{self, Read, Write};

use bytes::Bytes;
use thiserror::Error;

/// How the records of a batch are compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Compression {
    /// Not at all.
    #[default]
    None,
    /// RFC 1952.
    Gzip,
    /// Snappy; in blocks with the header of xerial's Java library when other clients wrote it, or one raw block.
    Snappy,
    /// LZ4 frame.
    Lz4,
    /// RFC 8878.
    Zstd,
}

/// Compressed records could not be unfolded.
#[derive(Debug, Error)]
pub enum CompressionError {
    /// The output would be longer than the cap.
    #[error("more than {len_max} bytes come out")]
    TooLong {
        /// Cap in bytes.
        len_max: usize,
    },
    /// The compressed bytes are damaged.
    #[error("damaged {compression:?} data: {reason}")]
    Damaged {
        /// Codec.
        compression: Compression,
        /// What the codec says.
        reason: String,
    },
}

/// What xerial's snappy-java writes before its blocks; two version numbers of four bytes follow.
const XERIAL_MAGIC: &[u8] = &[0x82, b'S', b'N', b'A', b'P', b'P', b'Y', 0];
const XERIAL_HEADER_LEN: usize = 16;
const XERIAL_BLOCK_LEN: usize = 32 * 1024;
/// A zstd window of up to 64 MiB is allocated for a hostile frame; clients at their highest levels use 8 MiB for
/// batches of this size.
const ZSTD_WINDOW_LOG_MAX: u32 = 26;

impl Compression {
    /// The codec with this number in a batch's attributes.
    pub const fn from_code(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::None),
            1 => Some(Self::Gzip),
            2 => Some(Self::Snappy),
            3 => Some(Self::Lz4),
            4 => Some(Self::Zstd),
            _ => None,
        }
    }

    /// The number in a batch's attributes.
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// Compresses `bytes`.
    ///
    /// # Errors
    /// The codec failed, which only a lack of memory or an input of gigabytes makes it do.
    pub fn compress(self, bytes: &[u8]) -> io::Result<Vec<u8>> {
        match self {
            Self::None => Ok(bytes.to_vec()),
            Self::Gzip => {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
                encoder.write_all(bytes)?;
                encoder.finish()
            }
            Self::Snappy => {
                let mut out = Vec::with_capacity(bytes.len() / 2 + XERIAL_HEADER_LEN);
                out.extend_from_slice(XERIAL_MAGIC);
                out.extend_from_slice(&1_u32.to_be_bytes());
                out.extend_from_slice(&1_u32.to_be_bytes());
                let mut encoder = snap::raw::Encoder::new();
                for block in bytes.chunks(XERIAL_BLOCK_LEN) {
                    let compressed = encoder.compress_vec(block)?;
                    out.extend_from_slice(&(compressed.len() as u32).to_be_bytes());
                    out.extend_from_slice(&compressed);
                }
                Ok(out)
            }
            Self::Lz4 => {
                let info = lz4_flex::frame::FrameInfo::new()
                    .block_size(lz4_flex::frame::BlockSize::Max64KB)
                    .block_mode(lz4_flex::frame::BlockMode::Independent);
                let mut encoder = lz4_flex::frame::FrameEncoder::with_frame_info(info, Vec::new());
                encoder.write_all(bytes)?;
                encoder.finish().map_err(io::Error::other)
            }
            Self::Zstd => zstd::stream::encode_all(bytes, 3),
        }
    }

    /// Unfolds `bytes` to at most `len_max` bytes. Without compression they are handed back as they are.
    ///
    /// # Errors
    /// See [`CompressionError`].
    pub fn decompress(self, bytes: &Bytes, len_max: usize) -> Result<Bytes, CompressionError> {
        match self {
            Self::None if bytes.len() > len_max => Err(CompressionError::TooLong { len_max }),
            Self::None => Ok(bytes.clone()),
            Self::Gzip => self.read_capped(flate2::read::MultiGzDecoder::new(&bytes[..]), len_max),
            Self::Snappy => self.unsnap(bytes, len_max),
            Self::Lz4 => self.read_capped(lz4_flex::frame::FrameDecoder::new(&bytes[..]), len_max),
            Self::Zstd => {
                let mut decoder =
                    zstd::stream::read::Decoder::with_buffer(&bytes[..]).map_err(|error| self.damaged(error))?;
                decoder.window_log_max(ZSTD_WINDOW_LOG_MAX).map_err(|error| self.damaged(error))?;
                self.read_capped(decoder, len_max)
            }
        }
    }

    fn damaged(self, reason: impl ToString) -> CompressionError {
        CompressionError::Damaged { compression: self, reason: reason.to_string() }
    }

    fn read_capped(self, reader: impl Read, len_max: usize) -> Result<Bytes, CompressionError> {
        let mut out = Vec::new();
        // One byte more than allowed tells "exactly full" from "more to come".
        let cap = u64::try_from(len_max).unwrap_or(u64::MAX).saturating_add(1);
        reader.take(cap).read_to_end(&mut out).map_err(|error| self.damaged(error))?;
        if out.len() > len_max { Err(CompressionError::TooLong { len_max }) } else { Ok(out.into()) }
    }

    fn unsnap(self, bytes: &[u8], len_max: usize) -> Result<Bytes, CompressionError> {
        let mut decoder = snap::raw::Decoder::new();
        let mut unsnap_block = |block: &[u8], out: &mut Vec<u8>| {
            let len = snap::raw::decompress_len(block).map_err(|error| self.damaged(error))?;
            if len > len_max - out.len() {
                return Err(CompressionError::TooLong { len_max });
            }
            // No element of the format yields more than 64 bytes from its two or more; what claims more is damaged, and
            // must not be allocated for.
            if len > block.len().saturating_mul(64) {
                return Err(self.damaged("the length claimed cannot come out"));
            }
            let start = out.len();
            out.resize(start + len, 0);
            decoder.decompress(block, &mut out[start..]).map_err(|error| self.damaged(error))?;
            Ok(())
        };
        let mut out = Vec::new();
        if !bytes.starts_with(XERIAL_MAGIC) {
            unsnap_block(bytes, &mut out)?;
            return Ok(out.into());
        }
        let mut rest = bytes.get(XERIAL_HEADER_LEN..).ok_or_else(|| self.damaged("header cut off"))?;
        while let Some((len, after)) = rest.split_first_chunk() {
            let len = usize::try_from(u32::from_be_bytes(*len)).unwrap_or(usize::MAX);
            let (block, after) = after.split_at_checked(len).ok_or_else(|| self.damaged("block cut off"))?;
            unsnap_block(block, &mut out)?;
            rest = after;
        }
        if rest.is_empty() { Ok(out.into()) } else { Err(self.damaged("block length cut off")) }
    }
}
