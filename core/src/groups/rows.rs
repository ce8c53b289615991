//! A table whose digest is kept as its rows change: the hash of a row is taken anew only when that row was written.
//!
//! A [`RowMut`] notices at its end whether it was written through, so no change can miss the digest.

use alloc::borrow::Borrow;
use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use core::ops::{Bound, Deref, DerefMut, RangeBounds};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::digest::row_hash;

#[derive(Clone, Debug)]
struct Row<V> {
    value: V,
    hash: u128,
}

/// Rows by key, with the wrapping sum of their hashes. `KIND` tells tables apart in the hash. A clone shares
/// everything; the first change after it copies the table's keys, and a row when that row is written.
#[derive(Clone, Debug)]
pub(crate) struct Rows<const KIND: u8, K, V> {
    rows: Arc<BTreeMap<K, Arc<Row<V>>>>,
    sum: u128,
}

impl<const KIND: u8, K, V> Default for Rows<KIND, K, V> {
    fn default() -> Self {
        Self { rows: Arc::default(), sum: 0 }
    }
}

impl<const KIND: u8, K: Clone + Ord + Serialize, V: Clone + Serialize> Rows<KIND, K, V> {
    /// Wrapping sum of the hashes of all rows.
    pub(crate) fn sum(&self) -> u128 {
        self.sum
    }

    /// The same sum from scratch, to check the one that was kept.
    pub(crate) fn sum_from_scratch(&self) -> u128 {
        self.rows.iter().fold(0_u128, |sum, (key, row)| sum.wrapping_add(row_hash(KIND, key, &row.value)))
    }

    pub(crate) fn len(&self) -> usize {
        self.rows.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    pub(crate) fn contains_key<Q: Ord + ?Sized>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
    {
        self.rows.contains_key(key)
    }

    pub(crate) fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        self.rows.get(key).map(|row| &row.value)
    }

    /// A row to change; its hash follows when the returned guard ends.
    pub(crate) fn get_mut<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<RowMut<'_, KIND, K, V>>
    where
        K: Borrow<Q>,
    {
        if !self.rows.contains_key(key) {
            return None;
        }
        let (key, row) =
            Arc::make_mut(&mut self.rows).range_mut::<Q, _>((Bound::Included(key), Bound::Included(key))).next()?;
        Some(RowMut { key, row, sum: &mut self.sum, written: false })
    }

    pub(crate) fn insert(&mut self, key: K, value: V) -> Option<V> {
        let hash = row_hash(KIND, &key, &value);
        self.sum = self.sum.wrapping_add(hash);
        let old = Arc::make_mut(&mut self.rows).insert(key, Arc::new(Row { value, hash }))?;
        self.sum = self.sum.wrapping_sub(old.hash);
        Some(Arc::unwrap_or_clone(old).value)
    }

    pub(crate) fn remove<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        if !self.rows.contains_key(key) {
            return None;
        }
        let old = Arc::make_mut(&mut self.rows).remove(key)?;
        self.sum = self.sum.wrapping_sub(old.hash);
        Some(Arc::unwrap_or_clone(old).value)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.rows.iter().map(|(key, row)| (key, &row.value))
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = &K> {
        self.rows.keys()
    }

    pub(crate) fn first_key(&self) -> Option<&K> {
        self.rows.first_key_value().map(|(key, _)| key)
    }

    pub(crate) fn last_key(&self) -> Option<&K> {
        self.rows.last_key_value().map(|(key, _)| key)
    }

    pub(crate) fn values(&self) -> impl Iterator<Item = &V> {
        self.rows.values().map(|row| &row.value)
    }

    pub(crate) fn range(&self, range: impl RangeBounds<K>) -> impl Iterator<Item = (&K, &V)> {
        self.rows.range(range).map(|(key, row)| (key, &row.value))
    }
}

/// A row that may be written through.
pub(crate) struct RowMut<'a, const KIND: u8, K: Serialize, V: Clone + Serialize> {
    key: &'a K,
    row: &'a mut Arc<Row<V>>,
    sum: &'a mut u128,
    written: bool,
}

impl<const KIND: u8, K: Serialize, V: Clone + Serialize> Deref for RowMut<'_, KIND, K, V> {
    type Target = V;

    fn deref(&self) -> &V {
        &self.row.value
    }
}

impl<const KIND: u8, K: Serialize, V: Clone + Serialize> DerefMut for RowMut<'_, KIND, K, V> {
    fn deref_mut(&mut self) -> &mut V {
        self.written = true;
        &mut Arc::make_mut(self.row).value
    }
}

impl<const KIND: u8, K: Serialize, V: Clone + Serialize> Drop for RowMut<'_, KIND, K, V> {
    fn drop(&mut self) {
        if self.written {
            let hash = row_hash(KIND, self.key, &self.row.value);
            *self.sum = self.sum.wrapping_sub(self.row.hash).wrapping_add(hash);
            Arc::make_mut(self.row).hash = hash;
        }
    }
}

impl<const KIND: u8, K: Clone + Ord + Serialize, V: Clone + Serialize> Serialize for Rows<KIND, K, V> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}

impl<'de, const KIND: u8, K: Clone + Ord + Serialize + Deserialize<'de>, V: Clone + Serialize + Deserialize<'de>>
    Deserialize<'de> for Rows<KIND, K, V>
{
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut rows = Self::default();
        for (key, value) in BTreeMap::<K, V>::deserialize(deserializer)? {
            rows.insert(key, value);
        }
        Ok(rows)
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::{String, ToString};
    use alloc::vec::Vec;

    use super::*;

    type Table = Rows<7, String, u32>;

    #[test]
    fn the_sum_follows_every_change_and_forgets_what_was_undone() {
        let mut table = Table::default();
        assert_eq!(table.sum(), 0);
        table.insert("a".to_string(), 1);
        let one = table.sum();
        table.insert("b".to_string(), 2);
        if let Some(mut row) = table.get_mut("b") {
            *row = 3;
        }
        assert_eq!(table.sum(), table.sum_from_scratch());
        table.insert("b".to_string(), 4);
        assert_eq!(table.sum(), table.sum_from_scratch());
        assert_eq!(table.remove("b"), Some(4));
        assert_eq!(table.sum(), one);
    }

    #[test]
    fn a_row_that_was_only_read_keeps_its_hash() {
        let mut table = Table::default();
        table.insert("a".to_string(), 1);
        let before = table.sum();
        assert_eq!(table.get_mut("a").map(|row| *row), Some(1));
        assert_eq!(table.sum(), before);
        assert!(table.get_mut("x").is_none());
    }

    #[test]
    fn a_table_read_back_has_the_same_sum() {
        let mut table = Table::default();
        for i in 0..100_u32 {
            table.insert(i.to_string(), i);
        }
        let bytes: Vec<u8> = postcard::to_allocvec(&table).unwrap();
        let back: Table = postcard::from_bytes(&bytes).unwrap();
        assert_eq!(back.sum(), table.sum());
        assert_eq!(back.len(), 100);
    }
}
