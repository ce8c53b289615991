//! Every request and response of the table, in every version, both ways.

use bytes::Bytes;
use lockstep_wire::codec::{
    ApiVersionsResponse, FetchResponse, ProduceRequest, StrBytes, TopicName, fetch_response, produce_request,
};
use lockstep_wire::frame::{decode_request, decode_response, encode_request, encode_response};
use lockstep_wire::{ApiKey, FrameError, Request, Response, versions};

fn body_of(frame: Bytes) -> Bytes {
    let len = u32::from_be_bytes(frame[..4].try_into().expect("a prefix")) as usize;
    assert_eq!(len, frame.len() - 4, "the prefix counts what follows it");
    frame.slice(4..)
}

#[test]
fn default_requests_come_back_in_every_version() {
    for &api_key in ApiKey::ALL {
        for version in api_key.versions().iter() {
            let request = Request::default_of(api_key);
            let frame = encode_request(version, 77, Some("a client"), &request)
                .unwrap_or_else(|error| panic!("{} {version}: {error}", api_key.name()));
            let (header, decoded) = decode_request(body_of(frame.into_bytes()))
                .unwrap_or_else(|error| panic!("{} {version}: {error}", api_key.name()));
            assert_eq!((header.api_key, header.api_version, header.correlation_id), (api_key, version, 77));
            assert_eq!(header.client_id.as_deref(), Some("a client"));
            assert_eq!(header.trailing_len, 0, "{} {version}", api_key.name());
            assert_eq!(decoded.api_key(), api_key);
            // The decoded form must encode to the same bytes, whatever defaults the version fills in.
            assert_eq!(
                encode_request(version, 77, Some("a client"), &decoded).expect("encodes again"),
                encode_request(version, 77, Some("a client"), &request).expect("encodes"),
                "{} {version}",
                api_key.name()
            );
        }
    }
}

#[test]
fn default_responses_come_back_in_every_version() {
    for &api_key in ApiKey::ALL {
        for version in api_key.versions().iter() {
            let response = Response::default_of(api_key);
            let frame = encode_response(version, -5, &response)
                .unwrap_or_else(|error| panic!("{} {version}: {error}", api_key.name()));
            let (correlation_id, decoded) = decode_response(api_key, version, body_of(frame.clone().into_bytes()))
                .unwrap_or_else(|error| panic!("{} {version}: {error}", api_key.name()));
            assert_eq!(correlation_id, -5);
            assert_eq!(
                encode_response(version, -5, &decoded).expect("encodes again"),
                frame,
                "{} {version}",
                api_key.name()
            );
        }
    }
}

#[test]
fn versions_outside_the_table_are_refused() {
    for &api_key in ApiKey::ALL {
        let range = api_key.versions();
        for version in [i16::MIN, range.min - 1, range.max + 1, i16::MAX] {
            let mut frame = Vec::new();
            frame.extend_from_slice(&api_key.code().to_be_bytes());
            frame.extend_from_slice(&version.to_be_bytes());
            frame.extend_from_slice(&9_i32.to_be_bytes());
            frame.extend_from_slice(&[0; 32]);
            let error = decode_request(frame.into()).expect_err("refused");
            match api_key {
                ApiKey::ApiVersions => {
                    assert_eq!(error, FrameError::UnsupportedApiVersions { api_version: version, correlation_id: 9 });
                }
                _ => {
                    let expected = FrameError::UnsupportedVersion { api_key, api_version: version, correlation_id: 9 };
                    assert_eq!(error, expected);
                }
            }
        }
    }
    let unknown = [0x7f, 0x00, 0, 0, 0, 0, 0, 3, 0, 0];
    let error = decode_request(Bytes::copy_from_slice(&unknown)).expect_err("refused");
    assert_eq!(error, FrameError::UnknownApiKey { api_key: 0x7f00, correlation_id: 3 });
}

#[test]
fn advertised_versions_hide_our_own_request_and_name_produce_from_0() {
    let rows: Vec<_> = versions::advertised().collect();
    assert!(rows.iter().all(|row| row.api_key.code() < 32_000), "our own requests are not advertised");
    assert_eq!(rows[0].api_key, ApiKey::Produce);
    assert_eq!((rows[0].version_min, rows[0].version_max), (0, 13));
    for row in &rows[1..] {
        assert_eq!(row.version_min, row.api_key.versions().min, "{}", row.api_key.name());
    }
    assert!(rows.is_sorted_by_key(|row| row.api_key.code()));
}

#[test]
fn an_api_versions_error_is_read_in_version_0_whatever_was_asked_for() {
    let mut body = ApiVersionsResponse::default();
    body.error_code = 35;
    let frame = encode_response(0, 4, &body.into()).expect("encodes").into_bytes();
    let (_, response) = decode_response(ApiKey::ApiVersions, 4, frame.slice(4..)).expect("decodes");
    let Response::ApiVersions(body) = response else { panic!("another response: {response:?}") };
    assert_eq!(body.error_code, 35);
}

#[test]
fn records_are_neither_copied_into_nor_out_of_frames() {
    let records = Bytes::from(vec![7; 100_000]);
    let mut fetch = FetchResponse::default();
    for name in ["a", "b"] {
        let mut topic = fetch_response::FetchableTopicResponse::default();
        topic.topic = TopicName(StrBytes::from_static_str(name));
        let mut partition = fetch_response::PartitionData::default();
        partition.records = Some(records.clone());
        let mut empty = fetch_response::PartitionData::default();
        empty.partition_index = 1;
        topic.partitions = vec![partition, empty];
        fetch.responses.push(topic);
    }
    let frame = encode_response(11, 1, &fetch.clone().into()).expect("encodes");
    let shared = frame.segments.iter().filter(|segment| segment.as_ptr() == records.as_ptr()).count();
    assert_eq!(shared, 2, "both partitions hand on the bytes themselves");
    let (_, decoded) = decode_response(ApiKey::Fetch, 11, frame.into_bytes().slice(4..)).expect("decodes");
    assert_eq!(decoded, fetch.into());

    let mut partition = produce_request::PartitionProduceData::default();
    partition.records = Some(records.clone());
    let mut topic = produce_request::TopicProduceData::default();
    topic.name = TopicName(StrBytes::from_static_str("a"));
    topic.partition_data = vec![partition];
    let mut produce = ProduceRequest::default();
    produce.topic_data = vec![topic];
    let frame = encode_request(9, 1, None, &produce.into()).expect("encodes");
    assert!(frame.segments.iter().any(|segment| segment.as_ptr() == records.as_ptr()));
    let bytes = frame.into_bytes();
    let (_, request) = decode_request(bytes.slice(4..)).expect("decodes");
    let Request::Produce(produce) = request else { panic!("another request") };
    let decoded = produce.topic_data[0].partition_data[0].records.clone().expect("records");
    assert_eq!(decoded, records);
    assert!(bytes.as_ptr_range().contains(&decoded.as_ptr()), "a slice of the frame");
}

#[test]
fn a_field_that_the_version_lacks_is_an_error_and_not_dropped() {
    let mut response = lockstep_wire::codec::MetadataResponse::default();
    response.cluster_authorized_operations = 1;
    assert!(encode_response(12, 1, &response.into()).is_err());
}
