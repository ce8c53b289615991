//! A history as a file of JSON lines: it is complete in itself, so that it can be checked again later.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufWriter, Read, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::event::{Event, Partition, Record};

/// The version of the format.
pub const VERSION: u32 = 1;
/// No line may be longer than this.
pub const LINE_BYTES_MAX: usize = 4 << 20;
/// How many records of a partition's end state are put into one line.
const RECORDS_PER_LINE: usize = 1_000;

/// The first line of a history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// Version of the format.
    #[serde(rename = "lockstep_history")]
    pub version: u32,
    /// The seed of a simulation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// What was run: the name of a test, the choices of a seed. Only for people.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub about: BTreeMap<String, String>,
}

impl Default for Header {
    fn default() -> Self {
        Self { version: VERSION, seed: None, about: BTreeMap::new() }
    }
}

/// Why a history cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// The file cannot be read or written.
    #[error("line {line}: {error}")]
    Io {
        /// Where, from 1.
        line: usize,
        /// What happened.
        error: io::Error,
    },
    /// A line is not what it should be.
    #[error("line {line}: {error}")]
    Line {
        /// Where, from 1.
        line: usize,
        /// What is wrong.
        error: serde_json::Error,
    },
    /// A line is longer than [`LINE_BYTES_MAX`].
    #[error("line {line} is longer than {LINE_BYTES_MAX} bytes")]
    TooLong {
        /// Where, from 1.
        line: usize,
    },
    /// The file was written in another format.
    #[error("line 1: version {0} of the format; {VERSION} is known")]
    Version(u32),
    /// The time of a record is before that of the one before it.
    #[error("line {line}: {at_us} µs comes after {before_us} µs")]
    TimeGoesBack {
        /// Where, from 1.
        line: usize,
        /// Its time.
        at_us: u64,
        /// Time of the record before.
        before_us: u64,
    },
}

#[derive(Debug, Default)]
struct Inner {
    header: Header,
    records: Vec<Record>,
}

/// Collects what all clients and observers of one run see. Clones collect into the same history.
#[derive(Clone, Debug, Default)]
pub struct History {
    inner: Arc<Mutex<Inner>>,
}

impl History {
    /// An empty history.
    #[must_use]
    pub fn new(header: Header) -> Self {
        Self { inner: Arc::new(Mutex::new(Inner { header, records: Vec::new() })) }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an event that is known at `at_us`, by the one clock of this history. A clock that was read just before another thread added
    /// something with a later time is put right.
    pub fn add(&self, at_us: u64, lane: impl Into<String>, event: Event) {
        let mut inner = self.inner();
        let at_us = inner.records.last().map_or(at_us, |last| last.at_us.max(at_us));
        inner.records.push(Record { at_us, lane: lane.into(), event });
    }

    /// Adds all records of a partition from `start` up to `end`, in as many pieces as it takes.
    pub fn add_final_records(
        &self,
        at_us: u64,
        lane: &str,
        partition: &Partition,
        (start, end): (i64, i64),
        records: &[(i64, String)],
    ) {
        let mut from = start;
        let mut pieces = records.chunks(RECORDS_PER_LINE).peekable();
        loop {
            let piece = pieces.next().unwrap_or_default();
            let to = match (pieces.peek(), piece.last()) {
                (Some(_), Some((last, _))) => last + 1,
                _ => end,
            };
            let (partition, records) = (partition.clone(), piece.to_vec());
            self.add(at_us, lane, Event::FinalRecords { partition, start: from, end: to, records });
            from = to;
            if pieces.peek().is_none() {
                return;
            }
        }
    }

    /// Adds to the header.
    pub fn describe(&self, name: impl Into<String>, text: impl Into<String>) {
        self.inner().header.about.insert(name.into(), text.into());
    }

    /// The header.
    #[must_use]
    pub fn header(&self) -> Header {
        self.inner().header.clone()
    }

    /// All records so far.
    #[must_use]
    pub fn records(&self) -> Vec<Record> {
        self.inner().records.clone()
    }

    /// Reads the records in place; nothing can be added meanwhile.
    pub fn with_records<T>(&self, read: impl FnOnce(&[Record]) -> T) -> T {
        read(&self.inner().records)
    }

    /// How many events satisfy `which`.
    #[must_use]
    pub fn count(&self, which: impl Fn(&Event) -> bool) -> usize {
        self.with_records(|records| records.iter().filter(|record| which(&record.event)).count())
    }

    /// Writes the history as JSON lines.
    ///
    /// # Errors
    /// `out` fails, or a line would be too long to be read again.
    pub fn write(&self, out: impl Write) -> Result<(), HistoryError> {
        let inner = self.inner();
        let mut lines = LineWriter { out: BufWriter::new(out), line: 0 };
        lines.write(&inner.header)?;
        for record in &inner.records {
            lines.write(record)?;
        }
        lines.out.flush().map_err(|error| HistoryError::Io { line: lines.line, error })
    }

    /// Writes the history to a file, in place of what was there.
    ///
    /// # Errors
    /// As [`History::write`].
    pub fn save(&self, path: &Path) -> Result<(), HistoryError> {
        let file = std::fs::File::create(path).map_err(|error| HistoryError::Io { line: 0, error })?;
        self.write(file)
    }

    /// Reads what [`History::write`] wrote.
    ///
    /// # Errors
    /// It is not such a file; the error names the line.
    pub fn read(input: impl BufRead) -> Result<Self, HistoryError> {
        let mut lines = LineReader { input, line: 0, text: Vec::new() };
        let header: Header = lines.read()?.unwrap_or(Header { version: 0, ..Header::default() });
        if header.version != VERSION {
            return Err(HistoryError::Version(header.version));
        }
        let mut records: Vec<Record> = Vec::new();
        while let Some(record) = lines.read::<Record>()? {
            let before_us = records.last().map_or(0, |before| before.at_us);
            if record.at_us < before_us {
                return Err(HistoryError::TimeGoesBack { line: lines.line, at_us: record.at_us, before_us });
            }
            records.push(record);
        }
        Ok(Self { inner: Arc::new(Mutex::new(Inner { header, records })) })
    }

    /// Reads a file that [`History::save`] wrote.
    ///
    /// # Errors
    /// As [`History::read`].
    pub fn load(path: &Path) -> Result<Self, HistoryError> {
        let file = std::fs::File::open(path).map_err(|error| HistoryError::Io { line: 0, error })?;
        Self::read(io::BufReader::new(file))
    }
}

struct LineWriter<W> {
    out: W,
    line: usize,
}

impl<W: Write> LineWriter<W> {
    fn write(&mut self, value: &impl Serialize) -> Result<(), HistoryError> {
        self.line += 1;
        let line = self.line;
        let mut text = serde_json::to_vec(value).map_err(|error| HistoryError::Line { line, error })?;
        text.push(b'\n');
        if text.len() > LINE_BYTES_MAX {
            return Err(HistoryError::TooLong { line });
        }
        self.out.write_all(&text).map_err(|error| HistoryError::Io { line, error })
    }
}

struct LineReader<R> {
    input: R,
    line: usize,
    text: Vec<u8>,
}

impl<R: BufRead> LineReader<R> {
    /// The next line that is not empty.
    fn read<T: serde::de::DeserializeOwned>(&mut self) -> Result<Option<T>, HistoryError> {
        loop {
            self.line += 1;
            let line = self.line;
            self.text.clear();
            let limit = LINE_BYTES_MAX as u64 + 1;
            let read = self.input.by_ref().take(limit).read_until(b'\n', &mut self.text);
            match read.map_err(|error| HistoryError::Io { line, error })? {
                0 => return Ok(None),
                length if length > LINE_BYTES_MAX => return Err(HistoryError::TooLong { line }),
                _ if self.text.trim_ascii().is_empty() => {}
                _ => {
                    let value =
                        serde_json::from_slice(&self.text).map_err(|error| HistoryError::Line { line, error })?;
                    return Ok(Some(value));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(value: &str) -> Event {
        Event::Sent {
            producer: "p".into(),
            topic: "t".into(),
            partition: None,
            key: None,
            value: value.into(),
            is_idempotent: true,
            is_tombstone: false,
        }
    }

    fn text_of(history: &History) -> String {
        let mut bytes = Vec::new();
        history.write(&mut bytes).expect("written");
        String::from_utf8(bytes).expect("text")
    }

    #[test]
    fn what_is_written_is_read_again() {
        let history = History::new(Header { seed: Some(u64::MAX), ..Header::default() });
        history.describe("test", "this one");
        history.add(5, "p", sent("a"));
        let acknowledged =
            Event::Acknowledged { value: "a".into(), partition: Partition::new("a-b-1", 2), offset: Some(i64::MAX) };
        history.add(3, "p", acknowledged);
        let text = text_of(&history);
        assert!(text.starts_with("{\"lockstep_history\":1,\"seed\":18446744073709551615"), "{text}");
        assert!(text.contains("\"a-b-1-2\""), "{text}");
        let again = History::read(text.as_bytes()).expect("read");
        assert_eq!((again.header(), again.records()), (history.header(), history.records()));
        assert_eq!(again.records()[1].at_us, 5, "time does not go back");
    }

    #[test]
    fn many_final_records_are_written_in_pieces_that_cover_all() {
        for count in [0, 1, 999, 1_000, 1_001, 2_500] {
            let history = History::default();
            let records: Vec<_> = (7..7 + count).map(|offset| (offset, format!("v{offset}"))).collect();
            history.add_final_records(1, "end", &Partition::new("t", 0), (7, 7 + count), &records);
            let mut next = 7;
            let mut all = Vec::new();
            for record in history.records() {
                let Event::FinalRecords { start, end, records, .. } = record.event else { panic!("another event") };
                assert_eq!(start, next);
                next = end;
                all.extend(records);
            }
            assert_eq!((next, all), (7 + count, records));
        }
    }

    #[test]
    fn an_error_names_the_line() {
        let header = "{\"lockstep_history\":1}\n";
        let good = "{\"at_us\":9,\"lane\":\"x\",\"event\":{\"note\":{\"text\":\"y\"}}}\n";
        let fails = |text: String, expected: &str| {
            let error = History::read(text.as_bytes()).expect_err(&text).to_string();
            assert!(error.starts_with(expected), "{error}");
        };
        assert_eq!(History::read(format!("{header}\n{good}").as_bytes()).expect("read").records().len(), 1);
        fails(String::new(), "line 1: version 0");
        fails("{\"lockstep_history\":2}\n".into(), "line 1: version 2");
        fails("{}\n".into(), "line 1: missing field `lockstep_history`");
        fails(format!("{header}{good}{{\"at_us\":9"), "line 3: EOF");
        fails(format!("{header}{}", good.replace("note", "nothing")), "line 2: unknown variant `nothing`");
        fails(format!("{header}{}", good.replace("text", "txt")), "line 2: unknown field `txt`");
        fails(format!("{header}{good}{}", good.replace('9', "8")), "line 3: 8 µs comes after 9 µs");
        fails(format!("{header}{}", "x".repeat(LINE_BYTES_MAX + 1)), "line 2 is longer than");
        let too_long = History::default();
        too_long.add(1, "x", sent(&"x".repeat(LINE_BYTES_MAX)));
        assert!(matches!(too_long.write(Vec::new()), Err(HistoryError::TooLong { line: 2 })));
    }
}
