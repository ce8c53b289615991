//! Snapshots: whole, deterministic, and refused when they are not ours.

use lockstep_core::{ClusterStateMachine, Op, Position};

use crate::harness::{Shard, add_partitions, delete, idempotent, plain, register, set_configs};

fn busy_shard() -> Shard {
    let mut shard = Shard::new(0, 2);
    shard.create(1, "orders", 4);
    shard.create(2, "old.events", 3);
    shard.topic_op(&set_configs(1, &[("message.timestamp.type", "LogAppendTime")])).0.unwrap();
    shard.topic_op(&add_partitions(1, 6)).0.unwrap();
    shard.apply(&register(1, 9092), 0);
    for (term, sequence) in [(2, 0), (2, 3), (5, 6)] {
        shard.position.term = term;
        shard.append_all(vec![idempotent(0, sequence, 3), plain(1, 2, 4), plain(2, 1, 1)]);
    }
    shard.topic_op(&delete(2)).0.unwrap();
    shard
}

#[test]
fn a_restored_state_is_the_same_and_goes_on_alike() {
    let mut original = busy_shard();
    let bytes = original.state.snapshot();
    let mut restored = Shard { state: ClusterStateMachine::restore(&bytes).unwrap(), position: original.position };
    assert_eq!(restored.state.digest(), original.state.digest());
    assert_eq!(restored.state.snapshot(), bytes);
    assert_eq!(restored.state.applied(), original.position);
    assert_eq!(restored.state.directory(), original.state.directory());
    assert_eq!(restored.state.partitions(), original.state.partitions());
    for append in [idempotent(0, 6, 3), idempotent(0, 9, 1), plain(1, 0, 1)] {
        assert_eq!(restored.append(append.clone()), original.append(append));
    }
    assert_eq!(restored.create(3, "new", 5), original.create(3, "new", 5));
    assert_eq!(restored.state.digest(), original.state.digest());
    assert_eq!(restored.state.snapshot(), original.state.snapshot());
}

#[test]
fn a_shortened_lengthened_or_foreign_snapshot_is_refused() {
    let bytes = busy_shard().state.snapshot();
    for length in 0..bytes.len() {
        assert!(ClusterStateMachine::restore(&bytes[..length]).is_err(), "cut to {length} bytes");
    }
    let mut longer = bytes.clone();
    longer.push(0);
    assert!(ClusterStateMachine::restore(&longer).is_err());
    let mut foreign = bytes;
    foreign[0] += 1;
    assert!(ClusterStateMachine::restore(&foreign).is_err());
}

#[test]
fn a_snapshot_with_any_bit_turned_is_refused_or_sound() {
    let bytes = busy_shard().state.snapshot();
    for bit in 0..bytes.len() * 8 {
        let mut damaged = bytes.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        if let Ok(mut state) = ClusterStateMachine::restore(&damaged) {
            state.check_invariants().unwrap();
            let Some(index) = state.applied().index.checked_add(1) else { continue };
            let position = Position { term: state.applied().term, index };
            let op = lockstep_core::op::AppendMessage { now_ms: 0, appends: vec![plain(1, 0, 1), idempotent(0, 9, 1)] };
            let _ = state.apply(position, &Op::AppendMessage(op), 200);
        }
    }
}

#[test]
fn the_digest_tells_states_apart() {
    let reference = busy_shard().state.digest();
    let changes: [fn(&mut Shard); 5] = [
        |shard| drop(shard.append(plain(1, 0, 1))),
        |shard| drop(shard.append(idempotent(0, 9, 1))),
        |shard| drop(shard.topic_op(&set_configs(1, &[]))),
        |shard| drop(shard.apply(&register(1, 9093), 0)),
        |shard| drop(shard.create(3, "another", 1)),
    ];
    let mut seen = vec![reference];
    for change in changes {
        let mut shard = busy_shard();
        change(&mut shard);
        assert!(!seen.contains(&shard.state.digest()));
        seen.push(shard.state.digest());
    }
    assert_eq!(busy_shard().state.digest(), reference);
}
