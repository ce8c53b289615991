//! The clients of a run, as it has chosen them.

use std::collections::BTreeMap;
use std::time::Duration;

use checker::{Event, History, Partition};
use lockstep_client::{Admin, Client, NewTopic};
use madsim::runtime::NodeHandle;
use madsim::task::JoinHandle;

use crate::choices::{Choices, ClientChoice, Deletion, ProducerChoice};
use crate::cluster::Cluster;
use crate::convergence::within;
use crate::env::SimEnv;
use crate::workload::admin::{self, Administrator};
use crate::workload::classic::{self, Classic};
use crate::workload::member::{self, Member};
use crate::workload::observer::{self, Observer};
use crate::workload::produce::{self, Produce, Promise};
use crate::workload::reader::{self, Reader};
use crate::workload::regex::{self, RegexMember};
use crate::workload::zombie::{self, Speaks, Zombie};
use crate::workload::{Context, Finish, GROUP, Habits, TOPIC};

/// Session time-outs are short, so that sessions run out while a run goes on.
pub(crate) const SESSION_TIMEOUT: Duration = Duration::from_millis(2_000);
/// How long a client tries what fails, and how long those do that must do without an answer now and then.
const PATIENCE: Duration = Duration::from_secs(10);
const IMPATIENCE: Duration = Duration::from_millis(250);
/// Not much longer, so that it runs out too before all become calm.
const REBALANCE_TIMEOUT: Duration = Duration::from_millis(2_800);
/// How many partitions a topic that grows gets, at most.
const PARTITIONS_MORE: i32 = 4;

/// All clients, at work.
pub(crate) struct Clients {
    /// One for the harness itself.
    pub(crate) client: Client<SimEnv>,
    /// How many are members of the group in the end.
    pub(crate) members: usize,
    /// Their machines.
    pub(crate) machines: Vec<NodeHandle>,
    no_more_records: Finish,
    finish: Finish,
    writing: Vec<JoinHandle<()>>,
    others: Vec<JoinHandle<()>>,
}

impl Clients {
    /// Makes the topic and starts the clients.
    pub(crate) async fn start(cluster: &Cluster, choices: &Choices, history: &History) -> Result<Self, String> {
        let brokers = cluster.addresses();
        let context = |name: String, finish: &Finish, patience: Duration| {
            let (env, machine) = cluster.client(&name);
            let (brokers, history, finish) = (brokers.clone(), history.clone(), finish.clone());
            (Context { env, brokers, name, history, finish, patience }, machine)
        };
        let (no_more_records, finish) = (Finish::default(), Finish::default());
        let (own, _) = context("admin".to_owned(), &finish, PATIENCE);
        let client = own.connect().await.ok_or("no broker answers")?;
        let admin = Admin::new(&client);
        let mut topic = NewTopic::new(TOPIC, choices.partitions);
        topic.configs = configs(choices.deletion);
        if matches!(choices.deletion, Deletion::BySize | Deletion::ByAge) {
            // Whatever is deleted is old or more than enough; how much that is when, only the cluster knows.
            for index in 0..choices.partitions + PARTITIONS_MORE {
                let partition = Partition::new(TOPIC, index);
                history.add(cluster.trace().now_us(), "admin", Event::Truncated { partition, start: i64::MAX });
            }
        }
        if choices.deletion.is_compaction() {
            history.add(cluster.trace().now_us(), "admin", Event::Compacted { topic: TOPIC.to_owned() });
        }
        within("the topic is made", admin.create_topic(&topic)).await?.map_err(|error| format!("no topic: {error}"))?;

        let mut clients = Self {
            client,
            members: 0,
            machines: Vec::new(),
            no_more_records,
            finish,
            writing: Vec::new(),
            others: Vec::new(),
        };
        if choices.deletion.is_on_request() {
            let (context, machine) = context("t".to_owned(), &clients.finish, PATIENCE);
            let mut config = Administrator::new(Vec::new());
            config.trims = vec![TOPIC.to_owned()];
            config.pause = Duration::from_millis(100)..Duration::from_millis(500);
            clients.others.push(machine.spawn(admin::administer(context, config)));
        }
        for (number, choice) in choices.clients.iter().enumerate() {
            let letter = match choice {
                ClientChoice::Producer(_) => 'p',
                ClientChoice::Reader => 'r',
                ClientChoice::Observer => 'o',
                ClientChoice::Administrator => 'a',
                ClientChoice::Zombie { .. } => 'z',
                _ => 'm',
            };
            let finish = if letter == 'p' { clients.no_more_records.clone() } else { clients.finish.clone() };
            let name = format!("{letter}{number}");
            let patience = if choice.is_impatient() { IMPATIENCE } else { PATIENCE };
            let (context, machine) = context(name.clone(), &finish, patience);
            let topics = || vec![TOPIC.to_owned()];
            let instance = |is_static: bool| is_static.then(|| format!("instance-{name}"));
            clients.members += usize::from(choice.is_member());
            if choice.is_member() {
                clients.machines.push(machine.clone());
            }
            let task = match *choice {
                ClientChoice::Producer(choice) => machine.spawn(produce::produce(context, producer(choice, choices))),
                ClientChoice::Member { is_static, has_whims } => {
                    let mut config = Member::new(GROUP, topics());
                    config.instance_id = instance(is_static);
                    config.session_timeout = SESSION_TIMEOUT;
                    config.rebalance_timeout = REBALANCE_TIMEOUT;
                    config.habits = habits(has_whims);
                    machine.spawn(member::consume(context, config))
                }
                ClientChoice::Classic { version, is_static, has_whims } => {
                    let mut config = Classic::new(GROUP, topics());
                    config.version = version;
                    config.instance_id = instance(is_static);
                    config.session_timeout = SESSION_TIMEOUT;
                    config.rebalance_timeout = REBALANCE_TIMEOUT;
                    config.habits = habits(has_whims);
                    machine.spawn(classic::consume(context, config))
                }
                ClientChoice::Regex { has_whims } => {
                    let mut config = RegexMember::new(GROUP, format!("{TOPIC}.*"), topics());
                    config.session_timeout = SESSION_TIMEOUT;
                    config.rebalance_timeout = REBALANCE_TIMEOUT;
                    config.habits = habits(has_whims);
                    machine.spawn(regex::consume(context, config))
                }
                ClientChoice::Reader => {
                    let mut config = Reader::new(topics());
                    config.is_kept = choices.deletion == Deletion::Never;
                    machine.spawn(reader::read(context, config))
                }
                ClientChoice::Observer => {
                    machine.spawn(observer::observe(context, Observer::new(vec![GROUP.to_owned()], topics())))
                }
                ClientChoice::Administrator => {
                    let mut config = Administrator::new(vec!["passing".to_owned(), "records-of-others".to_owned()]);
                    config.configures = vec![GROUP.to_owned()];
                    if choices.grows {
                        config.growing = vec![(TOPIC.to_owned(), choices.partitions + PARTITIONS_MORE)];
                    }
                    machine.spawn(admin::administer(context, config))
                }
                ClientChoice::Zombie { is_classic } => {
                    let speaks = if is_classic { Speaks::Classic(classic::Protocol::Range) } else { Speaks::Consumer };
                    machine.spawn(zombie::haunt(context, Zombie::new(GROUP, topics(), speaks)))
                }
            };
            if letter == 'p' { clients.writing.push(task) } else { clients.others.push(task) }
        }
        Ok(clients)
    }

    /// No more whims. Producers make haste.
    pub(crate) fn calm(&self) {
        self.no_more_records.calm();
        self.finish.calm();
    }

    /// No more records. Waits until producers know what became of theirs.
    pub(crate) async fn written(&mut self) {
        self.no_more_records.now();
        for task in self.writing.drain(..) {
            task.await.unwrap_or_else(|error| panic!("a producer died: {error}"));
        }
    }

    /// Lets all end.
    pub(crate) async fn end(&mut self) {
        self.finish.now();
        for task in self.others.drain(..) {
            task.await.unwrap_or_else(|error| panic!("a client died: {error}"));
        }
    }
}

/// Settings of a topic whose records are deleted so. Segments are small, or nothing would go.
fn configs(deletion: Deletion) -> BTreeMap<String, String> {
    let configs: &[(&str, &str)] = match deletion {
        Deletion::Never => &[],
        Deletion::OnRequest => &[("segment.bytes", "1500"), ("segment.ms", "2000")],
        Deletion::BySize => &[("segment.bytes", "1000"), ("retention.bytes", "4000")],
        Deletion::ByAge => &[("segment.ms", "700"), ("retention.ms", "2500")],
        Deletion::Compaction => &[("cleanup.policy", "compact")],
        // A topic that is only compacted refuses it.
        Deletion::CompactionAndRequests => &[("cleanup.policy", "compact,delete")],
    };
    // Tombstones go within the run.
    let compacted: &[(&str, &str)] =
        &[("min.cleanable.dirty.ratio", "0"), ("segment.bytes", "500"), ("delete.retention.ms", "500")];
    let configs = configs.iter().chain(compacted.iter().filter(|_| deletion.is_compaction()));
    configs.map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn producer(choice: ProducerChoice, choices: &Choices) -> Produce {
    let promise = match choice {
        ProducerChoice::Idempotent | ProducerChoice::IdempotentLarge => Promise::Idempotent,
        ProducerChoice::All => Promise::All,
        ProducerChoice::Unacknowledged => Promise::None,
    };
    let mut config = Produce::new(vec![TOPIC.to_owned()], promise);
    let pace = choices.pace;
    config.pause = Duration::from_millis(pace.pause_ms_min)..Duration::from_millis(pace.pause_ms_max);
    config.window_max = pace.window_max;
    if choices.operations_in_all > 0 {
        config.enough = usize::try_from(choices.operations_in_all).unwrap_or(usize::MAX);
    }
    if choices.grows {
        config.keys = 0;
    }
    if choices.deletion.is_compaction() {
        config.keys = 3 * choices.partitions.unsigned_abs() as u64;
        config.tombstones_per_mille = 150;
    }
    if choice == ProducerChoice::IdempotentLarge {
        config.large_per_mille = 50;
        config.large_len = 20 << 10;
    }
    config
}

fn habits(has_whims: bool) -> Habits {
    if !has_whims {
        return Habits::default();
    }
    Habits {
        busy_per_mille: 200,
        // Long enough for the others to be given what it works on, if they may.
        busy: Duration::from_millis(1_400),
        slow_per_mille: 20,
        slow: Duration::from_secs(6),
        leave_per_mille: 70,
        vanish_per_mille: 90,
        ..Habits::default()
    }
}
