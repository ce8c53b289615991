//! Two ways to read segments: positioned reads, as the storage does, and a mapping of the file into memory:
//! `cargo bench -p lockstep-runtime --bench segment_reads`.
//!
//! A segment of 256 MiB is read in pieces at random places. Each piece is checked, as every batch is that leaves the storage, and handed on: copied, which is what
//! the system does with what is written to a socket, or really written to one whose other end takes it at once. The file is cached; in the end it is
//! read once more from the disk, with the time for which a piece held up whoever asked for it, and page faults are counted. It lies in the directory for temporary files.

#![allow(missing_docs, reason = "a program")]

use std::fs::File;
use std::hint::black_box;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group};
use lockstep_env::tokio_env::{TokioEnv, TokioFile};
use lockstep_env::{Disk, DiskFile, Env, OpenMode};
use memmap2::{Mmap, MmapOptions};
use rustix::buffer::spare_capacity;
use rustix::fs::{Advice, fadvise};
use rustix::io::pread;
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// The binaries' own: a new buffer for each read is to cost what it costs there.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const SEGMENT_LEN: usize = 256 << 20;
/// What a fetch asks for at most of a partition, and the least that is read at a time.
const PIECES: [(&str, usize); 2] = [("1 MiB", 1 << 20), ("16 KiB", 16 << 10)];
/// Bytes that are read from the disk in each round, and the rounds of which the median counts.
const COLD_LEN: usize = 32 << 20;
const COLD_ROUNDS: usize = 9;
/// What a socket is given at a time.
const SINK_LEN: usize = 64 << 10;

#[derive(Clone, Copy)]
enum Way {
    /// Read into a new buffer by a thread that may block: what the storage does.
    Storage,
    /// Read into a new buffer by the thread that wants it.
    Positioned,
    /// The same into a buffer of zeros, which is what it takes without a way to read into what was never written.
    Zeroed,
    /// Out of a mapping that lasts.
    Mapped,
    /// Out of a mapping made for this piece: what the first touch of a lasting one costs too.
    MappedAnew,
}

const WAYS: [(&str, Way); 5] = [
    ("positioned, on a pool", Way::Storage),
    ("positioned, in place", Way::Positioned),
    ("positioned, zeroed", Way::Zeroed),
    ("mapped", Way::Mapped),
    ("mapped anew", Way::MappedAnew),
];

/// A part of the file, or all of it.
#[expect(
    unsafe_code,
    reason = "files cannot be mapped without; this is the only place, and no part of what is shipped"
)]
fn map(file: &File, offset: usize, len: usize) -> Mmap {
    // SAFETY: the file lies in a directory that was made for this process alone; it is written before it is mapped, and neither changed nor cut
    // until the mappings are gone.
    unsafe { MmapOptions::new().offset(offset as u64).len(len).map(file) }.expect("a mapping")
}

struct Segment {
    _directory: TempDir,
    file: File,
    opened: TokioFile,
    mapping: Option<Mmap>,
    runtime: Runtime,
    random: u64,
}

impl Segment {
    fn create() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().expect("a runtime");
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("segment.log");
        let file = write(&path);
        let opened = runtime.block_on(TokioEnv::new().disk().open(&path, OpenMode::Read)).expect("opened");
        let mapping = Some(map(&file, 0, SEGMENT_LEN));
        Self { _directory: directory, file, opened, mapping, runtime, random: 7 }
    }

    /// The beginning of some piece of this length.
    fn place(&mut self, len: usize) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random as usize % (SEGMENT_LEN / len) * len
    }

    fn read(&self, way: Way, offset: usize, len: usize, sink: &mut Sink) {
        match way {
            Way::Storage => {
                let reading = self.opened.read_at(offset as u64, len);
                sink.take(&self.runtime.block_on(reading).expect("read"));
            }
            Way::Positioned => {
                let mut buffer = Vec::with_capacity(len);
                while buffer.len() < len {
                    let at = (offset + buffer.len()) as u64;
                    assert!(pread(&self.file, spare_capacity(&mut buffer), at).expect("read") > 0, "the file ends");
                }
                sink.take(&buffer);
            }
            Way::Zeroed => {
                let mut buffer = vec![0; len];
                self.file.read_exact_at(&mut buffer, offset as u64).expect("read");
                sink.take(&buffer);
            }
            Way::Mapped => sink.take(&self.mapping.as_ref().expect("mapped")[offset..offset + len]),
            Way::MappedAnew => sink.take(&map(&self.file, offset, len)),
        }
    }

    /// Nothing of it is in memory any more. What is mapped would stay.
    fn forget(&mut self) {
        self.mapping = None;
        fadvise(&self.file, 0, None, Advice::DontNeed).expect("dropped from memory");
        self.mapping = Some(map(&self.file, 0, SEGMENT_LEN));
    }
}

/// A file that neither a disk nor a checksum makes little of, on the disk.
fn write(path: &Path) -> File {
    let file = File::options().read(true).write(true).create_new(true).open(path).expect("created");
    let mut content = vec![0; 1 << 20];
    let mut state = 1_u64;
    for place in 0..SEGMENT_LEN / content.len() {
        for word in content.chunks_exact_mut(8) {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            word.copy_from_slice(&state.to_le_bytes());
        }
        file.write_all_at(&content, (place * content.len()) as u64).expect("written");
    }
    file.sync_all().expect("synced");
    file
}

/// What takes the pieces.
enum Sink {
    Copy(Vec<u8>),
    Socket(TcpStream),
}

impl Sink {
    fn socket() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let stream = TcpStream::connect(listener.local_addr().expect("an address")).expect("connected");
        let (mut other, _) = listener.accept().expect("accepted");
        // Ends with the connection.
        std::thread::spawn(move || {
            let mut buffer = vec![0; 4 * SINK_LEN];
            while other.read(&mut buffer).is_ok_and(|read| read > 0) {}
        });
        Self::Socket(stream)
    }

    fn take(&mut self, piece: &[u8]) {
        black_box(crc32c::crc32c(piece));
        match self {
            Self::Copy(buffer) => {
                for part in piece.chunks(SINK_LEN) {
                    buffer[..part.len()].copy_from_slice(part);
                    black_box(&mut *buffer);
                }
            }
            Self::Socket(stream) => stream.write_all(piece).expect("taken"),
        }
    }
}

fn cached(c: &mut Criterion) {
    let mut segment = Segment::create();
    for (to, mut sink) in [("copied", Sink::Copy(vec![0; SINK_LEN])), ("to a socket", Sink::socket())] {
        for (name, len) in PIECES {
            let mut group = c.benchmark_group(format!("{name}, {to}"));
            group.warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(3)).sample_size(50);
            group.throughput(Throughput::Bytes(len as u64));
            for (name, way) in WAYS {
                group.bench_function(name, |b| {
                    b.iter(|| {
                        let offset = segment.place(len);
                        segment.read(way, offset, len, &mut sink);
                    });
                });
            }
        }
    }
}

criterion_group!(segment_reads, cached);

/// Page faults of this process so far: those that found the page in memory, and those that waited for the disk.
fn page_faults() -> io::Result<(u64, u64)> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields: Vec<u64> = match stat.rsplit_once(')') {
        Some((_, fields)) => fields.split_ascii_whitespace().map(|field| field.parse().unwrap_or(0)).collect(),
        None => Vec::new(),
    };
    // The 10th and 12th of all fields; the first two are gone.
    let field =
        |at: usize| fields.get(at).copied().ok_or_else(|| io::Error::other("/proc/self/stat is not understood"));
    Ok((field(7)?, field(9)?))
}

#[expect(clippy::disallowed_methods, reason = "a benchmark measures real time")]
fn now() -> Instant {
    Instant::now()
}

/// Prints what a round of reads took, piece by piece, and its page faults.
fn print_round(segment: &mut Segment, way: Way, name: &str, len: usize, is_cold: bool) -> io::Result<()> {
    let mut sink = Sink::Copy(vec![0; SINK_LEN]);
    let (mut rounds, mut pieces) = (Vec::new(), Vec::new());
    let (mut found, mut waited) = (0, 0);
    for _ in 0..COLD_ROUNDS {
        if is_cold {
            segment.forget();
        }
        let (found_before, waited_before) = page_faults()?;
        let began_at = now();
        for _ in 0..COLD_LEN / len {
            let piece_began_at = now();
            let offset = segment.place(len);
            segment.read(way, offset, len, &mut sink);
            pieces.push(now() - piece_began_at);
        }
        rounds.push(now() - began_at);
        let (found_after, waited_after) = page_faults()?;
        (found, waited) = (found + found_after - found_before, waited + waited_after - waited_before);
    }
    rounds.sort_unstable();
    pieces.sort_unstable();
    let megabytes_per_second = COLD_LEN as f64 / rounds[COLD_ROUNDS / 2].as_secs_f64() / 1e6;
    let mebibytes = ((COLD_ROUNDS * COLD_LEN) >> 20) as f64;
    println!(
        "{name:<22} {megabytes_per_second:>7.0} MB/s   a piece: p50 {:>9.1?}, p99 {:>9.1?}   faults per MiB: {:.1}, and {:.1} that waited",
        pieces[pieces.len() / 2],
        pieces[pieces.len() * 99 / 100],
        found as f64 / mebibytes,
        waited as f64 / mebibytes
    );
    Ok(())
}

fn main() -> io::Result<()> {
    segment_reads();
    Criterion::default().configure_from_args().final_summary();
    let mut segment = Segment::create();
    for (state, is_cold) in [("cached", false), ("from the disk", true)] {
        for (piece, len) in PIECES {
            println!("{piece} at random places, {state}, {} MiB a round:", COLD_LEN >> 20);
            for (name, way) in WAYS {
                print_round(&mut segment, way, name, len, is_cold)?;
            }
        }
    }
    Ok(())
}
