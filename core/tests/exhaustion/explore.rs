//! Every state that can be reached, layer by layer, each once; and from each of them to rest.

use std::collections::{HashMap, VecDeque};

use lockstep_core::Op;
use lockstep_core::op::LeaveConsumerGroup;

use crate::clients::{ClassicClient, Client};
use crate::steps::Step;
use crate::world::{NAMES, World};

/// Steps within which a group comes to rest when everybody does as told. What is observed is below half of it.
const REST_STEPS_MAX: u16 = 60;

/// What an exploration did.
#[derive(Debug, Default)]
pub(crate) struct Explored {
    /// Different states.
    pub(crate) states: usize,
    /// Steps taken from them.
    pub(crate) transitions: u64,
    /// Ops and requests that had to change nothing.
    pub(crate) probes: u64,
    /// Sequences of as many steps as the depth, all of which are covered.
    pub(crate) interleavings: u128,
    /// The longest way to rest.
    pub(crate) rest_steps: u16,
}

/// What must hold and does not, with the fewest ops after which it does not.
#[derive(Debug)]
pub(crate) struct Found {
    /// What came before, from the root on.
    pub(crate) steps: Vec<Step>,
    /// What is wrong.
    pub(crate) message: String,
}

impl std::fmt::Display for Found {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "{}", self.message)?;
        self.steps.iter().try_for_each(|step| writeln!(f, "  after {step:?}"))
    }
}

struct Explorer {
    depth: u8,
    /// Numbers of states by their keys.
    numbers: HashMap<u128, u32>,
    /// By number: where each was reached from first, and after how many ops.
    reached: Vec<Reached>,
    /// By numbers.
    edges: Vec<(u32, u32)>,
    /// Steps that a state is away from rest, by key.
    rest: HashMap<u128, u16>,
    explored: Explored,
}

/// States by number, with their keys.
type Layer = HashMap<u32, (u128, World)>;

struct Reached {
    from: Option<(u32, Step)>,
    ops: u8,
}

/// Explores everything that can happen from `root` within `depth` ops; failing over and what is answered from the applied state
/// without an op counts nothing.
pub(crate) fn explore(root: World, depth: u8) -> Result<Explored, Found> {
    let mut explorer = Explorer {
        depth,
        numbers: HashMap::new(),
        reached: Vec::new(),
        edges: Vec::new(),
        rest: HashMap::new(),
        explored: Explored::default(),
    };
    let key = root.key();
    explorer.number(key, None, 0);
    let mut layer = HashMap::from([(0, (key, root))]);
    for ops in 0..=depth {
        layer = explorer.explore_layer(layer, ops)?;
    }
    explorer.explored.states = explorer.reached.len();
    explorer.explored.interleavings = explorer.interleavings();
    Ok(explorer.explored)
}

impl Explorer {
    /// All states that are first reached after so many ops; gives those of the next layer.
    fn explore_layer(&mut self, layer: Layer, ops: u8) -> Result<Layer, Found> {
        let mut layer: Vec<(u32, (u128, World))> = layer.into_iter().collect();
        layer.sort_by_key(|(number, _)| *number);
        let mut queue: VecDeque<(u32, (u128, World))> = layer.into();
        let mut next = Layer::new();
        while let Some((number, (key, mut world))) = queue.pop_front() {
            let found = |message| self.found(number, None, message);
            world.restore_twin().map_err(found)?;
            self.explored.probes += world.probe(key).map_err(found)?;
            self.comes_to_rest(&world, key).map_err(|(steps, message)| {
                let mut found = self.found(number, None, message);
                found.steps.extend(steps);
                found
            })?;
            for step in world.steps() {
                if ops == self.depth && !step.may_need_no_op() {
                    continue;
                }
                let mut after = world.clone();
                let taken = after.take(step).map_err(|message| self.found(number, Some(step), message))?;
                let Some(taken) = taken.filter(|taken| ops + taken <= self.depth) else { continue };
                self.explored.transitions += 1;
                let key = after.key();
                let reached = self.number(key, Some((number, step)), ops + taken);
                self.edges.push((number, reached.number));
                if reached.new && taken > 0 {
                    next.insert(reached.number, (key, after));
                } else if reached.new || reached.sooner {
                    next.remove(&reached.number);
                    queue.push_back((reached.number, (key, after)));
                }
            }
        }
        Ok(next)
    }

    fn number(&mut self, key: u128, from: Option<(u32, Step)>, ops: u8) -> Numbered {
        let number = self.reached.len() as u32;
        let number = *self.numbers.entry(key).or_insert(number);
        let Some(known) = self.reached.get_mut(number as usize) else {
            self.reached.push(Reached { from, ops });
            return Numbered { number, new: true, sooner: false };
        };
        // Reached in this layer after all, by a step without an op: more can follow.
        let sooner = ops < known.ops;
        if sooner {
            *known = Reached { from, ops };
        }
        Numbered { number, new: false, sooner }
    }

    fn found(&self, number: u32, last: Option<Step>, message: String) -> Found {
        let mut steps: Vec<Step> = last.into_iter().collect();
        let mut number = number;
        while let Some((from, step)) = self.reached[number as usize].from {
            steps.push(step);
            number = from;
        }
        steps.reverse();
        Found { steps, message }
    }

    /// Everybody does as told from here on, and nobody fails: the group comes to rest. Each step of the way is the first of those that
    /// change anything, so that a way never goes on twice from one state.
    fn comes_to_rest(&mut self, world: &World, mut key: u128) -> Result<(), (Vec<Step>, String)> {
        let mut world = world.clone();
        let mut way = Vec::new();
        let mut steps = Vec::new();
        let left = loop {
            if let Some(left) = self.rest.get(&key) {
                break *left;
            }
            way.push(key);
            if way.len() > usize::from(REST_STEPS_MAX) {
                return Err((steps, "no end is in sight".to_owned()));
            }
            let mut next = None;
            for step in world.fair_steps() {
                let mut after = world.clone();
                let taken = after.take(step).map_err(|message| (steps.clone(), format!("{step:?}: {message}")))?;
                let after_key = after.key();
                if taken.is_some() && after_key != key {
                    next = Some((step, after, after_key));
                    break;
                }
            }
            let Some((step, after, after_key)) = next else {
                world.is_settled().map_err(|message| (steps.clone(), message))?;
                way.pop();
                self.rest.insert(key, 0);
                break 0;
            };
            steps.push(step);
            (world, key) = (after, after_key);
        };
        for (left, key) in (left + 1..).zip(way.into_iter().rev()) {
            if left > REST_STEPS_MAX {
                return Err((steps, format!("{left} steps to rest")));
            }
            self.explored.rest_steps = self.explored.rest_steps.max(left);
            self.rest.insert(key, left);
        }
        Ok(())
    }

    /// Ways of as many steps as the depth through the states, from the first one on.
    fn interleavings(&self) -> u128 {
        let mut ways = vec![0_u128; self.reached.len()];
        ways[0] = 1;
        for _ in 0..self.depth {
            let mut longer = vec![0_u128; ways.len()];
            for (from, to) in &self.edges {
                longer[*to as usize] += ways[*from as usize];
            }
            ways = longer;
        }
        ways.iter().sum()
    }
}

struct Numbered {
    number: u32,
    new: bool,
    sooner: bool,
}

impl Step {
    fn may_need_no_op(self) -> bool {
        matches!(
            self,
            Self::Beat { .. }
                | Self::Joined { .. }
                | Self::Sync { .. }
                | Self::Synced { .. }
                | Self::ClassicBeat { .. }
                | Self::FailOver
        )
    }
}

impl World {
    /// This world when everybody has done as told for long enough.
    pub(crate) fn at_rest(mut self) -> Self {
        for _ in 0..REST_STEPS_MAX {
            let key = self.key();
            let changed = self.fair_steps().into_iter().find_map(|step| {
                let mut after = self.clone();
                let taken = after.take(step).expect("nothing is wrong on the way to rest");
                (taken.is_some() && after.key() != key).then_some(after)
            });
            let Some(changed) = changed else { return self };
            self = changed;
        }
        panic!("no end is in sight: {:?}", self.clients);
    }

    /// What happens when nobody fails, the most pressing first: answers arrive, the coordinator assigns, clients do as told, and
    /// only members whose clients are no more fall silent.
    fn fair_steps(&self) -> Vec<Step> {
        let mut steps = Vec::new();
        let lost = false;
        for (client, known) in self.clients.iter().enumerate() {
            match known {
                Client::Consumer(consumer) if consumer.waiting => {
                    steps.push(Step::Assign { client: Some(client), lost });
                }
                Client::Classic(classic) => match classic {
                    ClassicClient::Joining { .. } => steps.push(Step::Joined { client, lost }),
                    ClassicClient::Syncing { .. } => steps.push(Step::Synced { client, lost }),
                    _ => {}
                },
                Client::Consumer(_) => {}
            }
        }
        steps.push(Step::Assign { client: None, lost });
        for (client, known) in self.clients.iter().enumerate() {
            match known {
                Client::Consumer(consumer) if consumer.epoch == 0 => steps.push(Step::Enter { client, lost }),
                Client::Consumer(_) => steps.push(Step::Beat { client, done: true, lost }),
                Client::Classic(classic) => match classic {
                    ClassicClient::Out | ClassicClient::Named { .. } => steps.push(Step::Join { client, lost }),
                    ClassicClient::Joined { .. } => steps.push(Step::Sync { client }),
                    ClassicClient::Active { .. } => steps.push(Step::ClassicBeat { client }),
                    ClassicClient::Joining { .. } | ClassicClient::Syncing { .. } => {}
                },
            }
        }
        // The leader of a classic group finds out by itself that the topic has grown.
        let owned: usize = self.clients.iter().filter_map(Client::owned).map(|owned| owned.len()).sum();
        for (client, known) in self.clients.iter().enumerate() {
            if let Client::Classic(classic) = known
                && matches!(classic, ClassicClient::Active { leads: true, .. })
                && owned < self.partitions() as usize
            {
                steps.push(Step::Join { client, lost });
            }
        }
        let is_anybody =
            |member_id: &str| self.clients.iter().zip(NAMES).any(|(client, name)| client.id(name) == Some(member_id));
        for (number, op) in self.clock_ops().iter().enumerate() {
            let due = match op {
                Op::LeaveConsumerGroup(LeaveConsumerGroup::Expired { members, .. }) => {
                    !members.iter().any(|member| is_anybody(&member.member_id))
                }
                _ => true,
            };
            if due {
                steps.push(Step::Clock { number });
            }
        }
        steps
    }
}
