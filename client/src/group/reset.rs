//! Moving a group's committed offsets.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use lockstep_env::Env;
use serde::Serialize;

use super::committed::{Committed, not_empty};
use crate::admin::Admin;
use crate::error::ClientError;
use crate::offsets::{OffsetAt, TopicPartition};

/// Where a group's offsets go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResetTo {
    /// The first offset that is kept.
    Earliest,
    /// The end: only what comes from now on is read.
    Latest,
    /// This offset.
    Offset(i64),
    /// So many records back from the committed offset.
    Back(u64),
    /// The first record whose timestamp, in milliseconds since 1970, is this or later; the end if there is none.
    Time(i64),
}

/// A topic, or some of its partitions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicSelection {
    /// Topic.
    pub topic: String,
    /// Partitions; `None`: all.
    pub partitions: Option<BTreeSet<i32>>,
}

/// How a committed offset changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct OffsetChange {
    /// Partition.
    #[serde(flatten)]
    pub at: TopicPartition,
    /// Offset that was committed; `None` if there was none.
    pub old: Option<i64>,
    /// Offset that is committed now, between `start` and `end`.
    pub new: i64,
    /// First offset that is kept.
    pub start: i64,
    /// Offset that the next record will get.
    pub end: i64,
}

impl<E: Env> Admin<E> {
    /// Moves the committed offsets of a group that has no members: those of the partitions selected, or, when none is, of all that
    /// the group has committed offsets for. Offsets beyond what is kept become the first or the last that there is. With `dry_run`
    /// nothing changes, and what would is told.
    ///
    /// # Errors
    /// The group does not exist (GROUP_ID_NOT_FOUND) or has members (NON_EMPTY_GROUP), a partition does not exist, an argument makes
    /// no sense, or the cluster did not answer in time. It is all or nothing up to 10,000 partitions.
    pub async fn reset_offsets(
        &self,
        group: &str,
        to: ResetTo,
        selection: &[TopicSelection],
        dry_run: bool,
    ) -> Result<Vec<OffsetChange>, ClientError> {
        if let ResetTo::Offset(offset) | ResetTo::Time(offset) = to
            && offset < 0
        {
            return Err(ClientError::InvalidArgument(format!("{offset} is neither an offset nor a time")));
        }
        if !self.describe_members(group).await?.members.is_empty() {
            return Err(not_empty(format!("resetting group {group}")));
        }
        let committed = self.client().committed(group, None).await?;
        let selected =
            if selection.is_empty() { committed.keys().cloned().collect() } else { self.select(selection).await? };
        if selected.is_empty() {
            let text = format!("group {group} has committed no offsets; name the topics to be reset");
            return Err(ClientError::InvalidArgument(text));
        }
        let mut wanted = BTreeMap::new();
        if let ResetTo::Time(timestamp_ms) = to {
            let places = selected.iter().map(|at| (at.clone(), OffsetAt::Time(timestamp_ms))).collect();
            wanted = self.client().offsets(&places).await?;
        }
        for at in &selected {
            let offset = match to {
                ResetTo::Earliest => 0,
                ResetTo::Latest => i64::MAX,
                ResetTo::Offset(offset) => offset,
                ResetTo::Back(count) => {
                    let Some(old) = committed.get(at) else {
                        let text = format!("group {group} has committed no offset of {at} to go back from");
                        return Err(ClientError::InvalidArgument(text));
                    };
                    old.offset.saturating_sub_unsigned(count)
                }
                ResetTo::Time(_) => continue,
            };
            wanted.insert(at.clone(), offset);
        }
        let old: BTreeMap<TopicPartition, i64> =
            committed.iter().map(|(at, committed)| (at.clone(), committed.offset)).collect();
        let changes = self.changes(&old, wanted).await?;
        if !dry_run {
            let metadata = |at: &TopicPartition| committed.get(at).map(|old| old.metadata.clone()).unwrap_or_default();
            let offsets = changes
                .iter()
                .map(|change| (change.at.clone(), Committed { offset: change.new, metadata: metadata(&change.at) }));
            self.client().commit_for_empty_group(group, &offsets.collect()).await?;
        }
        Ok(changes)
    }

    /// The partitions that are meant; all of them exist.
    async fn select(&self, selection: &[TopicSelection]) -> Result<BTreeSet<TopicPartition>, ClientError> {
        let mut selected = BTreeSet::new();
        for TopicSelection { topic, partitions } in selection {
            let info = self.client().topic(topic, false).await?;
            let name: Arc<str> = Arc::from(topic.as_str());
            let known: BTreeSet<i32> = info.partitions.iter().map(|partition| partition.index).collect();
            let missing = partitions.as_ref().and_then(|partitions| partitions.difference(&known).next());
            if let Some(missing) = missing {
                return Err(ClientError::InvalidArgument(format!("topic {topic} has no partition {missing}")));
            }
            let partitions = partitions.clone().unwrap_or(known);
            selected.extend(partitions.into_iter().map(|partition| TopicPartition::new(Arc::clone(&name), partition)));
        }
        Ok(selected)
    }

    /// What becomes of offsets that are wanted: none lies outside of what is kept.
    pub(super) async fn changes(
        &self,
        old: &BTreeMap<TopicPartition, i64>,
        wanted: BTreeMap<TopicPartition, i64>,
    ) -> Result<Vec<OffsetChange>, ClientError> {
        let client = self.client();
        let places = |place: OffsetAt| wanted.keys().map(|at| (at.clone(), place)).collect::<BTreeMap<_, _>>();
        let starts = client.offsets(&places(OffsetAt::Earliest)).await?;
        let ends = client.offsets(&places(OffsetAt::Latest)).await?;
        let changes = wanted.into_iter().filter_map(|(at, wanted)| {
            let (start, end) = (*starts.get(&at)?, *ends.get(&at)?);
            let new = wanted.clamp(start, end.max(start));
            Some(OffsetChange { old: old.get(&at).copied(), new, start, end, at })
        });
        Ok(changes.collect())
    }
}
