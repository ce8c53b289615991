//! The binary `broker` as an operator meets it: arguments, exit codes, signals.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use ports::free_port;

/// Exit code for what starting again would not change.
const CONFIGURATION: i32 = 2;

fn broker(directory: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_broker"));
    command.current_dir(directory).args(arguments).env_remove("RUST_LOG");
    command
}

fn run(directory: &Path, arguments: &[&str]) -> Output {
    broker(directory, arguments).output().expect("run")
}

fn write(directory: &Path, name: &str, text: &str) {
    std::fs::write(directory.join(name), text).expect("write");
}

/// The configuration of a node of two.
fn node(id: u64, peer_ports: [u16; 2], raft_directory: &str) -> String {
    let [one, two] = peer_ports;
    format!(
        r#"{{"server": {{"port": 0}}, "config": {{"data_dir": "data{id}"}},
            "cluster": {{"enabled": true, "node_id": {id}, "data_dir": "{raft_directory}",
            "peers": [{{"id": 1, "address": "localhost:{one}"}}, {{"id": 2, "address": "localhost:{two}"}}]}}}}"#
    )
}

/// A broker that serves clients; killed when dropped.
struct Running(Child);

impl Running {
    fn start(directory: &Path, arguments: &[&str]) -> Self {
        Self::start_until(directory, arguments, "broker serves clients")
    }

    /// Starts one and waits for a line of its log.
    fn start_until(directory: &Path, arguments: &[&str], line: &str) -> Self {
        let mut child = broker(directory, arguments).stderr(Stdio::piped()).spawn().expect("start");
        let mut log = BufReader::new(child.stderr.take().expect("stderr")).lines();
        let said = log.any(|next| next.expect("a line").contains(line));
        assert!(said, "it ended before it said: {line}");
        // Whoever writes to a pipe that nobody reads waits in the end.
        std::thread::spawn(move || log.for_each(drop));
        Self(child)
    }

    fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([name, &self.0.id().to_string()]).status().expect("kill");
        assert!(sent.success());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn assert_refused(output: &Output, begins: &str) {
    let message = String::from_utf8_lossy(&output.stderr);
    let last = message.lines().last().unwrap_or_default();
    assert!(last.starts_with(begins), "{message}");
    assert_eq!(output.status.code(), Some(CONFIGURATION));
}

#[test]
fn the_allocator_gives_memory_back_soon() {
    let directory = tempfile::tempdir().expect("temporary directory");
    // jemalloc tells at the start where its settings come from.
    let output = broker(directory.path(), &["--version"]).env("_RJEM_MALLOC_CONF", "confirm_conf:true").output();
    let told = String::from_utf8_lossy(&output.expect("run").stderr).into_owned();
    assert!(
        told.contains("background_thread:true,dirty_decay_ms:1000"),
        "not built with the settings of .cargo/config.toml: {told}"
    );
}

#[test]
fn a_wrong_configuration_is_refused_with_one_line_that_names_the_field() {
    let directory = tempfile::tempdir().expect("temporary directory");
    write(directory.path(), "wrong.json", r#"{"server": {"port": "nine"}}"#);
    for arguments in [&["-config", "wrong.json"][..], &["--config", "wrong.json"], &["-config=wrong.json"]] {
        let output = run(directory.path(), arguments);
        assert_refused(&output, "broker: wrong.json: server.port: ");
        assert_eq!(String::from_utf8_lossy(&output.stderr).lines().count(), 1);
    }
    assert_refused(&run(directory.path(), &["-config", "missing.json"]), "broker: missing.json: ");
    write(directory.path(), "level.json", r#"{"server": {"log_level": "=loud="}}"#);
    assert_refused(&run(directory.path(), &["-config", "level.json"]), "broker: level.json: server.log_level: ");
}

#[test]
fn it_stops_cleanly_on_either_signal_and_starts_again() {
    let directory = tempfile::tempdir().expect("temporary directory");
    write(directory.path(), "one.json", r#"{"server": {"port": 0, "log_file": "logs/one.log"}}"#);
    for signal in ["-TERM", "-INT"] {
        let mut running = Running::start(directory.path(), &["-config", "one.json"]);
        running.signal(signal);
        assert_eq!(running.0.wait().expect("wait").code(), Some(0), "{signal}");
    }
    let log = std::fs::read_to_string(directory.path().join("logs/one.log")).expect("log");
    assert_eq!(log.matches("broker serves clients").count(), 2, "both runs are in the log");
    assert!(!log.contains('\u{1b}'), "no colours in a file");
}

#[test]
fn a_directory_in_use_or_of_another_node_is_refused() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let ports = [free_port(), free_port()];
    write(directory.path(), "one.json", &node(1, ports, "raft"));
    write(directory.path(), "two.json", &node(2, ports, "raft"));
    let running = Running::start(directory.path(), &["-config", "one.json"]);
    assert_refused(&run(directory.path(), &["-config", "two.json"]), "broker: two.json: cluster.data_dir: raft");
    drop(running);
    let output = run(directory.path(), &["-config", "two.json"]);
    assert_refused(&output, "broker: two.json: cluster.data_dir: raft");
    assert!(!String::from_utf8_lossy(&output.stderr).contains("in use"), "it belongs to node 1");
}

#[test]
fn a_damaged_journal_is_refused_with_what_to_do() {
    let directory = tempfile::tempdir().expect("temporary directory");
    write(directory.path(), "one.json", r#"{"server": {"port": 0}, "config": {"data_dir": "here"}}"#);
    // By then several batches have been written.
    let mut running = Running::start_until(directory.path(), &["-config", "one.json"], "broker registered");
    running.signal("-TERM");
    running.0.wait().expect("wait");
    let journal = directory.path().join("here/raft/journal");
    let file = std::fs::read_dir(&journal).expect("a journal").map(|entry| entry.expect("a file").path()).min();
    let file = file.expect("its first file");
    let mut content = std::fs::read(&file).expect("read");
    // In the second batch, after which others come.
    content[4096 + 40] ^= 1;
    std::fs::write(&file, content).expect("write");

    let output = run(directory.path(), &["-config", "one.json"]);
    assert_refused(&output, "broker: one.json: config.data_dir: here/raft/journal/");
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(message.contains("damaged at offset") && message.contains("`mv 'here' 'here.damaged'`"), "{message}");
    // What it says works.
    std::fs::rename(directory.path().join("here"), directory.path().join("here.damaged")).expect("moved");
    Running::start(directory.path(), &["-config", "one.json"]);
}

#[test]
fn a_peer_port_in_use_is_refused() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let occupied = TcpListener::bind("localhost:0").expect("listen");
    let port = occupied.local_addr().expect("address").port();
    write(directory.path(), "one.json", &node(1, [port, free_port()], "raft"));
    assert_refused(&run(directory.path(), &["-config", "one.json"]), "broker: one.json: cluster.raft_address: ");
}
