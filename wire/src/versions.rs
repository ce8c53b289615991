//! The versions that are served, one row a request.
//!
//! The table is our own: the codec's says more than it can decode (requests of OffsetCommit, OffsetFetch and
//! InitProducerId stop one version before their responses).

use crate::api::ApiKey;

/// An inclusive range of versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VersionRange {
    /// The lowest.
    pub min: i16,
    /// The highest.
    pub max: i16,
}

impl VersionRange {
    /// Whether `version` lies in it.
    pub const fn contains(self, version: i16) -> bool {
        self.min <= version && version <= self.max
    }

    /// The highest version in both ranges.
    pub fn highest_common(self, other: VersionRange) -> Option<i16> {
        let max = self.max.min(other.max);
        (max >= self.min.max(other.min)).then_some(max)
    }

    /// All of them, ascending.
    pub fn iter(self) -> impl DoubleEndedIterator<Item = i16> {
        self.min..=self.max
    }
}

/// A row of an ApiVersions response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdvertisedVersions {
    /// Request.
    pub api_key: ApiKey,
    /// Lowest version named; Produce is named from 0 and served from 3.
    pub version_min: i16,
    /// Highest version.
    pub version_max: i16,
}

/// What an ApiVersions response names, ascending by key.
pub fn advertised() -> impl Iterator<Item = AdvertisedVersions> {
    ApiKey::ALL.iter().filter(|key| key.is_advertised()).map(|&api_key| AdvertisedVersions {
        api_key,
        version_min: api_key.advertised_version_min(),
        version_max: api_key.versions().max,
    })
}
