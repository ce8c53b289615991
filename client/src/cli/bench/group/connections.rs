//! A bounded number of connections that many members share.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lockstep_client::{BrokerConnection, Client, ClientError};
use lockstep_env::Env;
use lockstep_env::tokio_env::TokioEnv;

/// Between two questions who coordinates a group.
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(100);

/// Connections to the coordinators of groups, made when they are first used, and again when they broke.
pub(super) struct Connections {
    client: Client,
    per_broker: usize,
    slots: Mutex<BTreeMap<(String, usize), Arc<Slot>>>,
    coordinators: Mutex<BTreeMap<String, String>>,
}

type Slot = tokio::sync::Mutex<Option<Arc<BrokerConnection>>>;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Connections {
    /// At most `per_broker` (at least one) to each broker.
    pub(super) fn new(client: &Client, per_broker: usize) -> Self {
        let per_broker = per_broker.max(1);
        Self { client: client.clone(), per_broker, slots: Mutex::default(), coordinators: Mutex::default() }
    }

    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    /// Address of the coordinator of `group`, asked for unless known, for as long as the client's time-out allows.
    pub(super) async fn coordinator(&self, group: &str) -> Result<String, ClientError> {
        if let Some(address) = lock(&self.coordinators).get(group) {
            return Ok(address.clone());
        }
        let deadline = TokioEnv::now() + self.client.config().timeout;
        loop {
            match self.client.find_coordinator(group).await {
                Ok(address) => {
                    lock(&self.coordinators).insert(group.to_owned(), address.clone());
                    return Ok(address);
                }
                Err(error) if error.is_retriable() && TokioEnv::now() < deadline => {
                    TokioEnv::sleep(LOOK_AGAIN_AFTER).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// `address` does not coordinate `group` (any more), or does not answer.
    pub(super) fn forget_coordinator(&self, group: &str, address: &str) {
        let mut coordinators = lock(&self.coordinators);
        if coordinators.get(group).is_some_and(|known| known == address) {
            coordinators.remove(group);
        }
    }

    /// The connection to the coordinator of `group` that the user with this number shares with others.
    pub(super) async fn to_coordinator(&self, group: &str, user: usize) -> Result<Arc<BrokerConnection>, ClientError> {
        let address = self.coordinator(group).await?;
        let opened = self.to(&address, user).await;
        if opened.is_err() {
            self.forget_coordinator(group, &address);
        }
        opened
    }

    /// The connection to a broker that the user with this number shares with others.
    pub(super) async fn to(&self, address: &str, user: usize) -> Result<Arc<BrokerConnection>, ClientError> {
        let slot = {
            let mut slots = lock(&self.slots);
            Arc::clone(slots.entry((address.to_owned(), user % self.per_broker)).or_default())
        };
        let mut slot = slot.lock().await;
        if let Some(connection) = slot.as_ref().filter(|connection| !connection.is_closed()) {
            return Ok(Arc::clone(connection));
        }
        let connection = Arc::new(self.client.open_connection(address).await?);
        *slot = Some(Arc::clone(&connection));
        Ok(connection)
    }
}
