//! Small scopes, explored in full: two clients, two partitions, and every sequence of a few ops.
//!
//! In each state everything is tried that may come next: each client does what it should, or sends its last request again because the
//! answer was lost, or begins anew, or leaves, or falls silent until its time is up (any of the ops that the leader's timers would
//! offer); the coordinator assigns, early or late; the topic gets one more partition; the leader fails. What an op leads to is
//! compared with a model of what the clients believe. What must change nothing is tried beside it in every state: requests and commits
//! in every other epoch or generation, those of strangers, expiries that somebody was faster than, ops of a former leader.
//!
//! What holds after every op: all invariants of the state; a replica that was restored from a snapshot just before gives the same reply,
//! effects and digest as the one with the history; epochs never go back and none has two assignments; nobody is given what another
//! client still works on; a commit is taken if and only if Kafka's rules say so, and the last one is fetched; a retried join makes no
//! second member. And from every state, when nobody fails any more, the group comes to rest with the topic shared out.
//!
//! Why it is complete for its scope although each state is visited once:
//!
//! * States are told apart by everything that decides what can follow, and by nothing else (`World::key`): log indexes and what is there
//!   for people only are left out, epochs count by their order. See `Group::normalise` and `close_gaps` for why that merges no states
//!   that behave differently.
//! * What provably leads back to the same state (refused requests, commits, signs of life) is tried in every state but takes no op
//!   away: every interleaving with such ops at any places leads through the same states.
//! * The leader may fail in every state and any number of times. Its successor has the same state, for that the restored replica is
//!   checked with every op; what differs is that requests that waited are lost.
//! * Member ids are those of the clients, or (classic protocol) made in order; what is called differently behaves alike as long as
//!   the order of ids is the same. The two clients are not interchangeable, because their order is that of their ids.
//!
//! What it does not contain: static members, subscriptions that change, regular expressions, cooperative classic clients, groups of more
//! members, and requests that overtake later ones of the same epoch (against those Kafka has no defence either). The random tests have
//! most of that.
//!
//! Together the explorations take about 65 seconds of one core. Three begin with nobody in the group and go on for 8 ops, with 20,000 to
//! 28,000 states each, some 500,000 steps and 145 million sequences of 8 steps. What takes a client of either protocol longer to reach
//! than that begins with a group at rest: three more, of 5 ops. `core/tests/exhaustion_power` shows which bugs this finds.
//!
//! A violation is reported with the fewest ops that lead to it, because states are explored in the order of ops. `EXHAUSTION_OPS` sets
//! another depth.

#[path = "../groups/harness.rs"]
#[allow(dead_code, reason = "the named tests use more of it")]
mod harness;

mod classic;
mod clients;
mod consumer;
mod encoding;
mod explore;
mod steps;
mod world;

use explore::explore;
use world::World;

fn explore_all(name: &str, root: World, ops: u8) {
    let ops = std::env::var("EXHAUSTION_OPS").ok().and_then(|ops| ops.parse().ok()).unwrap_or(ops);
    match explore(root, ops) {
        Ok(explored) => {
            println!("{name}, {ops} ops: {explored:?}");
            assert!(explored.states > 100 && explored.interleavings > 1_000, "hardly anything was explored");
        }
        Err(found) => panic!("{name}: {found}"),
    }
}

#[test]
fn members_of_a_consumer_group_in_every_order() {
    explore_all("consumer group", World::of_consumers(), 8);
}

#[test]
fn members_of_a_classic_group_in_every_order() {
    explore_all("classic group", World::of_classic_clients(), 8);
}

#[test]
fn a_classic_client_and_one_of_the_consumer_protocol_in_every_order() {
    explore_all("mixed group", World::of_both(), 8);
}

#[test]
fn a_consumer_group_at_rest_is_disturbed_in_every_way() {
    explore_all("consumer group at rest", World::of_consumers().at_rest(), 5);
}

#[test]
fn a_classic_group_at_rest_is_disturbed_in_every_way() {
    explore_all("classic group at rest", World::of_classic_clients().at_rest(), 5);
}

#[test]
fn a_mixed_group_at_rest_is_disturbed_in_every_way() {
    explore_all("mixed group at rest", World::of_both().at_rest(), 5);
}
