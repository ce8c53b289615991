//! Fetch sessions (KIP-227): a consumer names its partitions once, and afterwards only what changes; the broker answers
//! only for partitions that have something new.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use lockstep_wire::codec::FetchRequest;

use crate::error_code::ErrorCode;
use crate::topics::TopicKey;

/// Sessions kept at one time; further clients are served without one.
const SESSIONS_MAX: usize = 1_000;
/// When there is no room, a session that nobody used for so long makes room for another.
const EVICTABLE_AFTER: Duration = Duration::from_secs(120);
/// A session that grows larger is refused, and its client is served without one.
const PARTITIONS_MAX: usize = 100_000;

/// `session_epoch` of a request that opens a session.
const EPOCH_INITIAL: i32 = 0;
/// `session_epoch` of a request that closes its session, or wants none.
const EPOCH_FINAL: i32 = -1;

/// A partition as a request names it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PartitionKey {
    pub(crate) topic: TopicKey,
    pub(crate) partition: i32,
}

/// What a consumer wants of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) fetch_offset: i64,
    pub(crate) bytes_max: i32,
    /// −1: not said.
    pub(crate) current_leader_epoch: i32,
    /// −1: not said.
    pub(crate) last_fetched_epoch: i32,
}

/// What a consumer was told last of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Told {
    pub(crate) high_watermark: i64,
    pub(crate) log_start_offset: i64,
}

/// What came out of a partition, as far as the session cares.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Answered {
    /// `None` after an error: the next answer is sent whatever it says.
    pub(crate) told: Option<Told>,
    /// Records, an error or a diverging epoch: it must be sent.
    pub(crate) has_news: bool,
    /// There are records: others come first next time.
    pub(crate) has_records: bool,
}

/// A Fetch request with its session resolved.
#[derive(Debug)]
pub(crate) struct Begun {
    /// 0: none.
    pub(crate) session_id: i32,
    /// Only partitions with something new are answered.
    pub(crate) incremental: bool,
    /// In the order in which they are to be served.
    pub(crate) wanted: Vec<(PartitionKey, Wanted)>,
}

#[derive(Debug)]
struct Entry {
    turn: u64,
    wanted: Wanted,
    told: Option<Told>,
}

#[derive(Debug)]
struct Session {
    by_id: bool,
    next_epoch: i32,
    used_at: Instant,
    partitions: BTreeMap<PartitionKey, Entry>,
    /// Whose turn it is: a partition that was answered with records goes to the end.
    turns: BTreeMap<u64, PartitionKey>,
    next_turn: u64,
}

impl Session {
    fn new(by_id: bool, now: Instant) -> Self {
        Self { by_id, next_epoch: 1, used_at: now, partitions: BTreeMap::new(), turns: BTreeMap::new(), next_turn: 0 }
    }

    fn want(&mut self, key: PartitionKey, wanted: Wanted) {
        if let Some(entry) = self.partitions.get_mut(&key) {
            entry.wanted = wanted;
            return;
        }
        let turn = self.next_turn;
        self.next_turn += 1;
        self.turns.insert(turn, key.clone());
        self.partitions.insert(key, Entry { turn, wanted, told: None });
    }

    fn forget(&mut self, key: &PartitionKey) {
        if let Some(entry) = self.partitions.remove(key) {
            self.turns.remove(&entry.turn);
        }
    }

    fn wanted(&self) -> Vec<(PartitionKey, Wanted)> {
        self.turns.values().filter_map(|key| Some((key.clone(), self.partitions.get(key)?.wanted))).collect()
    }
}

/// All sessions of a broker.
#[derive(Debug, Default)]
pub(crate) struct FetchSessions {
    sessions: BTreeMap<i32, Session>,
}

impl FetchSessions {
    /// Resolves a request's session. `fresh_id` is a random positive number for a session that is opened.
    pub(crate) fn begin(
        &mut self,
        version: i16,
        request: &FetchRequest,
        fresh_id: i32,
        now: Instant,
    ) -> Result<Begun, ErrorCode> {
        let by_id = version >= 13;
        if version < 7 || (request.session_id == 0 && request.session_epoch == EPOCH_FINAL) {
            return Ok(Begun { session_id: 0, incremental: false, wanted: wanted(by_id, request) });
        }
        if matches!(request.session_epoch, EPOCH_INITIAL | EPOCH_FINAL) {
            self.sessions.remove(&request.session_id);
            let wanted = wanted(by_id, request);
            if request.session_epoch == EPOCH_FINAL || !self.has_room(wanted.len(), now) {
                return Ok(Begun { session_id: 0, incremental: false, wanted });
            }
            let mut session = Session::new(by_id, now);
            for (key, wanted) in wanted {
                session.want(key, wanted);
            }
            let wanted = session.wanted();
            let session_id = self.free_id(fresh_id);
            self.sessions.insert(session_id, session);
            return Ok(Begun { session_id, incremental: false, wanted });
        }
        let session = self.sessions.get_mut(&request.session_id).ok_or(ErrorCode::FetchSessionIdNotFound)?;
        if session.by_id != by_id {
            self.sessions.remove(&request.session_id);
            return Err(ErrorCode::FetchSessionTopicIdError);
        }
        if session.next_epoch != request.session_epoch {
            return Err(ErrorCode::InvalidFetchSessionEpoch);
        }
        session.next_epoch = session.next_epoch.checked_add(1).unwrap_or(1);
        session.used_at = now;
        for topic in &request.forgotten_topics_data {
            let topic_key = TopicKey::of(by_id, &topic.topic, &topic.topic_id);
            for partition in &topic.partitions {
                session.forget(&PartitionKey { topic: topic_key.clone(), partition: *partition });
            }
        }
        for (key, wanted) in wanted(by_id, request) {
            session.want(key, wanted);
        }
        if session.partitions.len() > PARTITIONS_MAX {
            self.sessions.remove(&request.session_id);
            return Err(ErrorCode::FetchSessionIdNotFound);
        }
        Ok(Begun { session_id: request.session_id, incremental: true, wanted: session.wanted() })
    }

    /// Notes what a request's partitions are answered with, and tells which of them must be sent.
    pub(crate) fn finish(&mut self, begun: &Begun, results: &[(PartitionKey, Answered)]) -> Vec<bool> {
        let Some(session) = self.sessions.get_mut(&begun.session_id) else {
            return vec![true; results.len()];
        };
        let mut sent = Vec::with_capacity(results.len());
        for (key, result) in results {
            let Some(entry) = session.partitions.get_mut(key) else {
                sent.push(true);
                continue;
            };
            sent.push(!begun.incremental || result.has_news || result.told != entry.told);
            entry.told = result.told;
            if result.has_records {
                session.turns.remove(&entry.turn);
                entry.turn = session.next_turn;
                session.next_turn += 1;
                session.turns.insert(entry.turn, key.clone());
            }
        }
        sent
    }

    fn has_room(&mut self, partitions: usize, now: Instant) -> bool {
        if partitions > PARTITIONS_MAX {
            return false;
        }
        if self.sessions.len() < SESSIONS_MAX {
            return true;
        }
        let oldest =
            self.sessions.iter().min_by_key(|(_, session)| session.used_at).map(|(id, session)| (*id, session.used_at));
        match oldest {
            Some((id, used_at)) if now.saturating_duration_since(used_at) > EVICTABLE_AFTER => {
                self.sessions.remove(&id);
                true
            }
            _ => false,
        }
    }

    fn free_id(&self, fresh_id: i32) -> i32 {
        let mut id = fresh_id.max(1);
        while self.sessions.contains_key(&id) {
            id = id.checked_add(1).unwrap_or(1);
        }
        id
    }
}

fn wanted(by_id: bool, request: &FetchRequest) -> Vec<(PartitionKey, Wanted)> {
    let partitions = request.topics.iter().flat_map(|topic| {
        let topic_key = TopicKey::of(by_id, &topic.topic, &topic.topic_id);
        topic.partitions.iter().map(move |partition| {
            let key = PartitionKey { topic: topic_key.clone(), partition: partition.partition };
            let wanted = Wanted {
                fetch_offset: partition.fetch_offset,
                bytes_max: partition.partition_max_bytes,
                current_leader_epoch: partition.current_leader_epoch,
                last_fetched_epoch: partition.last_fetched_epoch,
            };
            (key, wanted)
        })
    });
    partitions.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use lockstep_wire::codec::fetch_request::{FetchPartition, FetchTopic, ForgottenTopic};

    fn request(session_id: i32, session_epoch: i32, partitions: &[i32]) -> FetchRequest {
        let partitions = partitions.iter().map(|index| FetchPartition::default().with_partition(*index)).collect();
        FetchRequest::default()
            .with_session_id(session_id)
            .with_session_epoch(session_epoch)
            .with_topics(vec![FetchTopic::default().with_partitions(partitions)])
    }

    #[expect(clippy::disallowed_methods, reason = "any instant does")]
    fn now() -> Instant {
        Instant::now()
    }

    fn told(high_watermark: i64) -> Answered {
        Answered { told: Some(Told { high_watermark, log_start_offset: 0 }), has_news: false, has_records: false }
    }

    fn partitions(begun: &Begun) -> Vec<i32> {
        begun.wanted.iter().map(|(key, _)| key.partition).collect()
    }

    fn results(begun: &Begun, result: Answered) -> Vec<(PartitionKey, Answered)> {
        begun.wanted.iter().map(|(key, _)| (key.clone(), result)).collect()
    }

    #[test]
    fn a_session_remembers_partitions_and_sends_only_what_is_new() {
        let mut sessions = FetchSessions::default();
        let opened = sessions.begin(12, &request(0, 0, &[0, 1]), 42, now()).expect("open");
        assert_eq!((opened.session_id, opened.incremental), (42, false));
        assert_eq!(sessions.finish(&opened, &results(&opened, told(5))), [true, true]);

        let next = sessions.begin(12, &request(42, 1, &[]), 0, now()).expect("next");
        assert!(next.incremental);
        assert_eq!(partitions(&next), [0, 1]);
        let mut answered = results(&next, told(5));
        answered[1].1 = told(6);
        assert_eq!(sessions.finish(&next, &answered), [false, true]);
    }

    #[test]
    fn a_partition_with_records_goes_to_the_end() {
        let mut sessions = FetchSessions::default();
        let opened = sessions.begin(12, &request(0, 0, &[0, 1]), 1, now()).expect("open");
        let mut answered = results(&opened, told(5));
        answered[0].1.has_records = true;
        sessions.finish(&opened, &answered);
        let next = sessions.begin(12, &request(1, 1, &[]), 0, now()).expect("next");
        assert_eq!(partitions(&next), [1, 0]);
    }

    #[test]
    fn partitions_are_added_and_forgotten() {
        let mut sessions = FetchSessions::default();
        sessions.begin(12, &request(0, 0, &[0, 1]), 1, now()).expect("open");
        let mut change = request(1, 1, &[2]);
        change.forgotten_topics_data = vec![ForgottenTopic::default().with_partitions(vec![0])];
        let next = sessions.begin(12, &change, 0, now()).expect("next");
        assert_eq!(partitions(&next), [1, 2]);
    }

    #[test]
    fn wrong_sessions_and_epochs_are_refused() {
        let mut sessions = FetchSessions::default();
        let error = |result: Result<Begun, ErrorCode>| result.expect_err("must be refused");
        assert_eq!(error(sessions.begin(12, &request(9, 1, &[]), 0, now())), ErrorCode::FetchSessionIdNotFound);
        sessions.begin(12, &request(0, 0, &[0]), 1, now()).expect("open");
        assert_eq!(error(sessions.begin(12, &request(1, 2, &[]), 0, now())), ErrorCode::InvalidFetchSessionEpoch);
        assert_eq!(error(sessions.begin(13, &request(1, 1, &[]), 0, now())), ErrorCode::FetchSessionTopicIdError);
    }

    #[test]
    fn a_final_epoch_closes_the_session() {
        let mut sessions = FetchSessions::default();
        sessions.begin(12, &request(0, 0, &[0]), 1, now()).expect("open");
        let closed = sessions.begin(12, &request(1, -1, &[3]), 2, now()).expect("close");
        assert_eq!((closed.session_id, partitions(&closed)), (0, vec![3]));
        assert_eq!(
            sessions.begin(12, &request(1, 1, &[]), 0, now()).expect_err("gone"),
            ErrorCode::FetchSessionIdNotFound
        );
    }

    #[test]
    fn a_full_cache_serves_without_sessions_until_one_is_old() {
        let mut sessions = FetchSessions::default();
        let begin = now();
        for id in 1..=SESSIONS_MAX as i32 {
            assert_eq!(sessions.begin(12, &request(0, 0, &[0]), id, begin).expect("open").session_id, id);
        }
        assert_eq!(sessions.begin(12, &request(0, 0, &[0]), 5_000, begin).expect("full").session_id, 0);
        let later = begin + EVICTABLE_AFTER + Duration::from_secs(1);
        assert_eq!(sessions.begin(12, &request(0, 0, &[0]), 5_000, later).expect("room").session_id, 5_000);
    }
}
