//! Batches that compaction thins out: what stays is what was there, and bytes that are damaged are noticed.

use bytes::{BufMut, Bytes, BytesMut};
use lockstep_wire::batch::{Batches, HEADER_LEN, check_stored_batch};
use lockstep_wire::compaction::{KeyedRecord, Thinned, delete_horizon_ms, emptied, keys_missing, thin, visit_records};
use lockstep_wire::compression::CompressionError;
use lockstep_wire::records::{ProducerStamp, RecordHeader, RecordsError, decode_batch};
use lockstep_wire::{BatchBuilder, BatchError, BatchHeader, Compression, Record, check_batch, varint};
use proptest::prelude::*;

const ALL: [Compression; 5] =
    [Compression::None, Compression::Gzip, Compression::Snappy, Compression::Lz4, Compression::Zstd];
const LEN_MAX: usize = 1 << 20;
const LOG_APPEND_TIME: i16 = 0x08;
const TRANSACTIONAL: i16 = 0x10;
const CONTROL: i16 = 0x20;
const HORIZON: i16 = 0x40;

fn with_crc(mut bytes: Vec<u8>) -> Bytes {
    let crc = crc32c::crc32c(&bytes[21..]);
    bytes[17..21].copy_from_slice(&crc.to_be_bytes());
    bytes.into()
}

/// The batch as a leader stored it, with some of its header made different.
fn edited(batch: &Bytes, edit: impl FnOnce(&mut BatchHeader)) -> Bytes {
    let mut header = BatchHeader::parse(batch).expect("long enough");
    edit(&mut header);
    let mut bytes = batch.to_vec();
    bytes[..HEADER_LEN].copy_from_slice(&header.to_bytes());
    with_crc(bytes)
}

/// Five records at offsets 1,000 to 1,004; the third is a tombstone, the fifth has no key.
fn stored(compression: Compression) -> Bytes {
    let headers: Vec<RecordHeader> = vec![
        (Bytes::from_static(b"twice"), Some(Bytes::from_static(b"1"))),
        (Bytes::from_static(b"twice"), None),
        (Bytes::from_static(b"\xff\xfe"), Some(Bytes::new())),
    ];
    let mut builder = BatchBuilder::new();
    builder.push(1_700_000_000_000, Some(b"a"), Some(b"first"), &headers);
    builder.push(1_700_000_000_900, Some(b""), Some(b""), &[]);
    builder.push(1_699_999_999_000, Some(b"gone"), None, &headers);
    builder.push(1_700_000_000_500, Some(b"a"), Some(&[9; 70_000]), &[]);
    builder.push(1_700_000_000_100, None, Some(b"fifth"), &[]);
    let stamp = ProducerStamp { producer_id: 12, producer_epoch: 3, base_sequence: 40 };
    let batch = builder.finish(compression, Some(stamp)).expect("builds");
    edited(&batch, |header| {
        header.base_offset = 1_000;
        header.partition_leader_epoch = 7;
        header.attributes |= TRANSACTIONAL;
    })
}

/// A record as it stands in a batch: attributes, timestamp delta, offset delta, key, value; no headers.
type RawRecord<'a> = (u8, i64, i64, Option<&'a [u8]>, Option<&'a [u8]>);

/// Records' bytes, of any content.
fn raw_records(records: &[RawRecord<'_>]) -> Vec<u8> {
    let mut out = Vec::new();
    for &(attributes, timestamp_delta, offset_delta, key, value) in records {
        let mut body = vec![attributes];
        varint::put(&mut body, timestamp_delta);
        varint::put(&mut body, offset_delta);
        for bytes in [key, value] {
            varint::put(&mut body, bytes.map_or(-1, |bytes| bytes.len() as i64));
            body.extend_from_slice(bytes.unwrap_or_default());
        }
        body.push(0);
        varint::put(&mut out, body.len() as i64);
        out.extend_from_slice(&body);
    }
    out
}

/// An uncompressed batch that need not make sense.
fn raw_batch(last_offset_delta: i32, record_count: i32, records: &[u8]) -> Bytes {
    let header = BatchHeader {
        base_offset: 500,
        batch_length: (HEADER_LEN - 12 + records.len()) as i32,
        partition_leader_epoch: 1,
        magic: 2,
        crc: 0,
        attributes: 0,
        last_offset_delta,
        base_timestamp: 10_000,
        max_timestamp: 20_000,
        producer_id: -1,
        producer_epoch: -1,
        base_sequence: -1,
        record_count,
    };
    let mut bytes = BytesMut::new();
    bytes.put_slice(&header.to_bytes());
    bytes.put_slice(records);
    with_crc(bytes.to_vec())
}

fn decoded(batch: &Bytes) -> (BatchHeader, Vec<Record>) {
    decode_batch(batch, LEN_MAX).expect("a good batch")
}

fn rewritten(thinned: Thinned) -> Bytes {
    match thinned {
        Thinned::Rewritten(batch) => batch,
        other => panic!("not rewritten: {other:?}"),
    }
}

/// The header with those fields taken from `from` that thinning out makes anew.
fn with_made_fields(header: BatchHeader, from: &BatchHeader) -> BatchHeader {
    BatchHeader {
        batch_length: from.batch_length,
        crc: from.crc,
        record_count: from.record_count,
        max_timestamp: from.max_timestamp,
        ..header
    }
}

fn shown(record: &Record) -> (i64, i64, Option<Vec<u8>>, bool) {
    (record.offset, record.timestamp, record.key.as_ref().map(|key| key.to_vec()), record.value.is_none())
}

fn visited(batch: &Bytes) -> Vec<(i64, i64, Option<Vec<u8>>, bool)> {
    let mut records = Vec::new();
    let header = visit_records(batch, LEN_MAX, |record| {
        let KeyedRecord { offset, timestamp_ms, key, is_tombstone } = record;
        records.push((offset, timestamp_ms, key.map(<[u8]>::to_vec), is_tombstone));
    });
    assert_eq!(header.expect("a good batch"), BatchHeader::parse(batch).expect("long enough"));
    records
}

#[test]
fn what_is_visited_is_what_consumers_get() {
    for compression in ALL {
        let batch = stored(compression);
        assert_eq!(visited(&batch), decoded(&batch).1.iter().map(shown).collect::<Vec<_>>(), "{compression:?}");
        let appended = edited(&batch, |header| header.attributes |= LOG_APPEND_TIME);
        assert_eq!(visited(&appended), decoded(&appended).1.iter().map(shown).collect::<Vec<_>>(), "{compression:?}");
        assert!(visited(&appended).iter().all(|record| record.1 == 1_700_000_000_900));
    }
}

#[test]
fn every_choice_of_records_leaves_just_these() {
    for compression in ALL {
        let batch = stored(compression);
        let (header, records) = decoded(&batch);
        for choice in 0..32_u32 {
            let is_chosen = |offset: i64| choice >> (offset - 1_000) & 1 == 1;
            let mut asked = Vec::new();
            let thinned = thin(&batch, LEN_MAX, None, |record| {
                asked.push(record.offset);
                is_chosen(record.offset)
            });
            assert_eq!(asked, [1_000, 1_001, 1_002, 1_003, 1_004], "each is asked about once, in order");
            let expected: Vec<Record> = records.iter().filter(|record| is_chosen(record.offset)).cloned().collect();
            match thinned.expect("a good batch") {
                Thinned::Unchanged => assert_eq!(choice, 31),
                Thinned::Empty => assert_eq!(choice, 0),
                Thinned::Rewritten(after) => {
                    let (made, kept) = decoded(&after);
                    assert_eq!(kept, expected, "{compression:?} {choice:#07b}");
                    assert_eq!(with_made_fields(header, &made), made);
                    assert_eq!(made.record_count as usize, kept.len());
                    assert_eq!(Some(made.max_timestamp), kept.iter().map(|record| record.timestamp).max());
                    assert_eq!(made.last_offset(), 1_004);
                    assert_eq!(made.compression(), Ok(compression));
                    assert_eq!(made.total_len(), Some(after.len()));
                }
            }
        }
    }
}

#[test]
fn records_that_stay_keep_their_bytes() {
    let raw: [RawRecord<'_>; 4] = [
        (0, 0, 0, Some(b"a"), Some(b"1")),
        // Attributes that no version of Kafka sets, and a gap before it.
        (0x5a, -3, 4, Some(b"b"), None),
        (0xff, 900, 5, None, Some(b"3")),
        (1, 7, 9, Some(b"d"), Some(b"4")),
    ];
    let batch = raw_batch(12, 4, &raw_records(&raw));
    let after = rewritten(thin(&batch, LEN_MAX, None, |record| record.offset != 505).expect("good"));
    assert_eq!(after[HEADER_LEN..], raw_records(&[raw[0], raw[1], raw[3]]));
    let header = check_stored_batch(&after).expect("good");
    assert_eq!((header.base_timestamp, header.max_timestamp, header.last_offset_delta), (10_000, 10_007, 12));

    // A horizon changes nothing but the timestamp deltas.
    let after = rewritten(thin(&batch, LEN_MAX, Some(1_000_000), |record| record.offset != 505).expect("good"));
    let moved =
        |(attributes, delta, offset, key, value): RawRecord<'static>| (attributes, delta - 990_000, offset, key, value);
    assert_eq!(after[HEADER_LEN..], raw_records(&[moved(raw[0]), moved(raw[1]), moved(raw[3])]));
}

#[test]
fn a_batch_can_be_thinned_again_and_again() {
    for compression in ALL {
        let mut batch = stored(compression);
        let (first, records) = decoded(&batch);
        for gone in [1_004, 1_000, 1_002, 1_003] {
            batch = rewritten(thin(&batch, LEN_MAX, None, |record| record.offset != gone).expect("good"));
            assert_eq!(with_made_fields(first, &decoded(&batch).0), decoded(&batch).0);
        }
        assert_eq!(decoded(&batch).1, records[1..2]);
        assert_eq!(thin(&batch, LEN_MAX, None, |record| record.offset != 1_000).expect("good"), Thinned::Unchanged);
        assert_eq!(thin(&batch, LEN_MAX, None, |record| record.offset != 1_001).expect("good"), Thinned::Empty);
    }
}

#[test]
fn a_horizon_is_set_once_where_a_tombstone_stays() {
    for compression in ALL {
        let batch = stored(compression);
        let (header, records) = decoded(&batch);
        assert_eq!(delete_horizon_ms(&header), None);
        let horizon_ms = 1_700_086_400_000;

        // Though nothing is removed.
        let marked = rewritten(thin(&batch, LEN_MAX, Some(horizon_ms), |_| true).expect("good"));
        let (made, kept) = decoded(&marked);
        assert_eq!(kept, records, "{compression:?}: timestamps are as before");
        assert_eq!(delete_horizon_ms(&made), Some(horizon_ms));
        let expected = BatchHeader { attributes: header.attributes | HORIZON, base_timestamp: horizon_ms, ..header };
        assert_eq!(with_made_fields(expected, &made), made);
        assert_eq!(made.max_timestamp, header.max_timestamp);

        // It stays from then on.
        assert_eq!(thin(&marked, LEN_MAX, Some(horizon_ms + 5), |_| true).expect("good"), Thinned::Unchanged);
        let later = thin(&marked, LEN_MAX, Some(horizon_ms + 5), |record| record.offset != 1_001).expect("good");
        let (later, kept) = decoded(&rewritten(later));
        assert_eq!(delete_horizon_ms(&later), Some(horizon_ms));
        assert_eq!(kept, [&records[..1], &records[2..]].concat());

        // Where no tombstone stays, nothing waits for a horizon.
        let without = thin(&batch, LEN_MAX, Some(horizon_ms), |record| !record.is_tombstone).expect("good");
        let without = rewritten(without);
        assert_eq!(delete_horizon_ms(&decoded(&without).0), None);
        assert_eq!(thin(&without, LEN_MAX, Some(horizon_ms), |_| true).expect("good"), Thinned::Unchanged);
        assert_eq!(thin(&batch, LEN_MAX, Some(horizon_ms), |_| false).expect("good"), Thinned::Empty);
    }
}

#[test]
fn the_time_of_appending_stays() {
    for compression in ALL {
        let batch = edited(&stored(compression), |header| {
            header.attributes |= LOG_APPEND_TIME;
            header.max_timestamp = 1_800_000_000_000;
        });
        for horizon_ms in [None, Some(1_800_000_000_001)] {
            let after = rewritten(thin(&batch, LEN_MAX, horizon_ms, |record| record.offset > 1_001).expect("good"));
            let (made, kept) = decoded(&after);
            assert_eq!(made.max_timestamp, 1_800_000_000_000);
            assert_eq!(delete_horizon_ms(&made), horizon_ms);
            assert_eq!(kept, decoded(&batch).1[2..]);
            // The producer's own times are still there too.
            let created = |batch: &Bytes| decoded(&edited(batch, |header| header.attributes &= !LOG_APPEND_TIME)).1;
            assert_eq!(created(&after), created(&batch)[2..]);
        }
    }
}

#[test]
fn timestamps_may_wrap_around() {
    let edges = [i64::MIN, i64::MIN + 1, -1, 0, 1, i64::MAX - 1, i64::MAX];
    for base in edges {
        let raw: Vec<RawRecord<'_>> =
            edges.iter().enumerate().map(|(index, &delta)| (0, delta, index as i64, None, None)).collect();
        let batch = edited(&raw_batch(6, 7, &raw_records(&raw)), |header| header.base_timestamp = base);
        let records = decoded(&batch).1;
        for record in &records {
            let alone = rewritten(thin(&batch, LEN_MAX, None, |asked| asked.offset == record.offset).expect("good"));
            let (made, kept) = decoded(&alone);
            assert_eq!((made.max_timestamp, &kept[..]), (record.timestamp, std::slice::from_ref(record)));
        }
        for horizon_ms in edges {
            let after =
                rewritten(thin(&batch, LEN_MAX, Some(horizon_ms), |record| record.offset != 503).expect("good"));
            let (made, kept) = decoded(&after);
            assert_eq!(delete_horizon_ms(&made), Some(horizon_ms));
            assert_eq!(kept, [&records[..3], &records[4..]].concat());
            assert_eq!(Some(made.max_timestamp), kept.iter().map(|record| record.timestamp).max());
        }
    }
}

#[test]
fn control_batches_are_left_alone() {
    let marker = raw_records(&[(0, 0, 0, Some(&[0, 0, 0, 1]), Some(&[0; 6]))]);
    let batch = edited(&raw_batch(0, 1, &marker), |header| header.attributes |= CONTROL | TRANSACTIONAL);
    assert_eq!(visited(&batch), []);
    assert!(!keys_missing(&batch, LEN_MAX).expect("good"));
    let asked = |_: &KeyedRecord<'_>| -> bool { panic!("asked about a marker") };
    assert_eq!(thin(&batch, LEN_MAX, Some(5), asked).expect("good"), Thinned::Unchanged);
    let header = check_stored_batch(&emptied(&decoded(&batch).0)).expect("good");
    assert!(header.is_control() && header.is_transactional());
}

#[test]
fn an_emptied_batch_covers_its_offsets() {
    for compression in ALL {
        let batch = edited(&stored(compression), |header| {
            header.attributes |= HORIZON | LOG_APPEND_TIME;
        });
        let before = BatchHeader::parse(&batch).expect("long enough");
        let bytes = emptied(&before);
        let header = check_stored_batch(&bytes).expect("a stored batch may be empty");
        assert_eq!(BatchHeader::parse(&bytes), Ok(header));
        let expected = BatchHeader {
            batch_length: 49,
            crc: header.crc,
            attributes: HORIZON | TRANSACTIONAL | LOG_APPEND_TIME,
            record_count: 0,
            ..before
        };
        assert_eq!(header, expected);
        assert_eq!((header.last_offset(), header.total_len()), (1_004, Some(HEADER_LEN)));
        assert_eq!(delete_horizon_ms(&header), delete_horizon_ms(&before));
        assert_eq!(emptied(&header), bytes);

        let bytes = Bytes::copy_from_slice(&bytes);
        assert_eq!(decode_batch(&bytes, 0).expect("nothing is enough room for nothing"), (header, Vec::new()));
        assert_eq!(visited(&bytes), []);
        assert_eq!(thin(&bytes, LEN_MAX, Some(1), |_| true).expect("good"), Thinned::Empty);
        assert!(!keys_missing(&bytes, LEN_MAX).expect("good"));
        assert_eq!(check_batch(&bytes), Err(BatchError::BadRecordCount { record_count: 0, records_len: 0 }));

        // Among others.
        let set = [&batch[..], &bytes, &batch].concat();
        let counts: Vec<_> = Batches::new(&set).map(|item| item.expect("whole").1.record_count).collect();
        assert_eq!(counts, [5, 0, 5]);
    }
}

#[test]
fn an_empty_batch_has_rules_too() {
    let empty = Bytes::copy_from_slice(&emptied(&decoded(&stored(Compression::None)).0));
    // It says which offsets it covers.
    let nowhere = edited(&empty, |header| header.last_offset_delta = -1);
    let error = BatchError::BadOffsetDelta { last_offset_delta: -1, record_count: 0 };
    assert_eq!(check_stored_batch(&nowhere), Err(error));
    assert!(check_batch(&nowhere).is_err());
    // It holds no bytes.
    let with_bytes = raw_batch(4, 0, &[0]);
    let error = BatchError::BadRecordCount { record_count: 0, records_len: 1 };
    assert_eq!(check_stored_batch(&with_bytes), Err(error));
    // A codec it names need not have had a say.
    for compression in ALL {
        let named = edited(&empty, |header| header.attributes |= i16::from(compression.code()));
        assert_eq!(decoded(&named).1, []);
        assert_eq!(emptied(&BatchHeader::parse(&named).expect("long enough")), empty[..]);
    }
    let unknown = edited(&empty, |header| header.attributes |= 6);
    assert_eq!(check_stored_batch(&unknown), Err(BatchError::UnknownCompression { code: 6 }));
    for count in [-1, i32::MIN] {
        assert!(check_stored_batch(&edited(&empty, |header| header.record_count = count)).is_err());
    }
}

#[test]
fn offsets_must_ascend_within_the_batch() {
    let at = |deltas: &[i64]| {
        let raw: Vec<RawRecord<'_>> = deltas.iter().map(|&delta| (0, 0, delta, Some(&b"k"[..]), None)).collect();
        raw_batch(9, deltas.len() as i32, &raw_records(&raw))
    };
    for deltas in [&[0][..], &[9], &[0, 9], &[3, 4, 8]] {
        assert_eq!(visited(&at(deltas)).len(), deltas.len());
    }
    let cases: [(&[i64], usize); 6] =
        [(&[0, 0], 1), (&[0, 3, 2], 2), (&[4, 0], 1), (&[10], 0), (&[0, -1], 1), (&[0, i64::MAX], 1)];
    for (deltas, bad) in cases {
        let batch = at(deltas);
        let errors = [
            visit_records(&batch, LEN_MAX, |_| {}).expect_err("refused"),
            thin(&batch, LEN_MAX, None, |_| true).expect_err("refused"),
            keys_missing(&batch, LEN_MAX).expect_err("refused"),
        ];
        for error in errors {
            assert!(matches!(error, RecordsError::Malformed { index, .. } if index == bad), "{deltas:?}: {error}");
        }
    }
}

#[test]
fn a_count_that_does_not_match_is_noticed() {
    let raw: [RawRecord<'_>; 2] = [(0, 0, 0, Some(b"a"), Some(&[7; 40])), (0, 0, 1, Some(b"b"), Some(&[7; 40]))];
    for count in [1, 3] {
        let batch = raw_batch(9, count, &raw_records(&raw));
        let error = thin(&batch, LEN_MAX, None, |_| true).expect_err("refused");
        assert_eq!(error.to_string(), decode_batch(&batch, LEN_MAX).expect_err("refused").to_string());
    }
}

#[test]
fn records_without_a_key_are_found() {
    for compression in ALL {
        let batch = stored(compression);
        assert!(keys_missing(&batch, LEN_MAX).expect("good"));
        let keyed = rewritten(thin(&batch, LEN_MAX, None, |record| record.key.is_some()).expect("good"));
        assert!(!keys_missing(&keyed, LEN_MAX).expect("good"), "an empty key is a key");
    }
}

#[test]
fn what_unfolds_to_too_much_is_refused() {
    for compression in ALL {
        let batch = stored(compression);
        let is_too_long =
            |error: &RecordsError| matches!(error, RecordsError::Compression(CompressionError::TooLong { .. }));
        assert!(visit_records(&batch, 70_000, |_| {}).is_err_and(|error| is_too_long(&error)));
        assert!(thin(&batch, 70_000, None, |_| false).is_err_and(|error| is_too_long(&error)));
        // There is just room for the records, but not for a base timestamp that is far from them.
        let records = batch.slice(HEADER_LEN..);
        let len = compression.decompress(&records, LEN_MAX).expect("unfolds").len();
        assert_eq!(thin(&batch, len, None, |_| true).expect("good"), Thinned::Unchanged);
        assert!(thin(&batch, len, Some(0), |_| true).is_err_and(|error| is_too_long(&error)));
        let after = rewritten(thin(&batch, len, Some(0), |record| record.offset != 1_003).expect("fits"));
        assert_eq!(decode_batch(&after, len).expect("fits").1.len(), 4);
    }
}

/// A small batch of each codec, to be damaged at every place.
fn small(compression: Compression) -> Bytes {
    let headers = vec![(Bytes::from_static(b"h"), None), (Bytes::from_static(b"h"), Some(Bytes::from_static(b"v")))];
    let mut builder = BatchBuilder::new();
    builder.push(5_000, Some(b"key"), Some(b"value"), &headers);
    builder.push(5_900, Some(b"key"), None, &[]);
    builder.push(4_000, None, Some(b""), &headers);
    builder.finish(compression, None).expect("builds")
}

/// Whatever `batch` is: what is visited and what stays is what can be decoded, or else all is refused.
fn check_agreement(batch: &Bytes) {
    let before = decode_batch(batch, LEN_MAX);
    let result = visit_records(batch, LEN_MAX, |_| {});
    let is_missing = keys_missing(batch, LEN_MAX);
    assert_eq!(is_missing.is_ok(), result.is_ok());
    if result.is_ok_and(|header| header.is_control()) {
        assert_eq!(thin(batch, LEN_MAX, Some(9), |_| false).expect("left alone"), Thinned::Unchanged);
        return;
    }
    for choice in [0b000_u64, 0b001, 0b010, 0b101, 0b110, 0b111] {
        for horizon_ms in [None, Some(i64::MAX), Some(77)] {
            let mut index = 0;
            let mut flags = Vec::new();
            let thinned = thin(batch, LEN_MAX, horizon_ms, |_| {
                index += 1;
                flags.push(choice >> (index - 1) & 1 == 1);
                flags[index - 1]
            });
            assert_eq!(thinned.is_ok(), is_missing.is_ok());
            let Ok(thinned) = thinned else { continue };
            let (header, records) = before.as_ref().expect("what can be thinned can be decoded");
            let expected: Vec<Record> =
                records.iter().zip(&flags).filter(|(_, is_kept)| **is_kept).map(|(record, _)| record.clone()).collect();
            match thinned {
                Thinned::Unchanged => assert_eq!(&expected, records),
                Thinned::Empty => {
                    assert!(expected.is_empty());
                    check_stored_batch(&emptied(header)).expect("a batch");
                }
                Thinned::Rewritten(after) => {
                    let (made, kept) = decoded(&after);
                    assert_eq!(kept, expected);
                    let marked = made.attributes & HORIZON != 0;
                    let has_tombstone = kept.iter().any(|record| record.value.is_none());
                    assert_eq!(marked, header.attributes & HORIZON != 0 || horizon_ms.is_some() && has_tombstone);
                }
            }
        }
    }
}

#[test]
fn every_truncation_is_refused() {
    for compression in ALL {
        let batch = small(compression);
        check_agreement(&batch);
        for len in 0..batch.len() {
            let cut = batch.slice(..len);
            assert!(visit_records(&cut, LEN_MAX, |_| {}).is_err());
            assert!(keys_missing(&cut, LEN_MAX).is_err());
            assert!(thin(&cut, LEN_MAX, Some(9), |_| true).is_err());
            // The same with a length and a CRC that match.
            if len >= HEADER_LEN {
                check_agreement(&edited(&cut, |header| header.batch_length = (len - 12) as i32));
            }
        }
    }
}

#[test]
fn every_flipped_bit_is_noticed_or_harmless() {
    for compression in ALL {
        let batch = small(compression);
        for bit in 0..batch.len() * 8 {
            let mut bytes = batch.to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);
            // Base offset and leader epoch are stamped by brokers and outside the CRC.
            let is_stamped = bit < 64 || (96..128).contains(&bit);
            let flipped = Bytes::from(bytes.clone());
            assert_eq!(visit_records(&flipped, LEN_MAX, |_| {}).is_ok(), is_stamped, "{compression:?} bit {bit}");
            assert_eq!(thin(&flipped, LEN_MAX, None, |_| true).is_ok(), is_stamped);
            // What a CRC does not protect from: the producer that made it.
            check_agreement(&with_crc(bytes));
        }
    }
}

/// A record as a producer pushes it.
type Pushed = (i64, Option<Vec<u8>>, Option<Vec<u8>>, Vec<(Vec<u8>, Option<Vec<u8>>)>);

fn some_bytes() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(any::<u8>(), 0..90)
}

fn pushed() -> impl Strategy<Value = Pushed> {
    let timestamp = prop_oneof![any::<i64>(), 1_700_000_000_000..1_700_000_100_000_i64];
    let headers = proptest::collection::vec((some_bytes(), proptest::option::of(some_bytes())), 0..3);
    (timestamp, proptest::option::of(some_bytes()), proptest::option::of(some_bytes()), headers)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn any_batch_thinned_twice_keeps_what_it_should(
        records in proptest::collection::vec((pushed(), any::<[bool; 2]>()), 1..20),
        code in 0_u8..5,
        horizons in any::<[Option<i64>; 2]>(),
        attributes in 0_i16..4,
    ) {
        let compression = Compression::from_code(code).expect("known");
        let mut builder = BatchBuilder::new();
        for ((timestamp, key, value, headers), _) in &records {
            let headers: Vec<RecordHeader> = headers
                .iter()
                .map(|(key, value)| (key.clone().into(), value.clone().map(Bytes::from)))
                .collect();
            builder.push(*timestamp, key.as_deref(), value.as_deref(), &headers);
        }
        let batch = builder.finish(compression, None).expect("builds");
        let batch = edited(&batch, |header| header.attributes |= attributes << 3);
        let (before, mut expected) = decoded(&batch);
        let mut current = batch;
        let mut horizon = None;
        for (round, horizon_ms) in horizons.into_iter().enumerate() {
            let is_kept = |offset: i64| records[offset as usize].1[round];
            let thinned = thin(&current, LEN_MAX, horizon_ms, |record| is_kept(record.offset)).expect("good");
            let count = expected.len();
            expected.retain(|record| is_kept(record.offset));
            if horizon.is_none() && expected.iter().any(|record| record.value.is_none()) {
                horizon = horizon_ms;
            }
            match thinned {
                Thinned::Unchanged => prop_assert_eq!(expected.len(), count),
                Thinned::Empty => {
                    prop_assert!(expected.is_empty());
                    return Ok(());
                }
                Thinned::Rewritten(after) => current = after,
            }
            let (made, kept) = decoded(&current);
            prop_assert_eq!(&kept, &expected);
            prop_assert_eq!(delete_horizon_ms(&made), horizon);
            prop_assert_eq!(made.last_offset_delta, before.last_offset_delta);
            prop_assert_eq!(visited(&current), expected.iter().map(shown).collect::<Vec<_>>());
        }
    }
}
