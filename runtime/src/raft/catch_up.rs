//! How fast a replica that lags must fetch, so that it ever catches up.
//!
//! It fetches its leader's checkpoint in rounds: what was appended during one is what the next one brings. At a fixed rate, more than that is appended as
//! soon as clients write faster, and the replica never arrives. So each round is measured by what it brought since the one before it began, and the next one is
//! fetched at twice that rate: the rounds become shorter, each by half, until the leader's log holds what is missing.
//!
//! Compacted segments are no part of that: they take the place of what was here already, tens of gigabytes at a time, while nothing need be appended at all.

use std::time::{Duration, Instant};

use crate::storage::{MissingRange, SegmentName};

/// What shorter rounds brought counts only in part: two leaders' checkpoints can be far apart although nothing was appended between the rounds.
const WINDOW: Duration = Duration::from_secs(10);
/// A round is fetched so many times as fast as what it brought was appended.
const HEAD_START: f64 = 2.0;

/// The rounds in which a replica has fetched its leader's checkpoints.
#[derive(Debug, Default)]
pub(crate) struct CatchUp {
    last: Option<Round>,
    /// How fast the leader's segments grow by what is missing here.
    appended_per_second: f64,
}

#[derive(Debug)]
struct Round {
    began: Instant,
    /// Bytes that it has not fetched yet, or never did because it was given up.
    left: u64,
}

impl CatchUp {
    /// A round begins, for which these bytes are missing; how many a second it has to fetch at least. Zero: that is not known.
    pub(crate) fn begin(&mut self, now: Instant, missing: &[MissingRange]) -> u64 {
        let missing = missing.iter().filter(|range| is_appended(&range.segment)).map(|range| range.len).sum::<u64>();
        if let Some(last) = &self.last {
            let took = now.saturating_duration_since(last.began);
            let brought = missing.saturating_sub(last.left) as f64;
            let weight = (took.as_secs_f64() / WINDOW.as_secs_f64()).min(1.0);
            self.appended_per_second =
                self.appended_per_second * (1.0 - weight) + brought / took.max(WINDOW).as_secs_f64();
        }
        self.last = Some(Round { began: now, left: missing });
        (self.appended_per_second * HEAD_START) as u64
    }

    /// So many bytes of the round came, of this segment.
    pub(crate) fn fetched(&mut self, segment: &SegmentName, bytes: usize) {
        if let Some(round) = self.last.as_mut().filter(|_| is_appended(segment)) {
            round.left = round.left.saturating_sub(bytes as u64);
        }
    }
}

/// Did clients append it, and not a compaction write it?
fn is_appended(segment: &SegmentName) -> bool {
    segment.revision == 0
}

#[cfg(test)]
mod tests {
    use lockstep_core::TopicId;

    use super::*;
    use crate::storage::check::SharedPace;
    use lockstep_env::Env;
    use lockstep_env::tokio_env::TokioEnv;

    const MIB: u64 = 1 << 20;
    const PIECE: u64 = 64 << 10;

    fn segment(revision: u64) -> SegmentName {
        SegmentName { topic_id: TopicId([1; 16]), partition: 0, base_offset: 0, revision }
    }

    fn appended(len: u64) -> MissingRange {
        MissingRange { segment: segment(0), from: 0, len }
    }

    /// Fetches so much in one round; how long it took.
    async fn fetch(catch_up: &mut CatchUp, shared: &SharedPace, missing: u64) -> Duration {
        let began = TokioEnv::now();
        let rate = catch_up.begin(began, &[appended(missing)]);
        let mut pace = shared.promise::<TokioEnv>(rate);
        let mut left = missing;
        while left > 0 {
            let piece = left.min(PIECE) as usize;
            pace.took::<TokioEnv>(piece).await;
            catch_up.fetched(&segment(0), piece);
            left -= piece as u64;
        }
        TokioEnv::now() - began
    }

    #[tokio::test(start_paused = true)]
    async fn a_replica_catches_up_with_clients_that_write_faster_than_the_configured_rate() {
        // Several shards at a time, which are written to at different rates and share what is configured.
        let shared = SharedPace::new::<TokioEnv>(MIB);
        let shards = [4 * MIB, 2 * MIB, 0].map(|appended_per_second| {
            let shared = shared.clone();
            async move {
                let mut catch_up = CatchUp::default();
                let mut missing = 50 * MIB;
                // What is appended in two seconds is still in the leader's log.
                let enough = 2 * appended_per_second;
                for _ in 0..12 {
                    let took = fetch(&mut catch_up, &shared, missing).await;
                    missing = (appended_per_second as f64 * took.as_secs_f64()) as u64;
                    if missing <= enough {
                        return;
                    }
                }
                panic!("{missing} bytes are missing still, with {appended_per_second} appended a second");
            }
        });
        futures_util::future::join_all(shards).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_round_that_was_given_up_counts_by_what_it_had_left() {
        let mut catch_up = CatchUp::default();
        let began = TokioEnv::now();
        assert_eq!(catch_up.begin(began, &[appended(100 * MIB)]), 0);
        catch_up.fetched(&segment(0), 20 << 20);
        // Another leader has taken over, and nothing was appended.
        assert_eq!(catch_up.begin(began + Duration::from_secs(20), &[appended(80 * MIB)]), 0);
        assert_eq!(catch_up.begin(began + Duration::from_secs(40), &[appended(100 * MIB)]), 2 * MIB);
        // The next one's checkpoint is a little newer, and it is asked at once.
        let rate = catch_up.begin(began + Duration::from_secs(40), &[appended(110 * MIB)]);
        assert_eq!(rate, 4 * MIB);
    }

    #[tokio::test(start_paused = true)]
    async fn compacted_segments_are_not_taken_for_what_clients_write() {
        let mut catch_up = CatchUp::default();
        let began = TokioEnv::now();
        let compacted = |len| MissingRange { segment: segment(7), ..appended(len) };
        assert_eq!(catch_up.begin(began, &[appended(100 * MIB)]), 0);
        catch_up.fetched(&segment(0), 100 << 20);
        // The whole log was compacted meanwhile, and a little was appended.
        let rate = catch_up.begin(began + Duration::from_secs(20), &[compacted(40_960 * MIB), appended(20 * MIB)]);
        assert_eq!(rate, 2 * MIB);
        catch_up.fetched(&segment(7), 30 << 30);
        let rate = catch_up.begin(began + Duration::from_secs(40), &[compacted(10_240 * MIB), appended(40 * MIB)]);
        assert_eq!(rate, 2 * MIB, "what is left of it, and as much as before");
    }
}
