//! Bytes that no honest peer sends: an error, never a panic, and never much more memory than the bytes themselves.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use bytes::Bytes;
use lockstep_wire::compaction::{thin, visit_records};
use lockstep_wire::frame::{decode_request, decode_response, encode_request, encode_response, request_len_max};
use lockstep_wire::records::decode_batch;
use lockstep_wire::{ApiKey, BatchBuilder, Compression, FrameError, Request, Response, check_batch};
use proptest::prelude::*;

/// Counts what the current thread has allocated, at its highest.
struct Counting;

thread_local! {
    static LIVE: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn count(change: isize) {
    // At the end of a thread its locals are gone; nothing is measured then.
    let _ = LIVE.try_with(|live| {
        live.set(live.get() + change);
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(live.get())));
    });
}

#[expect(unsafe_code, reason = "the trait of an allocator is unsafe; all calls go to the system's")]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The most bytes that `work` had allocated at any time.
fn peak_of<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = LIVE.get();
    PEAK.set(before);
    let result = work();
    (result, (PEAK.get() - before).max(0) as usize)
}

fn frame_with(api_key: ApiKey, version: i16, body: &[u8]) -> Bytes {
    let mut frame = Vec::new();
    frame.extend_from_slice(&api_key.code().to_be_bytes());
    frame.extend_from_slice(&version.to_be_bytes());
    frame.extend_from_slice(&[0, 0, 0, 1, 0xff, 0xff]);
    if api_key.request_header_version(version) >= 2 {
        frame.push(0);
    }
    frame.extend_from_slice(body);
    frame.into()
}

const MEMORY_MAX: usize = 100 << 20;

#[test]
fn frames_shorter_than_a_header_are_refused() {
    for len in 0..8 {
        assert_eq!(decode_request(Bytes::from(vec![0; len])), Err(FrameError::TooShort { len }));
    }
    for len in 0..4 {
        assert_eq!(decode_response(ApiKey::Fetch, 4, Bytes::from(vec![0; len])), Err(FrameError::TooShort { len }));
    }
}

#[test]
fn every_kind_of_request_has_a_cap_on_its_length() {
    for &api_key in ApiKey::ALL.iter().filter(|&&api_key| api_key != ApiKey::Produce) {
        let len_max = request_len_max(api_key.code());
        let frame = frame_with(api_key, api_key.versions().max, &vec![0; len_max]);
        let error = decode_request(frame).expect_err("refused");
        assert!(matches!(error, FrameError::TooLong { .. }), "{}: {error}", api_key.name());
    }
}

/// The count of an array is as large as the bytes left allow, at every position where one could stand.
#[test]
fn honest_looking_counts_do_not_multiply_memory() {
    let fill_len = 4 << 20;
    for &api_key in ApiKey::ALL {
        for version in api_key.versions().iter() {
            let len = fill_len.min(request_len_max(api_key.code()) - 64);
            for position in 0..24 {
                for fill in [0_u8, 1] {
                    let mut body = vec![fill; len];
                    let count = (len - position - 8) as u32;
                    // As a plain count, and as a compact one.
                    let mut compact = Vec::new();
                    let mut rest = count;
                    while rest >= 0x80 {
                        compact.push(rest as u8 | 0x80);
                        rest >>= 7;
                    }
                    compact.push(rest as u8);
                    for encoded in [&count.to_be_bytes()[..], &compact] {
                        body[..position].fill(fill);
                        body[position..position + encoded.len()].copy_from_slice(encoded);
                        let frame = frame_with(api_key, version, &body);
                        let (_, peak) = peak_of(|| decode_request(frame));
                        assert!(peak < MEMORY_MAX, "{} {version}: {peak} bytes at {position}", api_key.name());
                    }
                }
            }
        }
    }
}

/// A Produce frame may be long; the smallest topics and partitions it could be full of must not unfold to gigabytes.
#[test]
fn a_produce_frame_full_of_the_smallest_elements_is_bounded() {
    let count: usize = 6_000_000;
    // No transactional id, acks, time-out, then `count` topics: empty name, no partitions, no tags.
    let mut body = vec![0, 0, 1, 0, 0, 0, 0];
    let mut rest = count + 1;
    while rest >= 0x80 {
        body.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    body.push(rest as u8);
    for _ in 0..count {
        body.extend_from_slice(&[1, 1, 0]);
    }
    body.push(0);
    let frame = frame_with(ApiKey::Produce, 9, &body);
    let (result, peak) = peak_of(|| decode_request(frame));
    assert!(result.is_err());
    assert!(peak < MEMORY_MAX, "{peak}");
}

#[test]
fn ordinary_large_requests_are_not_refused() {
    use lockstep_wire::codec::{FetchRequest, fetch_request};
    let mut request = FetchRequest::default();
    request.topics = (0..1_000)
        .map(|_| {
            let mut topic = fetch_request::FetchTopic::default();
            topic.partitions = vec![fetch_request::FetchPartition::default(); 30];
            topic
        })
        .collect();
    let request: Request = request.into();
    let frame = encode_request(13, 1, None, &request).expect("encodes").into_bytes().slice(4..);
    let (_, decoded) = decode_request(frame).expect("30,000 partitions are fine");
    assert_eq!(decoded, request);
}

#[test]
fn bombs_are_cut_off() {
    let plain = Bytes::from(vec![0; 64 << 20]);
    for compression in [Compression::Gzip, Compression::Snappy, Compression::Lz4, Compression::Zstd] {
        let bomb = Bytes::from(compression.compress(&plain).expect("compresses"));
        let len_max = 1 << 20;
        let (result, peak) = peak_of(|| compression.decompress(&bomb, len_max));
        assert!(result.is_err(), "{compression:?}");
        assert!(peak < 24 << 20, "{compression:?}: {peak}");
        let whole = compression.decompress(&bomb, plain.len()).expect("exactly the cap is allowed");
        assert_eq!(whole, plain, "{compression:?}");
    }
    // A raw snappy block of five bytes that claims 4 GiB less one.
    let claim = Bytes::from_static(&[0xff, 0xff, 0xff, 0xff, 0x0f]);
    let (result, peak) = peak_of(|| Compression::Snappy.decompress(&claim, usize::MAX));
    assert!(result.is_err());
    assert!(peak < 1 << 20, "{peak}");
}

fn batch() -> Bytes {
    let mut builder = BatchBuilder::new();
    for index in 0..20_i64 {
        let headers =
            vec![(Bytes::from_static(b"h\xff"), None), (Bytes::from_static(b"h\xff"), Some(Bytes::from_static(b"v")))];
        builder.push(1_000 + index, Some(b"key"), Some(b"some value"), &headers);
    }
    builder.finish(Compression::None, None).expect("builds")
}

#[test]
fn records_are_visited_without_a_copy() {
    // Bytes that came in are shared already by the time a batch is looked at.
    let batch = batch();
    let shared = batch.clone();
    let mut count = 0;
    let (result, peak) = peak_of(|| visit_records(&shared, 1 << 20, |_| count += 1));
    assert!(result.is_ok());
    assert_eq!((count, peak), (20, 0));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn random_bodies_never_panic(
        index in 0..ApiKey::ALL.len(),
        version in 0_i16..19,
        body in proptest::collection::vec(any::<u8>(), 0..400),
    ) {
        let api_key = ApiKey::ALL[index];
        let range = api_key.versions();
        let version = range.min + version % (range.max - range.min + 1);
        let frame = frame_with(api_key, version, &body);
        let _ = decode_request(frame);
        let mut frame = vec![0, 0, 0, 1];
        frame.extend_from_slice(&body);
        let _ = decode_response(api_key, version, frame.into());
    }

    #[test]
    fn truncated_and_flipped_frames_never_panic(
        index in 0..ApiKey::ALL.len(),
        version in 0_i16..19,
        cut in 0_usize..200,
        at in 0_usize..200,
        with in any::<u8>(),
    ) {
        let api_key = ApiKey::ALL[index];
        let range = api_key.versions();
        let version = range.min + version % (range.max - range.min + 1);
        let request = encode_request(version, 1, Some("c"), &Request::default_of(api_key)).expect("encodes").into_bytes();
        let response = encode_response(version, 1, &Response::default_of(api_key)).expect("encodes").into_bytes();
        for bytes in [request, response] {
            let mut bytes = bytes[4..].to_vec();
            if let Some(byte) = bytes.get_mut(at) {
                *byte = with;
            }
            bytes.truncate(bytes.len().saturating_sub(cut));
            let _ = decode_request(bytes.clone().into());
            let _ = decode_response(api_key, version, bytes.into());
        }
    }

    #[test]
    fn damaged_batches_are_noticed(at in 0_usize..600, bit in 0_u32..8) {
        let batch = batch();
        let mut bytes = batch.to_vec();
        let at = at % bytes.len();
        bytes[at] ^= 1 << bit;
        // Base offset and leader epoch are stamped by brokers and outside the CRC.
        let is_stamped = at < 8 || (12..16).contains(&at);
        prop_assert_eq!(check_batch(&bytes).is_ok(), is_stamped);
        prop_assert_eq!(decode_batch(&bytes.into(), 1 << 20).is_ok(), is_stamped);
    }

    /// With a CRC that matches, so that the decoder of records itself is reached.
    #[test]
    fn records_of_any_content_never_panic(at in 0_usize..600, with in proptest::collection::vec(any::<u8>(), 1..12), count in any::<i32>()) {
        let mut bytes = batch().to_vec();
        let at = 61 + at % (bytes.len() - 61);
        for (byte, with) in bytes[at..].iter_mut().zip(with) {
            *byte = with;
        }
        if count % 3 == 0 {
            bytes[57..61].copy_from_slice(&count.to_be_bytes());
            bytes[23..27].copy_from_slice(&count.wrapping_sub(1).to_be_bytes());
        }
        let crc = crc32c::crc32c(&bytes[21..]);
        bytes[17..21].copy_from_slice(&crc.to_be_bytes());
        let bytes = Bytes::from(bytes);
        let (_, peak) = peak_of(|| decode_batch(&bytes, 1 << 20));
        prop_assert!(peak < 1 << 20, "{}", peak);
        let (_, peak) = peak_of(|| thin(&bytes, 1 << 20, Some(0), |record| record.offset % 3 != 0));
        prop_assert!(peak < 1 << 14, "{}", peak);
    }

    #[test]
    fn random_compressed_data_never_panics(code in 1_u8..5, bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let compression = Compression::from_code(code).expect("known");
        let (_, peak) = peak_of(|| compression.decompress(&bytes.into(), 1 << 20));
        prop_assert!(peak < 80 << 20, "{}", peak);
    }
}
