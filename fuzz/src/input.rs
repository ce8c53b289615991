//! Bytes as a source of decisions.

/// Draws values from bytes; when they are used up everything is 0.
#[derive(Clone, Debug)]
pub struct Input<'a> {
    bytes: &'a [u8],
}

impl<'a> Input<'a> {
    /// All of `bytes`.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    /// Whether nothing is left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// One byte.
    pub fn byte(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or(0)
    }

    /// Up to `len` bytes.
    pub fn take(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.bytes.split_at(len.min(self.bytes.len()));
        self.bytes = rest;
        taken
    }

    /// A number below `end`, which is at least 1.
    pub fn below(&mut self, end: u8) -> u8 {
        self.byte() % end
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: u8) -> bool {
        self.below(n) == n - 1
    }

    /// Eight bytes as a number.
    pub fn number(&mut self) -> u64 {
        self.take(8).iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
    }

    /// A small number as a rule, any once in a while.
    pub fn mostly_below(&mut self, end: u8) -> u64 {
        if self.one_in(32) { self.number() } else { u64::from(self.below(end)) }
    }

    /// One of several.
    ///
    /// # Panics
    /// There is none to choose from, or there are more than 255.
    pub fn choose<'b, T>(&mut self, from: &'b [T]) -> &'b T {
        let count = u8::try_from(from.len()).expect("a short list");
        &from[usize::from(self.below(count))]
    }

    /// Up to `max` values made by `make`.
    pub fn list<T>(&mut self, max: u8, mut make: impl FnMut(&mut Self) -> T) -> Vec<T> {
        (0..self.below(max + 1)).map(|_| make(self)).collect()
    }

    /// A value three times in four.
    pub fn maybe<T>(&mut self, make: impl FnOnce(&mut Self) -> T) -> Option<T> {
        if self.one_in(4) { None } else { Some(make(self)) }
    }
}
