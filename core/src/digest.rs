//! The hash that replicas compare: a sum of row hashes, so that one changed row costs one row.

use alloc::vec::Vec;

use serde::Serialize;

/// Tables of the state, as [`row_hash`] tells them apart. Groups use kinds from 0x40 on.
pub(crate) mod kind {
    /// Topic id → topic record.
    pub(crate) const TOPIC: u8 = 1;
    /// Node id → broker record.
    pub(crate) const BROKER: u8 = 2;
    /// Version → topic deleted.
    pub(crate) const DELETION: u8 = 3;
    /// Counters of the directory.
    pub(crate) const COUNTERS: u8 = 4;
    /// Partition → first and next offset.
    pub(crate) const PARTITION: u8 = 5;
    /// Partition and epoch → start offset.
    pub(crate) const EPOCH: u8 = 6;
    /// Partition and producer → producer state.
    pub(crate) const PRODUCER: u8 = 7;
    /// Partition → its last compaction.
    pub(crate) const COMPACTION: u8 = 8;
}

/// The 128-bit hash of one row of state. The digest of a table is the wrapping sum over its rows; `kind` tells tables apart.
pub(crate) fn row_hash(kind: u8, key: &impl Serialize, value: &impl Serialize) -> u128 {
    use core::hash::Hasher;
    use siphasher::sip128::{Hasher128, SipHasher13};
    let row = (kind, key, value);
    let mut hasher = SipHasher13::new();
    // Nearly every row fits; the heap is for those that do not.
    let mut buffer = [0; 256];
    if let Ok(bytes) = postcard::to_slice(&row, &mut buffer) {
        hasher.write(bytes);
    } else {
        // A row always encodes: postcard fails only on types that know no length in advance, which rows do not hold.
        hasher.write(&postcard::to_extend(&row, Vec::with_capacity(1024)).unwrap_or_default());
    }
    hasher.finish128().as_u128()
}

/// A running sum of row hashes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct RowSum(pub(crate) u128);

impl RowSum {
    /// A row came.
    pub(crate) fn add(&mut self, kind: u8, key: &impl Serialize, value: &impl Serialize) {
        self.0 = self.0.wrapping_add(row_hash(kind, key, value));
    }
    /// A row went; key and value are what was added.
    pub(crate) fn remove(&mut self, kind: u8, key: &impl Serialize, value: &impl Serialize) {
        self.0 = self.0.wrapping_sub(row_hash(kind, key, value));
    }
}
