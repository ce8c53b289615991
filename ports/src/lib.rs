//! Free ports, for tests.

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::sync::Mutex;

/// Below the range from which operating systems take the ports of outgoing connections: the port of a broker that is down must still be
/// free when it comes back.
const RANGE: std::ops::Range<u16> = 12_000..32_000;

/// A port of the loopback interface on which nobody listens, and which this process has not been given before.
///
/// # Panics
/// There is none.
pub fn free_port() -> u16 {
    static TAKEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    let mut taken = TAKEN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    // Test processes that run at the same time begin at different places.
    let count = u32::from(RANGE.end - RANGE.start);
    let first = std::process::id().wrapping_mul(97) % count;
    for step in 0..count {
        let port = RANGE.start + u16::try_from((first + step) % count).expect("a step lies within the range");
        if !taken.contains(&port) && TcpListener::bind(("127.0.0.1", port)).is_ok() {
            taken.insert(port);
            return port;
        }
    }
    panic!("no port between {} and {} is free", RANGE.start, RANGE.end);
}
