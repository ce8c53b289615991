//! The production environment: tokio's tasks, clock and sockets, the operating system's randomness, and `std::fs`.
//!
//! This is the only file of the workspace that names these sources.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::{File, OpenOptions, TryLockError};
use std::future::Future;
use std::io::{self, IoSlice};
#[cfg(target_os = "linux")]
use std::num::NonZeroU64;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use rustix::buffer::spare_capacity;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinError;

use crate::Env;
use crate::direct_write::DirectWrite;
use crate::disk::{Disk, DiskFile, OpenMode, wants_room};
use crate::net::{Connection, Listener};
use crate::sync_threads::SyncThreads;
use crate::task::{Task, TaskFailed};

/// Buffers handed to one vectored write; Linux takes at most 1,024.
const WRITE_BUFFERS_MAX: usize = 512;

/// Reads of files at a time. They share tokio's pool with what commits wait for, such as the renaming of a journal's file: thousands of consumers that
/// read old records must leave threads to it. A pool has more threads than that: the broker's 64, tokio's own 512.
const READS_AT_ONCE: usize = 32;

/// The environment of a real process. Must be used within a tokio runtime with time and I/O enabled.
#[derive(Clone, Debug)]
pub struct TokioEnv {
    disk: TokioDisk,
    /// For [`Env::compute`]: half of the processors, since tasks need the others.
    processors: Arc<Semaphore>,
}

impl Default for TokioEnv {
    fn default() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, |count| count.get().div_ceil(2));
        Self { disk: TokioDisk::default(), processors: Arc::new(Semaphore::new(processors)) }
    }
}

impl TokioEnv {
    /// An environment on this process's files and network.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

impl Env for TokioEnv {
    type Disk = TokioDisk;
    type Reader = OwnedReadHalf;
    type Writer = OwnedWriteHalf;
    type Listener = TokioListener;
    type Task<T: Send + 'static> = TokioTask<T>;
    type Sleep = tokio::time::Sleep;

    fn now() -> Instant {
        tokio::time::Instant::now().into_std()
    }

    #[expect(clippy::disallowed_methods, reason = "this is where Env's time comes from")]
    fn sleep(duration: Duration) -> Self::Sleep {
        tokio::time::sleep(duration)
    }

    fn sleep_until(deadline: Instant) -> Self::Sleep {
        tokio::time::sleep_until(deadline.into())
    }

    #[expect(clippy::disallowed_methods, reason = "this is where Env's tasks start")]
    fn spawn<F>(future: F) -> Self::Task<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        TokioTask(tokio::spawn(future))
    }

    async fn compute<T, F>(&self, work: F) -> T
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        // Nobody closes the semaphore.
        let processor = Arc::clone(&self.processors).acquire_owned().await;
        let computed = tokio::task::spawn_blocking(move || {
            let result = work();
            drop(processor);
            result
        });
        match computed.await.map_err(JoinError::try_into_panic) {
            Ok(result) => result,
            Err(Ok(panic)) => std::panic::resume_unwind(panic),
            // The runtime ends, and this task with it.
            Err(Err(_)) => std::future::pending().await,
        }
    }

    fn random_u64() -> u64 {
        rand::random()
    }

    #[expect(clippy::disallowed_methods, reason = "this is where Env's wall clock comes from")]
    fn wall_clock_ms(&self) -> i64 {
        match SystemTime::now().duration_since(SystemTime::UNIX_EPOCH) {
            Ok(since) => i64::try_from(since.as_millis()).unwrap_or(i64::MAX),
            Err(before) => i64::try_from(before.duration().as_millis()).map_or(i64::MIN, |ms| -ms),
        }
    }

    async fn connect(&self, address: &str) -> io::Result<Connection<Self>> {
        connection(TcpStream::connect(address).await?)
    }

    async fn listen(&self, address: &str) -> io::Result<Self::Listener> {
        Ok(TokioListener(TcpListener::bind(address).await?))
    }

    fn disk(&self) -> &Self::Disk {
        &self.disk
    }
}

fn connection(stream: TcpStream) -> io::Result<Connection<TokioEnv>> {
    stream.set_nodelay(true)?;
    let peer_address = stream.peer_addr()?.to_string();
    let (reader, writer) = stream.into_split();
    Ok(Connection { reader, writer, peer_address })
}

/// A listening TCP socket.
#[derive(Debug)]
pub struct TokioListener(TcpListener);

impl Listener<TokioEnv> for TokioListener {
    async fn accept(&mut self) -> io::Result<Connection<TokioEnv>> {
        let (stream, _) = self.0.accept().await?;
        connection(stream)
    }

    fn local_address(&self) -> io::Result<String> {
        Ok(self.0.local_addr()?.to_string())
    }
}

/// A tokio task.
#[derive(Debug)]
pub struct TokioTask<T>(tokio::task::JoinHandle<T>);

impl<T: Send + 'static> Task<T> for TokioTask<T> {
    fn abort(&self) {
        self.0.abort();
    }
}

impl<T> Future for TokioTask<T> {
    type Output = Result<T, TaskFailed>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Poll::Ready(ready!(Pin::new(&mut self.0).poll(cx)).map_err(|error| {
            if error.is_panic() { TaskFailed::Panicked(error.to_string()) } else { TaskFailed::Aborted }
        }))
    }
}

/// The process's file systems. Every call is one trip to a thread that may block, and runs to its end even when the future that
/// waits for it is dropped: [`DiskFile::write_and_sync`] to one of [`SyncThreads`], the others to tokio's pool.
#[derive(Clone, Debug)]
pub struct TokioDisk {
    sync_threads: SyncThreads,
    reads: Arc<Semaphore>,
}

impl Default for TokioDisk {
    fn default() -> Self {
        Self { sync_threads: SyncThreads::default(), reads: Arc::new(Semaphore::new(READS_AT_ONCE)) }
    }
}

/// Runs `operation` where it may block.
async fn blocking<T, F>(operation: F) -> io::Result<T>
where
    F: FnOnce() -> io::Result<T> + Send + 'static,
    T: Send + 'static,
{
    match tokio::task::spawn_blocking(operation).await {
        Ok(result) => result,
        Err(error) => Err(io::Error::other(error)),
    }
}

impl Disk for TokioDisk {
    type File = TokioFile;
    type Lock = TokioLock;

    async fn open(&self, path: &Path, mode: OpenMode) -> io::Result<TokioFile> {
        let (path, sync_threads, reads) = (path.to_path_buf(), self.sync_threads.clone(), Arc::clone(&self.reads));
        blocking(move || {
            let mut options = OpenOptions::new();
            options.read(true);
            match mode {
                OpenMode::Read => &mut options,
                OpenMode::ReadWrite => options.write(true),
                OpenMode::CreateOrOpen => options.write(true).create(true).truncate(false),
                OpenMode::CreateNew => options.write(true).create_new(true),
                OpenMode::Truncate => options.write(true).create(true).truncate(true),
            };
            let (file, direct) = (Arc::new(options.open(&path)?), Arc::default());
            Ok(TokioFile { file, direct, path: path.into(), sync_threads, reads })
        })
        .await
    }

    async fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        let path = path.to_path_buf();
        blocking(move || std::fs::create_dir_all(path)).await
    }

    async fn read_dir(&self, path: &Path) -> io::Result<Vec<String>> {
        let path = path.to_path_buf();
        blocking(move || {
            let mut names = BTreeSet::new();
            for entry in std::fs::read_dir(path)? {
                names.insert(entry?.file_name().to_string_lossy().into_owned());
            }
            Ok(names.into_iter().collect())
        })
        .await
    }

    async fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let (from, to) = (from.to_path_buf(), to.to_path_buf());
        blocking(move || std::fs::rename(from, to)).await
    }

    async fn remove_file(&self, path: &Path) -> io::Result<()> {
        let path = path.to_path_buf();
        blocking(move || std::fs::remove_file(path)).await
    }

    async fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        let path = path.to_path_buf();
        blocking(move || std::fs::remove_dir_all(path)).await
    }

    async fn sync_dir(&self, path: &Path) -> io::Result<()> {
        // The parent of a relative file name is the empty path, which the operating system does not take for ".".
        let path = if path.as_os_str().is_empty() { PathBuf::from(".") } else { path.to_path_buf() };
        blocking(move || File::open(path)?.sync_all().map_err(failed_sync)).await
    }

    async fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        let path = path.to_path_buf();
        blocking(move || {
            let found = rustix::fs::statvfs(&path)?;
            Ok(found.f_bavail.saturating_mul(found.f_frsize))
        })
        .await
    }

    async fn lock(&self, path: &Path) -> io::Result<TokioLock> {
        let path = path.to_path_buf();
        blocking(move || {
            let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
            match file.try_lock() {
                Ok(()) => Ok(TokioLock { _file: file }),
                Err(TryLockError::WouldBlock) => Err(io::ErrorKind::WouldBlock.into()),
                Err(TryLockError::Error(error)) => Err(error),
            }
        })
        .await
    }
}

/// An exclusive lock, released when dropped and when the process ends.
#[derive(Debug)]
pub struct TokioLock {
    _file: File,
}

/// An open file.
#[derive(Clone)]
pub struct TokioFile {
    file: Arc<File>,
    direct: Arc<DirectWrite>,
    path: Arc<Path>,
    sync_threads: SyncThreads,
    reads: Arc<Semaphore>,
}

impl fmt::Debug for TokioFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TokioFile({})", self.path.display())
    }
}

impl DiskFile for TokioFile {
    async fn read_at(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let file = Arc::clone(&self.file);
        // Until the read is over, also when nobody waits for it any more. Nobody closes the semaphore.
        let turn = Arc::clone(&self.reads).acquire_owned().await;
        blocking(move || {
            let read = read_at(&file, offset, len);
            drop(turn);
            read
        })
        .await
    }

    async fn write_at(&self, offset: u64, buffers: Vec<Bytes>) -> io::Result<()> {
        let file = Arc::clone(&self.file);
        blocking(move || write_all_at(&file, offset, &buffers)).await
    }

    async fn write_and_sync(&self, offset: u64, buffers: Vec<Bytes>) -> io::Result<()> {
        let (file, direct) = (Arc::clone(&self.file), Arc::clone(&self.direct));
        let operation = move || {
            if !direct.write(&file, offset, &buffers)? {
                write_all_at(&file, offset, &buffers)?;
            }
            file.sync_data().map_err(failed_sync)
        };
        self.sync_threads.run(operation).await
    }

    async fn sync_data(&self) -> io::Result<()> {
        let file = Arc::clone(&self.file);
        blocking(move || file.sync_data().map_err(failed_sync)).await
    }

    async fn write_back(&self, offset: u64, len: u64) {
        let file = Arc::clone(&self.file);
        let _ = blocking(move || {
            write_back(&file, offset, len);
            Ok(())
        })
        .await;
    }

    async fn allocate(&self, len: u64) -> io::Result<()> {
        let file = Arc::clone(&self.file);
        blocking(move || allocate(&file, len)).await
    }

    async fn set_len(&self, len: u64) -> io::Result<()> {
        let file = Arc::clone(&self.file);
        blocking(move || file.set_len(len)).await
    }

    async fn len(&self) -> io::Result<u64> {
        let file = Arc::clone(&self.file);
        blocking(move || Ok(file.metadata()?.len())).await
    }
}

/// What a sync left of the disk's content is unknown after any error, also one that names a reason for which a write might be tried again.
fn failed_sync(error: io::Error) -> io::Error {
    if wants_room(&error) { io::Error::other(error) } else { error }
}

fn read_at(file: &File, offset: u64, len: usize) -> io::Result<Vec<u8>> {
    // A caller may ask for more than there is: the file's length bounds what is allocated.
    let available = file.metadata()?.len().saturating_sub(offset);
    let wanted = usize::try_from(available).unwrap_or(usize::MAX).min(len);
    // Not zeroed before: the allocator has zeros of this size from the system as new pages, one page fault for each, which took several times as long
    // as the read itself (`runtime/benches/segment_reads.rs`).
    let mut content = Vec::with_capacity(wanted);
    while content.len() < wanted {
        let next = offset + content.len() as u64;
        match rustix::io::pread(file, spare_capacity(&mut content), next) {
            Ok(0) => break,
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    // The buffer may have come out larger than was asked for.
    content.truncate(wanted);
    Ok(content)
}

fn write_all_at(file: &File, mut offset: u64, buffers: &[Bytes]) -> io::Result<()> {
    let mut slices: Vec<IoSlice<'_>> =
        buffers.iter().filter(|buffer| !buffer.is_empty()).map(|buffer| IoSlice::new(buffer)).collect();
    let mut left = slices.as_mut_slice();
    while !left.is_empty() {
        let batch = left.len().min(WRITE_BUFFERS_MAX);
        match rustix::io::pwritev(file, &left[..batch], offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => {
                offset += count as u64;
                IoSlice::advance_slices(&mut left, count);
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Of pages that are not on the disk yet, Linux begins to write those that it is told nobody needs. It drops those that are there already.
#[cfg(target_os = "linux")]
fn write_back(file: &File, offset: u64, len: u64) {
    let _ = rustix::fs::fadvise(file, offset, NonZeroU64::new(len), rustix::fs::Advice::DontNeed);
}

#[cfg(not(target_os = "linux"))]
fn write_back(_file: &File, _offset: u64, _len: u64) {}

fn allocate(file: &File, len: u64) -> io::Result<()> {
    use rustix::fs::FallocateFlags;
    use rustix::io::Errno;
    if len == 0 {
        return Ok(());
    }
    loop {
        match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, len) {
            Ok(()) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => return extend_with_zeros(file, len),
            Err(error) => return Err(error.into()),
        }
    }
}

/// For file systems without fallocate. Holes inside the present length stay holes.
fn extend_with_zeros(file: &File, len: u64) -> io::Result<()> {
    static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
    let mut offset = file.metadata()?.len();
    while offset < len {
        let count = (len - offset).min(ZEROS.len() as u64);
        file.write_all_at(&ZEROS[..count as usize], offset)?;
        offset += count;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    fn bytes(content: &[u8]) -> Bytes {
        Bytes::copy_from_slice(content)
    }

    #[tokio::test]
    async fn tasks_go_on_while_something_is_computed() {
        let env = TokioEnv::new();
        let (go_on, gone_on) = std::sync::mpsc::channel();
        let computing =
            TokioEnv::spawn(async move { env.compute(move || gone_on.recv().map(|number: u32| number + 1)).await });
        // This thread is the only one that runs tasks.
        tokio::task::yield_now().await;
        go_on.send(7).unwrap();
        assert_eq!(computing.await.unwrap(), Ok(8));
    }

    #[tokio::test]
    async fn a_panic_while_something_is_computed_is_the_callers() {
        let env = TokioEnv::new();
        let all = env.processors.available_permits();
        let panicking = env.clone();
        let computed = TokioEnv::spawn(async move { panicking.compute(|| panic!("on purpose")).await });
        assert!(matches!(computed.await, Err(TaskFailed::Panicked(_))));
        assert_eq!(env.processors.available_permits(), all);
    }

    #[tokio::test]
    async fn a_file_is_read_back_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let disk = TokioDisk::default();
        let path = dir.path().join("file");
        let file = disk.open(&path, OpenMode::CreateNew).await.unwrap();
        // More buffers than one system call takes.
        let buffers: Vec<Bytes> = (0..3_000_u32).map(|n| bytes(&n.to_be_bytes())).chain([Bytes::new()]).collect();
        let expected: Vec<u8> = (0..3_000_u32).flat_map(u32::to_be_bytes).collect();
        file.write_and_sync(5, buffers).await.unwrap();
        assert_eq!(file.len().await.unwrap(), 5 + 12_000);
        assert_eq!(file.read_at(5, usize::MAX).await.unwrap(), expected);
        assert_eq!(file.read_at(11_999, 100).await.unwrap(), expected[11_994..]);
        assert_eq!(file.read_at(0, 5).await.unwrap(), [0; 5]);
        assert!(file.read_at(u64::MAX, 10).await.unwrap().is_empty());
        assert_eq!(disk.open(&path, OpenMode::CreateNew).await.unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        let reopened = disk.open(&path, OpenMode::CreateOrOpen).await.unwrap();
        assert_eq!(reopened.len().await.unwrap(), 12_005);
        let emptied = disk.open(&path, OpenMode::Truncate).await.unwrap();
        assert_eq!(emptied.len().await.unwrap(), 0);
    }

    #[tokio::test]
    async fn allocation_keeps_content_and_extends_with_zeros() {
        let dir = tempfile::tempdir().unwrap();
        let file = TokioDisk::default().open(&dir.path().join("file"), OpenMode::CreateNew).await.unwrap();
        file.write_at(0, vec![bytes(b"abc")]).await.unwrap();
        file.allocate(100_000).await.unwrap();
        assert_eq!(file.len().await.unwrap(), 100_000);
        file.allocate(10).await.unwrap();
        let content = file.read_at(0, 200_000).await.unwrap();
        assert_eq!(content.len(), 100_000);
        assert_eq!(&content[..3], b"abc");
        assert!(content[3..].iter().all(|byte| *byte == 0));

        extend_with_zeros(&file.file, 300_000).unwrap();
        let content = file.read_at(0, 400_000).await.unwrap();
        assert_eq!(content.len(), 300_000);
        assert_eq!(&content[..3], b"abc");
        assert!(content[3..].iter().all(|byte| *byte == 0));
    }

    #[tokio::test]
    async fn directories_are_listed_in_order_and_replaced_files_leave_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let disk = TokioDisk::default();
        let nested = dir.path().join("a/b");
        disk.create_dir_all(&nested).await.unwrap();
        disk.create_dir_all(&nested).await.unwrap();
        for name in ["z", "m", "a"] {
            disk.replace_file(&nested.join(name), bytes(b"old")).await.unwrap();
        }
        disk.replace_file(&nested.join("m"), bytes(b"new")).await.unwrap();
        assert_eq!(disk.read_dir(&nested).await.unwrap(), ["a", "m", "z"]);
        assert_eq!(disk.read_file(&nested.join("m"), 3).await.unwrap(), b"new");
        assert_eq!(disk.read_file(&nested.join("m"), 2).await.unwrap_err().kind(), io::ErrorKind::InvalidData);
        disk.rename(&nested.join("a"), &nested.join("z")).await.unwrap();
        disk.remove_file(&nested.join("m")).await.unwrap();
        assert_eq!(disk.read_dir(&nested).await.unwrap(), ["z"]);
        disk.remove_dir_all(&dir.path().join("a")).await.unwrap();
        assert_eq!(disk.read_dir(&nested).await.unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[tokio::test]
    async fn a_lock_is_exclusive_until_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let disk = TokioDisk::default();
        let path = dir.path().join("lock");
        let held = disk.lock(&path).await.unwrap();
        assert_eq!(disk.lock(&path).await.unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(held);
        disk.lock(&path).await.unwrap();
    }

    #[tokio::test]
    async fn both_ends_of_a_connection_talk() {
        let env = TokioEnv::new();
        let mut listener = env.listen("127.0.0.1:0").await.unwrap();
        let address = listener.local_address().unwrap();
        let server = TokioEnv::spawn(async move {
            let mut accepted = listener.accept().await.unwrap();
            let mut request = [0; 4];
            accepted.reader.read_exact(&mut request).await.unwrap();
            accepted.writer.write_all(&request).await.unwrap();
            accepted.writer.flush().await.unwrap();
        });
        let mut connection = env.connect(&address).await.unwrap();
        assert_eq!(connection.peer_address, address);
        connection.writer.write_all(b"ping").await.unwrap();
        connection.writer.flush().await.unwrap();
        let mut answer = Vec::new();
        connection.reader.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer, b"ping");
        server.await.unwrap();
    }

    #[tokio::test]
    async fn a_task_tells_how_it_ended() {
        assert_eq!(TokioEnv::spawn(async { 7 }).await.unwrap(), 7);
        let endless = TokioEnv::spawn(std::future::pending::<()>());
        endless.abort();
        assert_eq!(endless.await.unwrap_err(), TaskFailed::Aborted);
        let failing = TokioEnv::spawn(async { panic!("on purpose") });
        assert!(matches!(failing.await.unwrap_err(), TaskFailed::Panicked(_)));
    }
}
