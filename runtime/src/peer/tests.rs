//! The network over real sockets on the loopback interface.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, join_all};
use lockstep_core::NodeId;
use lockstep_env::tokio_env::TokioEnv;
use lockstep_env::{Connection, Env, Listener, timeout};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Notify;

use super::frame::{FrameHead, FrameKind, decode_frame, encode_frame, frame_length};
use super::hello::{HELLO_LEN, Hello, PROTOCOL_VERSION, Refusal, decode_hello};
use super::*;

const TOKEN: [u8; 16] = [7; 16];
const LONG: Duration = Duration::from_secs(30);

const ECHO: u8 = 1;
const NEVER: u8 = 2;
const FAIL: u8 = 3;
const PANIC: u8 = 4;
const NOTE: u8 = 5;
const SHARD: u8 = 6;
const HUGE: u8 = 7;

/// Answers as its requests' kinds say.
#[derive(Default)]
struct Echo {
    gossip: Mutex<Bytes>,
    heard_gossip: Mutex<BTreeMap<NodeId, Bytes>>,
    noted: Mutex<Vec<u64>>,
    never_started: AtomicUsize,
    release: Notify,
}

struct Handler(Arc<Echo>);

impl PeerHandler for Handler {
    fn handle(&self, from: PeerIdentity, request: IncomingRequest) -> BoxFuture<'static, Result<PeerReply, PeerFault>> {
        let echo = Arc::clone(&self.0);
        match request.kind {
            ECHO => async { Ok(PeerReply { body: request.body, payload: vec![request.payload] }) }.boxed(),
            NEVER => {
                echo.never_started.fetch_add(1, Ordering::SeqCst);
                async move {
                    echo.release.notified().await;
                    Ok(PeerReply::default())
                }
                .boxed()
            }
            FAIL => async { Err(PeerFault { code: 42, reason: "x".repeat(5_000) }) }.boxed(),
            PANIC => async { panic!("on purpose") }.boxed(),
            NOTE => {
                let number = u64::from_be_bytes(request.body[..].try_into().unwrap());
                echo.noted.lock().unwrap().push(number);
                async { Ok(PeerReply::default()) }.boxed()
            }
            SHARD => {
                let text = format!("{} {:?} {} {:?}", from.node, request.lane, request.shard, request.timeout);
                async { Ok(PeerReply { body: text.into(), payload: vec![] }) }.boxed()
            }
            HUGE => {
                async { Ok(PeerReply { body: Bytes::new(), payload: vec![vec![0; 300 << 10].into(); 30] }) }.boxed()
            }
            kind => panic!("no such request: {kind}"),
        }
    }

    fn gossip(&self) -> Bytes {
        self.0.gossip.lock().unwrap().clone()
    }

    fn on_gossip(&self, from: PeerIdentity, gossip: Bytes) {
        self.0.heard_gossip.lock().unwrap().insert(from.node, gossip);
    }
}

struct Node {
    network: PeerNetwork<TokioEnv>,
    echo: Arc<Echo>,
}

fn incarnation(node: NodeId) -> [u8; 16] {
    [node as u8; 16]
}

/// A port on which nobody listens, as far as anybody can tell.
const NOWHERE: &str = "127.0.0.1:1";

fn options(me: NodeId) -> PeerOptions {
    let peers = (1..=3).map(|node| (node, NOWHERE.to_owned())).collect();
    let mut options = PeerOptions::new(me, incarnation(me), TOKEN, "127.0.0.1:0".to_owned(), peers);
    options.ping_interval = Duration::from_millis(20);
    // Tests that are about silence ask for less; the others must not mistake a busy machine for it.
    options.silence_max = Duration::from_secs(20);
    options
}

async fn start_with(options: PeerOptions) -> Node {
    let echo = Arc::new(Echo::default());
    let handler = Arc::new(Handler(Arc::clone(&echo)));
    Node { network: PeerNetwork::start(TokioEnv::new(), options, handler).await.unwrap(), echo }
}

async fn start(me: NodeId) -> Node {
    start_with(options(me)).await
}

fn introduce(nodes: &[(NodeId, &Node)]) {
    for (_, node) in nodes {
        for (other, there) in nodes {
            node.network.redirect(*other, there.network.local_address().to_owned());
        }
    }
}

async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let waiting = async {
        while !condition() {
            TokioEnv::sleep(Duration::from_millis(2)).await;
        }
    };
    timeout::<TokioEnv, _>(LONG, waiting).await.unwrap_or_else(|_| panic!("never came true: {what}"));
}

/// Two nodes, 1 and 2, that are connected in both directions.
async fn pair() -> (Node, Node) {
    let (one, two) = (start(1).await, start(2).await);
    introduce(&[(1, &one), (2, &two)]);
    connected(&one, &two).await;
    (one, two)
}

async fn connected(one: &Node, two: &Node) {
    eventually("connections", || one.network.is_connected(2) && two.network.is_connected(1)).await;
}

fn request(kind: u8, body: impl Into<Bytes>) -> PeerRequest {
    PeerRequest { kind, shard: 0, body: body.into(), payload: Vec::new() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_are_answered_on_both_lanes_and_in_both_directions() {
    let (one, two) = pair().await;
    for lane in Lane::ALL {
        for (node, to) in [(&one, 2), (&two, 1), (&one, 1)] {
            let payload = vec![Bytes::from_static(b"pay"), Bytes::new(), Bytes::from_static(b"load")];
            let request = PeerRequest { kind: ECHO, shard: 3, body: "body".into(), payload };
            let expected = Some(incarnation(to));
            let reply = node.network.call(to, expected, lane, request, LONG).await.unwrap();
            assert_eq!(reply, ("body".into(), "payload".into()));
        }
        let request = PeerRequest { shard: 513, ..request(SHARD, "") };
        let (text, _) = two.network.call(1, None, lane, request, Duration::from_millis(54_321)).await.unwrap();
        assert_eq!(text, format!("2 {lane:?} 513 54.321s"));
    }
    assert!(one.network.last_heard(2).is_some());
    assert_eq!(one.network.last_heard(3), None);
    assert_eq!(two.network.incarnation_of(1), Some(incarnation(1)));
    assert_eq!(two.network.incarnation_of(3), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_calls_at_the_same_time_each_get_their_own_reply() {
    let (one, _two) = pair().await;
    let calls = (0..2_000_u64).map(|number| {
        let network = one.network.clone();
        let lane = Lane::ALL[(number % 2) as usize];
        TokioEnv::spawn(async move {
            let payload = Bytes::from(vec![number as u8; (number * 37 % 20_000) as usize]);
            let body = Bytes::copy_from_slice(&number.to_be_bytes());
            let request = PeerRequest { kind: ECHO, shard: 0, body: body.clone(), payload: vec![payload.clone()] };
            assert_eq!(network.call(2, None, lane, request, LONG).await, Ok((body, payload)));
        })
    });
    for result in join_all(calls).await {
        result.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_payloads_pass_whole_and_too_large_ones_are_refused() {
    let (one, _two) = pair().await;
    let part = Bytes::from((0..1_000_000_u32).map(|n| ((n * 31) >> 7) as u8).collect::<Vec<_>>());
    let large = PeerRequest { kind: ECHO, shard: 0, body: Bytes::new(), payload: vec![part.clone(); 8] };
    let calls = (0..12).map(|_| one.network.call(2, None, Lane::Bulk, large.clone(), LONG));
    for reply in join_all(calls).await {
        let (_, payload) = reply.unwrap();
        assert_eq!(payload.len(), 8_000_000);
        assert!(payload.chunks(1_000_000).all(|chunk| chunk == part));
    }
    let refused = one.network.call(2, None, Lane::Control, large.clone(), LONG).await;
    assert!(matches!(refused, Err(PeerError::TooLarge { len: 8_000_000.., len_max: 262_144 })), "{refused:?}");
    let larger = PeerRequest { payload: vec![part; 9], ..large };
    let refused = one.network.call(2, None, Lane::Bulk, larger, LONG).await;
    assert!(matches!(refused, Err(PeerError::TooLarge { .. })), "{refused:?}");
    let refused = one.network.call(2, None, Lane::Bulk, request(HUGE, ""), LONG).await;
    assert!(matches!(&refused, Err(PeerError::Fault(fault)) if fault.code == FAULT_TOO_LARGE), "{refused:?}");
    let echoed = one.network.call(2, None, Lane::Control, request(ECHO, "still here"), LONG).await;
    assert_eq!(echoed.unwrap().0, "still here");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn faults_panics_and_time_outs_reach_the_caller_and_nobody_else() {
    let (one, two) = pair().await;
    let waiting = {
        let network = one.network.clone();
        TokioEnv::spawn(async move { network.call(2, None, Lane::Control, request(NEVER, ""), LONG).await })
    };
    let fault = one.network.call(2, None, Lane::Control, request(FAIL, ""), LONG).await.unwrap_err();
    assert_eq!(fault, PeerError::Fault(PeerFault { code: 42, reason: "x".repeat(1_024) }));
    let fault = one.network.call(2, None, Lane::Control, request(PANIC, ""), LONG).await.unwrap_err();
    assert!(matches!(&fault, PeerError::Fault(fault) if fault.code == FAULT_INTERNAL), "{fault:?}");
    let short = Duration::from_millis(20);
    let late = one.network.call(2, None, Lane::Control, request(NEVER, ""), short).await;
    assert_eq!(late, Err(PeerError::Timeout(2)));
    eventually("both calls arrive", || two.echo.never_started.load(Ordering::SeqCst) == 2).await;
    two.echo.release.notify_waiters();
    waiting.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_are_started_in_the_order_of_the_calls() {
    let (one, two) = pair().await;
    for lane in Lane::ALL {
        two.echo.noted.lock().unwrap().clear();
        let calls = (0..1_000_u64)
            .map(|number| one.network.call(2, None, lane, request(NOTE, number.to_be_bytes().to_vec()), LONG));
        for reply in join_all(calls).await {
            reply.unwrap();
        }
        assert_eq!(*two.echo.noted.lock().unwrap(), (0..1_000).collect::<Vec<_>>());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_node_is_found_again_and_known_by_its_incarnation() {
    let (one, two) = pair().await;
    let interrupted = {
        let network = one.network.clone();
        TokioEnv::spawn(async move { network.call(2, None, Lane::Bulk, request(NEVER, ""), LONG).await })
    };
    eventually("the call arrives", || two.echo.never_started.load(Ordering::SeqCst) == 1).await;
    let address = two.network.local_address().to_owned();
    two.network.shutdown().await;
    assert_eq!(interrupted.await.unwrap(), Err(PeerError::Lost(2)));
    eventually("the loss is noticed", || !one.network.is_connected(2)).await;
    let refused = one.network.call(2, None, Lane::Bulk, request(ECHO, ""), LONG).await;
    assert_eq!(refused, Err(PeerError::Unreachable(2)));
    let refused = two.network.call(1, None, Lane::Bulk, request(ECHO, ""), LONG).await;
    assert_eq!(refused, Err(PeerError::Unreachable(1)));

    // The same node, the same address, an emptied disk.
    let mut reborn = options(2);
    reborn.listen = address;
    reborn.incarnation = [99; 16];
    reborn.peers.insert(1, one.network.local_address().to_owned());
    let two = start_with(reborn).await;
    connected(&one, &two).await;
    assert_eq!(one.network.incarnation_of(2), Some([99; 16]));
    let refused = one.network.call(2, Some(incarnation(2)), Lane::Control, request(ECHO, ""), LONG).await;
    assert_eq!(refused, Err(PeerError::WrongIncarnation(2)));
    one.network.call(2, Some([99; 16]), Lane::Control, request(ECHO, ""), LONG).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gossip_reaches_every_node_and_at_once_when_poked() {
    let mut slow = options(1);
    slow.ping_interval = Duration::from_secs(3_600);
    slow.silence_max = Duration::from_secs(7_200);
    let one = start_with(slow).await;
    let two = start(2).await;
    let three = start(3).await;
    introduce(&[(1, &one), (2, &two), (3, &three)]);
    eventually("connections", || one.network.is_connected(2) && one.network.is_connected(3)).await;
    *one.echo.gossip.lock().unwrap() = "news".into();
    one.network.poke_gossip();
    for node in [&two, &three] {
        eventually("gossip arrives", || node.echo.heard_gossip.lock().unwrap().get(&1) == Some(&"news".into())).await;
    }
    *two.echo.gossip.lock().unwrap() = "reply".into();
    eventually("gossip is repeated", || one.echo.heard_gossip.lock().unwrap().get(&2) == Some(&"reply".into())).await;
    // What does not fit is left out, and the connection lives on.
    *two.echo.gossip.lock().unwrap() = vec![0; 65_537].into();
    two.network.call(1, None, Lane::Control, request(ECHO, ""), LONG).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_taken_port_is_reported_with_its_address() {
    let one = start(1).await;
    let mut taken = options(2);
    taken.listen = one.network.local_address().to_owned();
    let handler = Arc::new(Handler(Arc::default()));
    let error = PeerNetwork::start(TokioEnv::new(), taken.clone(), handler).await.unwrap_err();
    assert!(error.to_string().contains(&taken.listen), "{error}");
}

fn greeting(lane: Lane) -> Hello {
    Hello {
        version: PROTOCOL_VERSION,
        lane,
        refusal: None,
        node: 3,
        target: 1,
        incarnation: incarnation(3),
        cluster_token: TOKEN,
    }
}

/// Greets node `one` as a node would, and gives its answer.
async fn greet(one: &Node, hello: Hello) -> (Connection<TokioEnv>, Hello) {
    let mut connection = TokioEnv::new().connect(one.network.local_address()).await.unwrap();
    connection.writer.write_all(&hello.encode()).await.unwrap();
    let mut answer = [0; HELLO_LEN];
    connection.reader.read_exact(&mut answer).await.unwrap();
    (connection, decode_hello(&answer).unwrap())
}

/// Reads until the other end closes the connection.
async fn closed(connection: &mut Connection<TokioEnv>) {
    let mut rest = Vec::new();
    // A reset is as good as an end.
    let _ = timeout::<TokioEnv, _>(LONG, connection.reader.read_to_end(&mut rest)).await.expect("never closed");
}

async fn receive(connection: &mut Connection<TokioEnv>) -> frame::Frame {
    let receiving = async {
        loop {
            let mut bytes = vec![0; 4];
            connection.reader.read_exact(&mut bytes).await.unwrap();
            let len = frame_length(&bytes, 8 << 20).unwrap().unwrap();
            bytes.resize(len, 0);
            connection.reader.read_exact(&mut bytes[4..]).await.unwrap();
            let frame = decode_frame(&bytes.into()).unwrap();
            if frame.head.kind != FrameKind::Ping {
                return frame;
            }
        }
    };
    timeout::<TokioEnv, _>(LONG, receiving).await.expect("nothing arrives")
}

fn encoded(kind: FrameKind, request_kind: u8, call: u64, body: &[u8]) -> Bytes {
    let head = FrameHead { request_kind, ..FrameHead::new(kind, call) };
    encode_frame(&head, body, &[], 8 << 20).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unwanted_greetings_are_refused_with_a_reason() {
    let one = start(1).await;
    let hello = greeting(Lane::Bulk);
    let cases = [
        (Hello { version: PROTOCOL_VERSION + 1, ..hello }, Refusal::Version),
        (Hello { cluster_token: [8; 16], ..hello }, Refusal::Cluster),
        (Hello { target: 2, ..hello }, Refusal::Target),
        (Hello { node: 4, ..hello }, Refusal::Node),
        (Hello { node: 1, ..hello }, Refusal::Node),
    ];
    for (hello, refusal) in cases {
        let (mut connection, answer) = greet(&one, hello).await;
        assert_eq!(answer.refusal, Some(refusal), "{hello:?}");
        closed(&mut connection).await;
    }
    assert_eq!(one.network.last_heard(3), None);
    let (_connection, answer) = greet(&one, hello).await;
    assert_eq!(answer, Hello { node: 1, target: 3, incarnation: incarnation(1), ..hello });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_of_different_clusters_do_not_connect() {
    let one = start(1).await;
    let mut foreign = options(2);
    foreign.cluster_token = [8; 16];
    let two = start_with(foreign).await;
    let three = start(3).await;
    introduce(&[(1, &one), (2, &two), (3, &three)]);
    eventually("nodes of one cluster connect", || one.network.is_connected(3)).await;
    assert!(!one.network.is_connected(2) && !two.network.is_connected(1));
    assert_eq!(one.network.incarnation_of(2), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_bytes_close_their_connection_and_no_other() {
    let (one, two) = pair().await;
    // Before the greeting.
    for bytes in [&[0xff; 4_096][..], b"GET / HTTP/1.1\r\nHost: a-name-long-enough-to-fill-a-greeting.example\r\n\r\n"]
    {
        let mut connection = TokioEnv::new().connect(one.network.local_address()).await.unwrap();
        connection.writer.write_all(bytes).await.unwrap();
        closed(&mut connection).await;
    }
    // After it.
    let good = encoded(FrameKind::Request, ECHO, 1, b"body");
    let mut damaged = good.to_vec();
    damaged[46] ^= 1;
    let mut short = good.to_vec();
    short[..4].copy_from_slice(&3_u32.to_be_bytes());
    let giant = u32::MAX.to_be_bytes();
    let over_the_lane = (Lane::Control.frame_len_max() as u32).to_be_bytes();
    let reply = encoded(FrameKind::Reply, 0, 1, b"");
    for bytes in [&damaged[..], &short, &giant, &over_the_lane, &reply, &[0x55; 100_000]] {
        let (mut connection, _) = greet(&one, greeting(Lane::Control)).await;
        connection.writer.write_all(&good).await.unwrap();
        assert_eq!(receive(&mut connection).await.body, "body");
        connection.writer.write_all(bytes).await.unwrap();
        closed(&mut connection).await;
    }
    // Some that stop in the middle.
    for len in [1, 10, HELLO_LEN - 1] {
        let mut connection = TokioEnv::new().connect(one.network.local_address()).await.unwrap();
        connection.writer.write_all(&greeting(Lane::Bulk).encode()[..len]).await.unwrap();
        connection.writer.shutdown().await.unwrap();
        closed(&mut connection).await;
    }
    assert!(one.network.is_connected(2) && two.network.is_connected(1));
    let echoed = two.network.call(1, None, Lane::Control, request(ECHO, "well"), LONG).await;
    assert_eq!(echoed.unwrap().0, "well");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_that_do_not_greet_do_not_keep_nodes_out() {
    let one = start(1).await;
    let mut strangers = Vec::new();
    for _ in 0..80 {
        strangers.push(TokioEnv::new().connect(one.network.local_address()).await.unwrap());
    }
    // Those beyond the bound are closed at once; the others in time, which lets nodes in.
    closed(strangers.last_mut().unwrap()).await;
    closed(&mut strangers[0]).await;
    let two = start(2).await;
    introduce(&[(1, &one), (2, &two)]);
    connected(&one, &two).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_for_a_former_incarnation_are_refused_by_the_node_itself() {
    let one = start(1).await;
    let (mut connection, _) = greet(&one, greeting(Lane::Control)).await;
    for (expected, kind) in [([5; 16], FrameKind::WrongIncarnation), (incarnation(1), FrameKind::Reply)] {
        let head = FrameHead { request_kind: NOTE, incarnation: expected, ..FrameHead::new(FrameKind::Request, 9) };
        let frame = encode_frame(&head, &1_u64.to_be_bytes(), &[], 1_000).unwrap();
        connection.writer.write_all(&frame).await.unwrap();
        let answer = receive(&mut connection).await;
        assert_eq!((answer.head.kind, answer.head.call), (kind, 9));
    }
    assert_eq!(*one.echo.noted.lock().unwrap(), [1]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_requests_than_a_lane_handles_are_refused() {
    let one = start(1).await;
    let (mut connection, _) = greet(&one, greeting(Lane::Control)).await;
    let waiting = 16 << 20 >> 12;
    for call in 0..=waiting {
        connection.writer.write_all(&encoded(FrameKind::Request, NEVER, call, b"")).await.unwrap();
    }
    let refused = receive(&mut connection).await;
    assert_eq!((refused.head.kind, refused.head.shard), (FrameKind::Fault, FAULT_OVERLOADED));
    assert_eq!(one.echo.never_started.load(Ordering::SeqCst), waiting as usize);
    // Another connection does not help, until the requests have been handled.
    drop(connection);
    let (mut connection, _) = greet(&one, greeting(Lane::Control)).await;
    connection.writer.write_all(&encoded(FrameKind::Request, ECHO, 1, b"")).await.unwrap();
    assert_eq!(receive(&mut connection).await.head.shard, FAULT_OVERLOADED);
    one.echo.release.notify_waiters();
    loop {
        connection.writer.write_all(&encoded(FrameKind::Request, ECHO, 2, b"")).await.unwrap();
        if receive(&mut connection).await.head.kind == FrameKind::Reply {
            break;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_ends_are_closed() {
    let mut impatient = options(1);
    impatient.silence_max = Duration::from_millis(100);
    let one = start_with(impatient).await;
    // One that dials and then says nothing.
    let (mut connection, _) = greet(&one, greeting(Lane::Bulk)).await;
    closed(&mut connection).await;
    // One that is dialled, greets and then says nothing: it is dialled again.
    let env = TokioEnv::new();
    let mut listener = env.listen("127.0.0.1:0").await.unwrap();
    one.network.redirect(3, listener.local_address().unwrap());
    let mut held = Vec::new();
    for _ in 0..6 {
        let mut connection = timeout::<TokioEnv, _>(LONG, listener.accept()).await.expect("not dialled").unwrap();
        let mut asked = [0; HELLO_LEN];
        connection.reader.read_exact(&mut asked).await.unwrap();
        let lane = decode_hello(&asked).unwrap().lane;
        connection.writer.write_all(&greeting(lane).encode()).await.unwrap();
        held.push(connection);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_end_that_does_not_read_is_closed_and_holds_nobody_up() {
    let mut impatient = options(1);
    // As long as a busy machine may let both ends stand still: the other one, which reads, is never silent for so long.
    impatient.silence_max = Duration::from_secs(3);
    let one = start_with(impatient).await;
    let two = start(2).await;
    introduce(&[(1, &one), (2, &two)]);
    connected(&one, &two).await;
    let (mut connection, _) = greet(&one, greeting(Lane::Bulk)).await;
    let body = vec![1; 1 << 20];
    let asking = async {
        for call in 0.. {
            // It asks and says that it lives, but takes no reply.
            let request = encoded(FrameKind::Request, ECHO, call, &body);
            if connection.writer.write_all(&request).await.is_err() {
                return;
            }
        }
    };
    timeout::<TokioEnv, _>(LONG, asking).await.expect("never closed");
    connected(&one, &two).await;
    let echoed = two.network.call(1, None, Lane::Bulk, request(ECHO, "well"), LONG).await;
    assert_eq!(echoed.unwrap().0, "well");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newer_connection_takes_the_place_of_the_older() {
    let one = start(1).await;
    let (mut older, _) = greet(&one, greeting(Lane::Bulk)).await;
    let (mut other_lane, _) = greet(&one, greeting(Lane::Control)).await;
    let (mut newer, _) = greet(&one, greeting(Lane::Bulk)).await;
    closed(&mut older).await;
    for connection in [&mut newer, &mut other_lane] {
        connection.writer.write_all(&encoded(FrameKind::Request, ECHO, 5, b"x")).await.unwrap();
        assert_eq!(receive(connection).await.head.call, 5);
    }
}

#[test]
fn tokens_differ_when_configurations_do() {
    let peers = |list: &[(NodeId, &str)]| list.iter().map(|(id, at)| (*id, (*at).to_owned())).collect();
    let token = cluster_token(&peers(&[(1, "a:1"), (2, "b:1")]));
    assert_eq!(token, cluster_token(&peers(&[(2, "b:1"), (1, "a:1")])));
    assert_ne!(token, cluster_token(&peers(&[(1, "a:1"), (2, "b:2")])));
    assert_ne!(token, cluster_token(&peers(&[(1, "a:1"), (3, "b:1")])));
    assert_ne!(token, cluster_token(&peers(&[(1, "a:1")])));
}
