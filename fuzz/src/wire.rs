//! What Kafka clients send to brokers, and brokers to our client.

use bytes::Bytes;
use lockstep_wire::frame::{decode_request, decode_response, encode_request, encode_response, request_len_max};
use lockstep_wire::records::decode_batch;
use lockstep_wire::{ApiKey, BatchHeader, Compression, Request, check_batch};

/// What records may unfold to in a fuzzer.
const DECOMPRESSED_LEN_MAX: usize = 1 << 20;

/// A request as it follows its length prefix. What is decoded is encoded again without a fault, unless it has fields that its version lacks.
pub fn request_frame(data: &[u8]) {
    let Ok((header, request)) = decode_request(Bytes::copy_from_slice(data)) else { return };
    assert!(data.len() <= request_len_max(header.api_key.code()), "a frame above its cap was decoded");
    assert_eq!(request.api_key(), header.api_key);
    assert!(header.trailing_len <= data.len());
    if let Request::Produce(produce) = &request {
        let batches = produce.topic_data.iter().flat_map(|topic| &topic.partition_data);
        for records in batches.filter_map(|partition| partition.records.as_ref()) {
            let checked = check_batch(records);
            assert!(checked.is_err() || records.len() >= 61, "a batch is longer than its header");
        }
    }
    let client_id = header.client_id.as_ref().map(|id| id.as_str());
    if let Ok(frame) = encode_request(header.api_version, header.correlation_id, client_id, &request) {
        let again = decode_request(frame.into_bytes().slice(4..));
        let (_, again) = again.expect("what was encoded can be decoded");
        assert_eq!(again, request, "a request is not what it was after encoding");
    }
}

/// A response from a hostile broker. The first two bytes choose request and version.
pub fn response_frame(data: &[u8]) {
    let [key, version, frame @ ..] = data else { return };
    let api_key = ApiKey::ALL[usize::from(*key) % ApiKey::ALL.len()];
    let versions = api_key.versions();
    let count = i16::from(*version) % (versions.max - versions.min + 1);
    let version = versions.min + count;
    if let Ok((correlation_id, response)) = decode_response(api_key, version, Bytes::copy_from_slice(frame)) {
        assert_eq!(response.api_key(), api_key);
        drop(encode_response(version, correlation_id, &response));
    }
}

/// A record batch as it is, and once more with length and checksum set right, so that what lies behind them is reached.
pub fn record_batch(data: &[u8]) {
    try_batch(Bytes::copy_from_slice(data));
    let mut sealed = data.to_vec();
    if sealed.len() > 21
        && let Ok(length) = i32::try_from(sealed.len() - 12)
    {
        sealed[8..12].copy_from_slice(&length.to_be_bytes());
        sealed[16] = 2;
        let crc = crc32c::crc32c(&sealed[21..]);
        sealed[17..21].copy_from_slice(&crc.to_be_bytes());
        try_batch(Bytes::from(sealed));
    }
    // Compressed bytes are what a client chose them to be.
    let bytes = Bytes::copy_from_slice(data);
    for codec in [Compression::Gzip, Compression::Snappy, Compression::Lz4, Compression::Zstd] {
        if let Ok(unfolded) = codec.decompress(&bytes, DECOMPRESSED_LEN_MAX) {
            assert!(unfolded.len() <= DECOMPRESSED_LEN_MAX, "{codec:?} gave more than was allowed");
        }
    }
}

fn try_batch(bytes: Bytes) {
    if let Ok(header) = BatchHeader::parse(&bytes) {
        assert_eq!(BatchHeader::parse(&header.to_bytes()).as_ref(), Ok(&header));
    }
    let checked = check_batch(&bytes);
    if let Ok((header, records)) = decode_batch(&bytes, DECOMPRESSED_LEN_MAX) {
        assert!(usize::try_from(header.record_count).is_ok_and(|count| count == records.len()));
    }
    if let Ok(header) = checked {
        assert_eq!(header.total_len(), Some(bytes.len()));
        assert!(header.last_offset_delta >= 0 && header.last_offset() >= header.base_offset);
    }
}
