//! Configurations that are wrong: exit code 2, and one line that says what to change.

use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tests::{Cluster, broker_binary, cli, free_port, wire};

const DEADLINE: Duration = Duration::from_secs(30);

/// A node on its own that would start.
fn sound(directory: &Path) -> Value {
    let peer = format!("127.0.0.1:{}", free_port());
    json!({
        "server": { "host": "127.0.0.1", "port": free_port(), "http_port": free_port(), "log_level": "off" },
        "config": { "data_dir": directory.join("data") },
        "cluster": {
            "enabled": true,
            "node_id": 1,
            "raft_address": peer,
            "data_dir": directory.join("raft"),
            "peers": [{ "id": 1, "address": peer }],
        },
    })
}

/// Starts a broker, which must refuse; gives its one line.
async fn refusal(directory: &Path, config: &Value) -> String {
    refusal_of_text(directory, &config.to_string()).await
}

async fn refusal_of_text(directory: &Path, text: &str) -> String {
    let file = directory.join("refused.json");
    fs::write(&file, text).expect("the file can be written");
    let file = file.to_str().expect("a plain path");
    let output = cli::run(broker_binary(), &["--config", file], Vec::new(), DEADLINE).await;
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{text}: {error}");
    assert_eq!(error.trim_end().lines().count(), 1, "{text}: {error}");
    assert!(error.contains(file), "{error} does not name {file}");
    error
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_field_is_named() {
    let directory = tempfile::tempdir().expect("a directory");
    let directory = directory.path();
    let changed = |change: fn(&mut Value)| {
        let mut config = sound(directory);
        change(&mut config);
        config
    };
    for (config, named) in [
        (changed(|config| config["server"]["prot"] = json!(1)), "server.prot"),
        (changed(|config| config["serving"] = json!({})), "serving"),
        (changed(|config| config["server"]["port"] = json!("ninety")), "server.port"),
        (changed(|config| config["server"]["port"] = json!(65_536)), "server.port"),
        (changed(|config| drop(config["cluster"].as_object_mut().map(|c| c.remove("node_id")))), "cluster.node_id"),
        (changed(|config| drop(config["cluster"].as_object_mut().map(|c| c.remove("peers")))), "cluster.peers"),
        (changed(|config| config["cluster"]["node_id"] = json!(7)), "cluster.node_id"),
        (changed(|config| config["cluster"]["peers"][0] = json!({ "id": 1 })), "cluster.peers[0].address"),
        (changed(|config| config["cluster"]["raft_address"] = json!("127.0.0.1:1")), "cluster.raft_address"),
        (changed(|config| config["groups"] = json!({ "session_timeout_ms": -1 })), "groups.session_timeout_ms"),
    ] {
        let error = refusal(directory, &config).await;
        assert!(error.contains(named), "{error} does not name {named}");
    }
    let error = refusal_of_text(directory, "{ \"server\": ").await;
    assert!(error.contains("line 1"), "{error} does not say where the file ends too early");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_missing_is_named() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("nowhere.json");
    let file = file.to_str().expect("a plain path");
    let output = cli::run(broker_binary(), &["--config", file], Vec::new(), DEADLINE).await;
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert!(error.contains(file) && error.trim_end().lines().count() == 1, "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_is_taken_is_named() {
    let directory = tempfile::tempdir().expect("a directory");
    let taken = free_port();
    let _listener = wire::occupy(taken).await;
    let mut config = sound(directory.path());
    config["server"]["port"] = json!(taken);
    let error = refusal(directory.path(), &config).await;
    assert!(error.contains("server.port") && error.contains(&taken.to_string()), "{error}");

    let mut config = sound(directory.path());
    config["server"]["http_port"] = json!(taken);
    let error = refusal(directory.path(), &config).await;
    assert!(error.contains("server.http_port") && error.contains(&taken.to_string()), "{error}");

    let mut config = sound(directory.path());
    let address = format!("127.0.0.1:{taken}");
    config["cluster"]["raft_address"] = json!(address);
    config["cluster"]["peers"][0]["address"] = json!(address);
    let error = refusal(directory.path(), &config).await;
    assert!(error.contains("cluster.raft_address") && error.contains(&address), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_is_in_use_or_anothers_is_named() {
    let mut cluster = Cluster::start(1).await;
    let directory = tempfile::tempdir().expect("a directory");
    let text = fs::read_to_string(cluster.config_file(1)).expect("the configuration");
    let running: Value = serde_json::from_str(&text).expect("JSON");
    let mut config = sound(directory.path());
    config["config"]["data_dir"] = running["config"]["data_dir"].clone();
    config["cluster"]["data_dir"] = running["cluster"]["data_dir"].clone();

    let error = refusal(directory.path(), &config).await;
    assert!(error.contains("data_dir") && error.contains("in use"), "{error}");

    cluster.sigterm(1).await;
    config["cluster"]["node_id"] = json!(2);
    config["cluster"]["peers"][0]["id"] = json!(2);
    let error = refusal(directory.path(), &config).await;
    assert!(error.contains("cluster.data_dir"), "{error} does not name the directory of another node");
}
