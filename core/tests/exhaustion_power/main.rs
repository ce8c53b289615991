//! The exhaustion's power: bugs that are switched on, one after the other, must all be found by it. They are switched on for the whole
//! process, which is why this is a target of its own with a single test.

#[path = "../groups/harness.rs"]
#[allow(dead_code, reason = "the named tests use more of it")]
mod harness;

#[path = "../exhaustion/classic.rs"]
mod classic;
#[path = "../exhaustion/clients.rs"]
mod clients;
#[path = "../exhaustion/consumer.rs"]
mod consumer;
#[path = "../exhaustion/encoding.rs"]
mod encoding;
#[path = "../exhaustion/explore.rs"]
mod explore;
#[path = "../exhaustion/steps.rs"]
mod steps;
#[path = "../exhaustion/world.rs"]
mod world;

use explore::explore;
use lockstep_probe::Mistake;
use world::World;

/// Makes the world that is explored.
type Root = fn() -> World;

#[test]
fn every_mistake_within_its_scope_is_found() {
    if !Mistake::possible() {
        return;
    }
    let consumers: Root = World::of_consumers;
    let classics: Root = World::of_classic_clients;
    let classics_at_rest: Root = || World::of_classic_clients().at_rest();
    let both: Root = World::of_both;
    let mistakes: &[(Mistake, Root, u8)] = &[
        (Mistake::CommitWithoutGenerationCheck, classics, 6),
        (Mistake::CommitOfStaleEpoch, consumers, 6),
        (Mistake::PartitionGivenBeforeRelease, consumers, 6),
        (Mistake::RevocationTimeoutNotCancelled, consumers, 6),
        (Mistake::EmptyGroupRestartsEpochs, consumers, 6),
        (Mistake::EmptyGroupRestartsEpochs, classics, 6),
        (Mistake::OffsetsForgottenWithLastMember, consumers, 6),
        (Mistake::OffsetsForgottenWithLastMember, classics, 6),
        (Mistake::SyncAnsweredWithFormerAssignment, classics_at_rest, 4),
        (Mistake::ExpiryDespiteLaterHeartbeat, consumers, 6),
        (Mistake::ExpiryDespiteLaterHeartbeat, classics, 6),
        (Mistake::AddedPartitionsUnnoticed, consumers, 6),
        (Mistake::RestoreForgetsOffsetsOfEmptyGroups, consumers, 6),
        (Mistake::UnreplicatedStateDecides, consumers, 6),
        (Mistake::UnreplicatedStateDecides, classics, 6),
        (Mistake::UnreplicatedStateDecides, both, 6),
    ];
    let mut missed = Vec::new();
    for (mistake, root, ops) in mistakes {
        let root = root();
        mistake.make();
        let outcome = explore(root, *ops);
        Mistake::make_none();
        match outcome {
            Ok(explored) => missed.push(format!("{}: {explored:?}", mistake.name())),
            Err(found) => println!("{} is found: {found}", mistake.name()),
        }
    }
    assert!(missed.is_empty(), "not found: {missed:#?}");
}
