//! Configuration of a client.

use std::time::Duration;

use crate::error::ClientError;

/// How a client finds and talks to the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientConfig {
    /// Brokers to begin with, `host:port` each. One that answers is enough; the others are found through it.
    pub brokers: Vec<String>,
    /// How long an operation may take, retries included. Also the longest wait for one answer.
    pub timeout: Duration,
    /// What the client calls itself in logs and descriptions of groups.
    pub client_id: String,
}

impl Default for ClientConfig {
    fn default() -> Self {
        Self {
            brokers: vec!["localhost:9092".to_owned()],
            timeout: Duration::from_secs(30),
            client_id: "lockstep-client".to_owned(),
        }
    }
}

impl ClientConfig {
    /// The default configuration with these brokers, a list separated by commas. A broker without a port has 9092.
    pub fn for_brokers(brokers: &str) -> Self {
        let brokers = brokers
            .split(',')
            .map(str::trim)
            .filter(|broker| !broker.is_empty())
            .map(|broker| match broker.rsplit_once(':') {
                // An IPv6 address in brackets has colons of its own.
                Some((_, port)) if !port.is_empty() && port.bytes().all(|digit| digit.is_ascii_digit()) => {
                    broker.to_owned()
                }
                _ => format!("{broker}:9092"),
            })
            .collect();
        Self { brokers, ..Self::default() }
    }

    pub(crate) fn check(&self) -> Result<(), ClientError> {
        if self.brokers.is_empty() {
            return Err(ClientError::InvalidArgument("no broker given".to_owned()));
        }
        if self.timeout.is_zero() {
            return Err(ClientError::InvalidArgument("the time-out is 0".to_owned()));
        }
        if self.client_id.len() > 1_024 {
            return Err(ClientError::InvalidArgument("the client id is longer than 1,024 bytes".to_owned()));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brokers_without_a_port_get_kafkas() {
        let config = ClientConfig::for_brokers("a:1, b ,,[::1]:9093,[::1]");
        assert_eq!(config.brokers, ["a:1", "b:9092", "[::1]:9093", "[::1]:9092"]);
    }
}
