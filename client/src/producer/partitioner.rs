//! Which partition a record goes to.

/// The hash of a key, as Kafka's Java client computes it, so that records with equal keys meet in one partition
/// whichever client wrote them. MurmurHash2, 32 bits, with the seed that the Java client has.
pub fn murmur2(bytes: &[u8]) -> u32 {
    const SEED: u32 = 0x9747_b28c;
    const M: u32 = 0x5bd1_e995;
    const R: u32 = 24;
    let mut hash = SEED ^ bytes.len() as u32;
    let (words, tail) = bytes.as_chunks();
    for word in words {
        let mut k = u32::from_le_bytes(*word).wrapping_mul(M);
        k ^= k >> R;
        hash = hash.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    if !tail.is_empty() {
        for (index, &byte) in tail.iter().enumerate() {
            hash ^= u32::from(byte) << (8 * index);
        }
        hash = hash.wrapping_mul(M);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(M);
    hash ^ hash >> 15
}

/// The partition for a key, as Kafka's Java client chooses it.
pub fn partition_for_key(key: &[u8], partitions: i32) -> i32 {
    assert!(partitions > 0, "a topic has at least one partition");
    (murmur2(key) & 0x7fff_ffff) as i32 % partitions
}

/// Chooses for records without a key: one partition until its batch is closed, then the next that has a leader, so that
/// batches fill.
#[derive(Clone, Debug)]
pub(crate) struct Sticky {
    current: usize,
}

impl Sticky {
    /// `random` decides where to begin, so that many producers do not all begin at partition 0.
    pub(crate) fn new(random: u64) -> Self {
        Self { current: (random >> 1) as usize }
    }

    pub(crate) fn current(&self, partitions: usize) -> usize {
        self.current % partitions
    }

    /// The batch of the current partition was closed. `is_available` tells of a partition whether it has a leader.
    pub(crate) fn advance(&mut self, partitions: usize, is_available: impl Fn(usize) -> bool) {
        let from = self.current(partitions);
        let next = (1..=partitions).map(|step| (from + step) % partitions).find(|&at| is_available(at));
        self.current = next.unwrap_or((from + 1) % partitions);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known values of the Java client's hash.
    #[test]
    fn hashes_are_the_java_clients() {
        let known: [(&[u8], i32); 6] = [
            (b"21", -973_932_308),
            (b"foobar", -790_332_482),
            (b"a-little-bit-long-string", -985_981_536),
            (b"a-little-bit-longer-string", -1_486_304_829),
            (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
            (b"abc", 479_470_107),
        ];
        for (key, hash) in known {
            assert_eq!(murmur2(key) as i32, hash, "{}", String::from_utf8_lossy(key));
        }
    }

    #[test]
    fn a_key_keeps_its_partition_and_all_partitions_get_keys() {
        let mut counts = [0; 7];
        for key in 0..7_000_u32 {
            let at = partition_for_key(&key.to_be_bytes(), 7);
            assert_eq!(at, partition_for_key(&key.to_be_bytes(), 7));
            counts[at as usize] += 1;
        }
        assert!(counts.iter().all(|&count| count > 800), "{counts:?}");
    }

    #[test]
    fn sticky_goes_round_and_passes_over_partitions_without_a_leader() {
        let mut sticky = Sticky::new(0);
        let mut seen = Vec::new();
        for _ in 0..4 {
            seen.push(sticky.current(4));
            sticky.advance(4, |at| at != 2);
        }
        assert_eq!(seen, [0, 1, 3, 0]);
        sticky.advance(4, |_| false);
        assert_eq!(sticky.current(4), 2, "without any leader it still moves on");
        assert_eq!(sticky.current(1), 0, "fewer partitions than before");
    }
}
