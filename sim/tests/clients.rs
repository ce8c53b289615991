//! Each kind of client at a healthy cluster: it makes progress, and what it records breaks no promise.

use std::collections::BTreeMap;
use std::time::Duration;

use checker::{Event, Header, History, check_all};
use lockstep_client::{Admin, Client, NewTopic, OffsetAt, TopicPartition};
use lockstep_env::{Env, timeout};
use sim::cluster::{Cluster, ClusterOptions};
use sim::env::disk::DiskOptions;
use sim::env::net::LinkOptions;
use sim::env::{SimEnv, SimTask};
use sim::simulate;
use sim::workload::admin::{Administrator, administer};
use sim::workload::classic::{self, Classic, Protocol};
use sim::workload::member::{self, Member};
use sim::workload::observer::{Observer, observe};
use sim::workload::produce::{Produce, Promise, produce};
use sim::workload::reader::{Reader, read};
use sim::workload::regex::{self, RegexMember};
use sim::workload::zombie::{Speaks, Zombie, haunt};
use sim::workload::{Commits, Context, Finish, Habits};

const TOPIC: &str = "records";
const GROUP: &str = "readers";
const PARTITIONS: i32 = 6;
const PATIENCE: Duration = Duration::from_secs(60);

/// A healthy cluster with a topic and a producer.
struct World {
    cluster: Cluster,
    client: Client<SimEnv>,
    history: History,
    no_more_records: Finish,
    finish: Finish,
    tasks: Vec<(String, SimTask<()>)>,
}

impl World {
    async fn start() -> Self {
        let cluster = Cluster::new(ClusterOptions::default(), LinkOptions::default(), DiskOptions::default());
        for id in cluster.ids() {
            cluster.start(id);
        }
        assert!(cluster.wait_until(PATIENCE, Cluster::all_led).await, "no leaders");
        let (env, _) = cluster.client("test");
        let (brokers, name) = (cluster.addresses(), "test".to_owned());
        let (history, finish, patience) = (History::new(Header::default()), Finish::default(), PATIENCE);
        let context = Context { env, brokers, name, history: history.clone(), finish, patience };
        let client = context.connect().await.expect("the end was not declared");
        Admin::new(&client).create_topic(&NewTopic::new(TOPIC, PARTITIONS)).await.expect("created");
        let mut world = Self {
            cluster,
            client,
            history,
            no_more_records: Finish::default(),
            finish: Finish::default(),
            tasks: Vec::new(),
        };
        let finish = world.no_more_records.clone();
        world.spawn_until("p0", &finish, |context| produce(context, Produce::new(topics(), Promise::Idempotent)));
        world
    }

    fn spawn<F>(&mut self, name: &str, client: impl FnOnce(Context) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let finish = self.finish.clone();
        self.spawn_until(name, &finish, client);
    }

    fn spawn_until<F>(&mut self, name: &str, finish: &Finish, client: impl FnOnce(Context) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (env, machine) = self.cluster.client(name);
        let (brokers, history, finish) = (self.cluster.addresses(), self.history.clone(), finish.clone());
        let client = client(Context { env, brokers, name: name.to_owned(), history, finish, patience: PATIENCE });
        let running = machine.spawn(client);
        let task = SimEnv::spawn(async move { running.await.unwrap_or_else(|error| panic!("{error}")) });
        self.tasks.push((name.to_owned(), task));
    }

    fn count(&self, which: impl Fn(&Event) -> bool) -> usize {
        self.history.count(which)
    }

    /// Lets everything go on for a while; then the group of each name must come to the end of the topic, and all clients must end.
    async fn run(&mut self, groups: &[&str], time: Duration) {
        SimEnv::sleep(time).await;
        self.no_more_records.now();
        self.finish.calm();
        for group in groups {
            if timeout::<SimEnv, _>(PATIENCE, self.is_done(group)).await.is_err() {
                self.fail(&format!("{group} does not come to the end")).await;
            }
        }
        self.finish.now();
        for (name, task) in std::mem::take(&mut self.tasks) {
            match timeout::<SimEnv, _>(PATIENCE, task).await {
                Ok(ended) => ended.unwrap_or_else(|error| panic!("{name}: {error}")),
                Err(_) => self.fail(&format!("{name} does not end")).await,
            }
        }
        if let Err(broken) = check_all(&self.history.records()) {
            self.fail(&broken.to_string()).await;
        }
        assert!(self.count(|event| matches!(event, Event::Acknowledged { .. })) > 10, "the producer makes progress");
    }

    async fn is_done(&self, group: &str) {
        let places: Vec<_> = (0..PARTITIONS).map(|index| TopicPartition::new(TOPIC, index)).collect();
        loop {
            let ends = self.client.offsets(&places.iter().map(|at| (at.clone(), OffsetAt::Latest)).collect()).await;
            let committed = self.client.committed_offsets(group, Some(&places)).await;
            let (ends, committed): (BTreeMap<_, _>, BTreeMap<_, _>) =
                (ends.expect("ends"), committed.expect("offsets"));
            if ends.iter().all(|(at, end)| committed.get(at).copied().unwrap_or(0) == *end) {
                return;
            }
            SimEnv::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn fail(&self, why: &str) -> ! {
        for event in self.cluster.trace().events() {
            if event.lane != "n1" && event.lane != "n2" && event.lane != "n3" {
                println!("{event}");
            }
        }
        println!("{:?}", Admin::new(&self.client).describe_group(GROUP).await);
        panic!("{why}");
    }
}

fn topics() -> Vec<String> {
    vec![TOPIC.to_owned()]
}

fn seeds(number: u64, run: impl Fn(u64) -> Result<(), String>) {
    for seed in 0..number {
        println!("seed {seed}");
        run(seed).unwrap_or_else(|failed| panic!("seed {seed}: {failed}"));
    }
}

fn restless() -> Habits {
    Habits {
        commits: Commits::Sometimes(500),
        slow_per_mille: 30,
        slow: Duration::from_secs(2),
        leave_per_mille: 20,
        vanish_per_mille: 20,
        ..Habits::default()
    }
}

async fn classic_members(seed: u64, protocol: Protocol) {
    let mut world = World::start().await;
    // Every version meets the next.
    for number in 0..3 {
        let version = ((seed + number) % 10) as i16;
        let mut config = Classic::new(GROUP, topics());
        (config.version, config.protocol) = (version, protocol);
        if number == 2 {
            (config.version, config.instance_id) = (version.max(5), Some("instance".to_owned()));
        }
        if number == 1 {
            config.habits = restless();
        }
        world.spawn(&format!("c{number}"), |context| classic::consume(context, config));
    }
    world.run(&[GROUP], Duration::from_secs(8)).await;
    world.cluster.end().await;
}

#[test]
fn classic_members_of_all_versions_read_everything_in_ranges() {
    seeds(5, |seed| simulate(seed, move || classic_members(seed * 2, Protocol::Range)));
}

#[test]
fn classic_members_of_all_versions_read_everything_cooperatively() {
    seeds(5, |seed| simulate(seed, move || classic_members(seed * 2, Protocol::CooperativeSticky)));
}

#[test]
fn our_own_members_of_all_habits_read_everything() {
    let run = |_| async {
        let mut world = World::start().await;
        world.spawn("m0", |context| member::consume(context, Member::new(GROUP, topics())));
        for (name, instance_id) in [("m1", None), ("m2", Some("instance".to_owned()))] {
            let config = Member { habits: restless(), instance_id, ..Member::new(GROUP, topics()) };
            world.spawn(name, |context| member::consume(context, config));
        }
        world.run(&[GROUP], Duration::from_secs(8)).await;
        world.cluster.end().await;
    };
    seeds(3, |seed| simulate(seed, move || run(seed)));
}

#[test]
fn a_group_of_both_protocols_reads_everything() {
    let run = |seed: u64| async move {
        let mut world = World::start().await;
        let protocol = if seed.is_multiple_of(2) { Protocol::Range } else { Protocol::CooperativeSticky };
        world.spawn("c0", |context| classic::consume(context, Classic { protocol, ..Classic::new(GROUP, topics()) }));
        SimEnv::sleep(Duration::from_secs(1)).await;
        world.spawn("m0", |context| member::consume(context, Member::new(GROUP, topics())));
        let config = Classic { protocol, habits: restless(), version: 5, ..Classic::new(GROUP, topics()) };
        world.spawn("c1", |context| classic::consume(context, config));
        world.run(&[GROUP], Duration::from_secs(8)).await;
        world.cluster.end().await;
    };
    seeds(4, |seed| simulate(seed, move || run(seed)));
}

#[test]
fn members_by_regular_expression_read_everything() {
    let run = |_| async {
        let mut world = World::start().await;
        world.spawn("r0", |context| regex::consume(context, RegexMember::new(GROUP, "rec.*|churn.*", topics())));
        world.spawn("m0", |context| member::consume(context, Member::new(GROUP, topics())));
        let config = RegexMember { habits: restless(), ..RegexMember::new(GROUP, "rec.*", topics()) };
        world.spawn("r1", |context| regex::consume(context, config));
        world.spawn("a0", |context| administer(context, Administrator::new(vec!["churn".to_owned()])));
        world.run(&[GROUP], Duration::from_secs(8)).await;
        assert!(world.count(|event| matches!(event, Event::Polled { member, .. } if member.starts_with('r'))) > 0);
        world.cluster.end().await;
    };
    seeds(3, |seed| simulate(seed, move || run(seed)));
}

#[test]
fn producers_of_all_promises_readers_and_observers_see_what_is_there() {
    let run = |_| async {
        let mut world = World::start().await;
        let finish = world.no_more_records.clone();
        for (name, promise) in [("p1", Promise::All), ("p2", Promise::Leader), ("p3", Promise::None)] {
            let config = Produce { keys: 0, large_per_mille: 50, ..Produce::new(topics(), promise) };
            world.spawn_until(name, &finish, |context| produce(context, config));
        }
        world.spawn("m0", |context| member::consume(context, Member::new(GROUP, topics())));
        world.spawn("c0", |context| classic::consume(context, Classic::new("olds", topics())));
        world.spawn("r0", |context| read(context, Reader::new(topics())));
        let groups = vec![GROUP.to_owned(), "olds".to_owned()];
        // Of its questions only one in eight is about a group as such, in the group's own protocol.
        let pause = Duration::from_millis(30)..Duration::from_millis(120);
        let observer = Observer { pause, ..Observer::new(groups, topics()) };
        world.spawn("o0", |context| observe(context, observer));
        world.run(&[GROUP, "olds"], Duration::from_secs(8)).await;
        assert!(world.count(|event| matches!(event, Event::Read { .. })) > 10);
        assert!(world.count(|event| matches!(event, Event::EndObserved { .. })) > 5);
        assert!(world.count(|event| matches!(event, Event::OffsetFetched { .. })) > 5);
        assert!(world.count(|event| matches!(event, Event::GroupObserved(_))) > 0);
        world.cluster.end().await;
    };
    seeds(3, |seed| simulate(seed, move || run(seed)));
}

#[test]
fn administrators_change_what_others_use() {
    let run = |_| async {
        let mut world = World::start().await;
        let config =
            Member { habits: Habits { leave_per_mille: 300, ..restless() }, ..Member::new("victims", topics()) };
        world.spawn("m0", |context| member::consume(context, config));
        world.spawn("m1", |context| member::consume(context, Member::new(GROUP, topics())));
        let config = Administrator {
            resets: vec![("victims".to_owned(), TOPIC.to_owned())],
            deletes: vec![("victims".to_owned(), topics())],
            configures: vec![GROUP.to_owned()],
            growing: vec![("grown".to_owned(), 8)],
            ..Administrator::new(vec!["churn".to_owned(), "grown".to_owned()])
        };
        world.spawn("a0", |context| administer(context, config));
        world.run(&[GROUP, "victims"], Duration::from_secs(12)).await;
        world.cluster.end().await;
    };
    seeds(3, |seed| simulate(seed, move || run(seed)));
}

#[test]
fn zombies_disturb_nobody_for_long() {
    let run = |seed: u64| async move {
        let mut world = World::start().await;
        let protocol = if seed.is_multiple_of(2) { Protocol::Range } else { Protocol::CooperativeSticky };
        world.spawn("m0", |context| member::consume(context, Member::new(GROUP, topics())));
        world.spawn("z0", |context| haunt(context, Zombie::new(GROUP, topics(), Speaks::Consumer)));
        world.spawn("c0", |context| classic::consume(context, Classic { protocol, ..Classic::new("olds", topics()) }));
        world.spawn("z1", |context| haunt(context, Zombie::new("olds", topics(), Speaks::Classic(protocol))));
        let by_zombies = |event: &Event| match event {
            Event::CommitRefused { member, .. } | Event::CommitUnknown { member, .. } => member.starts_with('z'),
            _ => false,
        };
        let is_refused = world.cluster.wait_until(PATIENCE, |_| world.count(by_zombies) > 0).await;
        assert!(is_refused, "what comes late is refused");
        world.run(&[GROUP, "olds"], Duration::from_secs(20)).await;
        world.cluster.end().await;
    };
    seeds(4, |seed| simulate(seed, move || run(seed)));
}
