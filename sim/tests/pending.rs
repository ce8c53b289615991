//! What the simulator should break or check and cannot, because the broker does not have it. When one of these comes, the test here fails:
//! then its faults and checks belong into the simulator, and its line out of here.

use lockstep_wire::versions::advertised;

/// What is missing, and the number of the request by which it would be known (AddPartitionsToTxn, EndTxn, TxnOffsetCommit,
/// UpdateFeatures).
const PENDING: &[(i16, &str)] = &[
    (24, "transactions: a read of an aborted write"),
    (26, "transactions: a read of an aborted write"),
    (28, "transactions: offsets and records of one transaction"),
    (57, "two feature levels side by side, and raising the level under faults"),
];

#[test]
fn what_the_broker_has_the_simulator_breaks() {
    for (key, what) in PENDING {
        let served = advertised().any(|range| range.api_key as i16 == *key);
        assert!(
            !served,
            "request {key} is served now: {what}. Bring it into sim/src/faults.rs, sim/src/workload and checker"
        );
    }
}
