//! What administrators do to groups, and subscriptions by regular expression, and what is told of a group's past.

use lockstep_core::op::{
    CommitOffset, ConfigureGroup, ConsumerHeartbeat, DeleteGroup, DeleteOffsets, ExpireOffsets,
    ResolveRegularExpression, TopicPartitions,
};
use lockstep_core::view::{GroupConfig, GroupEvent, GroupEventKind, GroupState, GroupType, PartitionsMoved};
use lockstep_core::{Effect, GroupError, Op, Reply, TopicId};

use crate::harness::{
    GROUP, Parts, SESSION_MS, Shard, WALL_MS, commit, commit_of, consuming, heartbeat, joining, owning, parts,
    topic_id, topics,
};

fn delete_group(shard: &mut Shard) -> Reply {
    shard.apply(&Op::DeleteGroup(DeleteGroup { group_id: GROUP.to_owned() }))
}

fn configure(shard: &mut Shard, name: &str, value: Option<&str>) -> Result<(), GroupError> {
    let changes = vec![(name.to_owned(), value.map(ToOwned::to_owned))];
    match shard.apply(&Op::ConfigureGroup(ConfigureGroup { group_id: GROUP.to_owned(), changes })) {
        Reply::Group(outcome) => outcome,
        other => panic!("not a configuration's reply: {other:?}"),
    }
}

#[test]
fn only_a_group_without_members_is_deleted() {
    let mut shard = Shard::with_topics(&[4]);
    assert_eq!(delete_group(&mut shard), Reply::Group(Err(GroupError::GroupNotFound)));
    shard.enter("a");
    shard.commit(&commit("a", 1, 5)).expect("taken");
    let digest = shard.digest();
    assert_eq!(delete_group(&mut shard), Reply::Group(Err(GroupError::NonEmptyGroup)));
    assert_eq!(shard.digest(), digest);
    shard.beat(&heartbeat("a", -1)).expect("leaves");
    assert_eq!(delete_group(&mut shard), Reply::Group(Ok(())));
    assert!(shard.state.group(GROUP).is_none() && shard.fetched(1, 0).is_none());
    assert_eq!(shard.table.next_deadline(), None);
    shard.enter("a");
    assert_eq!(shard.fetched(1, 0), None, "a new group of that name knows nothing of the old one");
}

#[test]
fn a_groups_configuration_is_what_its_members_are_told_and_timed_by() {
    let mut shard = Shard::with_topics(&[4]);
    configure(&mut shard, "consumer.heartbeat.interval.ms", Some("7000")).expect("before there is a group");
    let reply = shard.enter("a");
    assert_eq!(reply.heartbeat_interval_ms, 7_000);
    configure(&mut shard, "consumer.session.timeout.ms", Some("60000")).expect("set");
    let config = GroupConfig { session_timeout_ms: Some(60_000), heartbeat_interval_ms: Some(7_000) };
    shard.fail_over();
    assert_eq!(shard.state.group_config(GROUP), config);
    shard.pass(59_999);
    assert_eq!(shard.member_ids(), ["a"], "the longer session holds");
    shard.beat_each(&["a"]);
    configure(&mut shard, "consumer.session.timeout.ms", Some("8000")).expect("set");
    shard.pass(8_000);
    assert_eq!(shard.group_state(), GroupState::Empty, "the shorter one at once");
    configure(&mut shard, "consumer.session.timeout.ms", None).expect("unset");
    configure(&mut shard, "consumer.heartbeat.interval.ms", None).expect("unset");
    assert_eq!(shard.state.group_config(GROUP), GroupConfig::default());
    let digest = shard.digest();
    for (name, value) in [("share.session.timeout.ms", "1"), ("consumer.session.timeout.ms", "-1"), ("", "")] {
        assert!(matches!(configure(&mut shard, name, Some(value)), Err(GroupError::InvalidRequest(_))), "{name}");
    }
    assert_eq!(shard.digest(), digest);
}

#[test]
fn a_heartbeat_interval_stays_below_the_session_timeout() {
    let mut shard = Shard::with_topics(&[1]);
    let (session, interval) = ("consumer.session.timeout.ms", "consumer.heartbeat.interval.ms");
    configure(&mut shard, interval, Some("7000")).expect("alone");
    for refused in ["6999", "7000"] {
        let outcome = configure(&mut shard, session, Some(refused));
        assert!(matches!(outcome, Err(GroupError::InvalidRequest(_))), "{refused}: {outcome:?}");
    }
    configure(&mut shard, session, Some("7001")).expect("above the interval");
    assert!(matches!(configure(&mut shard, interval, Some("7001")), Err(GroupError::InvalidRequest(_))));
    let changes = vec![(session.to_owned(), Some("500".to_owned())), (interval.to_owned(), Some("100".to_owned()))];
    let both = Op::ConfigureGroup(ConfigureGroup { group_id: GROUP.to_owned(), changes });
    assert_eq!(shard.apply(&both), Reply::Group(Ok(())), "what counts is where both end");
    let config = GroupConfig { session_timeout_ms: Some(500), heartbeat_interval_ms: Some(100) };
    assert_eq!(shard.state.group_config(GROUP), config);
}

#[test]
fn configurations_are_bounded_in_number_and_by_the_length_of_the_group_id() {
    let mut shard = Shard::with_topics(&[1]);
    // Direct to the state: the self-checks of the harness are linear in the configurations.
    let mut set = |group_id: String, value: Option<&str>| {
        shard.position.index += 1;
        let changes = vec![("consumer.session.timeout.ms".to_owned(), value.map(ToOwned::to_owned))];
        let op = Op::ConfigureGroup(ConfigureGroup { group_id, changes });
        match shard.state.apply(shard.position, &op, 0).expect("no invariant breaks").reply {
            Reply::Group(outcome) => outcome,
            other => panic!("not a configuration's reply: {other:?}"),
        }
    };
    let refused = |outcome| matches!(outcome, Err(GroupError::InvalidRequest(_)));
    assert!(refused(set("g".repeat(1_025), Some("60000"))));
    set("g".repeat(1_024), Some("60000")).expect("the longest");
    for i in 1..10_000 {
        set(format!("g{i}"), Some("60000")).expect("there is room");
    }
    assert!(refused(set("one more".to_owned(), Some("60000"))));
    set("one more".to_owned(), None).expect("the default takes no room");
    set("g1".to_owned(), Some("70000")).expect("one that is there changes");
    set("g1".to_owned(), None).expect("and goes");
    set("one more".to_owned(), Some("60000")).expect("there is room again");
    shard.state.check_invariants().expect("invariants hold");
}

fn by_regex(member_id: &str) -> ConsumerHeartbeat {
    let regex = Some("t.*".to_owned());
    ConsumerHeartbeat { subscribed_topic_names: None, subscribed_topic_regex: regex, ..joining(member_id) }
}

fn resolve(shard: &mut Shard, metadata_version: u64, ids: &[u8]) -> bool {
    let topics: Vec<TopicId> = ids.iter().map(|id| topic_id(*id)).collect();
    let op = ResolveRegularExpression {
        group_id: GROUP.to_owned(),
        regex: "t.*".to_owned(),
        metadata_version,
        topics,
        now_ms: shard.wall_ms(),
    };
    shard.apply(&Op::ResolveRegularExpression(op)) == Reply::Done(true)
}

#[test]
fn a_regular_expression_brings_partitions_once_it_is_resolved() {
    let mut shard = Shard::with_topics(&[2, 1]);
    assert!(!resolve(&mut shard, 1, &[1]), "nobody asked");
    let reply = shard.beat(&by_regex("a")).expect("joins");
    assert_eq!(reply.assignment, Some(Vec::new()));
    let unresolved = shard.state.group_regexes(GROUP);
    assert_eq!((unresolved[0].regex.as_str(), &unresolved[0].resolved), ("t.*", &None));
    assert_eq!(shard.state.groups_with_regexes(), [GROUP]);

    assert!(resolve(&mut shard, 2, &[1, 2]));
    let reply = shard.beat(&owning("a", 1, &[])).expect("told");
    assert_eq!(parts(&reply.assignment.expect("told")), Parts::from([(1, 0), (1, 1), (2, 0)]));
    assert_eq!(shard.member("a").subscribed_topic_regex, "t.*");

    let digest = shard.digest();
    assert!(!resolve(&mut shard, 1, &[1]), "by an older directory");
    assert!(!resolve(&mut shard, 99, &[1]), "by a directory that is not here yet");
    assert!(!resolve(&mut shard, 2, &[2, 1]), "out of order");
    assert!(!resolve(&mut shard, 2, &[1, 2]), "nothing new");
    assert_eq!(shard.digest(), digest);

    // A topic that grows is followed, a new one comes with the next resolution; a later one that finds the same moves nothing.
    shard.add_partitions(2, 2);
    shard.settle(&["a"]);
    assert_eq!(shard.owns("a").len(), 4);
    shard.create_topic(3, 1);
    assert!(resolve(&mut shard, 4, &[1, 2, 3]));
    shard.settle(&["a"]);
    let epoch = shard.view().epoch;
    assert_eq!(shard.owns("a").len(), 5);
    shard.create_named(4, "other", 1);
    assert!(resolve(&mut shard, 5, &[1, 2, 3]));
    assert_eq!(shard.view().epoch, epoch);
    shard.delete_topic(3);
    shard.settle(&["a"]);
    assert_eq!(shard.owns("a").len(), 4);
    shard.fail_over();
    assert_eq!(shard.state.group_regexes(GROUP)[0].resolved.as_ref().map(|(version, _)| *version), Some(5));

    // Back to names.
    let op = ConsumerHeartbeat {
        subscribed_topic_regex: Some(String::new()),
        subscribed_topic_names: Some(topics(&[1])),
        ..heartbeat("a", shard.member("a").member_epoch)
    };
    shard.beat(&op).expect("told");
    shard.settle(&["a"]);
    assert_eq!(shard.owns("a").len(), 2);
    assert!(shard.state.group_regexes(GROUP).is_empty());
}

#[test]
fn a_regular_expression_and_names_are_added_up_and_each_member_has_its_own() {
    let mut shard = Shard::with_topics(&[1, 1, 1]);
    let names = Some(topics(&[3]));
    shard.beat(&ConsumerHeartbeat { subscribed_topic_names: names, ..by_regex("a") }).expect("joins");
    shard.beat(&ConsumerHeartbeat { subscribed_topic_names: Some(topics(&[2])), ..joining("b") }).expect("joins");
    assert!(resolve(&mut shard, 3, &[1]));
    shard.settle(&["a", "b"]);
    assert_eq!(shard.owns("a"), Parts::from([(1, 0), (3, 0)]));
    assert_eq!(shard.owns("b"), Parts::from([(2, 0)]));
}

#[test]
fn a_static_member_that_comes_back_finds_its_regular_expression_resolved() {
    let mut shard = Shard::with_topics(&[2, 1]);
    let by_instance = |member_id: &str| ConsumerHeartbeat { instance_id: Some("i".to_owned()), ..by_regex(member_id) };
    shard.beat(&by_instance("a")).expect("joins");
    assert!(resolve(&mut shard, 2, &[1, 2]));
    let beat = ConsumerHeartbeat { instance_id: Some("i".to_owned()), ..owning("a", 1, &[]) };
    shard.beat(&beat).expect("told");
    let (epoch, owned) = (shard.view().epoch, shard.owns("a"));
    assert_eq!(owned.len(), 3);
    let away = ConsumerHeartbeat { instance_id: Some("i".to_owned()), ..heartbeat("a", -2) };
    shard.beat(&away).expect("goes for a while");

    let reply = shard.propose(&by_instance("b")).expect("takes the place");
    assert!(!reply.assignment_due, "nothing is to be assigned anew");
    assert_eq!(parts(&reply.assignment.expect("told")), owned);
    assert_eq!(shard.view().epoch, epoch);
    assert!(!shard.state.has_unresolved_regexes(GROUP));
    assert_eq!(shard.state.group_regexes(GROUP)[0].resolved.as_ref().map(|(version, _)| *version), Some(2));
    shard.beat(&ConsumerHeartbeat { instance_id: Some("i".to_owned()), ..heartbeat("b", -1) }).expect("leaves");
    assert!(shard.state.group_regexes(GROUP).is_empty(), "forgotten with its last subscriber");
}

#[test]
fn while_a_regular_expression_is_not_resolved_no_offset_is_removed() {
    let mut shard = Shard::with_topics(&[2]);
    shard.commit(&commit("", -1, 5)).expect("taken");
    shard.beat(&by_regex("a")).expect("joins");
    assert_eq!(shard.group_state(), GroupState::Stable);
    let expire = Op::ExpireOffsets(ExpireOffsets {
        groups: vec![GROUP.to_owned()],
        retention_ms: 1_000,
        now_ms: WALL_MS + 5_000,
    });
    let delete = Op::DeleteOffsets(DeleteOffsets {
        group_id: GROUP.to_owned(),
        topics: vec![TopicPartitions { topic_id: topic_id(1), partitions: vec![0] }],
    });
    assert!(shard.state.groups_to_expire(WALL_MS + 5_000, 1_000, None, 10).groups.is_empty());
    assert_eq!(shard.apply(&expire), Reply::Done(false));
    assert_eq!(shard.apply(&delete), Reply::Commit(Ok(vec![Err(GroupError::SubscribedToTopic)])));
    assert_eq!(shard.fetched(1, 0), Some(5));

    // It matches nothing: nobody reads the topic.
    assert!(resolve(&mut shard, 1, &[]));
    assert_eq!(shard.group_state(), GroupState::Stable);
    assert_eq!(shard.apply(&expire), Reply::Done(true));
    assert_eq!(shard.fetched(1, 0), None);
}

#[test]
fn a_topic_that_no_regular_expression_was_matched_with_yet_keeps_its_offsets() {
    let mut shard = Shard::with_topics(&[2]);
    shard.beat(&by_regex("a")).expect("joins");
    assert!(resolve(&mut shard, 1, &[]), "topic 1 does not count");
    shard.settle(&["a"]);
    shard.create_topic(2, 1);
    shard.settle(&["a"]);
    let epoch = shard.member("a").member_epoch;
    shard.commit(&commit_of("a", epoch, &[(2, 0)], 5)).expect("taken");
    shard.commit(&commit_of("a", epoch, &[(1, 0)], 5)).expect("taken");
    let now_ms = WALL_MS + 5_000;
    let expire = |shard: &mut Shard| {
        let op = ExpireOffsets { groups: vec![GROUP.to_owned()], retention_ms: 1_000, now_ms };
        shard.apply(&Op::ExpireOffsets(op))
    };
    assert_eq!(expire(&mut shard), Reply::Done(true));
    assert_eq!((shard.fetched(1, 0), shard.fetched(2, 0)), (None, Some(5)), "it may turn out that \"a\" reads topic 2");
    // It does not.
    assert!(resolve(&mut shard, 2, &[]));
    assert_eq!(expire(&mut shard), Reply::Done(true));
    assert_eq!(shard.fetched(2, 0), None);
}

/// What the leader does when it is told to: resolves what is told as not resolved, or known otherwise. How many ops that takes.
fn resolve_as_leader(shard: &mut Shard, ids: &[u8]) -> usize {
    let found: Vec<TopicId> = ids.iter().map(|id| topic_id(*id)).collect();
    let due = |known: &Option<(u64, Vec<TopicId>)>| known.as_ref().is_none_or(|(_, known)| *known != found);
    let regexes = shard.state.group_regexes(GROUP);
    let due = regexes.iter().filter(|regex| due(&regex.resolved)).count();
    let version = shard.state.directory().version;
    for _ in 0..due {
        assert!(resolve(shard, version, ids));
    }
    due
}

#[test]
fn offsets_of_a_topic_that_was_altered_go_once_it_is_known_that_nobody_reads_it() {
    let needed = Effect::ResolutionNeeded { group_id: GROUP.to_owned() };
    let mut shard = Shard::with_topics(&[2, 1]);
    shard.create_named(3, "audit", 1);
    shard.beat(&by_regex("a")).expect("joins");
    assert_eq!(resolve_as_leader(&mut shard, &[1, 2]), 1);
    shard.settle(&["a"]);
    let epoch = shard.member("a").member_epoch;
    shard.add_partitions(3, 2);
    assert!(!shard.effects.contains(&needed), "nothing was committed for it");
    assert_eq!(resolve_as_leader(&mut shard, &[1, 2]), 0);
    let (audit, now_ms) = (&[(3, 0)], WALL_MS + 5_000);
    let delete = Op::DeleteOffsets(DeleteOffsets {
        group_id: GROUP.to_owned(),
        topics: vec![TopicPartitions { topic_id: topic_id(3), partitions: vec![0] }],
    });
    let refused = Reply::Commit(Ok(vec![Err(GroupError::SubscribedToTopic)]));

    // Altered before the commit.
    shard.commit(&commit_of("a", epoch, audit, 5)).expect("taken");
    assert!(shard.effects.contains(&needed));
    assert_eq!(shard.apply(&delete), refused);
    assert_eq!(resolve_as_leader(&mut shard, &[1, 2]), 1, "although it matches what it did");
    assert_eq!(shard.apply(&delete), Reply::Commit(Ok(vec![Ok(())])));
    assert_eq!(shard.fetched(3, 0), None);

    // Altered after it.
    shard.commit(&commit_of("a", epoch, audit, 6)).expect("taken");
    assert!(!shard.effects.contains(&needed));
    shard.add_partitions(3, 3);
    assert!(shard.effects.contains(&needed));
    assert!(shard.state.groups_to_expire(now_ms, 1_000, None, 10).groups.is_empty());
    assert_eq!(resolve_as_leader(&mut shard, &[1, 2]), 1);
    assert_eq!(shard.state.groups_to_expire(now_ms, 1_000, None, 10).groups, [GROUP]);
    assert_eq!(resolve_as_leader(&mut shard, &[1, 2]), 0);
    assert_eq!((shard.group_state(), shard.member("a").member_epoch), (GroupState::Stable, epoch));

    // A topic that somebody reads needs no other resolution.
    shard.commit(&commit_of("a", epoch, &[(1, 0)], 5)).expect("taken");
    shard.add_partitions(1, 3);
    assert!(!shard.effects.contains(&needed));
    assert_eq!(resolve_as_leader(&mut shard, &[1, 2]), 0);
    assert_eq!(
        shard.apply(&Op::DeleteOffsets(DeleteOffsets {
            group_id: GROUP.to_owned(),
            topics: vec![TopicPartitions { topic_id: topic_id(1), partitions: vec![0] }],
        })),
        refused
    );
}

#[test]
fn offsets_of_a_topic_that_nobody_subscribes_to_any_more_go_as_well() {
    let mut shard = Shard::with_topics(&[1]);
    shard.create_named(3, "audit", 1);
    let names = Some(vec!["audit".to_owned()]);
    shard.beat(&ConsumerHeartbeat { subscribed_topic_names: names, ..by_regex("a") }).expect("joins");
    assert_eq!(resolve_as_leader(&mut shard, &[1]), 1);
    shard.settle(&["a"]);
    shard.add_partitions(3, 2);
    shard.settle(&["a"]);
    let epoch = shard.member("a").member_epoch;
    shard.commit(&commit_of("a", epoch, &[(3, 0)], 5)).expect("taken");
    assert_eq!(resolve_as_leader(&mut shard, &[1]), 0);
    let leaves = ConsumerHeartbeat { subscribed_topic_names: Some(Vec::new()), ..heartbeat("a", epoch) };
    shard.propose(&leaves).expect("taken");
    assert!(shard.effects.contains(&Effect::ResolutionNeeded { group_id: GROUP.to_owned() }));
    assert_eq!(resolve_as_leader(&mut shard, &[1]), 1);
    shard.assign(Some("a")).expect("assigned").expect("assigned");
    shard.settle(&["a"]);
    assert_eq!(shard.state.groups_to_expire(WALL_MS + 5_000, 1_000, None, 10).groups, [GROUP]);
}

#[test]
fn what_is_to_expire_is_found_in_looks_of_bounded_length() {
    let mut shard = Shard::with_topics(&[1]);
    let expected: Vec<String> = (0..50).map(|number| format!("group-{number:02}")).collect();
    for group_id in &expected {
        shard.apply(&Op::CommitOffset(CommitOffset { group_id: group_id.clone(), ..commit("", -1, 5) }));
    }
    let (now_ms, retention_ms) = (WALL_MS + 5_000, 1_000);
    let (mut found, mut after, mut looks) = (Vec::new(), None::<String>, 0);
    loop {
        // Each group counts for itself and for its offset.
        let look = shard.state.groups_to_expire(now_ms, retention_ms, after.as_deref(), 10);
        assert!(look.groups.len() <= 5, "{look:?}");
        looks += 1;
        found.extend(look.groups);
        after = look.last;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(found, expected);
    assert!(looks >= 10, "{looks} looks");
}

#[test]
fn a_group_has_at_most_a_hundred_regular_expressions() {
    let mut shard = Shard::with_topics(&[1]);
    let with = |member_id: &str, member_epoch: i32, regex: &str| ConsumerHeartbeat {
        subscribed_topic_names: None,
        subscribed_topic_regex: Some(regex.to_owned()),
        member_epoch,
        ..joining(member_id)
    };
    for i in 0..100 {
        shard.beat(&with(&format!("m{i}"), 0, &format!("r{i}"))).expect("joins");
    }
    let digest = shard.digest();
    let refused = |outcome| matches!(outcome, Err(GroupError::InvalidRequest(_)));
    assert!(refused(shard.beat(&with("one more", 0, "r100"))));
    assert_eq!((shard.digest(), shard.find_member("one more")), (digest, None), "nothing of it was taken in");
    shard.beat(&with("one more", 0, "r0")).expect("one that is there costs nothing");
    let epoch = shard.member("one more").member_epoch;
    assert!(refused(shard.beat(&with("one more", epoch, "r100"))), "the one it has is used by another member");
    shard.beat(&with("m99", shard.member("m99").member_epoch, "r100")).expect("in place of its own");
    shard.beat(&with("one more", epoch, "")).expect("none at all");
    assert_eq!(shard.state.group_regexes(GROUP).len(), 100);
    shard.beat(&heartbeat("m1", -1)).expect("leaves");
    shard.beat(&with("one more", shard.member("one more").member_epoch, "r101")).expect("there is room again");
}

fn timeline(shard: &Shard) -> Vec<GroupEvent> {
    shard.state.group_timeline(GROUP).map_or_else(Vec::new, |timeline| timeline.events)
}

/// What happened since `from` events ago, in short.
fn told(shard: &Shard) -> Vec<(i32, &'static str)> {
    timeline(shard)
        .iter()
        .map(|event| {
            let what = match &event.what {
                GroupEventKind::Joined { .. } => "joined",
                GroupEventKind::Rejoined { .. } => "rejoined",
                GroupEventKind::Replaced { .. } => "replaced",
                GroupEventKind::Away { .. } => "away",
                GroupEventKind::Left { .. } => "left",
                GroupEventKind::Expired { .. } => "expired",
                GroupEventKind::Subscribed { .. } => "subscribed",
                GroupEventKind::RegexResolved { .. } => "resolved",
                GroupEventKind::TopicsChanged => "topics",
                GroupEventKind::Generation { .. } => "generation",
                GroupEventKind::Assigned { .. } => "assigned",
                GroupEventKind::Settled { .. } => "settled",
                GroupEventKind::Migrated { to: GroupType::Consumer } => "upgraded",
                GroupEventKind::Migrated { to: GroupType::Classic } => "downgraded",
            };
            (event.epoch, what)
        })
        .collect()
}

#[test]
fn the_timeline_tells_who_came_and_went_what_moved_and_how_long_it_took() {
    let mut shard = Shard::with_topics(&[2]);
    shard.enter("a");
    assert_eq!(told(&shard), [(1, "joined"), (1, "assigned"), (1, "settled")]);
    shard.now_ms += 500;
    shard.beat(&ConsumerHeartbeat { now_ms: shard.wall_ms(), ..joining("b") }).expect("joins");
    shard.now_ms += 1_000;
    shard.beat(&ConsumerHeartbeat { now_ms: shard.wall_ms(), ..owning("a", 1, &[(1, 0)]) }).expect("moves on");
    shard.now_ms += 200;
    shard.beat(&ConsumerHeartbeat { now_ms: shard.wall_ms(), ..owning("b", 2, &[]) }).expect("told");
    assert_eq!(told(&shard)[3..], [(2, "joined"), (2, "assigned"), (2, "settled")]);
    let events = timeline(&shard);
    assert_eq!(events[3].at_ms, Some(WALL_MS + 500));
    let GroupEventKind::Assigned { moves, omitted: 0, .. } = &events[4].what else { panic!("{events:?}") };
    let [PartitionsMoved { from: Some(from), to: Some(to), partitions }] = moves.as_slice() else {
        panic!("{moves:?}")
    };
    assert_eq!((from.as_str(), to.as_str(), parts(partitions)), ("a", "b", Parts::from([(1, 1)])));
    assert_eq!(events[5].what, GroupEventKind::Settled { after_ms: Some(1_200) });
    let now = shard.state.group_timeline(GROUP).expect("the group");
    assert_eq!((now.group_type, now.state, now.epoch), (GroupType::Consumer, GroupState::Stable, 2));
    assert_eq!(now.rebalance_since_ms, None);

    // "b" falls silent; what it had goes to "a".
    shard.pass(SESSION_MS / 2);
    shard.beat_each(&["a"]);
    shard.pass(SESSION_MS / 2);
    let events = timeline(&shard);
    let Some(GroupEvent { what: GroupEventKind::Expired { member_id, silent_ms, .. }, epoch: 3, .. }) = events.get(6)
    else {
        panic!("{events:?}");
    };
    assert_eq!((member_id.as_str(), *silent_ms >= SESSION_MS), ("b", true));
    let now = shard.state.group_timeline(GROUP).expect("the group");
    assert_eq!(now.rebalance_since_ms, events[6].at_ms, "not everybody has what it is assigned");
    assert_eq!(shard.state.group_timeline("nobody"), None);
    shard.assign(None);
    let events = timeline(&shard);
    let Some(GroupEventKind::Assigned { moves, .. }) = events.last().map(|event| &event.what) else {
        panic!("{events:?}")
    };
    assert_eq!((moves[0].from.as_deref(), moves[0].to.as_deref()), (Some("b"), Some("a")));
    shard.fail_over();
    assert_eq!(timeline(&shard), events, "it survives a new leader");
}

#[test]
fn the_timeline_tells_of_generations_and_migrations() {
    let mut shard = Shard::with_topics(&[2]);
    shard.stable_consumers(&[("a", &[(1, 0), (1, 1)])]);
    let classic = told(&shard);
    assert_eq!(classic, [(0, "joined"), (1, "generation"), (1, "assigned"), (1, "settled")]);
    let GroupEventKind::Assigned { moves, .. } = &timeline(&shard)[2].what else { panic!() };
    assert_eq!((moves[0].from.as_deref(), moves[0].to.as_deref()), (None, Some("a")));
    assert_eq!(timeline(&shard)[3].what, GroupEventKind::Settled { after_ms: Some(6_000) });
    shard.enter("n");
    shard.join_and_assign(&consuming("a", true, &[])).expect("rejoins");
    shard.settle(&["n"]);
    shard.beat(&heartbeat("n", -1)).expect("leaves");
    assert_eq!(
        told(&shard)[4..],
        [(2, "joined"), (2, "upgraded"), (2, "assigned"), (2, "settled"), (2, "left"), (2, "downgraded")]
    );
    for _ in 0..100 {
        shard.join(&consuming("a", true, &[])).expect("rejoins");
        shard.sync_all();
    }
    assert_eq!(timeline(&shard).len(), 64);
}
