//! A bounded map that forgets what was not used for longest.

use std::collections::BTreeMap;

/// Values by key, each with a weight; together they weigh at most as much as allowed.
#[derive(Debug)]
pub(crate) struct Lru<K, V> {
    weight_max: usize,
    weight: usize,
    /// The next use's number.
    use_next: u64,
    values: BTreeMap<K, Held<V>>,
    /// Keys by the number of their last use.
    uses: BTreeMap<u64, K>,
}

#[derive(Debug)]
struct Held<V> {
    value: V,
    weight: usize,
    used: u64,
}

impl<K: Ord + Copy, V: Clone> Lru<K, V> {
    pub(crate) fn new(weight_max: usize) -> Self {
        Self { weight_max, weight: 0, use_next: 0, values: BTreeMap::new(), uses: BTreeMap::new() }
    }

    pub(crate) fn get(&mut self, key: K) -> Option<V> {
        let held = self.values.get_mut(&key)?;
        self.uses.remove(&held.used);
        held.used = self.use_next;
        self.uses.insert(self.use_next, key);
        self.use_next += 1;
        Some(held.value.clone())
    }

    /// Keeps a value, also when it alone weighs too much: whoever put it there is about to use it.
    pub(crate) fn insert(&mut self, key: K, value: V, weight: usize) {
        self.remove(key);
        while self.weight + weight > self.weight_max {
            let Some((_, oldest)) = self.uses.pop_first() else { break };
            if let Some(gone) = self.values.remove(&oldest) {
                self.weight -= gone.weight;
            }
        }
        self.values.insert(key, Held { value, weight, used: self.use_next });
        self.uses.insert(self.use_next, key);
        self.use_next += 1;
        self.weight += weight;
    }

    pub(crate) fn remove(&mut self, key: K) {
        if let Some(gone) = self.values.remove(&key) {
            self.uses.remove(&gone.used);
            self.weight -= gone.weight;
        }
    }

    pub(crate) fn clear(&mut self) {
        self.values.clear();
        self.uses.clear();
        self.weight = 0;
    }

    /// A number to hand to [`Lru::forget_unused_since`] later.
    pub(crate) fn mark(&self) -> u64 {
        self.use_next
    }

    /// Forgets what was not used since `mark`.
    pub(crate) fn forget_unused_since(&mut self, mark: u64) {
        let kept = self.uses.split_off(&mark);
        for key in std::mem::replace(&mut self.uses, kept).into_values() {
            if let Some(gone) = self.values.remove(&key) {
                self.weight -= gone.weight;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_recently_used_goes_first() {
        let mut lru = Lru::new(3);
        for key in 0..3 {
            lru.insert(key, key * 10, 1);
        }
        assert_eq!(lru.get(0), Some(0));
        lru.insert(3, 30, 1);
        assert_eq!((lru.get(0), lru.get(1), lru.get(2), lru.get(3)), (Some(0), None, Some(20), Some(30)));
        lru.insert(4, 40, 2);
        assert_eq!((lru.get(0), lru.get(2), lru.get(3), lru.get(4)), (None, None, Some(30), Some(40)));
        lru.insert(5, 50, 9);
        assert_eq!((lru.get(3), lru.get(4), lru.get(5)), (None, None, Some(50)));
    }

    #[test]
    fn what_was_not_used_for_long_is_forgotten() {
        let mut lru = Lru::new(8);
        lru.insert(1, 'a', 1);
        lru.insert(2, 'b', 1);
        let mark = lru.mark();
        assert_eq!(lru.get(1), Some('a'));
        lru.forget_unused_since(mark);
        assert_eq!((lru.get(1), lru.get(2)), (Some('a'), None));
        assert_eq!(lru.weight, 1);
    }
}
