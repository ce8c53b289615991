//! Fewer messages to followers: news of a commit goes along with the next entries, if there are any soon.
//!
//! openraft tells a follower of every commit at once, in a request without entries unless new ones wait. One write after
//! another then costs two requests to each follower instead of one, and the second is handled just when the next write comes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::stream::{self, BoxStream};
use futures_util::{Stream, StreamExt};
use lockstep_env::{Either, Env, select, timeout};
use openraft::raft::AppendEntriesRequest;
use tokio::sync::Notify;

use super::type_config::{LogId, TypeConfig};
use lockstep_probe::Mark;

/// How long a follower may learn later than the leader that an entry is committed, unless somebody waits for it. Records that go to twelve
/// partitions in turn, one at a time, come to the same shard again sooner.
pub(super) const COMMIT_NEWS_DELAY: Duration = Duration::from_millis(20);

type Request<E> = AppendEntriesRequest<TypeConfig<E>>;

/// What followers of one shard have to learn without delay.
#[derive(Debug, Default)]
pub(crate) struct CommitNews {
    /// One above the last index of which somebody waits to hear that it is committed.
    wanted: AtomicU64,
    changed: Notify,
}

impl CommitNews {
    /// Somebody waits until followers know that everything up to this index is committed.
    pub(crate) fn want(&self, index: u64) {
        self.wanted.fetch_max(index.saturating_add(1), Ordering::SeqCst);
        self.changed.notify_waiters();
    }

    /// May a follower that was told of this commit wait for the next news?
    fn can_wait(&self, told: Option<LogId>) -> bool {
        told.map_or(0, |told| told.index.saturating_add(1)) >= self.wanted.load(Ordering::SeqCst)
    }
}

/// `requests` without those that tell of nothing but a commit and are followed by another one within `delay`. No answer is
/// owed for one that is left out: openraft takes an answer for all requests that end where it matches, or before.
pub(super) fn merge_commit_news<E, S>(
    requests: S,
    news: Arc<CommitNews>,
    delay: Duration,
) -> BoxStream<'static, Request<E>>
where
    E: Env,
    S: Stream<Item = Request<E>> + Send + Unpin + 'static,
{
    // Fused: the end may be met while a request is held back, and is asked for once more after that one.
    let first = (requests.fuse(), news, None::<Sent>);
    let merged = stream::unfold(first, move |(mut requests, news, sent)| async move {
        let mut request = requests.next().await?;
        let deadline = E::now() + delay;
        // The first request of a stream probes what the follower has, and is never held back.
        while let Some(sent) = &sent
            && request.entries.is_empty()
            && sent.upto == request.prev_log_id
        {
            // Made before the look, so that what is wanted in between is not missed.
            let wanted = news.changed.notified();
            if !news.can_wait(sent.committed) {
                break;
            }
            let left = deadline.saturating_duration_since(E::now());
            match select(timeout::<E, _>(left, requests.next()), wanted).await {
                Either::First(Ok(Some(next))) => {
                    Mark::CommitNewsMerged.reached();
                    request = next;
                }
                Either::First(Ok(None) | Err(_)) => break,
                Either::Second(()) => {}
            }
        }
        let upto = request.entries.last().map(|entry| entry.log_id).or(request.prev_log_id);
        let sent = Sent { upto, committed: request.leader_commit };
        Some((request, (requests, news, Some(sent))))
    });
    merged.boxed()
}

/// What a follower has been sent so far.
struct Sent {
    /// Its last entry.
    upto: Option<LogId>,
    /// The last one that it was told to be committed.
    committed: Option<LogId>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::type_config::{Entry, LeaderId, Vote, log_id};
    use futures_util::FutureExt;
    use lockstep_core::Position;
    use lockstep_env::tokio_env::TokioEnv;
    use openraft::EntryPayload;
    use tokio::sync::mpsc;

    fn at(index: u64) -> LogId {
        log_id(Position { term: 1, index })
    }

    /// Entries `from..=to` behind what is there, and how much is committed.
    fn request(from: u64, to: u64, committed: u64) -> Request<TokioEnv> {
        AppendEntriesRequest {
            vote: Vote { leader_id: LeaderId { term: 1, voted_for: 1 }, committed: true },
            prev_log_id: Some(at(from - 1)),
            entries: (from..=to).map(|index| Entry { log_id: at(index), payload: EntryPayload::Blank }).collect(),
            leader_commit: Some(at(committed)),
        }
    }

    fn summary(request: &Request<TokioEnv>) -> (usize, u64) {
        (request.entries.len(), request.leader_commit.map_or(0, |at| at.index))
    }

    #[tokio::test]
    async fn news_of_a_commit_goes_along_with_the_next_entries() {
        let requests = vec![request(1, 0, 0), request(1, 1, 0), request(2, 1, 1), request(2, 1, 1), request(2, 3, 1)];
        let sent: Vec<_> = merge_commit_news::<TokioEnv, _>(stream::iter(requests), Arc::default(), COMMIT_NEWS_DELAY)
            .map(|request| summary(&request))
            .collect()
            .await;
        assert_eq!(sent, [(0, 0), (1, 0), (2, 1)]);
    }

    #[tokio::test]
    async fn a_stream_that_ends_while_news_is_held_back_is_not_asked_again() {
        // As openraft makes its streams: one that panics when it is asked after its end.
        let requests = stream::unfold(vec![request(2, 1, 1), request(1, 1, 0)], |mut left| async move {
            let request = left.pop()?;
            Some((request, left))
        });
        let merged = merge_commit_news::<TokioEnv, _>(requests.boxed(), Arc::default(), COMMIT_NEWS_DELAY);
        let sent: Vec<_> = merged.map(|request| summary(&request)).collect().await;
        assert_eq!(sent, [(1, 0), (0, 1)]);
    }

    #[tokio::test]
    async fn news_of_a_commit_is_sent_by_itself_when_nothing_follows() {
        let (sender, mut receiver) = mpsc::unbounded_channel();
        let requests = stream::poll_fn(move |cx| receiver.poll_recv(cx));
        let mut sent = Box::pin(merge_commit_news::<TokioEnv, _>(requests, Arc::default(), COMMIT_NEWS_DELAY));
        sender.send(request(1, 1, 0)).unwrap();
        sender.send(request(2, 1, 1)).unwrap();
        assert_eq!(sent.next().await.as_ref().map(summary), Some((1, 0)));
        assert_eq!(sent.next().await.as_ref().map(summary), Some((0, 1)));
        sender.send(request(2, 1, 1)).unwrap();
        drop(sender);
        assert_eq!(sent.next().await.as_ref().map(summary), Some((0, 1)), "the last one is not lost at the end");
        assert!(sent.next().await.is_none());
    }

    #[tokio::test]
    async fn news_that_somebody_waits_for_is_sent_at_once() {
        let (sender, mut receiver) = mpsc::unbounded_channel();
        let requests = stream::poll_fn(move |cx| receiver.poll_recv(cx));
        let news = Arc::<CommitNews>::default();
        let mut sent = Box::pin(merge_commit_news::<TokioEnv, _>(requests, news.clone(), Duration::from_hours(1)));
        sender.send(request(1, 1, 0)).unwrap();
        assert_eq!(sent.next().await.as_ref().map(summary), Some((1, 0)));
        // While it is held back.
        sender.send(request(2, 1, 1)).unwrap();
        assert!(sent.next().now_or_never().is_none());
        news.want(1);
        assert_eq!(sent.next().await.as_ref().map(summary), Some((0, 1)));
        // Before it is there.
        news.want(2);
        sender.send(request(2, 2, 1)).unwrap();
        assert_eq!(sent.next().await.as_ref().map(summary), Some((1, 1)));
        sender.send(request(3, 2, 2)).unwrap();
        assert_eq!(sent.next().await.as_ref().map(summary), Some((0, 2)));
        // Nobody waits for more than that.
        sender.send(request(3, 2, 2)).unwrap();
        assert!(sent.next().now_or_never().is_none());
    }
}
