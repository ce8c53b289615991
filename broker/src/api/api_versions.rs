//! ApiVersions: which requests are served, in which versions (KIP-35, KIP-511).

use lockstep_env::Env;
use lockstep_wire::codec::api_versions_response::ApiVersion;
use lockstep_wire::codec::{ApiVersionsRequest, ApiVersionsResponse};
use lockstep_wire::{Response, versions};

use crate::broker::Broker;
use crate::dispatch::RequestContext;
use crate::error_code::ErrorCode;

pub(crate) async fn handle<E: Env>(
    _broker: &Broker<E>,
    context: &RequestContext,
    request: ApiVersionsRequest,
) -> ApiVersionsResponse {
    let named = |text: &str| {
        // KIP-511: letters, digits, dots and dashes, beginning and ending with a letter or digit.
        let inner = |c: char| c.is_ascii_alphanumeric() || c == '.' || c == '-';
        text.chars().all(inner)
            && text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && text.ends_with(|c: char| c.is_ascii_alphanumeric())
    };
    if context.api_version >= 3 && !(named(&request.client_software_name) && named(&request.client_software_version)) {
        return ApiVersionsResponse::default().with_error_code(ErrorCode::InvalidRequest.code());
    }
    tracing::debug!(
        client = context.client_id,
        host = &*context.client_host,
        software = &*request.client_software_name,
        version = &*request.client_software_version,
        "client introduced itself"
    );
    table()
}

/// The answer to an ApiVersions request of a version that is not served, to be encoded in version 0: the client reads the
/// table from it and asks again.
pub(crate) fn unsupported_version() -> Response {
    table().with_error_code(ErrorCode::UnsupportedVersion.code()).into()
}

fn table() -> ApiVersionsResponse {
    let api_keys = versions::advertised()
        .map(|row| {
            ApiVersion::default()
                .with_api_key(row.api_key.code())
                .with_min_version(row.version_min)
                .with_max_version(row.version_max)
        })
        .collect();
    ApiVersionsResponse::default().with_api_keys(api_keys)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn produce_is_advertised_from_0_and_our_own_requests_are_not() {
        let table = table();
        let produce = table.api_keys.iter().find(|row| row.api_key == 0).expect("Produce");
        assert_eq!((produce.min_version, produce.max_version), (0, 13));
        assert!(table.api_keys.iter().all(|row| row.api_key < 32_000));
    }

    #[test]
    fn an_unknown_version_is_answered_with_error_35_and_the_table() {
        let Response::ApiVersions(response) = unsupported_version() else { panic!("another response") };
        assert_eq!(response.error_code, 35);
        assert!(response.api_keys.iter().any(|row| row.api_key == 18));
    }
}
