//! The last offset of each key.

use std::collections::BTreeMap;
use std::hash::Hasher;

use lockstep_env::Env;
use lockstep_probe::Mistake;
use siphasher::sip128::{Hasher128, SipHasher13};

/// Which record of each key is the last one, as far as was looked. Keys are kept as hashes of 128 bits under a secret of their own, so that nobody can choose keys that
/// are taken for each other.
#[derive(Debug)]
pub(super) struct Keys {
    secret: (u64, u64),
    latest: BTreeMap<u128, i64>,
    keys_max: usize,
}

impl Keys {
    /// Room for so many different keys.
    pub(super) fn new<E: Env>(keys_max: usize) -> Self {
        Self { secret: (E::random_u64(), E::random_u64()), latest: BTreeMap::new(), keys_max }
    }

    /// What stands for a key.
    pub(super) fn hash(&self, key: &[u8]) -> u128 {
        let mut hasher = SipHasher13::new_with_keys(self.secret.0, self.secret.1);
        hasher.write(key);
        let hash = hasher.finish128().as_u128();
        if Mistake::CompactionMistakesKeys.is_made() { hash % 4 } else { hash }
    }

    /// Notes that the key with this hash is at `offset`, which is later than everywhere before.
    pub(super) fn note(&mut self, hash: u128, offset: i64) {
        self.latest.insert(hash, offset);
    }

    /// May so many more keys be noted, should they all be new ones?
    pub(super) fn has_room_for(&self, keys: usize) -> bool {
        self.latest.len().saturating_add(keys) <= self.keys_max || self.latest.is_empty()
    }

    /// Was the key noted at a later offset?
    pub(super) fn is_superseded(&self, key: &[u8], offset: i64) -> bool {
        self.latest.get(&self.hash(key)).is_some_and(|latest| *latest > offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lockstep_env::tokio_env::TokioEnv;

    #[test]
    fn only_what_comes_before_the_last_one_is_superseded() {
        let mut keys = Keys::new::<TokioEnv>(3);
        for (key, offset) in [("a", 1), ("b", 2), ("a", 5)] {
            keys.note(keys.hash(key.as_bytes()), offset);
        }
        for (key, offset, expected) in
            [("a", 1, true), ("a", 4, true), ("a", 5, false), ("b", 2, false), ("c", 0, false)]
        {
            assert_eq!(keys.is_superseded(key.as_bytes(), offset), expected, "{key} at {offset}");
        }
    }

    #[test]
    fn one_batch_always_has_room() {
        let mut keys = Keys::new::<TokioEnv>(3);
        assert!(keys.has_room_for(100), "or nothing would ever be compacted");
        keys.note(keys.hash(b"a"), 1);
        assert!(keys.has_room_for(2));
        assert!(!keys.has_room_for(3));
    }
}
