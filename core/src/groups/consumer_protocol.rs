//! The bytes that classic consumers put into JoinGroup and SyncGroup: ConsumerProtocolSubscription and ConsumerProtocolAssignment.
//!
//! They come from clients and are decoded inside `apply`, so that every replica decides the same: reading is total, and allocates no
//! more than a small multiple of the bytes there are. Versions above the known ones are read as the highest known, as in Kafka.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::group::topic_partitions;
use crate::directory::Directory;
use crate::ids::TopicId;
use crate::op::TopicPartitions;

/// `protocol_type` of groups whose members send these bytes.
pub(crate) const PROTOCOL_TYPE: &str = "consumer";

/// Partitions by topic name, as the bytes have them.
pub(crate) type NamedPartitions = Vec<(String, Vec<u32>)>;

/// What a classic consumer says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Subscription {
    pub(crate) version: i16,
    pub(crate) topics: Vec<String>,
    /// From version 1; empty before.
    pub(crate) owned: NamedPartitions,
    /// From version 3.
    pub(crate) rack_id: Option<String>,
}

/// What a classic consumer is assigned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Assignment {
    pub(crate) partitions: NamedPartitions,
    /// Bytes that only the assignor's other half on the client understands.
    pub(crate) has_user_data: bool,
}

/// Big-endian values from the front of a slice; `None` where it is too short or contradicts itself.
struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.rest.split_at_checked(len)?;
        self.rest = rest;
        Some(head)
    }

    fn i16(&mut self) -> Option<i16> {
        self.bytes(2)?.try_into().ok().map(i16::from_be_bytes)
    }

    fn i32(&mut self) -> Option<i32> {
        self.bytes(4)?.try_into().ok().map(i32::from_be_bytes)
    }

    /// A length of a list whose elements take at least `least` bytes each: a list that cannot be there is refused before its room is
    /// reserved.
    fn count(&mut self, least: usize) -> Option<usize> {
        let count = usize::try_from(self.i32()?).ok()?;
        (count <= self.rest.len() / least).then_some(count)
    }

    fn string(&mut self) -> Option<String> {
        self.nullable_string()?
    }

    /// The outer `None` is an error, the inner one null.
    #[expect(clippy::option_option, reason = "no string and no legal bytes are two things")]
    fn nullable_string(&mut self) -> Option<Option<String>> {
        let len = self.i16()?;
        if len == -1 {
            return Some(None);
        }
        let bytes = self.bytes(usize::try_from(len).ok()?)?;
        Some(Some(core::str::from_utf8(bytes).ok()?.to_string()))
    }

    /// Length of a nullable byte string, which is skipped.
    fn skip_bytes(&mut self) -> Option<usize> {
        let len = self.i32()?;
        if len == -1 {
            return Some(0);
        }
        let len = usize::try_from(len).ok()?;
        self.bytes(len)?;
        Some(len)
    }

    fn partitions(&mut self) -> Option<NamedPartitions> {
        // A topic takes at least two bytes for its name and four for its list.
        let count = self.count(6)?;
        let mut topics = Vec::with_capacity(count);
        for _ in 0..count {
            let name = self.string()?;
            let partitions = self.count(4)?;
            let indexes: Option<Vec<u32>> = (0..partitions).map(|_| u32::try_from(self.i32()?).ok()).collect();
            topics.push((name, indexes?));
        }
        Some(topics)
    }
}

/// Reads a subscription; `None` when the bytes are none.
pub(crate) fn read_subscription(bytes: &[u8]) -> Option<Subscription> {
    let mut reader = Reader { rest: bytes };
    let version = reader.i16().filter(|version| *version >= 0)?;
    let count = reader.count(2)?;
    let topics: Option<Vec<String>> = (0..count).map(|_| reader.string()).collect();
    let mut subscription = Subscription { version, topics: topics?, ..Subscription::default() };
    reader.skip_bytes()?;
    if version >= 1 {
        subscription.owned = reader.partitions()?;
    }
    if version >= 2 {
        // The generation in which it owned them, which the member's epoch already tells.
        reader.i32()?;
    }
    if version >= 3 {
        subscription.rack_id = reader.nullable_string()?;
    }
    Some(subscription)
}

/// Reads an assignment; no bytes at all are an empty one, `None` is no assignment of this kind.
pub(crate) fn read_assignment(bytes: &[u8]) -> Option<Assignment> {
    if bytes.is_empty() {
        return Some(Assignment::default());
    }
    let mut reader = Reader { rest: bytes };
    reader.i16().filter(|version| *version >= 0)?;
    let partitions = reader.partitions()?;
    Some(Assignment { partitions, has_user_data: reader.skip_bytes()? > 0 })
}

/// Writes an assignment for a member whose subscription had this version. Topics that are gone are left out.
pub(crate) fn write_assignment(version: i16, assignment: &[TopicPartitions], directory: &Directory) -> Vec<u8> {
    let topics: Vec<(&str, &[u32])> = assignment
        .iter()
        .filter_map(|topic| Some((directory.topics.get(&topic.topic_id)?.name.as_str(), topic.partitions.as_slice())))
        .collect();
    let mut bytes = Vec::new();
    bytes.extend(version.clamp(0, 3).to_be_bytes());
    write_count(&mut bytes, topics.len());
    for (name, partitions) in topics {
        // A topic's name has at most 249 bytes.
        bytes.extend(u16::try_from(name.len()).unwrap_or(0).to_be_bytes());
        bytes.extend(name.bytes());
        write_count(&mut bytes, partitions.len());
        for partition in partitions {
            bytes.extend(partition.to_be_bytes());
        }
    }
    bytes.extend((-1_i32).to_be_bytes());
    bytes
}

fn write_count(bytes: &mut Vec<u8>, count: usize) {
    bytes.extend(u32::try_from(count).unwrap_or(0).to_be_bytes());
}

/// The partitions that exist, by topic id, ascending and each once.
pub(crate) fn existing(named: &NamedPartitions, directory: &Directory) -> Vec<TopicPartitions> {
    let mut topics: BTreeMap<TopicId, BTreeSet<u32>> = BTreeMap::new();
    for (name, partitions) in named {
        let Some(topic) = directory.topic(name) else { continue };
        let count = topic.partitions.len();
        let there = partitions.iter().copied().filter(|partition| (*partition as usize) < count);
        topics.entry(topic.id).or_default().extend(there);
    }
    topic_partitions(topics.iter().map(|(topic_id, partitions)| (topic_id, partitions.iter().copied())))
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;
    use alloc::vec;

    use super::*;
    use crate::directory::TopicRecord;
    use crate::ids::ShardId;

    /// Version 3: topics "a" and "b", user data, owns a-1 and a-2, generation 7, rack "r".
    const SUBSCRIPTION: &[u8] =
        b"\0\x03\0\0\0\x02\0\x01a\0\x01b\0\0\0\x02xx\0\0\0\x01\0\x01a\0\0\0\x02\0\0\0\x01\0\0\0\x02\0\0\0\x07\0\x01r";

    fn directory() -> Directory {
        let mut directory = Directory::default();
        let id = TopicId([1; 16]);
        directory.topic_ids.insert("a".to_string(), id);
        let record = TopicRecord {
            id,
            name: "a".to_string(),
            partitions: vec![ShardId(0); 3],
            configs: alloc::collections::BTreeMap::new(),
            version: 1,
        };
        directory.topics.insert(id, record);
        directory
    }

    #[test]
    fn a_subscription_is_read_in_each_version() {
        let subscription = read_subscription(SUBSCRIPTION).unwrap();
        assert_eq!(subscription.topics, ["a", "b"]);
        assert_eq!(subscription.owned, [("a".to_string(), vec![1, 2])]);
        assert_eq!(subscription.rack_id.as_deref(), Some("r"));
        let oldest = read_subscription(b"\0\0\0\0\0\x01\0\x01a\xff\xff\xff\xff").unwrap();
        assert_eq!((oldest.topics.len(), oldest.owned.len(), oldest.rack_id), (1, 0, None));
        let mut newer = SUBSCRIPTION.to_vec();
        newer[1] = 9;
        newer.extend(b"more");
        assert_eq!(read_subscription(&newer).unwrap().owned, subscription.owned);
    }

    #[test]
    fn cut_and_impossible_bytes_are_refused() {
        for len in 0..SUBSCRIPTION.len() {
            assert_eq!(read_subscription(&SUBSCRIPTION[..len]), None, "cut to {len} bytes");
        }
        assert_eq!(read_subscription(b"\xff\xff\0\0\0\0\xff\xff\xff\xff"), None, "a negative version");
        assert_eq!(read_subscription(b"\0\0\x7f\xff\xff\xff\0\0"), None, "a count that cannot be there");
        assert_eq!(read_subscription(b"\0\0\0\0\0\x01\0\x01\xff\xff\xff\xff\xff"), None, "a name that is no text");
        assert_eq!(read_assignment(b"\0\0\0\0\0\x01\0\x01a\0\0\0\x01\xff\xff\xff\xff\0\0\0\0"), None, "partition -1");
    }

    #[test]
    fn an_assignment_is_read_back_as_it_was_written() {
        let directory = directory();
        let assigned = vec![
            TopicPartitions { topic_id: TopicId([1; 16]), partitions: vec![0, 2] },
            TopicPartitions { topic_id: TopicId([9; 16]), partitions: vec![0] },
        ];
        let bytes = write_assignment(7, &assigned, &directory);
        assert_eq!(bytes, b"\0\x03\0\0\0\x01\0\x01a\0\0\0\x02\0\0\0\0\0\0\0\x02\xff\xff\xff\xff");
        let read = read_assignment(&bytes).unwrap();
        assert!(!read.has_user_data);
        assert_eq!(existing(&read.partitions, &directory), assigned[..1], "a topic that is gone is left out");
        assert_eq!(read_assignment(b""), Some(Assignment::default()));
    }

    #[test]
    fn only_partitions_that_exist_are_taken_and_each_once() {
        let named =
            vec![("a".to_string(), vec![2, 1, 7]), ("gone".to_string(), vec![0]), ("a".to_string(), vec![1, 0])];
        let expected = [TopicPartitions { topic_id: TopicId([1; 16]), partitions: vec![0, 1, 2] }];
        assert_eq!(existing(&named, &directory()), expected);
    }
}
