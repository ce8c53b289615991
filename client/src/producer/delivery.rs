//! What becomes of a record that was handed to a producer.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use crate::error::ClientError;

/// Where an acknowledged record is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordMetadata {
    /// Topic.
    pub topic: Arc<str>,
    /// Partition.
    pub partition: i32,
    /// Offset; `None` if the broker did not tell: with acks=0, or when it had the record already from a lost first
    /// attempt.
    pub offset: Option<i64>,
    /// Milliseconds since 1970 that are stored with it.
    pub timestamp: i64,
}

/// What a broker says of a batch that it took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BatchAck {
    pub(crate) base_offset: Option<i64>,
    /// Where the topic stores the time of appending.
    pub(crate) append_time_ms: Option<i64>,
}

/// The outcome of one batch, which all its records share.
#[derive(Debug)]
pub(crate) struct BatchDelivery {
    topic: Arc<str>,
    partition: i32,
    state: Mutex<DeliveryState>,
}

#[derive(Debug, Default)]
struct DeliveryState {
    outcome: Option<Result<BatchAck, ClientError>>,
    wakers: Vec<Waker>,
}

impl BatchDelivery {
    pub(crate) fn new(topic: Arc<str>, partition: i32) -> Arc<Self> {
        Arc::new(Self { topic, partition, state: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, DeliveryState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says what became of it; once.
    pub(crate) fn finish(&self, outcome: Result<BatchAck, ClientError>) {
        let mut state = self.lock();
        assert!(state.outcome.is_none(), "a batch has one outcome");
        state.outcome = Some(outcome);
        let wakers = std::mem::take(&mut state.wakers);
        drop(state);
        for waker in wakers {
            waker.wake();
        }
    }
}

/// Completes when a record is acknowledged or has failed. May be dropped: the record is sent all the same.
#[derive(Debug)]
pub struct Delivery {
    pub(crate) batch: Arc<BatchDelivery>,
    /// Position in the batch.
    pub(crate) index: i32,
    pub(crate) timestamp: i64,
    /// Where its waker is in the list.
    pub(crate) waker_at: Option<usize>,
}

impl Future for Delivery {
    type Output = Result<RecordMetadata, ClientError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let batch = Arc::clone(&self.batch);
        let mut state = batch.lock();
        match &state.outcome {
            None => {
                match self.waker_at.and_then(|at| state.wakers.get_mut(at)) {
                    Some(waker) => waker.clone_from(cx.waker()),
                    None => {
                        self.waker_at = Some(state.wakers.len());
                        state.wakers.push(cx.waker().clone());
                    }
                }
                Poll::Pending
            }
            Some(Err(error)) => Poll::Ready(Err(error.clone())),
            Some(Ok(ack)) => Poll::Ready(Ok(RecordMetadata {
                topic: Arc::clone(&batch.topic),
                partition: batch.partition,
                offset: ack.base_offset.map(|base| base + i64::from(self.index)),
                timestamp: ack.append_time_ms.unwrap_or(self.timestamp),
            })),
        }
    }
}
