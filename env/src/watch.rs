//! A watch channel that wakes its receivers first come, first served.
//!
//! It keeps the last value sent. Receivers that wait for a change are woken in the order in which they were made,
//! which depends on nothing outside the channel: a simulated run can be repeated.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::ops::Deref;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::task::{Context, Poll, Waker};

/// All receivers are gone; the value comes back.
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("nobody receives from the watch channel")]
pub struct SendError<T>(pub T);

impl<T> fmt::Debug for SendError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SendError").finish_non_exhaustive()
    }
}

/// All senders are gone and the last value has been seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("nobody sends to the watch channel")]
pub struct Closed;

/// A channel that holds `initial`, which counts as seen by the receiver.
pub fn channel<T>(initial: T) -> (Sender<T>, Receiver<T>) {
    let state = State { version: 0, senders: 1, receivers: 1, next_receiver: 1, waiting: BTreeMap::new() };
    let shared = Arc::new(Shared { value: RwLock::new(initial), state: Mutex::new(state) });
    (Sender { shared: Arc::clone(&shared) }, Receiver { shared, id: 0, seen: 0 })
}

/// Where both locks are needed, `value` is taken first.
struct Shared<T> {
    value: RwLock<T>,
    state: Mutex<State>,
}

struct State {
    /// Counts the changes.
    version: u64,
    senders: usize,
    receivers: usize,
    /// Receivers are numbered as they are made.
    next_receiver: u64,
    /// Those that wait, by number.
    waiting: BTreeMap<u64, Waker>,
}

impl<T> Shared<T> {
    // A panic of a caller's closure leaves the value as the closure left it; the channel itself stays consistent.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn borrow(&self) -> Ref<'_, T> {
        Ref(self.value.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn subscribe(shared: &Arc<Self>, seen: Option<u64>) -> Receiver<T> {
        let mut state = shared.state();
        let id = state.next_receiver;
        state.next_receiver += 1;
        state.receivers += 1;
        Receiver { shared: Arc::clone(shared), id, seen: seen.unwrap_or(state.version) }
    }
}

fn wake(waiting: BTreeMap<u64, Waker>) {
    for waker in waiting.into_values() {
        waker.wake();
    }
}

/// A look at the value. While it is held, sending blocks: keep it short, and never across an await.
pub struct Ref<'a, T>(RwLockReadGuard<'a, T>);

impl<T> Deref for Ref<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: fmt::Debug> fmt::Debug for Ref<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

/// Changes the value. May be cloned; the channel is closed when the last clone is dropped.
pub struct Sender<T> {
    shared: Arc<Shared<T>>,
}

impl<T> Sender<T> {
    /// Replaces the value and wakes the receivers. Without any receiver the value stays and the new one is returned.
    pub fn send(&self, value: T) -> Result<(), SendError<T>> {
        if self.receiver_count() == 0 {
            return Err(SendError(value));
        }
        self.send_modify(|current| *current = value);
        Ok(())
    }

    /// Changes the value in place and wakes the receivers, whether there are any or not.
    pub fn send_modify(&self, modify: impl FnOnce(&mut T)) {
        self.send_if_modified(|value| {
            modify(value);
            true
        });
    }

    /// Changes the value in place and wakes the receivers if `modify` says that it changed something; returns what it said.
    pub fn send_if_modified(&self, modify: impl FnOnce(&mut T) -> bool) -> bool {
        let mut value = self.shared.value.write().unwrap_or_else(PoisonError::into_inner);
        if !modify(&mut value) {
            return false;
        }
        let waiting = {
            let mut state = self.shared.state();
            state.version += 1;
            std::mem::take(&mut state.waiting)
        };
        drop(value);
        wake(waiting);
        true
    }

    /// The present value.
    #[must_use]
    pub fn borrow(&self) -> Ref<'_, T> {
        self.shared.borrow()
    }

    /// Another receiver, which has seen the present value.
    #[must_use]
    pub fn subscribe(&self) -> Receiver<T> {
        Shared::subscribe(&self.shared, None)
    }

    /// Number of receivers.
    #[must_use]
    pub fn receiver_count(&self) -> usize {
        self.shared.state().receivers
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        self.shared.state().senders += 1;
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        let waiting = {
            let mut state = self.shared.state();
            state.senders -= 1;
            if state.senders > 0 {
                return;
            }
            std::mem::take(&mut state.waiting)
        };
        wake(waiting);
    }
}

impl<T: fmt::Debug> fmt::Debug for Sender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Sender").field(&self.borrow()).finish()
    }
}

/// Sees changes of the value. A clone has seen what the original has seen.
pub struct Receiver<T> {
    shared: Arc<Shared<T>>,
    id: u64,
    seen: u64,
}

impl<T> Receiver<T> {
    /// The present value. It does not count as seen.
    #[must_use]
    pub fn borrow(&self) -> Ref<'_, T> {
        self.shared.borrow()
    }

    /// The present value, which counts as seen from now on.
    pub fn borrow_and_update(&mut self) -> Ref<'_, T> {
        let value = self.shared.borrow();
        // The value cannot change while it is borrowed.
        self.seen = self.shared.state().version;
        value
    }

    /// Is there a value that was not seen yet? `Closed` when there is none and never will be.
    pub fn has_changed(&self) -> Result<bool, Closed> {
        let state = self.shared.state();
        match state.version == self.seen {
            false => Ok(true),
            true if state.senders == 0 => Err(Closed),
            true => Ok(false),
        }
    }

    /// Completes as soon as there is a value that was not seen yet, which then counts as seen. Nothing is lost when the
    /// future is dropped before it completes.
    pub fn changed(&mut self) -> Changed<'_, T> {
        Changed { receiver: self }
    }

    /// Waits until the value, from the present one on, satisfies `condition`.
    pub async fn wait_for(&mut self, mut condition: impl FnMut(&T) -> bool) -> Result<(), Closed> {
        while !condition(&self.borrow_and_update()) {
            self.changed().await?;
        }
        Ok(())
    }
}

impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Self {
        Shared::subscribe(&self.shared, Some(self.seen))
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        self.shared.state().receivers -= 1;
    }
}

impl<T: fmt::Debug> fmt::Debug for Receiver<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Receiver").field(&self.borrow()).finish()
    }
}

/// The future of [`Receiver::changed`].
pub struct Changed<'a, T> {
    receiver: &'a mut Receiver<T>,
}

impl<T> Future for Changed<'_, T> {
    type Output = Result<(), Closed>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let receiver = &mut *self.receiver;
        let mut state = receiver.shared.state();
        if state.version != receiver.seen {
            receiver.seen = state.version;
            return Poll::Ready(Ok(()));
        }
        if state.senders == 0 {
            return Poll::Ready(Err(Closed));
        }
        // Dropping a waker may drop its task, and with it receivers: not while the lock is held.
        let replaced = state.waiting.insert(receiver.id, cx.waker().clone());
        drop(state);
        drop(replaced);
        Poll::Pending
    }
}

impl<T> Drop for Changed<'_, T> {
    fn drop(&mut self) {
        let waker = self.receiver.shared.state().waiting.remove(&self.receiver.id);
        drop(waker);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::pin;
    use std::task::Wake;

    /// Notes its name when it is woken.
    struct Note(&'static str, Arc<Mutex<Vec<&'static str>>>);

    impl Wake for Note {
        fn wake(self: Arc<Self>) {
            self.1.lock().unwrap().push(self.0);
        }
    }

    #[test]
    fn receivers_are_woken_in_the_order_in_which_they_were_made() {
        let woken = Arc::new(Mutex::new(Vec::new()));
        let waker = |name| Waker::from(Arc::new(Note(name, Arc::clone(&woken))));
        let (sender, mut first) = channel(0);
        let mut second = sender.subscribe();
        let mut third = first.clone();
        let mut fourth = sender.subscribe();
        let (first_waker, second_waker, third_waker) = (waker("first"), waker("second"), waker("third"));
        let mut first = pin!(first.changed());
        let mut second = pin!(second.changed());
        let mut third = pin!(third.changed());
        {
            let mut fourth = pin!(fourth.changed());
            assert!(fourth.as_mut().poll(&mut Context::from_waker(&waker("fourth"))).is_pending());
        }
        assert!(third.as_mut().poll(&mut Context::from_waker(&third_waker)).is_pending());
        assert!(second.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        assert!(first.as_mut().poll(&mut Context::from_waker(&first_waker)).is_pending());
        assert!(second.as_mut().poll(&mut Context::from_waker(&second_waker)).is_pending());
        sender.send(1).unwrap();
        assert_eq!(*woken.lock().unwrap(), ["first", "second", "third"]);
        sender.send(2).unwrap();
        assert_eq!(woken.lock().unwrap().len(), 3);
        assert!(first.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready());
    }

    #[tokio::test]
    async fn only_unseen_values_complete_changed() {
        let (sender, mut receiver) = channel("a");
        let mut clone = receiver.clone();
        assert_eq!(receiver.has_changed(), Ok(false));
        sender.send("b").unwrap();
        sender.send("c").unwrap();
        assert_eq!(receiver.has_changed(), Ok(true));
        receiver.changed().await.unwrap();
        assert_eq!(receiver.has_changed(), Ok(false));
        assert_eq!(*receiver.borrow(), "c");
        assert_eq!(*clone.borrow_and_update(), "c");
        assert_eq!(clone.has_changed(), Ok(false));
        assert!(!sender.send_if_modified(|_| false));
        assert_eq!(clone.has_changed(), Ok(false));
        sender.send_modify(|value| *value = "d");
        assert_eq!(clone.has_changed(), Ok(true));
    }

    #[tokio::test]
    async fn the_last_value_is_seen_before_the_end() {
        let (sender, mut receiver) = channel(0);
        let other = sender.clone();
        drop(sender);
        other.send(1).unwrap();
        let waiting = tokio::task::LocalSet::new();
        let mut late = other.subscribe();
        waiting
            .run_until(async move {
                let waiter = tokio::task::spawn_local(async move { late.changed().await });
                tokio::task::yield_now().await;
                drop(other);
                assert_eq!(waiter.await.unwrap(), Err(Closed));
            })
            .await;
        assert_eq!(receiver.changed().await, Ok(()));
        assert_eq!(*receiver.borrow(), 1);
        assert_eq!(receiver.changed().await, Err(Closed));
        assert_eq!(receiver.has_changed(), Err(Closed));
        assert_eq!(receiver.wait_for(|value| *value == 1).await, Ok(()));
        assert_eq!(receiver.wait_for(|value| *value == 2).await, Err(Closed));
    }

    #[test]
    fn sending_to_nobody_fails_and_keeps_the_value() {
        let (sender, receiver) = channel(0);
        drop(receiver);
        assert_eq!(sender.send(1), Err(SendError(1)));
        assert_eq!(*sender.borrow(), 0);
        let receiver = sender.subscribe();
        sender.send(2).unwrap();
        assert_eq!(*receiver.borrow(), 2);
    }
}
