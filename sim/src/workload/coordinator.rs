//! Raw requests to the coordinator of a group, as a client that is not ours sends them.

use std::time::Duration;

use checker::Event;
use lockstep_client::{BrokerConnection, Client, ClientError, ErrorCode};
use lockstep_wire::api::Call;
use lockstep_wire::codec::{GroupId, StrBytes, TopicName};

use crate::env::SimEnv;

use super::Context;

/// How long a request is waited for that is answered at once.
pub(super) const PATIENCE: Duration = Duration::from_secs(3);

pub(super) fn text(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

pub(super) fn group_id(group: &str) -> GroupId {
    GroupId(text(group))
}

pub(super) fn topic_name(topic: &str) -> TopicName {
    TopicName(text(topic))
}

/// `Ok` unless `code` is an error.
pub(super) fn check(what: &str, code: i16) -> Result<(), ClientError> {
    if code == 0 {
        return Ok(());
    }
    let code = ErrorCode::try_from_code(code).unwrap_or(ErrorCode::UnknownServerError);
    Err(ClientError::Broker { what: what.to_owned(), code, message: None })
}

/// A connection to the coordinator of a group, made anew when it breaks or the group has moved.
pub(super) struct Coordinator {
    pub(super) client: Client<SimEnv>,
    pub(super) group: String,
    context: Context,
    connection: Option<BrokerConnection<SimEnv>>,
}

impl Coordinator {
    pub(super) fn new(context: &Context, client: &Client<SimEnv>, group: &str) -> Self {
        Self { client: client.clone(), group: group.to_owned(), context: context.clone(), connection: None }
    }

    /// A connection to the coordinator.
    pub(super) async fn connection(&mut self) -> Result<&BrokerConnection<SimEnv>, ClientError> {
        if let Some(connection) = self.connection.take_if(|connection| !connection.is_closed()) {
            return Ok(self.connection.insert(connection));
        }
        let address = self.client.find_coordinator(&self.group).await?;
        let connection = self.client.open_connection(&address).await?;
        Ok(self.connection.insert(connection))
    }

    /// It must be looked for again.
    pub(super) fn forget(&mut self) {
        self.connection = None;
    }

    /// Asks once. `error_of` tells the error of the answer; one that says that the group is elsewhere is remembered.
    pub(super) async fn ask<R: Call>(
        &mut self,
        version: i16,
        patience: Duration,
        request: R,
        error_of: impl Fn(&R::Response) -> i16,
    ) -> Result<R::Response, ClientError> {
        let context = self.context.clone();
        let connection = self.connection().await?;
        let started_at_us = context.now_us();
        let node = context.node_at(connection.address());
        let asked = async { connection.send(version, request)?.answer::<SimEnv>(patience).await };
        let answer = asked.await;
        match answer {
            Ok(answer) => match check(R::API_KEY.name(), error_of(&answer)) {
                Ok(()) => {
                    if let Some(node) = node.filter(|_| R::API_KEY.name().ends_with("Heartbeat")) {
                        let group = self.group.clone();
                        context.record(Event::HeartbeatAnswered { node, group, started_at_us });
                    }
                    Ok(answer)
                }
                Err(error) => {
                    if matches!(error.code(), Some(ErrorCode::NotCoordinator | ErrorCode::CoordinatorNotAvailable)) {
                        self.forget();
                    }
                    Err(error)
                }
            },
            Err(error) => {
                self.forget();
                Err(error)
            }
        }
    }
}
