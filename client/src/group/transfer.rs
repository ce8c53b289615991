//! A group's committed offsets as a document: taken out, looked through, put back.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use lockstep_env::Env;
use serde::{Deserialize, Serialize};

use super::committed::{Committed, not_empty};
use super::reset::OffsetChange;
use crate::admin::Admin;
use crate::error::{ClientError, ErrorCode};
use crate::offsets::TopicPartition;

/// The format that is written and read.
const FORMAT: u32 = 1;
/// Longer documents are not read.
const DOCUMENT_BYTES_MAX: usize = 256 << 20;
/// Kafka's limit for names of topics.
const TOPIC_BYTES_MAX: usize = 249;
/// What brokers take as metadata of an offset, in UTF-16 code units, which is what Kafka counts.
const METADATA_UNITS_MAX: usize = 4_096;
const GROUP_ID_BYTES_MAX: usize = i16::MAX as usize;

/// The committed offsets of a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupExport {
    /// Which fields there are: 1.
    pub format: u32,
    /// Group.
    pub group_id: String,
    /// By topic and partition, each once.
    pub offsets: Vec<ExportedOffset>,
}

/// A committed offset.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExportedOffset {
    /// Topic.
    pub topic: String,
    /// Partition.
    pub partition: i32,
    /// Offset to be read next.
    pub offset: i64,
    /// Whatever the committer wrote.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub metadata: String,
}

impl GroupExport {
    /// Reads a document that anybody may have written, and checks all that can be seen without a cluster.
    ///
    /// # Errors
    /// It is not JSON of this format, or says what cannot be; the text names where.
    pub fn from_json(document: &[u8]) -> Result<Self, ClientError> {
        let invalid = |text: String| Err(ClientError::InvalidArgument(format!("not a group's export: {text}")));
        if document.len() > DOCUMENT_BYTES_MAX {
            return invalid(format!("{} bytes are more than {DOCUMENT_BYTES_MAX}", document.len()));
        }
        match serde_json::from_slice::<Self>(document) {
            Ok(export) => export.check().map(|()| export),
            Err(error) => invalid(error.to_string()),
        }
    }

    fn check(&self) -> Result<(), ClientError> {
        let invalid = |text: String| Err(ClientError::InvalidArgument(format!("not a group's export: {text}")));
        if self.format != FORMAT {
            return invalid(format!("format {} instead of {FORMAT}", self.format));
        }
        if self.group_id.len() > GROUP_ID_BYTES_MAX {
            return invalid(format!("a group id of {} bytes", self.group_id.len()));
        }
        let mut seen = BTreeSet::new();
        for (number, offset) in self.offsets.iter().enumerate() {
            let ExportedOffset { topic, partition, offset, metadata } = offset;
            if topic.is_empty() || topic.len() > TOPIC_BYTES_MAX {
                return invalid(format!("offsets[{number}]: a topic's name of {} bytes", topic.len()));
            }
            if *partition < 0 || *offset < 0 {
                return invalid(format!("offsets[{number}]: partition {partition}, offset {offset}: negative"));
            }
            let units = metadata.encode_utf16().count();
            if units > METADATA_UNITS_MAX {
                return invalid(format!("offsets[{number}]: metadata of {units} UTF-16 code units"));
            }
            if !seen.insert((topic, partition)) {
                return invalid(format!("offsets[{number}]: partition {partition} of this topic is there twice"));
            }
        }
        Ok(())
    }
}

impl<E: Env> Admin<E> {
    /// What a group has committed, as a document.
    ///
    /// # Errors
    /// The group does not exist, or the cluster did not answer in time.
    pub async fn export_group(&self, group: &str) -> Result<GroupExport, ClientError> {
        self.describe_members(group).await?;
        let committed = self.client().committed(group, None).await?;
        let offsets = committed.into_iter().map(|(at, committed)| ExportedOffset {
            topic: at.topic.to_string(),
            partition: at.partition,
            offset: committed.offset,
            metadata: committed.metadata,
        });
        Ok(GroupExport { format: FORMAT, group_id: group.to_owned(), offsets: offsets.collect() })
    }

    /// Commits the offsets of a document for the group that it names, which has no members or does not exist yet. Offsets beyond
    /// what is kept become the first or the last that there is; those that the document does not name stay. With `dry_run` nothing
    /// changes, and what would is told.
    ///
    /// # Errors
    /// The document makes no sense, a partition does not exist, the group has members (NON_EMPTY_GROUP), or the cluster did not
    /// answer in time. It is all or nothing up to 10,000 partitions.
    pub async fn import_group(&self, export: &GroupExport, dry_run: bool) -> Result<Vec<OffsetChange>, ClientError> {
        export.check()?;
        let group = &export.group_id;
        let old = match self.describe_members(group).await {
            Ok(described) if !described.members.is_empty() => {
                return Err(not_empty(format!("importing group {group}")));
            }
            Ok(_) => self.client().committed_offsets(group, None).await?,
            Err(error) if error.code() == Some(ErrorCode::GroupIdNotFound) => BTreeMap::new(),
            Err(error) => return Err(error),
        };
        let mut topics: BTreeMap<&str, (Arc<str>, BTreeSet<i32>)> = BTreeMap::new();
        let mut offsets = BTreeMap::new();
        for exported in &export.offsets {
            if !topics.contains_key(exported.topic.as_str()) {
                let info = self.client().topic(&exported.topic, false).await?;
                let partitions = info.partitions.iter().map(|partition| partition.index).collect();
                topics.insert(&exported.topic, (Arc::from(exported.topic.as_str()), partitions));
            }
            let (name, partitions) = &topics[exported.topic.as_str()];
            if !partitions.contains(&exported.partition) {
                let text = format!("topic {name} has no partition {}", exported.partition);
                return Err(ClientError::InvalidArgument(text));
            }
            let at = TopicPartition::new(Arc::clone(name), exported.partition);
            let metadata = exported.metadata.clone();
            offsets.insert(at, Committed { offset: exported.offset, metadata });
        }
        let wanted = offsets.iter().map(|(at, committed)| (at.clone(), committed.offset)).collect();
        let changes = self.changes(&old, wanted).await?;
        for change in &changes {
            if let Some(committed) = offsets.get_mut(&change.at) {
                committed.offset = change.new;
            }
        }
        if !dry_run {
            self.client().commit_for_empty_group(group, &offsets).await?;
        }
        Ok(changes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_of_any_kind_is_read_or_refused_with_a_reason() {
        let good = r#"{"format":1,"group_id":"g","offsets":[{"topic":"t","partition":0,"offset":3,"metadata":"m"}]}"#;
        let export = GroupExport::from_json(good.as_bytes()).expect("good");
        assert_eq!(serde_json::to_string(&export).expect("JSON"), good);
        let with = |offsets: &str| format!(r#"{{"format":1,"group_id":"g","offsets":[{offsets}]}}"#);
        let long = "x".repeat(5_000);
        let row = r#"{"topic":"t","partition":0,"offset":3}"#;
        for (document, reason) in [
            (String::new(), "EOF"),
            ("[]".to_owned(), "invalid"),
            ("\0\u{1}".to_owned(), "expected value"),
            (good.replace(":1,", ":2,"), "format 2"),
            (good.replace("\"g\"", &format!("\"{}\"", "g".repeat(40_000))), "group id"),
            (with(r#"{"topic":"t","partition":-1,"offset":3}"#), "negative"),
            (with(r#"{"topic":"t","partition":0,"offset":-3}"#), "negative"),
            (with(r#"{"topic":"t","partition":0,"offset":1e3}"#), "expected i64"),
            (with(r#"{"topic":"t","partition":4294967296,"offset":1}"#), "4294967296"),
            (with(r#"{"topic":"t","partition":0,"offset":99999999999999999999}"#), "line 1"),
            (with(r#"{"topic":"","partition":0,"offset":3}"#), "name of 0 bytes"),
            (with(&format!(r#"{{"topic":"{long}","partition":0,"offset":3}}"#)), "name of 5000 bytes"),
            (with(&format!(r#"{{"topic":"t","partition":0,"offset":3,"metadata":"{long}"}}"#)), "metadata"),
            (with(&format!("{row},{row}")), "offsets[1]"),
            (with(r#"{"topic":"t","partition":0,"offset":3,"more":1}"#), "more"),
            ("[".repeat(10_000), "invalid"),
        ] {
            let error = GroupExport::from_json(document.as_bytes()).expect_err(&document).to_string();
            assert!(error.starts_with("not a group's export: ") && error.contains(reason), "{document}: {error}");
        }
    }

    #[test]
    fn whatever_brokers_take_comes_back_from_a_document() {
        let export = |group_id: &str, metadata: String| GroupExport {
            format: FORMAT,
            group_id: group_id.to_owned(),
            offsets: vec![ExportedOffset { topic: "t".to_owned(), partition: 0, offset: 3, metadata }],
        };
        // Brokers count UTF-16 code units: one for "é", which takes two bytes, and two for "🦀".
        for (group_id, metadata, is_taken) in [
            ("", String::new(), true),
            ("g", "é".repeat(4_096), true),
            ("g", "é".repeat(4_097), false),
            ("g", "🦀".repeat(2_048), true),
            ("g", "🦀".repeat(2_049), false),
        ] {
            let written = export(group_id, metadata);
            let read = GroupExport::from_json(&serde_json::to_vec(&written).expect("JSON"));
            match read {
                Ok(read) => assert!(is_taken && read == written, "{read:?}"),
                Err(error) => assert!(!is_taken, "{error}"),
            }
        }
    }
}
