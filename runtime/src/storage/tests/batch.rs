//! Record batches for tests.

use crate::storage::batch::HEADER_LEN;

/// A batch as a producer sends it, of `records` offsets; `content` stands where the records would.
pub(crate) fn batch(records: u32, max_timestamp_ms: i64, content: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; HEADER_LEN];
    bytes.extend(content);
    let after_length = (bytes.len() - 12) as u32;
    bytes[8..12].copy_from_slice(&after_length.to_be_bytes());
    bytes[12..16].copy_from_slice(&(-1i32).to_be_bytes());
    bytes[16] = 2;
    bytes[23..27].copy_from_slice(&(records - 1).to_be_bytes());
    bytes[27..35].copy_from_slice(&max_timestamp_ms.to_be_bytes());
    bytes[35..43].copy_from_slice(&max_timestamp_ms.to_be_bytes());
    bytes[57..61].copy_from_slice(&records.to_be_bytes());
    let crc = crc32c::crc32c(&bytes[21..]);
    bytes[17..21].copy_from_slice(&crc.to_be_bytes());
    bytes
}
