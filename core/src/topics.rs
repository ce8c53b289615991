//! Ops 1, 2, 4, 5, 6 and 12: the directory, and the counters behind it.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use crate::digest::{RowSum, kind};
use crate::directory::{BrokerRecord, Directory, TopicRecord};
use crate::ids::{NodeId, ShardId, TopicId};
use crate::op::CreateTopic;
use crate::reply::TopicError;
use lockstep_probe::Mark;

/// Partitions of one topic, at most.
pub(crate) const PARTITIONS_MAX: usize = 10_000;

/// Bytes of a topic's name, at most: with `-` and an index it is a file name.
const NAME_LEN_MAX: usize = 249;

/// Bytes of a broker's host or rack, at most: a DNS name has 253.
const HOST_LEN_MAX: usize = 255;

/// Producer ids in one block, at most.
const PRODUCER_IDS_MAX: u32 = 10_000;

/// Kafka's reserved topic ids: "none", and that of its metadata topic.
const RESERVED_IDS: [TopicId; 2] = [TopicId([0; 16]), TopicId([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1])];

/// What an op changed in the directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct TopicChange {
    /// Topics that were made or got partitions.
    pub(crate) grown: Vec<TopicId>,
    /// Topics that went.
    pub(crate) deleted: Vec<TopicId>,
}

/// A feed's content, see [`crate::op::UpdateMetadata::Feed`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Feed<'a> {
    pub(crate) from_version: u64,
    pub(crate) to_version: u64,
    pub(crate) full: bool,
    pub(crate) topics: &'a [TopicRecord],
    pub(crate) deleted: &'a [TopicId],
    pub(crate) brokers: Option<&'a [BrokerRecord]>,
}

/// What became of a feed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fed {
    /// It contradicts itself or what is here; nothing was changed.
    Refused,
    /// It starts at another version or brings nothing newer; nothing was changed.
    OutOfTurn,
    /// Applied.
    Changed(TopicChange),
}

/// The directory of one shard. On shard 0 it is the truth.
#[derive(Clone, Debug, Default)]
pub(crate) struct Topics {
    pub(crate) directory: Directory,
    /// Partitions ever created, which places the next one. Shard 0 only.
    pub(crate) partitions_created: u64,
    /// Shard 0 only.
    pub(crate) next_producer_id: i64,
    /// Names that have a `.` or `_`, with `_` for `.`: two topics whose names differ only so are refused, as by Kafka, whose
    /// metrics cannot tell them apart.
    similar: BTreeMap<String, TopicId>,
    sum: RowSum,
}

/// Is this a legal name by Kafka's rules (`org.apache.kafka.common.internals.Topic`)?
pub(crate) fn is_legal_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= NAME_LEN_MAX
        && name != "."
        && name != ".."
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
}

fn similar_form(name: &str) -> Option<String> {
    name.contains(['.', '_']).then(|| name.replace('.', "_"))
}

fn is_legal_broker(broker: &BrokerRecord) -> bool {
    broker.id <= i32::MAX as NodeId
        && !broker.host.is_empty()
        && broker.host.len() <= HOST_LEN_MAX
        && broker.rack.as_ref().is_none_or(|rack| rack.len() <= HOST_LEN_MAX)
}

impl Topics {
    /// Op 1. `Ok(Ok((record, true)))`: made. `false`: the same op was applied before.
    pub(crate) fn create(
        &mut self,
        shard_count: u16,
        op: &CreateTopic,
    ) -> Result<Result<(TopicRecord, bool), TopicError>, String> {
        if let Some(existing) = self.directory.topics.get(&op.topic_id)
            && existing.name == op.name
        {
            return Ok(Ok((existing.clone(), false)));
        }
        if !is_legal_name(&op.name) {
            return Ok(Err(TopicError::InvalidName));
        }
        if op.partitions == 0 || op.partitions as usize > PARTITIONS_MAX {
            return Ok(Err(TopicError::InvalidPartitions));
        }
        // An id names one topic for ever, also after the topic's deletion.
        if self.directory.topic_ids.contains_key(&op.name)
            || self.directory.topics.contains_key(&op.topic_id)
            || self.directory.deleted.iter().any(|(_, id)| *id == op.topic_id)
            || RESERVED_IDS.contains(&op.topic_id)
        {
            return Ok(Err(TopicError::AlreadyExists));
        }
        if similar_form(&op.name).is_some_and(|form| self.similar.contains_key(&form)) {
            return Ok(Err(TopicError::InvalidName));
        }
        let partitions = self.place(shard_count, op.partitions)?;
        let version = self.next_version()?;
        let record =
            TopicRecord { id: op.topic_id, name: op.name.clone(), partitions, configs: op.configs.clone(), version };
        self.put_topic(record.clone());
        Ok(Ok((record, true)))
    }

    /// Op 2. The record as it was.
    pub(crate) fn delete(&mut self, topic_id: TopicId) -> Result<Result<TopicRecord, TopicError>, String> {
        let Some(record) = self.take_topic(topic_id) else {
            return Ok(Err(TopicError::Unknown));
        };
        let version = self.next_version()?;
        if self.directory.deleted.len() >= Directory::DELETED_MAX {
            let (forgotten_version, forgotten) = self.directory.deleted.remove(0);
            self.sum.remove(kind::DELETION, &forgotten_version, &forgotten);
        }
        self.sum.add(kind::DELETION, &version, &topic_id);
        self.directory.deleted.push((version, topic_id));
        Ok(Ok(record))
    }

    /// Op 4, SetTopicConfigs. The flag tells whether anything changed.
    pub(crate) fn set_configs(
        &mut self,
        topic_id: TopicId,
        configs: &BTreeMap<String, String>,
    ) -> Result<Result<(TopicRecord, bool), TopicError>, String> {
        let Some(record) = self.directory.topics.get(&topic_id) else {
            return Ok(Err(TopicError::Unknown));
        };
        let mut record = record.clone();
        if record.configs == *configs {
            return Ok(Ok((record, false)));
        }
        record.version = self.next_version()?;
        record.configs = configs.clone();
        self.put_topic(record.clone());
        Ok(Ok((record, true)))
    }

    /// Op 4, AddPartitions.
    pub(crate) fn add_partitions(
        &mut self,
        shard_count: u16,
        topic_id: TopicId,
        partitions: u32,
    ) -> Result<Result<TopicRecord, TopicError>, String> {
        let Some(record) = self.directory.topics.get(&topic_id) else {
            return Ok(Err(TopicError::Unknown));
        };
        let present = record.partitions.len();
        if partitions as usize <= present || partitions as usize > PARTITIONS_MAX {
            return Ok(Err(TopicError::InvalidPartitions));
        }
        let mut record = record.clone();
        let added = u32::try_from(partitions as usize - present).map_err(|error| format!("{error}"))?;
        record.partitions.extend(self.place(shard_count, added)?);
        record.version = self.next_version()?;
        self.put_topic(record.clone());
        Ok(Ok(record))
    }

    /// Op 4, Feed.
    pub(crate) fn feed(&mut self, shard_count: u16, feed: &Feed<'_>) -> Fed {
        let version = self.directory.version;
        if feed.to_version <= version || (!feed.full && feed.from_version != version) {
            Mark::MetadataFeedOutOfTurn.reached();
            return Fed::OutOfTurn;
        }
        let Some(gone) = self.check_feed(shard_count, feed) else {
            return Fed::Refused;
        };
        let mut change = TopicChange::default();
        for topic_id in gone {
            self.take_topic(topic_id);
            change.deleted.push(topic_id);
        }
        for record in feed.topics {
            let present = self.directory.topics.get(&record.id).map_or(0, |known| known.partitions.len());
            if record.partitions.len() > present {
                change.grown.push(record.id);
            }
            self.put_topic(record.clone());
        }
        self.directory.version = feed.to_version;
        if let Some(brokers) = feed.brokers {
            for (id, broker) in core::mem::take(&mut self.directory.brokers) {
                self.sum.remove(kind::BROKER, &id, &broker);
            }
            for broker in brokers {
                self.put_broker(broker.clone());
            }
            self.directory.brokers_version = feed.to_version;
        }
        Fed::Changed(change)
    }

    /// The topics that go if the feed is sound: a topic never changes its name, never loses or moves a partition, and no name
    /// is used twice.
    fn check_feed(&self, shard_count: u16, feed: &Feed<'_>) -> Option<BTreeSet<TopicId>> {
        let mut ids = BTreeSet::new();
        let mut names = BTreeSet::new();
        for record in feed.topics {
            let legal = is_legal_name(&record.name)
                && !RESERVED_IDS.contains(&record.id)
                && (1..=PARTITIONS_MAX).contains(&record.partitions.len())
                && record.partitions.iter().all(|shard| shard.0 < shard_count)
                && record.version <= feed.to_version
                && ids.insert(record.id)
                && names.insert(record.name.as_str());
            let continues = self.directory.topics.get(&record.id).is_none_or(|known| {
                known.name == record.name
                    && known.version <= record.version
                    && record.partitions.starts_with(&known.partitions)
            });
            if !legal || !continues {
                return None;
            }
        }
        let gone: BTreeSet<TopicId> = if feed.full {
            self.directory.topics.keys().filter(|id| !ids.contains(id)).copied().collect()
        } else {
            feed.deleted.iter().filter(|id| self.directory.topics.contains_key(id)).copied().collect()
        };
        if gone.iter().chain(feed.deleted).any(|id| ids.contains(id)) {
            return None;
        }
        let mut forms = BTreeSet::new();
        for record in feed.topics {
            let form = similar_form(&record.name);
            let holders =
                [self.directory.topic_ids.get(&record.name), form.as_ref().and_then(|form| self.similar.get(form))];
            if holders.into_iter().flatten().any(|holder| *holder != record.id && !gone.contains(holder))
                || form.is_some_and(|form| !forms.insert(form))
            {
                return None;
            }
        }
        let mut nodes = BTreeSet::new();
        let sound =
            feed.brokers.unwrap_or_default().iter().all(|broker| is_legal_broker(broker) && nodes.insert(broker.id));
        sound.then_some(gone)
    }

    /// Op 5. `None`: not a legal record; `Some(false)`: nothing changed.
    pub(crate) fn register_broker(&mut self, broker: &BrokerRecord) -> Result<Option<bool>, String> {
        if !is_legal_broker(broker) {
            return Ok(None);
        }
        if self.directory.brokers.get(&broker.id) == Some(broker) {
            return Ok(Some(false));
        }
        self.put_broker(broker.clone());
        self.directory.brokers_version = self.next_version()?;
        Ok(Some(true))
    }

    /// Op 6. Tells whether anything changed.
    pub(crate) fn unregister_broker(&mut self, node_id: NodeId) -> Result<bool, String> {
        let Some(broker) = self.directory.brokers.remove(&node_id) else {
            return Ok(false);
        };
        self.sum.remove(kind::BROKER, &node_id, &broker);
        self.directory.brokers_version = self.next_version()?;
        Ok(true)
    }

    /// Op 12. The first id, unless the count is illegal or no ids are left.
    pub(crate) fn allocate_producer_ids(&mut self, count: u32) -> Option<i64> {
        if count == 0 || count > PRODUCER_IDS_MAX {
            return None;
        }
        let first = self.next_producer_id;
        self.next_producer_id = first.checked_add(i64::from(count))?;
        Some(first)
    }

    fn next_version(&mut self) -> Result<u64, String> {
        let Some(version) = self.directory.version.checked_add(1) else {
            return Err(String::from("metadata versions are used up"));
        };
        self.directory.version = version;
        Ok(version)
    }

    /// Shards for so many new partitions, in turn.
    fn place(&mut self, shard_count: u16, partitions: u32) -> Result<Vec<ShardId>, String> {
        let first = self.partitions_created;
        let Some(created) = first.checked_add(u64::from(partitions)) else {
            return Err(String::from("the count of partitions ever created overflows"));
        };
        self.partitions_created = created;
        let shard_count = u64::from(shard_count.max(1));
        // The remainder of a division by a u16 is a u16.
        Ok((first..created).map(|ordinal| ShardId((ordinal % shard_count) as u16)).collect())
    }

    fn put_topic(&mut self, record: TopicRecord) {
        self.sum.add(kind::TOPIC, &record.id, &record);
        self.directory.topic_ids.insert(record.name.clone(), record.id);
        if let Some(form) = similar_form(&record.name) {
            self.similar.insert(form, record.id);
        }
        if let Some(before) = self.directory.topics.insert(record.id, record) {
            self.sum.remove(kind::TOPIC, &before.id, &before);
        }
    }

    fn take_topic(&mut self, topic_id: TopicId) -> Option<TopicRecord> {
        let record = self.directory.topics.remove(&topic_id)?;
        self.sum.remove(kind::TOPIC, &topic_id, &record);
        self.directory.topic_ids.remove(&record.name);
        if let Some(form) = similar_form(&record.name) {
            self.similar.remove(&form);
        }
        Some(record)
    }

    fn put_broker(&mut self, broker: BrokerRecord) {
        self.sum.add(kind::BROKER, &broker.id, &broker);
        if let Some(before) = self.directory.brokers.insert(broker.id, broker) {
            self.sum.remove(kind::BROKER, &before.id, &before);
        }
    }

    /// Sum of the rows' hashes; the counters are not among them.
    pub(crate) fn sum(&self) -> u128 {
        self.sum.0
    }

    /// The counters, as they enter the digest.
    pub(crate) fn counters(&self) -> (u64, u64, u64, i64) {
        (self.directory.version, self.directory.brokers_version, self.partitions_created, self.next_producer_id)
    }

    /// The table from its rows, as a snapshot lists them.
    pub(crate) fn from_rows(rows: TopicRows) -> Result<Self, &'static str> {
        let mut topics = Self {
            partitions_created: rows.partitions_created,
            next_producer_id: rows.next_producer_id,
            ..Self::default()
        };
        for record in rows.topics {
            if topics.directory.topics.last_key_value().is_some_and(|(last, _)| *last >= record.id) {
                return Err("topics of a snapshot do not ascend");
            }
            topics.put_topic(record);
        }
        for broker in rows.brokers {
            if topics.directory.brokers.last_key_value().is_some_and(|(last, _)| *last >= broker.id) {
                return Err("brokers of a snapshot do not ascend");
            }
            topics.put_broker(broker);
        }
        for (version, topic_id) in &rows.deleted {
            topics.sum.add(kind::DELETION, version, topic_id);
        }
        topics.directory.deleted = rows.deleted;
        topics.directory.version = rows.version;
        topics.directory.brokers_version = rows.brokers_version;
        Ok(topics)
    }

    /// Names and ids agree, every record is legal, and no version lies above the directory's.
    pub(crate) fn check_invariants(&self, shard_count: u16) -> Result<(), String> {
        let directory = &self.directory;
        if directory.topics.len() != directory.topic_ids.len() {
            return Err(format!("{} topics have {} names", directory.topics.len(), directory.topic_ids.len()));
        }
        for (id, record) in &directory.topics {
            if *id != record.id || directory.topic_ids.get(&record.name) != Some(id) {
                return Err(format!("topic {id} is not found by its name {}", record.name));
            }
            if !is_legal_name(&record.name)
                || !(1..=PARTITIONS_MAX).contains(&record.partitions.len())
                || record.partitions.iter().any(|shard| shard.0 >= shard_count)
                || record.version > directory.version
            {
                return Err(format!("topic {id} has an illegal record"));
            }
            if similar_form(&record.name).is_some_and(|form| self.similar.get(&form) != Some(id)) {
                return Err(format!("topic {} has a name like another's", record.name));
            }
        }
        for (id, broker) in &directory.brokers {
            if *id != broker.id || !is_legal_broker(broker) {
                return Err(format!("broker {id} has an illegal record"));
            }
        }
        let ascending = directory.deleted.windows(2).all(|pair| matches!(pair, [(a, _), (b, _)] if a < b));
        if directory.deleted.len() > Directory::DELETED_MAX
            || !ascending
            || directory.deleted.last().is_some_and(|(version, _)| *version > directory.version)
            || directory.deleted.iter().any(|(_, id)| directory.topics.contains_key(id))
            || directory.brokers_version > directory.version
            || self.next_producer_id < 0
        {
            return Err(String::from("deletions or counters of the directory contradict it"));
        }
        Ok(())
    }

    /// The sum made anew from all rows.
    pub(crate) fn recomputed_sum(&self) -> u128 {
        let mut sum = RowSum::default();
        for (id, record) in &self.directory.topics {
            sum.add(kind::TOPIC, id, record);
        }
        for (id, broker) in &self.directory.brokers {
            sum.add(kind::BROKER, id, broker);
        }
        for (version, topic_id) in &self.directory.deleted {
            sum.add(kind::DELETION, version, topic_id);
        }
        sum.0
    }
}

/// What a snapshot holds of [`Topics`]; the rest is derived.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct TopicRows {
    pub(crate) version: u64,
    pub(crate) brokers_version: u64,
    pub(crate) partitions_created: u64,
    pub(crate) next_producer_id: i64,
    pub(crate) topics: Vec<TopicRecord>,
    pub(crate) brokers: Vec<BrokerRecord>,
    pub(crate) deleted: Vec<(u64, TopicId)>,
}

impl From<&Topics> for TopicRows {
    fn from(topics: &Topics) -> Self {
        Self {
            version: topics.directory.version,
            brokers_version: topics.directory.brokers_version,
            partitions_created: topics.partitions_created,
            next_producer_id: topics.next_producer_id,
            topics: topics.directory.topics.values().cloned().collect(),
            brokers: topics.directory.brokers.values().cloned().collect(),
            deleted: topics.directory.deleted.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn create(topic_id: u8) -> CreateTopic {
        CreateTopic {
            topic_id: TopicId([topic_id; 16]),
            name: format!("t{topic_id}"),
            partitions: 2,
            configs: BTreeMap::new(),
        }
    }

    #[test]
    fn counters_that_are_used_up_stop_the_shard_instead_of_wrapping() {
        let mut topics = Topics { partitions_created: u64::MAX - 2, ..Topics::default() };
        assert!(topics.create(3, &create(1)).unwrap().is_ok());
        assert!(topics.create(3, &create(2)).is_err());
        let mut topics = Topics::default();
        topics.directory.version = u64::MAX;
        assert!(topics.create(3, &create(1)).is_err());
        let mut topics = Topics { next_producer_id: i64::MAX - 10, ..Topics::default() };
        assert_eq!(topics.allocate_producer_ids(11), None);
        assert_eq!(topics.allocate_producer_ids(10), Some(i64::MAX - 10));
    }
}
