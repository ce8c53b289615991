//! The one door to the outside world.
//!
//! Everything that could make two runs of the same code differ is named by [`Env`]: clocks, tasks, randomness, the
//! network and the disk. Production implements it with tokio and `std::fs` ([`tokio_env::TokioEnv`]); the simulator
//! implements it on simulated time, links and disks. `runtime`, `broker` and `client` are generic over it and name no other source.
//!
//! Time, tasks and randomness are associated functions rather than methods because openraft asks for them from
//! places where no value can be passed; both implementations find their context from the running task.

mod direct_write;
pub mod disk;
pub mod net;
mod step;
mod sync_threads;
pub mod task;
pub mod tokio_env;
pub mod watch;

use std::fmt::Debug;
use std::future::Future;
use std::io;
use std::time::{Duration, Instant};

pub use disk::{Disk, DiskFile, OpenMode, wants_room};
pub use net::{Connection, Listener};
pub use step::Step;
pub use task::{Either, Elapsed, Task, TaskFailed, select, timeout, timeout_at};

/// Time, tasks, randomness, network and disk of one node or client.
pub trait Env: Clone + Debug + Send + Sync + 'static {
    /// The node's file systems.
    type Disk: Disk;
    /// The receiving half of a connection.
    type Reader: tokio::io::AsyncRead + Send + Sync + Unpin + 'static;
    /// The sending half of a connection. Bytes may be held back until `flush`.
    type Writer: tokio::io::AsyncWrite + Send + Sync + Unpin + 'static;
    /// Accepts connections.
    type Listener: Listener<Self>;
    /// A running task.
    type Task<T: Send + 'static>: Task<T>;
    /// Completes after a duration.
    type Sleep: Future<Output = ()> + Send + 'static;

    /// Monotonic time. In the simulator this is simulated time.
    fn now() -> Instant;
    /// Completes once `duration` has passed.
    fn sleep(duration: Duration) -> Self::Sleep;
    /// Completes once `deadline` is reached, at once if it lies in the past.
    fn sleep_until(deadline: Instant) -> Self::Sleep;
    /// Starts a task on the caller's node.
    fn spawn<F>(future: F) -> Self::Task<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static;
    /// Does work that keeps a processor busy for long without holding up the tasks of this node meanwhile, among which are those that keep it a
    /// leader. In the simulator at once, since its time stands still. The work is done to its end even when the future is dropped; a panic of it
    /// is one of whoever waits.
    fn compute<T, F>(&self, work: F) -> impl Future<Output = T> + Send
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        async move { work() }
    }
    /// 64 random bits, from the seed in the simulator.
    fn random_u64() -> u64;
    /// Milliseconds since the Unix epoch: data for people and for record timestamps, never a deadline. It may jump.
    fn wall_clock_ms(&self) -> i64;

    /// Connects to `address` (`host:port`), without a time-out of its own beyond the operating system's.
    fn connect(&self, address: &str) -> impl Future<Output = io::Result<Connection<Self>>> + Send;
    /// Listens on `address` (`host:port`; port 0 picks a free one, see [`Listener::local_address`]).
    fn listen(&self, address: &str) -> impl Future<Output = io::Result<Self::Listener>> + Send;
    /// The disk.
    fn disk(&self) -> &Self::Disk;

    /// The caller has come to `step`. Nothing in production; a simulated host may die here, before this returns: nothing
    /// that its tasks do afterwards has an effect on disks or networks.
    #[inline(always)]
    fn reached(&self, step: Step) {
        let _ = step;
    }

    /// 128 random bits as a version-4 UUID's bytes.
    fn random_uuid() -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&Self::random_u64().to_be_bytes());
        bytes[8..].copy_from_slice(&Self::random_u64().to_be_bytes());
        bytes[6] = bytes[6] & 0x0f | 0x40;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        bytes
    }
}
