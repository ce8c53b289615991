//! Our own GroupLag: how far groups are behind, in records and in time, told by any broker.
//!
//! Committed offsets are read first, the ends of partitions after them, each through its shard's read index. So an offset that
//! was committed for records that were read is never beyond the end, whichever shards, leaders and brokers are involved.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use lockstep_core::view::CommittedOffset;
use lockstep_core::{ClusterStateMachine, GroupError, ShardId};
use lockstep_env::{Env, timeout};
use lockstep_runtime::{LogReadError, PartitionLog, Shard};
use lockstep_wire::BatchHeader;
use lockstep_wire::private::{GroupLag, GroupLagRequest, GroupLagResponse, LAG_GROUPS_MAX, PartitionLag};

use crate::api::group_coordinator::each_once;
use crate::api::private::{json_response, shard_to_read, up_to_date};
use crate::broker::Broker;
use crate::dispatch::RequestContext;
use crate::error_code::ErrorCode;

/// Partitions of one answer, at most, unless its first group alone has more.
const PARTITIONS_MAX: usize = 100_000;
/// After so many groups and offsets that are looked up, other tasks get a turn.
const ROWS_IN_A_ROW: usize = 1_024;
/// After so many groups and partitions whose logs are looked at, other tasks get a turn.
const PARTITIONS_IN_A_ROW: usize = 64;
/// How long batches are read for one answer; of partitions that are left then it is not told how long their records have waited.
const LOOK_TIMEOUT: Duration = Duration::from_secs(2);
/// The log's start may pass the offset that is looked at, but not again and again.
const ATTEMPTS_MAX: usize = 3;
/// The attribute after which a batch's first timestamp is something else: when its tombstones may go.
const HAS_DELETE_HORIZON: i16 = 1 << 6;

pub(crate) async fn handle<E: Env>(
    broker: &Broker<E>,
    _context: &RequestContext,
    request: GroupLagRequest,
) -> GroupLagResponse {
    let groups = each_once(request.groups);
    if groups.is_empty() || groups.len() > LAG_GROUPS_MAX {
        return json_response::<_>(Err::<(), _>(ErrorCode::InvalidRequest));
    }
    let committed = committed(broker, groups).await;
    // Only now: what was committed is known.
    let places = committed.iter().filter_map(|(_, rows)| rows.as_ref().ok()).flatten().filter_map(|row| row.shard);
    let copies = copies(broker, places.collect()).await;
    let now_ms = broker.env().wall_clock_ms();
    let deadline = E::now() + LOOK_TIMEOUT;
    let mut lags = Vec::with_capacity(committed.len());
    let mut looked: usize = 0;
    for (group_id, rows) in committed {
        let error_code = rows.as_ref().err().copied().unwrap_or(ErrorCode::None).code();
        let mut partitions = Vec::new();
        // A group without offsets costs as much as a partition.
        looked += 1;
        for row in rows.unwrap_or_default() {
            looked += 1;
            if looked.is_multiple_of(PARTITIONS_IN_A_ROW) {
                E::sleep(Duration::ZERO).await;
            }
            partitions.push(row_of(&row, look(&copies, &row, now_ms, deadline).await));
        }
        partitions.sort_by(|a, b| (&a.topic, a.partition).cmp(&(&b.topic, b.partition)));
        lags.push(GroupLag { group_id, error_code, partitions });
    }
    json_response(Ok(lags))
}

/// An offset that a group has committed.
struct Committed {
    topic: String,
    offset: CommittedOffset,
    /// Where the partition is; `None` when there is no such partition any more.
    shard: Option<ShardId>,
}

type CommittedOfGroup = (String, Result<Vec<Committed>, ErrorCode>);

/// Copies of shards that are up to date, or why they are not.
type Copies<E> = BTreeMap<ShardId, Result<Shard<E>, ErrorCode>>;

/// All at once, so that a shard without a leader holds up the others no longer than itself.
async fn copies<E: Env>(broker: &Broker<E>, ids: BTreeSet<ShardId>) -> Copies<E> {
    let copies = ids.into_iter().map(|id| async move { (id, up_to_date(broker, id).await) });
    join_all(copies).await.into_iter().collect()
}

/// What the groups have committed, in the order of the request; of the last ones nothing when it becomes too much.
async fn committed<E: Env>(broker: &Broker<E>, groups: Vec<String>) -> Vec<CommittedOfGroup> {
    let places: Vec<_> = groups.iter().map(|group| shard_to_read(broker, group)).collect();
    let copies = copies(broker, places.iter().flatten().copied().collect()).await;
    let mut answered = Vec::with_capacity(groups.len());
    let (mut count, mut since_turn) = (0, 0);
    for (group, place) in groups.into_iter().zip(places) {
        let outcome = place
            .and_then(|id| copies.get(&id).cloned().unwrap_or(Err(ErrorCode::NotCoordinator)))
            .and_then(|shard| shard.read(|state| committed_by(state, &group)));
        let rows = outcome.as_ref().map_or(0, Vec::len);
        count += rows;
        since_turn += 1 + rows;
        if count > PARTITIONS_MAX && !answered.is_empty() {
            break;
        }
        answered.push((group, outcome));
        if since_turn >= ROWS_IN_A_ROW {
            since_turn = 0;
            E::sleep(Duration::ZERO).await;
        }
    }
    answered
}

fn committed_by(state: &ClusterStateMachine, group: &str) -> Result<Vec<Committed>, ErrorCode> {
    if !state.has_group(group) {
        return Err(ErrorCode::of_group(&GroupError::GroupNotFound));
    }
    let offsets = state.committed_offsets(group).into_iter().filter_map(|offset| {
        // Of a topic that was deleted just now nothing is told any more.
        let record = state.directory().topics.get(&offset.topic_id)?;
        let shard = record.partitions.get(offset.partition as usize).copied();
        Some(Committed { topic: record.name.clone(), offset, shard })
    });
    Ok(offsets.collect())
}

fn row_of(committed: &Committed, behind: Result<Behind, ErrorCode>) -> PartitionLag {
    let known = behind.ok();
    PartitionLag {
        topic: committed.topic.clone(),
        partition: i32::try_from(committed.offset.partition).unwrap_or(i32::MAX),
        error_code: behind.err().unwrap_or(ErrorCode::None).code(),
        committed: committed.offset.offset,
        start: known.map(|known| known.start),
        end: known.map(|known| known.end),
        lag: known.map(|known| known.lag),
        lag_ms: known.and_then(|known| known.lag_ms),
    }
}

async fn look<E: Env>(
    copies: &Copies<E>,
    committed: &Committed,
    now_ms: i64,
    deadline: Instant,
) -> Result<Behind, ErrorCode> {
    let id = committed.shard.ok_or(ErrorCode::UnknownTopicOrPartition)?;
    let shard = match copies.get(&id) {
        Some(Ok(shard)) => shard,
        Some(Err(ErrorCode::NotCoordinator)) | None => return Err(ErrorCode::NotLeaderOrFollower),
        Some(Err(_)) => return Err(ErrorCode::LeaderNotAvailable),
    };
    let CommittedOffset { topic_id, partition, offset, .. } = committed.offset;
    let log = shard.log(topic_id, partition).ok_or(ErrorCode::UnknownTopicOrPartition)?;
    behind(&log, offset, now_ms, deadline).await.map_err(|error| {
        tracing::warn!(topic = %topic_id, partition, %error, "cannot tell how old the first unread record is");
        ErrorCode::of_log_read(&error)
    })
}

/// How far an offset is behind the end of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Behind {
    start: i64,
    end: i64,
    lag: i64,
    lag_ms: Option<u64>,
}

async fn behind<E: Env>(
    log: &PartitionLog<E>,
    committed: i64,
    now_ms: i64,
    deadline: Instant,
) -> Result<Behind, LogReadError> {
    let mut attempt = 1;
    loop {
        let (start, end) = (log.start_offset(), log.end_offset());
        let first_unread = committed.max(start);
        if first_unread >= end {
            return Ok(Behind { start, end, lag: 0, lag_ms: Some(0) });
        }
        let left = deadline.saturating_duration_since(E::now());
        let read =
            if left.is_zero() { None } else { timeout::<E, _>(left, log.read(first_unread, 1, true)).await.ok() };
        let Some(read) = read else {
            return Ok(Behind { start, end, lag: end - first_unread, lag_ms: None });
        };
        match read {
            Ok(batches) => {
                let header = batches.first().and_then(|batch| BatchHeader::parse(batch).ok());
                let lag_ms = header.and_then(|header| age_ms(&header, now_ms));
                return Ok(Behind { start, end, lag: end - first_unread, lag_ms });
            }
            Err(LogReadError::OutOfRange { .. }) if attempt < ATTEMPTS_MAX => attempt += 1,
            Err(error) => return Err(error),
        }
    }
}

/// How old a batch's first record is; `None` when it has no timestamp.
fn age_ms(header: &BatchHeader, now_ms: i64) -> Option<u64> {
    let appended = header.is_log_append_time() || header.attributes & HAS_DELETE_HORIZON != 0;
    let timestamp_ms = if appended { header.max_timestamp } else { header.base_timestamp };
    (timestamp_ms >= 0).then(|| u64::try_from(now_ms.saturating_sub(timestamp_ms)).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use lockstep_wire::{BatchBuilder, Compression};

    #[test]
    fn the_age_is_that_of_the_first_record_or_of_the_append() {
        let header = |timestamps: &[i64], attributes: i16| {
            let mut builder = BatchBuilder::new();
            for timestamp in timestamps {
                builder.push(*timestamp, None, Some(b"value"), &[]);
            }
            let batch = builder.finish(Compression::None, None).expect("batch");
            let mut header = BatchHeader::parse(&batch).expect("a header");
            header.attributes |= attributes;
            header
        };
        const LOG_APPEND_TIME: i16 = 1 << 3;
        for (timestamps, attributes, now_ms, age) in [
            (&[1_000, 1_400][..], 0, 2_000, Some(1_000)),
            (&[1_000, 1_400], LOG_APPEND_TIME, 2_000, Some(600)),
            (&[1_000, 1_400], HAS_DELETE_HORIZON, 2_000, Some(600)),
            (&[3_000], 0, 2_000, Some(0)),
            (&[-1], 0, 2_000, None),
            (&[0], 0, i64::MIN, Some(0)),
        ] {
            assert_eq!(age_ms(&header(timestamps, attributes), now_ms), age, "{timestamps:?} {attributes}");
        }
    }
}
