//! What a client does while the broker that it waits for is silent: it asks the others whether one of them has taken over.
//!
//! A broker that is frozen or cut off keeps its connections open and says nothing, and waiting for a time-out would take
//! many times as long as the election of its successor. One that is merely slow must not be asked again elsewhere. So a
//! broker is left only once the cluster names another in its place, and it is asked about ever more rarely.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use lockstep_env::{Either, Env, select};
use lockstep_wire::api::Call;

use crate::client::{Client, Purpose};
use crate::connection::{BrokerConnection, InFlight};
use crate::error::ClientError;
use lockstep_probe::Mark;

/// The first doubt comes after so long a silence.
const DOUBT_AFTER: Duration = Duration::from_millis(200);
/// Those after it come at this distance, as many as fit into an election and a little more.
const DOUBT_PAUSE: Duration = Duration::from_millis(50);
const DOUBTS_AT_FIRST: u32 = 16;
/// Later doubts come at twice the distance each time, up to this one.
const DOUBT_PAUSE_MAX: Duration = Duration::from_secs(2);

/// Why a broker is asked and no other.
#[derive(Clone, Debug)]
pub(crate) enum Role {
    /// It leads these partitions.
    Leader { broker: i32, partitions: Vec<(Arc<str>, i32)> },
    /// It coordinates this group.
    Coordinator { group: String },
}

impl<E: Env> Client<E> {
    /// [`Client::connection`] to a broker for the sake of its role.
    ///
    /// # Errors
    /// Also when another broker got the role before this one answered.
    pub(crate) async fn connection_in_role(
        &self,
        address: &str,
        role: &Role,
        purpose: Purpose,
    ) -> Result<Arc<BrokerConnection<E>>, ClientError> {
        self.unless_succeeded(address, role, Duration::ZERO, self.connection(address, purpose)).await
    }

    /// The answer of a broker that was asked for the sake of its role, which may well take `usual` and is awaited for
    /// `patience`. Without an answer the connection is closed: answers come in order, so no other would come either.
    ///
    /// # Errors
    /// Also when another broker got the role before this one answered.
    pub(crate) async fn answer_in_role<R: Call>(
        &self,
        connection: &BrokerConnection<E>,
        role: &Role,
        usual: Duration,
        patience: Duration,
        in_flight: InFlight<R>,
    ) -> Result<R::Response, ClientError> {
        let answer = in_flight.answer::<E>(patience);
        let result = self.unless_succeeded(connection.address(), role, usual, answer).await;
        if let Err(error @ ClientError::Disconnected { .. }) = &result {
            connection.close(&error.to_string());
        }
        result
    }

    /// Asks one broker, once, for the sake of its role.
    ///
    /// # Errors
    /// Also when another broker got the role before this one answered.
    pub(crate) async fn ask_in_role<R: Call>(
        &self,
        address: &str,
        role: &Role,
        purpose: Purpose,
        patience: Duration,
        request: impl FnOnce(i16) -> R,
    ) -> Result<R::Response, ClientError> {
        let connection = self.connection_in_role(address, role, purpose).await?;
        let version = connection.version_of(R::API_KEY)?;
        let in_flight = connection.send(version, request(version))?;
        self.answer_in_role(&connection, role, Duration::ZERO, patience, in_flight).await
    }

    async fn unless_succeeded<T>(
        &self,
        address: &str,
        role: &Role,
        usual: Duration,
        work: impl Future<Output = Result<T, ClientError>>,
    ) -> Result<T, ClientError> {
        match select(work, self.succession(address, role, usual)).await {
            Either::First(result) => result,
            Either::Second(successor) => Err(ClientError::Disconnected {
                address: address.to_owned(),
                reason: format!("silent, and {successor} has taken over"),
            }),
        }
    }

    /// Completes when another broker has the role, and names it.
    async fn succession(&self, address: &str, role: &Role, usual: Duration) -> String {
        let mut pause = DOUBT_PAUSE;
        let mut doubts = 0;
        E::sleep(usual + DOUBT_AFTER).await;
        loop {
            doubts += 1;
            Mark::BrokerDoubted.reached();
            if doubts >= DOUBTS_AT_FIRST {
                pause = (pause * 2).min(DOUBT_PAUSE_MAX);
            }
            // The silent one knows least about it.
            self.remember_silent([address.to_owned()]);
            // Boxed, since it is long and rarely comes to this: every request waits beside it.
            match Box::pin(self.successor(address, role)).await {
                Ok(Some(successor)) => {
                    Mark::SuccessorFound.reached();
                    return successor;
                }
                Ok(None) => {}
                Err(error) => tracing::debug!(%error, "nobody says whether a silent broker has a successor"),
            }
            E::sleep(pause).await;
        }
    }

    async fn successor(&self, address: &str, role: &Role) -> Result<Option<String>, ClientError> {
        match role {
            Role::Leader { broker, partitions } => {
                let topics: BTreeSet<Arc<str>> = partitions.iter().map(|(topic, _)| Arc::clone(topic)).collect();
                self.refresh_once(&topics.into_iter().collect::<Vec<_>>()).await?;
                let other_leader = |(topic, partition): &(Arc<str>, i32)| {
                    self.cached_topic(topic)?.partition(*partition)?.leader.filter(|leader| leader != broker)
                };
                // Of all partitions: a broker that still leads one of them may be about to answer.
                let successors: Option<Vec<i32>> = partitions.iter().map(other_leader).collect();
                Ok(successors.and_then(|all| all.first().map(|leader| format!("broker {leader}"))))
            }
            Role::Coordinator { group } => {
                let found = self.look_up_coordinator(group, None).await?;
                // Whoever answered may lag behind: the one that was named must say the same of itself.
                let is_it = found != address && self.look_up_coordinator(group, Some(&found)).await? == found;
                Ok(is_it.then_some(found))
            }
        }
    }
}
