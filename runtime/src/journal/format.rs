//! What a journal file holds.
//!
//! A file is a run of batches. A batch is what one write and one sync make durable together:
//!
//! ```text
//! header (64 bytes)          magic, CRCs of header and table, number of records, generation, sequence number, salts, payload length
//! table (32 bytes a record)  kind, shard, position, payload length, payload CRC
//! payloads                   one after another, in the order of the table
//! zeros                      up to the next multiple of 4,096 bytes
//! ```
//!
//! All numbers are little-endian, all CRCs are CRC32C. The table stands before the payloads so that a batch is written as one
//! small buffer and the payloads themselves, never copied, and so that the payload CRCs can be computed by whoever appends.
//!
//! Batches begin at multiples of 4,096 bytes, the size of a page and of a physical sector: a torn write of a batch cannot
//! damage an earlier, durable one, because it shares no sector with it, and whole pages are written without being read first.
//!
//! The salt is random, differs from file to file, and is announced by the batches of the file before. Payloads come from
//! clients; without the salt a client could write a message that looks like a batch in the remains of an older file.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use lockstep_core::{Position, ShardId};

/// Batches begin at multiples of this and are padded to it.
pub(super) const BLOCK_BYTES: u64 = 4096;
/// Length of a batch's header.
pub(super) const HEADER_BYTES: usize = 64;
/// Length of one row of a batch's table.
pub(super) const RECORD_BYTES: usize = 32;
/// Records in one batch that can be read: four state records for each of 65,536 shards.
pub(super) const RECORDS_MAX: usize = 1 << 18;
/// Longest entry.
pub(super) const ENTRY_BYTES_MAX: usize = 64 << 20;
/// Longest vote.
pub(super) const VOTE_BYTES_MAX: usize = 4096;

const MAGIC: [u8; 8] = *b"LKSTPJ01";
const ZEROS: [u8; BLOCK_BYTES as usize] = [0; BLOCK_BYTES as usize];

/// `len` rounded up to whole blocks.
pub(super) fn padded(len: u64) -> u64 {
    len.next_multiple_of(BLOCK_BYTES)
}

/// The zeros that fill a batch of `len` bytes up to whole blocks.
pub(super) fn padding(len: u64) -> Bytes {
    Bytes::from_static(&ZEROS).slice(..(padded(len) - len) as usize)
}

/// Which batch of which file this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    /// The file's number. It grows by one from file to file.
    pub(super) generation: u64,
    /// The batch's number. It grows by one from batch to batch, across files.
    pub(super) sequence: u64,
    /// The file's salt.
    pub(super) salt: u64,
    /// The salt of the next file.
    pub(super) next_salt: u64,
}

/// A batch's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) identity: Identity,
    pub(super) records: u32,
    pub(super) payload_len: u64,
    pub(super) table_crc: u32,
}

impl Header {
    /// Reads a header, `None` when these bytes are not one.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.get(..HEADER_BYTES)?;
        let (mut checked_by, mut checked) = bytes.split_at_checked(12)?;
        if !checked_by.starts_with(&MAGIC) {
            return None;
        }
        checked_by.advance(MAGIC.len());
        if checked_by.get_u32_le() != crc32c::crc32c(checked) {
            return None;
        }
        let table_crc = checked.get_u32_le();
        let records = checked.get_u32_le();
        checked.advance(4);
        let identity = Identity {
            generation: checked.get_u64_le(),
            sequence: checked.get_u64_le(),
            salt: checked.get_u64_le(),
            next_salt: checked.get_u64_le(),
        };
        Some(Self { identity, records, payload_len: checked.get_u64_le(), table_crc })
    }

    /// Length of header, table and payloads, without padding. `None` when it is more than any file can hold.
    pub(super) fn batch_len(&self) -> Option<u64> {
        if self.records as usize > RECORDS_MAX {
            return None;
        }
        (HEADER_BYTES as u64 + u64::from(self.records) * RECORD_BYTES as u64).checked_add(self.payload_len)
    }
}

/// What a record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// The log grows by the entry at this position, the payload.
    Entry = 1,
    /// The log now ends at this position; without one it is empty.
    Truncate = 2,
    /// The vote is now the payload.
    Vote = 3,
    /// Entries up to this position are gone.
    Purge = 4,
    /// Entries up to this position are committed.
    Committed = 5,
    /// At the start of a file: the shard's log ends at this position.
    Base = 6,
    /// The entry at this position, which is still in the log, is held here from now on and no longer in an older file.
    Carry = 7,
}

/// One row of a batch's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) kind: Kind,
    pub(super) shard: ShardId,
    pub(super) position: Option<Position>,
    pub(super) payload_len: u32,
    pub(super) payload_crc: u32,
}

impl Record {
    /// A record without a payload.
    pub(super) fn bare(kind: Kind, shard: ShardId, position: Option<Position>) -> Self {
        Self { kind, shard, position, payload_len: 0, payload_crc: 0 }
    }

    /// A vote, which must not be longer than `VOTE_BYTES_MAX`.
    pub(super) fn vote(shard: ShardId, vote: &Bytes) -> Self {
        Self {
            kind: Kind::Vote,
            shard,
            position: None,
            payload_len: vote.len() as u32,
            payload_crc: crc32c::crc32c(vote),
        }
    }

    fn encode(&self, buffer: &mut BytesMut) {
        let position = self.position.unwrap_or_default();
        buffer.put_u8(self.kind as u8);
        buffer.put_u8(u8::from(self.position.is_some()));
        buffer.put_u16_le(self.shard.0);
        buffer.put_u32_le(self.payload_len);
        buffer.put_u32_le(self.payload_crc);
        buffer.put_u32_le(0);
        buffer.put_u64_le(position.term);
        buffer.put_u64_le(position.index);
    }

    /// Reads a row, or says what is wrong with it.
    pub(super) fn decode(mut row: &[u8]) -> Result<Self, &'static str> {
        if row.len() < RECORD_BYTES {
            return Err("a record is cut short");
        }
        let kind = match row.get_u8() {
            1 => Kind::Entry,
            2 => Kind::Truncate,
            3 => Kind::Vote,
            4 => Kind::Purge,
            5 => Kind::Committed,
            6 => Kind::Base,
            7 => Kind::Carry,
            _ => return Err("a record of unknown kind"),
        };
        let has_position = row.get_u8() == 1;
        let shard = ShardId(row.get_u16_le());
        let payload_len = row.get_u32_le();
        let payload_crc = row.get_u32_le();
        row.advance(4);
        let position = Position { term: row.get_u64_le(), index: row.get_u64_le() };
        let payload_len_max = match kind {
            Kind::Entry | Kind::Carry => ENTRY_BYTES_MAX,
            Kind::Vote => VOTE_BYTES_MAX,
            Kind::Truncate | Kind::Purge | Kind::Committed | Kind::Base => 0,
        };
        if payload_len as usize > payload_len_max {
            return Err("a record longer than its kind may be");
        }
        Ok(Self { kind, shard, position: has_position.then_some(position), payload_len, payload_crc })
    }
}

/// Header and table of a batch.
pub(super) fn encode_head(identity: Identity, records: &[Record]) -> Bytes {
    let mut buffer = BytesMut::with_capacity(HEADER_BYTES + records.len() * RECORD_BYTES);
    buffer.put_bytes(0, HEADER_BYTES);
    for record in records {
        record.encode(&mut buffer);
    }
    let mut header = BytesMut::with_capacity(HEADER_BYTES);
    header.put_slice(&MAGIC);
    header.put_u32_le(0);
    header.put_u32_le(crc32c::crc32c(&buffer[HEADER_BYTES..]));
    header.put_u32_le(records.len() as u32);
    header.put_u32_le(0);
    header.put_u64_le(identity.generation);
    header.put_u64_le(identity.sequence);
    header.put_u64_le(identity.salt);
    header.put_u64_le(identity.next_salt);
    header.put_u64_le(records.iter().map(|record| u64::from(record.payload_len)).sum());
    let header_crc = crc32c::crc32c(&header[12..]);
    header[8..12].copy_from_slice(&header_crc.to_le_bytes());
    buffer[..HEADER_BYTES].copy_from_slice(&header);
    buffer.freeze()
}

/// The name of a file of records.
pub(super) fn file_name(generation: u64) -> String {
    format!("{generation:016x}.journal")
}

/// The name of a file that waits to be used.
pub(super) fn spare_name(number: u64) -> String {
    format!("{number:016x}.spare")
}

/// What a directory entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Name {
    /// A file of records with its generation.
    Generation(u64),
    /// A spare file with its number.
    Spare(u64),
}

impl Name {
    /// Reads a name, `None` for what is not the journal's.
    pub(super) fn parse(name: &str) -> Option<Self> {
        let (digits, kind) = name.split_once('.')?;
        let number = u64::from_str_radix(digits, 16).ok()?;
        let parsed = match kind {
            "journal" => Self::Generation(number),
            "spare" => Self::Spare(number),
            _ => return None,
        };
        // Only the one spelling that is ever written, so that no two names mean the same file.
        let written = match parsed {
            Self::Generation(generation) => file_name(generation),
            Self::Spare(number) => spare_name(number),
        };
        (written == name).then_some(parsed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> Identity {
        Identity { generation: 7, sequence: 99, salt: 0xdead_beef, next_salt: 3 }
    }

    #[test]
    fn a_head_reads_back() {
        let records = [
            Record::bare(Kind::Truncate, ShardId(3), None),
            Record {
                kind: Kind::Entry,
                shard: ShardId(65_535),
                position: Some(Position { term: 4, index: u64::MAX }),
                payload_len: 1_000,
                payload_crc: 77,
            },
        ];
        let head = encode_head(identity(), &records);
        assert_eq!(head.len(), HEADER_BYTES + 2 * RECORD_BYTES);
        let header = Header::decode(&head).unwrap();
        assert_eq!((header.identity, header.records, header.payload_len), (identity(), 2, 1_000));
        assert_eq!(header.table_crc, crc32c::crc32c(&head[HEADER_BYTES..]));
        assert_eq!(header.batch_len(), Some((HEADER_BYTES + 2 * RECORD_BYTES + 1_000) as u64));
        for (row, record) in head[HEADER_BYTES..].chunks(RECORD_BYTES).zip(records) {
            assert_eq!(Record::decode(row), Ok(record));
        }
    }

    #[test]
    fn every_flipped_bit_of_a_header_is_noticed() {
        let head = encode_head(identity(), &[]).to_vec();
        for bit in 0..HEADER_BYTES * 8 {
            let mut damaged = head.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Header::decode(&damaged), None, "bit {bit}");
        }
        assert_eq!(Header::decode(&head[..HEADER_BYTES - 1]), None);
    }

    #[test]
    fn names_have_one_spelling() {
        assert_eq!(Name::parse(&file_name(0x1f)), Some(Name::Generation(0x1f)));
        assert_eq!(Name::parse(&spare_name(u64::MAX)), Some(Name::Spare(u64::MAX)));
        for name in ["", "1f.journal", "000000000000001F.journal", "+00000000000001f.journal", "000000000000001f.tmp"] {
            assert_eq!(Name::parse(name), None, "{name}");
        }
    }
}
