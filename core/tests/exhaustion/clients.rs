//! What each client believes: the whole model of a client.

use serde::Serialize;

use crate::harness::Parts;

/// One of the two clients.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) enum Client {
    Consumer(ConsumerClient),
    Classic(ClassicClient),
}

/// Speaks ConsumerGroupHeartbeat.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct ConsumerClient {
    /// 0 when it is not in, or was not told yet that it is.
    pub(crate) epoch: i32,
    /// What it works on. It takes at once what it is told, and gives up the rest when it comes to it.
    pub(crate) owned: Parts,
    /// What it was told last.
    pub(crate) told: Parts,
    /// An answer was lost: the next request says everything, as Kafka's client does.
    pub(crate) resend: bool,
    /// Its request waits for the target assignment.
    pub(crate) waiting: bool,
}

/// Speaks JoinGroup and SyncGroup, and gives up everything before it joins (the eager protocol).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) enum ClassicClient {
    /// It has no member id.
    Out,
    /// It has one, and is to join (again).
    Named { id: String },
    /// Its JoinGroup waits.
    Joining { id: String, after: i32 },
    /// It was told the generation, and when it leads whom it assigns to.
    Joined { id: String, generation: i32, leads: bool, members: Vec<String> },
    /// Its SyncGroup waits.
    Syncing { id: String, generation: i32 },
    /// It works on its partitions.
    Active { id: String, generation: i32, leads: bool, owned: Parts },
}

impl ConsumerClient {
    /// It works on nothing any more, and has to join.
    pub(crate) fn drop_out(&mut self) {
        *self = Self::default();
    }

    /// Nothing comes back for its last request.
    pub(crate) fn lose_answer(&mut self) {
        self.waiting = false;
        self.resend = self.epoch > 0;
    }
}

impl ClassicClient {
    pub(crate) fn id(&self) -> Option<&str> {
        match self {
            Self::Out => None,
            Self::Named { id }
            | Self::Joining { id, .. }
            | Self::Joined { id, .. }
            | Self::Syncing { id, .. }
            | Self::Active { id, .. } => Some(id),
        }
    }

    /// Goes on without its generation. `keeps_id`: it joins again as the same member.
    pub(crate) fn give_up(&mut self, keeps_id: bool) {
        *self = match self.id() {
            Some(id) if keeps_id => Self::Named { id: id.to_owned() },
            _ => Self::Out,
        };
    }
}

impl Client {
    /// Its member id, if it has one. Clients of the consumer protocol make their own and keep it.
    pub(crate) fn id<'a>(&'a self, name: &'a str) -> Option<&'a str> {
        match self {
            Self::Consumer(_) => Some(name),
            Self::Classic(client) => client.id(),
        }
    }

    /// What it works on.
    pub(crate) fn owned(&self) -> Option<&Parts> {
        match self {
            Self::Consumer(client) => Some(&client.owned),
            Self::Classic(ClassicClient::Active { owned, .. }) => Some(owned),
            Self::Classic(_) => None,
        }
    }

    /// The epoch or generation that it is in.
    pub(crate) fn epoch(&mut self) -> Option<&mut i32> {
        match self {
            Self::Consumer(client) => Some(&mut client.epoch),
            Self::Classic(
                ClassicClient::Joining { after: generation, .. }
                | ClassicClient::Joined { generation, .. }
                | ClassicClient::Syncing { generation, .. }
                | ClassicClient::Active { generation, .. },
            ) => Some(generation),
            Self::Classic(ClassicClient::Out | ClassicClient::Named { .. }) => None,
        }
    }
}
