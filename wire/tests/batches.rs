//! Batches and their records, there and back.

use bytes::Bytes;
use lockstep_wire::batch::{Batches, HEADER_LEN, check_stored_batch};
use lockstep_wire::records::{ProducerStamp, decode_batch};
use lockstep_wire::{BatchBuilder, BatchError, Compression, check_batch};

const ALL: [Compression; 5] =
    [Compression::None, Compression::Gzip, Compression::Snappy, Compression::Lz4, Compression::Zstd];

fn three_records(compression: Compression) -> Bytes {
    let mut builder = BatchBuilder::new();
    builder.push(1_700_000_000_000, Some(b"k"), Some(b"first"), &[]);
    builder.push(1_700_000_000_500, None, None, &[]);
    let headers = vec![
        (Bytes::from_static(b"twice"), Some(Bytes::from_static(b"1"))),
        (Bytes::from_static(b"twice"), None),
        (Bytes::from_static(b"\xff\xfe"), Some(Bytes::new())),
    ];
    builder.push(1_699_999_999_000, Some(b""), Some(&[9; 70_000]), &headers);
    let stamp = ProducerStamp { producer_id: 12, producer_epoch: 3, base_sequence: 40 };
    builder.finish(compression, Some(stamp)).expect("builds")
}

#[test]
fn records_come_back_from_every_codec() {
    for compression in ALL {
        let bytes = three_records(compression);
        let header = check_batch(&bytes).unwrap_or_else(|error| panic!("{compression:?}: {error}"));
        assert_eq!(header.compression(), Ok(compression));
        assert_eq!((header.record_count, header.last_offset_delta), (3, 2));
        assert_eq!((header.base_timestamp, header.max_timestamp), (1_700_000_000_000, 1_700_000_000_500));
        assert_eq!((header.producer_id, header.producer_epoch, header.base_sequence), (12, 3, 40));
        assert_eq!(header.to_bytes(), bytes[..HEADER_LEN]);

        let (_, records) = decode_batch(&bytes, 1 << 20).unwrap_or_else(|error| panic!("{compression:?}: {error}"));
        assert_eq!(records.iter().map(|record| record.offset).collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(records[0].key.as_deref(), Some(&b"k"[..]));
        assert_eq!(records[0].value.as_deref(), Some(&b"first"[..]));
        assert_eq!((records[1].key.clone(), records[1].value.clone()), (None, None));
        assert_eq!(records[2].timestamp, 1_699_999_999_000);
        assert_eq!(records[2].key.as_deref(), Some(&b""[..]));
        assert_eq!(records[2].value.as_deref(), Some(&[9; 70_000][..]));
        let headers = &records[2].headers;
        assert_eq!(headers.len(), 3, "duplicates stay");
        assert_eq!((&headers[0].0[..], headers[0].1.as_deref()), (&b"twice"[..], Some(&b"1"[..])));
        assert_eq!((&headers[1].0[..], headers[1].1.as_deref()), (&b"twice"[..], None));
        assert_eq!(&headers[2].0[..], b"\xff\xfe", "a header key need not be UTF-8");
    }
}

#[test]
fn raw_snappy_without_the_java_header_is_read_too() {
    let plain = vec![5; 100_000];
    let raw = snap::raw::Encoder::new().compress_vec(&plain).expect("compresses");
    assert_eq!(Compression::Snappy.decompress(&raw.into(), plain.len()).expect("unfolds"), plain);
}

#[test]
fn each_rule_has_its_error() {
    let good = three_records(Compression::None).to_vec();
    let with_crc = |mut bytes: Vec<u8>| {
        let crc = crc32c::crc32c(&bytes[21..]);
        bytes[17..21].copy_from_slice(&crc.to_be_bytes());
        bytes
    };
    let edited = |at: usize, with: &[u8]| {
        let mut bytes = good.clone();
        bytes[at..at + with.len()].copy_from_slice(with);
        bytes
    };
    assert_eq!(check_batch(&[]), Err(BatchError::Truncated { len: 0, needed: 61 }));
    assert_eq!(check_batch(&good[..60]), Err(BatchError::Truncated { len: 60, needed: 61 }));
    let (len, needed) = (good.len() - 1, good.len());
    assert_eq!(check_batch(&good[..len]), Err(BatchError::Truncated { len, needed }));
    assert_eq!(check_batch(&edited(8, &48_i32.to_be_bytes())), Err(BatchError::BadLength { batch_length: 48 }));
    assert_eq!(check_batch(&edited(8, &(-1_i32).to_be_bytes())), Err(BatchError::BadLength { batch_length: -1 }));
    let mut longer = good.clone();
    longer.push(0);
    assert_eq!(check_batch(&longer), Err(BatchError::TrailingBytes { extra: 1 }));
    assert_eq!(check_batch(&edited(16, &[1])), Err(BatchError::UnsupportedMagic { magic: 1 }));
    assert_eq!(
        check_batch(&good[..20].iter().map(|_| 0).collect::<Vec<u8>>()),
        Err(BatchError::UnsupportedMagic { magic: 0 })
    );
    assert!(matches!(check_batch(&edited(30, &[0xaa])), Err(BatchError::CrcMismatch { .. })));
    assert_eq!(check_batch(&with_crc(edited(22, &[5]))), Err(BatchError::UnknownCompression { code: 5 }));
    for count in [0_i32, -1, i32::MIN, i32::MAX] {
        let bytes = with_crc(edited(57, &count.to_be_bytes()));
        assert!(
            matches!(check_batch(&bytes), Err(BatchError::BadRecordCount { record_count, .. }) if record_count == count)
        );
    }
    let gap = with_crc(edited(23, &9_i32.to_be_bytes()));
    assert_eq!(check_batch(&gap), Err(BatchError::BadOffsetDelta { last_offset_delta: 9, record_count: 3 }));
    assert!(check_stored_batch(&gap).is_ok(), "compaction leaves gaps");
    let short = with_crc(edited(23, &1_i32.to_be_bytes()));
    assert_eq!(check_stored_batch(&short), Err(BatchError::BadOffsetDelta { last_offset_delta: 1, record_count: 3 }));
}

#[test]
fn a_record_set_is_walked_batch_by_batch() {
    let one = three_records(Compression::None);
    let mut set = one.to_vec();
    set.extend_from_slice(&three_records(Compression::Zstd));
    let whole_len = set.len();
    set.extend_from_slice(&one[..100]);
    let items: Vec<_> = Batches::new(&set).collect();
    assert_eq!(items.len(), 3);
    let ranges: Vec<_> = items[..2].iter().map(|item| item.clone().expect("whole").0).collect();
    assert_eq!(ranges, [0..one.len(), one.len()..whole_len]);
    assert_eq!(items[2], Err(BatchError::Truncated { len: 100, needed: one.len() }));
    assert_eq!(Batches::new(&[]).count(), 0);
    // A length of zero must not be walked on the spot for ever.
    assert_eq!(Batches::new(&[0; 1_000]).count(), 1);
}

#[test]
fn stamping_offset_and_epoch_keeps_the_crc_right() {
    let mut bytes = three_records(Compression::Lz4).to_vec();
    bytes[0..8].copy_from_slice(&1_234_i64.to_be_bytes());
    bytes[12..16].copy_from_slice(&7_i32.to_be_bytes());
    let (header, records) = decode_batch(&bytes.into(), 1 << 20).expect("still whole");
    assert_eq!(header.last_offset(), 1_236);
    assert_eq!(records[2].offset, 1_236);
}

#[test]
fn another_producer_can_be_stamped_into_a_finished_batch() {
    let mut bytes = three_records(Compression::None).to_vec();
    let stamp = ProducerStamp { producer_id: 99, producer_epoch: 1, base_sequence: 0 };
    lockstep_wire::batch::stamp_producer(&mut bytes, stamp).expect("long enough");
    let header = check_batch(&bytes).expect("the CRC goes with it");
    assert_eq!((header.producer_id, header.producer_epoch, header.base_sequence), (99, 1, 0));
    assert!(lockstep_wire::batch::stamp_producer(&mut bytes[..60], stamp).is_err());
}
