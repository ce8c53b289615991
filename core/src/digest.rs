//! The hash that replicas compare: a sum of row hashes, so that one changed row costs one row.

use serde::Serialize;

/// The 128-bit hash of one row of state. The digest of a table is the wrapping sum over its rows; `kind` tells tables apart.
pub(crate) fn row_hash(kind: u8, key: &impl Serialize, value: &impl Serialize) -> u128 {
    use core::hash::Hasher;
    use siphasher::sip128::{Hasher128, SipHasher13};
    // A row always encodes: postcard fails only on types that know no length in advance, which rows do not hold.
    let bytes = postcard::to_allocvec(&(kind, key, value)).unwrap_or_default();
    let mut hasher = SipHasher13::new();
    hasher.write(&bytes);
    hasher.finish128().as_u128()
}
