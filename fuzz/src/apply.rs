//! The state machine under any sequence of ops, and snapshots of it.

use lockstep_core::{ClusterStateMachine, Op, Position, ShardId};

use crate::input::Input;
use crate::op::arbitrary_op;

/// Ops of one run: beyond that nothing new is learnt.
const OPS_MAX: u64 = 200;
const SHARD_COUNT: u16 = 2;

/// A sequence of ops, some of them decoded from the bytes as they are, on two replicas of one shard. No op breaks an invariant, both
/// replicas come to the same state, and a snapshot holds all of it.
pub fn apply(data: &[u8]) {
    let mut input = Input::new(data);
    let shard = ShardId(u16::from(input.below(2)));
    let mut state = ClusterStateMachine::new(shard, SHARD_COUNT);
    let mut replica = ClusterStateMachine::new(shard, SHARD_COUNT);
    let mut position = Position { term: 1, index: 0 };
    while !input.is_empty() && position.index < OPS_MAX {
        position.index += 1;
        if input.one_in(32) {
            position.term += 1;
        }
        let op = if input.one_in(32) {
            let len = usize::from(input.byte());
            match Op::decode(input.take(len)) {
                Ok(op) => op,
                Err(_) => continue,
            }
        } else {
            arbitrary_op(&mut input)
        };
        let payload_len = usize::from(input.byte()) * 2;
        let applied =
            state.apply(position, &op, payload_len).unwrap_or_else(|violation| panic!("{op:?}: {violation:?}"));
        let same = replica.apply(position, &op, payload_len);
        assert_eq!(same.as_ref(), Ok(&applied), "two replicas answer {op:?} differently");
        if let Err(violation) = state.check_invariants() {
            panic!("{op:?}: {violation:?}");
        }
        if input.one_in(16) {
            replica = restored(&state);
        }
    }
    assert_eq!(state.digest(), replica.digest(), "two replicas came to different states");
    restored(&state);
}

/// The state that comes out of its snapshot.
fn restored(state: &ClusterStateMachine) -> ClusterStateMachine {
    let snapshot = state.snapshot();
    let restored = ClusterStateMachine::restore(&snapshot).expect("a snapshot can be restored");
    assert_eq!(restored.digest(), state.digest(), "a snapshot holds another state");
    assert_eq!(restored.snapshot(), snapshot, "a snapshot of what was restored differs");
    restored
}

/// A snapshot from a hostile peer or a damaged disk: an error, or a sound state.
pub fn snapshot(data: &[u8]) {
    let Ok(state) = ClusterStateMachine::restore(data) else { return };
    if let Err(violation) = state.check_invariants() {
        panic!("restored although {violation:?}");
    }
    restored(&state);
    // Whatever was restored takes the next op without a panic.
    let mut state = state;
    let applied = state.applied();
    let mut input = Input::new(data);
    let (Some(index), term) = (applied.index.checked_add(1), applied.term) else { return };
    drop(state.apply(Position { term, index }, &arbitrary_op(&mut input), 64));
}
