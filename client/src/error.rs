//! What can go wrong.

use std::time::Duration;

use lockstep_wire::codec::ResponseError;
use lockstep_wire::{EncodeError, FrameError};

/// An error code that a broker answered with.
pub type ErrorCode = ResponseError;

/// What every operation of the client fails with.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ClientError {
    /// None of the configured brokers, nor any that they had named, could be reached.
    #[error("no broker reachable: {reason}")]
    NoBroker {
        /// What the last attempt failed with.
        reason: String,
    },
    /// The connection could not be made, or broke before the answer came: it is unknown whether the broker acted.
    #[error("connection to {address} failed: {reason}")]
    Disconnected {
        /// Broker, `host:port`.
        address: String,
        /// Why.
        reason: String,
    },
    /// A broker refused.
    #[error("{what}: {}", broker_error_text(*code, message.as_deref()))]
    Broker {
        /// What was asked for.
        what: String,
        /// Kafka's error.
        code: ErrorCode,
        /// The broker's own words, if it sent any.
        message: Option<String>,
    },
    /// The total time-out passed, retries included: it is unknown whether a broker acted.
    #[error("{what} did not succeed within {} ms: {last}", after.as_millis())]
    TimedOut {
        /// What was asked for.
        what: String,
        /// The time-out.
        after: Duration,
        /// What the last attempt failed with.
        last: String,
    },
    /// A broker sent what the protocol does not allow.
    #[error("unexpected answer from {address}: {reason}")]
    BadAnswer {
        /// Broker, `host:port`.
        address: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A broker does not know a request, or no version of it that this client knows.
    #[error("broker {address} does not support {api}")]
    Unsupported {
        /// Broker, `host:port`.
        address: String,
        /// Request.
        api: &'static str,
    },
    /// The caller asked for something that cannot be.
    #[error("{0}")]
    InvalidArgument(String),
    /// The producer or consumer has been closed.
    #[error("{0} is closed")]
    Closed(&'static str),
    /// Records that a broker sent cannot be decoded.
    #[error("records of {topic}/{partition} at offset {offset}: {reason}")]
    BadRecords {
        /// Topic.
        topic: String,
        /// Partition.
        partition: i32,
        /// Where the fetch began.
        offset: i64,
        /// What is wrong with them.
        reason: String,
    },
    /// A request could not be encoded: a name is too long, for one.
    #[error(transparent)]
    Encode(#[from] EncodeError),
}

impl ClientError {
    pub(crate) fn broker(what: impl Into<String>, code: i16, message: Option<&str>) -> Self {
        let code = ResponseError::try_from_code(code).unwrap_or(ResponseError::UnknownServerError);
        let message = message.filter(|message| !message.is_empty()).map(str::to_owned);
        ClientError::Broker { what: what.into(), code, message }
    }

    pub(crate) fn bad_answer(address: &str, reason: impl Into<String>) -> Self {
        ClientError::BadAnswer { address: address.to_owned(), reason: reason.into() }
    }

    pub(crate) fn bad_frame(address: &str, error: &FrameError) -> Self {
        Self::bad_answer(address, error.to_string())
    }

    /// The broker's error code, if it was a broker that refused.
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            ClientError::Broker { code, .. } => Some(*code),
            _ => None,
        }
    }

    /// Trying again later, perhaps at another broker, may succeed.
    pub fn is_retriable(&self) -> bool {
        match self {
            ClientError::NoBroker { .. } | ClientError::Disconnected { .. } => true,
            ClientError::Broker { code, .. } => code.is_retriable(),
            _ => false,
        }
    }
}

/// `Ok` unless `code` is an error.
pub(crate) fn check_code(what: impl FnOnce() -> String, code: i16, message: Option<&str>) -> Result<(), ClientError> {
    if code == 0 { Ok(()) } else { Err(ClientError::broker(what(), code, message)) }
}

/// Kafka's name of an error, `NOT_COORDINATOR` for example.
pub fn error_name(code: ErrorCode) -> String {
    let mut name = String::new();
    for (index, letter) in format!("{code:?}").chars().enumerate() {
        if letter.is_ascii_uppercase() && index > 0 {
            name.push('_');
        }
        name.push(letter.to_ascii_uppercase());
    }
    name
}

fn broker_error_text(code: ErrorCode, message: Option<&str>) -> String {
    const NOT_COORDINATOR_TEXT: &str = "only leader can handle consumer group operations";
    let mut text = format!("{}: ", error_name(code));
    match (code, message) {
        (ErrorCode::NotCoordinator, Some(message)) if message.contains(NOT_COORDINATOR_TEXT) => text.push_str(message),
        (ErrorCode::NotCoordinator, Some(message)) => text.push_str(&format!("{NOT_COORDINATOR_TEXT} ({message})")),
        (ErrorCode::NotCoordinator, None) => text.push_str(NOT_COORDINATOR_TEXT),
        (_, Some(message)) => text.push_str(message),
        (_, None) => text.push_str(&code.to_string()),
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn not_coordinator_says_who_can_handle_group_operations() {
        for message in [None, Some("ask node 3"), Some("only leader can handle consumer group operations")] {
            let text = ClientError::broker("joining group g", 16, message).to_string();
            assert!(text.starts_with("joining group g: NOT_COORDINATOR: "), "{text}");
            assert_eq!(text.matches("only leader can handle consumer group operations").count(), 1, "{text}");
        }
    }

    #[test]
    fn the_brokers_own_words_come_before_the_general_ones() {
        let text = ClientError::broker("creating topic t", 36, Some("t is there already")).to_string();
        assert_eq!(text, "creating topic t: TOPIC_ALREADY_EXISTS: t is there already");
        let text = ClientError::broker("creating topic t", 36, Some("")).to_string();
        assert!(text.starts_with("creating topic t: TOPIC_ALREADY_EXISTS: ") && text.len() > 45, "{text}");
    }
}
