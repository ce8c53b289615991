//! The sparse index of a segment: where to begin to look for an offset or a time.
//!
//! An `.index` file (numbers big-endian) holds `LSIX`, the format's version (u32), the segment's base offset (i64), how many bytes of the log it
//! covers (u64), the number of entries (u32), the entries (offset i64, position u64, largest timestamp in milliseconds i64, CRC32C of offsets u32),
//! and the CRC32C of all that (u32). It is never synced on its own: one that is missing or damaged is made again from the log.

use crate::storage::batch::BatchHeader;

/// A new entry begins once so many bytes of log follow the last one.
pub(crate) const INTERVAL_BYTES: u64 = 64 << 10;
/// No index file is longer.
pub(crate) const FILE_LEN_MAX: u64 = 64 << 20;

const MAGIC: [u8; 4] = *b"LSIX";
const VERSION: u32 = 2;
const HEAD_LEN: usize = 28;
const ENTRY_LEN: usize = 28;
const CRC_LEN: usize = 4;

/// One batch's place, and the largest timestamp from there to the next entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct IndexEntry {
    /// The batch's base offset.
    pub(crate) offset: i64,
    /// Where the batch begins.
    pub(crate) position: u64,
    /// Largest timestamp of all batches up to the next entry.
    pub(crate) max_timestamp_ms: i64,
    /// CRC32C of where all batches up to the next entry begin and end: base offset and offset after, 8 bytes each. No batch's own checksum covers its base
    /// offset, and where a log is compacted nothing else tells what it should be; and a batch that seems to end before what is looked for is passed over.
    pub(crate) offsets_crc: u32,
}

/// Entries for the first `covered` bytes of a segment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Index {
    /// Ascending; the first one is at position 0.
    pub(crate) entries: Vec<IndexEntry>,
    /// So many bytes of the log are covered.
    pub(crate) covered: u64,
}

impl Index {
    /// Takes in the batch that begins at `self.covered`.
    pub(crate) fn push(&mut self, header: &BatchHeader) {
        push(&mut self.entries, header, self.covered);
        self.covered += header.len as u64;
    }

    /// Forgets what begins at `position` or later.
    pub(crate) fn cut(&mut self, position: u64) {
        self.entries.retain(|entry| entry.position < position);
        self.covered = self.covered.min(position);
    }

    pub(crate) fn encode(&self, base_offset: i64) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEAD_LEN + self.entries.len() * ENTRY_LEN + CRC_LEN);
        bytes.extend(MAGIC);
        bytes.extend(VERSION.to_be_bytes());
        bytes.extend(base_offset.to_be_bytes());
        bytes.extend(self.covered.to_be_bytes());
        bytes.extend((self.entries.len() as u32).to_be_bytes());
        for entry in &self.entries {
            bytes.extend(entry.offset.to_be_bytes());
            bytes.extend(entry.position.to_be_bytes());
            bytes.extend(entry.max_timestamp_ms.to_be_bytes());
            bytes.extend(entry.offsets_crc.to_be_bytes());
        }
        let crc = crc32c::crc32c(&bytes);
        bytes.extend(crc.to_be_bytes());
        bytes
    }

    /// Reads what [`Index::encode`] wrote for this segment; `None` for anything else.
    pub(crate) fn decode(bytes: &[u8], base_offset: i64) -> Option<Self> {
        let (covered_by_crc, crc) = bytes.split_last_chunk::<CRC_LEN>()?;
        if crc32c::crc32c(covered_by_crc) != u32::from_be_bytes(*crc) {
            return None;
        }
        let (head, mut rest) = covered_by_crc.split_first_chunk::<HEAD_LEN>()?;
        let (magic, head) = head.split_first_chunk::<4>()?;
        let (version, head) = head.split_first_chunk::<4>()?;
        let (base, head) = head.split_first_chunk::<8>()?;
        let (covered, head) = head.split_first_chunk::<8>()?;
        let (count, _) = head.split_first_chunk::<4>()?;
        let (covered, count) = (u64::from_be_bytes(*covered), u32::from_be_bytes(*count) as usize);
        if *magic != MAGIC
            || u32::from_be_bytes(*version) != VERSION
            || i64::from_be_bytes(*base) != base_offset
            || count.checked_mul(ENTRY_LEN)? != rest.len()
        {
            return None;
        }
        let mut entries: Vec<IndexEntry> = Vec::with_capacity(count);
        while let Some((entry, after)) = rest.split_first_chunk::<ENTRY_LEN>() {
            rest = after;
            let (offset, entry) = entry.split_first_chunk::<8>()?;
            let (position, entry) = entry.split_first_chunk::<8>()?;
            let (max_timestamp_ms, offsets_crc) = entry.split_first_chunk::<8>()?;
            let entry = IndexEntry {
                offset: i64::from_be_bytes(*offset),
                position: u64::from_be_bytes(*position),
                max_timestamp_ms: i64::from_be_bytes(*max_timestamp_ms),
                offsets_crc: u32::from_be_bytes(offsets_crc.try_into().ok()?),
            };
            let in_order = match entries.last() {
                // Later in a compacted segment.
                None => entry.position == 0 && entry.offset >= base_offset,
                Some(last) => entry.offset > last.offset && entry.position > last.position,
            };
            if !in_order || entry.position >= covered {
                return None;
            }
            entries.push(entry);
        }
        Some(Self { entries, covered })
    }
}

/// Takes the batch at `position` into `entries`.
pub(crate) fn push(entries: &mut Vec<IndexEntry>, header: &BatchHeader, position: u64) {
    match entries.last_mut() {
        Some(last) if position < last.position.saturating_add(INTERVAL_BYTES) => {
            last.max_timestamp_ms = last.max_timestamp_ms.max(header.max_timestamp_ms);
            last.offsets_crc = offsets_crc(last.offsets_crc, header);
        }
        _ => entries.push(IndexEntry {
            offset: header.base_offset,
            position,
            max_timestamp_ms: header.max_timestamp_ms,
            offsets_crc: offsets_crc(0, header),
        }),
    }
}

/// The CRC32C of offsets when another batch follows.
pub(crate) fn offsets_crc(before: u32, header: &BatchHeader) -> u32 {
    let crc = crc32c::crc32c_append(before, &header.base_offset.to_be_bytes());
    crc32c::crc32c_append(crc, &header.next_offset.to_be_bytes())
}

/// The last entry that does not lie beyond `offset`.
pub(crate) fn find_offset(entries: &[IndexEntry], offset: i64) -> Option<IndexEntry> {
    let after = entries.partition_point(|entry| entry.offset <= offset);
    entries.get(after.checked_sub(1)?).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index() -> Index {
        let mut index = Index::default();
        for number in 0..20 {
            index.push(&BatchHeader {
                leader_epoch: 0,
                base_offset: 100 + number * 10,
                next_offset: 110 + number * 10,
                len: 20_000,
                max_timestamp_ms: 1_000 + number,
                crc32c: 0,
            });
        }
        index
    }

    #[test]
    fn entries_are_an_interval_apart() {
        let index = index();
        assert_eq!(index.covered, 400_000);
        assert_eq!(index.entries.len(), 5);
        let offsets: Vec<u8> =
            [140_i64, 150, 150, 160, 160, 170, 170, 180].into_iter().flat_map(i64::to_be_bytes).collect();
        let offsets_crc = crc32c::crc32c(&offsets);
        assert_eq!(
            index.entries[1],
            IndexEntry { offset: 140, position: 80_000, max_timestamp_ms: 1_007, offsets_crc }
        );
        assert_eq!(find_offset(&index.entries, 100).unwrap().position, 0);
        assert_eq!(find_offset(&index.entries, 179).unwrap().position, 80_000);
        assert_eq!(find_offset(&index.entries, 99), None);
    }

    #[test]
    fn any_damage_is_noticed() {
        let index = index();
        let bytes = index.encode(100);
        assert_eq!(Index::decode(&bytes, 100), Some(index));
        assert_eq!(Index::decode(&bytes, 101), None);
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x10;
            assert_eq!(Index::decode(&damaged, 100), None, "byte {at}");
            assert_eq!(Index::decode(&bytes[..at], 100), None, "cut at {at}");
        }
    }
}
