//! How far groups are behind, as the brokers tell it.

use std::collections::{BTreeMap, BTreeSet};

use lockstep_env::Env;
use lockstep_wire::private::{GroupLag, GroupLagRequest, GroupLagResponse, LAG_GROUPS_MAX, PartitionLag};
use serde::Serialize;

use crate::admin::{Admin, GroupListing};
use crate::client::Purpose;
use crate::error::{ClientError, ErrorCode, check_code};

/// Ids of groups in one request, at most, so that brokers take it.
const REQUEST_BYTES_MAX: usize = 1 << 20;
/// What an id takes besides its bytes.
const ID_OVERHEAD_BYTES: usize = 2;

/// A group as it is listed, with its lag over all partitions that it has committed offsets for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GroupLagListing {
    /// The group.
    #[serde(flatten)]
    pub group: GroupListing,
    /// Partitions that it has committed offsets for; `None` if the group was deleted meanwhile, or the brokers did not tell.
    pub partitions: Option<usize>,
    /// How many of them are not in the sums: their leader could not be reached.
    pub partitions_unknown: Option<usize>,
    /// Records that are kept and were not read; `None` when it is known of no partition.
    pub lag: Option<i64>,
    /// How long the oldest of these records has been waiting, in milliseconds; `None` when that is not known.
    pub lag_ms: Option<u64>,
}

/// The lag of several partitions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct LagTotal {
    /// Sum of what is known.
    pub(super) lag: Option<i64>,
    /// The greatest that is known.
    pub(super) lag_ms: Option<u64>,
}

impl LagTotal {
    pub(super) fn of(partitions: impl Iterator<Item = (Option<i64>, Option<u64>)>) -> Self {
        let mut total = Self::default();
        for (lag, lag_ms) in partitions {
            total.lag = match (total.lag, lag) {
                (Some(sum), Some(lag)) => Some(sum.saturating_add(lag)),
                (sum, lag) => sum.or(lag),
            };
            total.lag_ms = total.lag_ms.max(lag_ms);
        }
        total
    }
}

impl<E: Env> Admin<E> {
    /// All groups with their lag: one more request for every thousand groups, for which a broker looks at the head of one batch
    /// per partition. Of a group whose lag the brokers refuse to tell, or cannot tell in time, that is not known.
    ///
    /// # Errors
    /// The cluster did not answer in time.
    pub async fn list_groups_with_lag(&self) -> Result<Vec<GroupLagListing>, ClientError> {
        let groups = self.list_groups().await?;
        let ids: Vec<String> = groups.iter().map(|group| group.group_id.clone()).collect();
        let mut lags = self.group_lags(ids, false).await?;
        let listing = |group: GroupListing| {
            let partitions = match lags.remove(&group.group_id).transpose() {
                Ok(partitions) => partitions,
                Err(error) => {
                    tracing::warn!(group = group.group_id, %error, "the lag of this group is not known");
                    None
                }
            };
            let known = partitions.as_deref().unwrap_or_default();
            let total = LagTotal::of(known.iter().map(|partition| (partition.lag, partition.lag_ms)));
            GroupLagListing {
                partitions: partitions.as_ref().map(Vec::len),
                partitions_unknown: partitions
                    .as_ref()
                    .map(|partitions| partitions.iter().filter(|partition| partition.lag.is_none()).count()),
                lag: total.lag,
                lag_ms: total.lag_ms,
                group,
            }
        };
        Ok(groups.into_iter().map(listing).collect())
    }

    /// The partitions of one group; `None` when the brokers do not know the request, as those of other clusters.
    pub(super) async fn lag_of_group(&self, group: &str) -> Result<Option<Vec<PartitionLag>>, ClientError> {
        match self.group_lags(vec![group.to_owned()], true).await {
            Ok(mut lags) => lags.remove(group).transpose().map(|partitions| Some(partitions.unwrap_or_default())),
            Err(error) if is_of_unknown_request(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// By group, what is known or why it is not; those that do not exist are left out. Where brokers may not know the request, it is
    /// not tried again when they seem not to.
    async fn group_lags(&self, groups: Vec<String>, may_be_unknown: bool) -> Result<GroupLags, ClientError> {
        let mut retry = self.client().retry("lag of groups");
        let mut due: BTreeSet<String> = groups.into_iter().collect();
        let mut lags = GroupLags::new();
        loop {
            // What may be told later.
            let mut refused = BTreeMap::new();
            while !due.is_empty() {
                let told = match self.ask_group_lags(of_one_request(&due)).await {
                    Ok(told) => told,
                    Err(error) if may_be_unknown && is_of_unknown_request(&error) => return Err(error),
                    Err(error) => match retry.pause(error).await {
                        Ok(()) => continue,
                        Err(error) if lags.is_empty() => return Err(error),
                        // What is known is known.
                        Err(error) => {
                            let unknown = std::mem::take(&mut due).into_iter().chain(refused.into_keys());
                            lags.extend(unknown.map(|group_id| (group_id, Err(error.clone()))));
                            return Ok(lags);
                        }
                    },
                };
                for lag in told {
                    due.remove(&lag.group_id);
                    match check_code(|| format!("lag of group {}", lag.group_id), lag.error_code, None) {
                        Ok(()) => {
                            lags.insert(lag.group_id, Ok(lag.partitions));
                        }
                        Err(error) if error.code() == Some(ErrorCode::GroupIdNotFound) => {}
                        Err(error) if error.is_retriable() => {
                            refused.insert(lag.group_id, error);
                        }
                        Err(error) => {
                            lags.insert(lag.group_id, Err(error));
                        }
                    }
                }
            }
            let Some((group_id, error)) = refused.first_key_value() else { return Ok(lags) };
            if let Err(error) = retry.pause_anyway(error).await {
                lags.insert(group_id.clone(), Err(error));
                for (group_id, error) in refused {
                    lags.entry(group_id).or_insert(Err(error));
                }
                return Ok(lags);
            }
            due = refused.into_keys().collect();
        }
    }

    /// Asks any broker, and others for what that one keeps no copy of.
    async fn ask_group_lags(&self, groups: Vec<String>) -> Result<Vec<GroupLag>, ClientError> {
        let client = self.client();
        let (address, response) = client.ask_any(|_| GroupLagRequest { groups: groups.clone() }).await?;
        let mut lags = lags_of(&address, &response, &groups)?;
        for other in client.brokers().into_values().filter(|other| *other != address) {
            let elsewhere: Vec<String> =
                lags.iter().filter(|lag| is_elsewhere(lag)).map(|lag| lag.group_id.clone()).collect();
            if elsewhere.is_empty() {
                break;
            }
            let patience = client.patience() / 4;
            let asked = client
                .ask(&other, Purpose::Question, patience, |_| GroupLagRequest { groups: elsewhere.clone() })
                .await
                .and_then(|response| lags_of(&other, &response, &elsewhere));
            match asked {
                Ok(told) => told.into_iter().for_each(|told| merge(&mut lags, told)),
                Err(error) => tracing::debug!(address = other, %error, "no lag from this broker"),
            }
        }
        Ok(lags)
    }
}

/// The partitions of groups, or why they are not known.
type GroupLags = BTreeMap<String, Result<Vec<PartitionLag>, ClientError>>;

/// As many groups as one request takes, at least one.
fn of_one_request(groups: &BTreeSet<String>) -> Vec<String> {
    let mut bytes: usize = 0;
    let mut fits = |group: &str| {
        let is_first = bytes == 0;
        bytes = bytes.saturating_add(group.len()).saturating_add(ID_OVERHEAD_BYTES);
        is_first || bytes <= REQUEST_BYTES_MAX
    };
    groups.iter().take(LAG_GROUPS_MAX).take_while(|group| fits(group)).cloned().collect()
}

/// A broker that does not know a request ends the connection.
fn is_of_unknown_request(error: &ClientError) -> bool {
    matches!(error, ClientError::NoBroker { .. } | ClientError::Unsupported { .. } | ClientError::Disconnected { .. })
}

fn lags_of(address: &str, response: &GroupLagResponse, asked: &[String]) -> Result<Vec<GroupLag>, ClientError> {
    check_code(|| "lag of groups".to_owned(), response.error_code, None)?;
    let lags: Vec<GroupLag> = serde_json::from_slice(&response.json)
        .map_err(|error| ClientError::bad_answer(address, format!("lag of groups: {error}")))?;
    if lags.is_empty() || lags.iter().any(|lag| !asked.contains(&lag.group_id)) {
        return Err(ClientError::bad_answer(address, "lag of other groups than asked for"));
    }
    Ok(lags)
}

/// The broker keeps no copy of the group, or of one of its partitions.
fn is_elsewhere(lag: &GroupLag) -> bool {
    lag.error_code == ErrorCode::NotCoordinator.code() || lag.partitions.iter().any(partition_is_elsewhere)
}

fn partition_is_elsewhere(partition: &PartitionLag) -> bool {
    partition.error_code == ErrorCode::NotLeaderOrFollower.code()
}

/// Takes from another broker's answer what was missing. Each row is taken whole, so that its offsets belong together.
fn merge(lags: &mut [GroupLag], told: GroupLag) {
    let Some(known) = lags.iter_mut().find(|lag| lag.group_id == told.group_id) else { return };
    if told.error_code != 0 {
        return;
    }
    if known.error_code != 0 {
        *known = told;
        return;
    }
    for partition in &mut known.partitions {
        let better = |other: &&PartitionLag| {
            other.topic == partition.topic && other.partition == partition.partition && !partition_is_elsewhere(other)
        };
        if partition_is_elsewhere(partition)
            && let Some(better) = told.partitions.iter().find(better)
        {
            *partition = better.clone();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn partition(index: i32, error: Option<ErrorCode>, end: i64) -> PartitionLag {
        let known = error.is_none();
        PartitionLag {
            topic: "t".to_owned(),
            partition: index,
            error_code: error.map_or(0, |error| error.code()),
            committed: 1,
            start: known.then_some(0),
            end: known.then_some(end),
            lag: known.then_some(end - 1),
            lag_ms: known.then_some(5),
        }
    }

    #[test]
    fn what_one_broker_has_no_copy_of_another_tells() {
        let elsewhere = Some(ErrorCode::NotLeaderOrFollower);
        let lag = |error: i16, partitions| GroupLag { group_id: "g".to_owned(), error_code: error, partitions };
        let mut lags = vec![lag(0, vec![partition(0, None, 3), partition(1, elsewhere, 0)])];
        assert!(is_elsewhere(&lags[0]));
        merge(&mut lags, lag(15, Vec::new()));
        merge(&mut lags, lag(0, vec![partition(0, None, 9), partition(1, None, 7)]));
        assert_eq!(lags, [lag(0, vec![partition(0, None, 3), partition(1, None, 7)])]);
        let mut lags = vec![lag(ErrorCode::NotCoordinator.code(), Vec::new())];
        assert!(is_elsewhere(&lags[0]));
        merge(&mut lags, lag(0, vec![partition(0, None, 3)]));
        assert_eq!(lags, [lag(0, vec![partition(0, None, 3)])]);
    }

    #[test]
    fn requests_are_bounded_in_groups_and_in_bytes() {
        let ids = |count: usize, len: usize| (0..count).map(|number| format!("{number:0len$}")).collect();
        assert_eq!(of_one_request(&ids(3, 10)).len(), 3);
        assert_eq!(of_one_request(&ids(1_001, 10)).len(), LAG_GROUPS_MAX);
        assert_eq!(of_one_request(&ids(500, 32_766)).len(), 32);
        assert_eq!(of_one_request(&[String::new()].into()), [""]);
    }

    #[test]
    fn totals_are_of_what_is_known() {
        let total = |rows: &[(Option<i64>, Option<u64>)]| {
            let total = LagTotal::of(rows.iter().copied());
            (total.lag, total.lag_ms)
        };
        assert_eq!(total(&[]), (None, None));
        assert_eq!(total(&[(None, None)]), (None, None));
        assert_eq!(
            total(&[(Some(0), Some(0)), (None, None), (Some(4), Some(30)), (Some(5), None)]),
            (Some(9), Some(30))
        );
    }
}
