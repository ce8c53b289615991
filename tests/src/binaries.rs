//! The binaries under test, built once by the process that needs them.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

struct Binaries {
    broker: PathBuf,
    lockstep: PathBuf,
}

/// The `broker` binary.
///
/// # Panics
/// It cannot be built.
pub fn broker_binary() -> &'static Path {
    &binaries().broker
}

/// The `lockstep` binary.
///
/// # Panics
/// It cannot be built.
pub fn lockstep_binary() -> &'static Path {
    &binaries().lockstep
}

fn binaries() -> &'static Binaries {
    static BINARIES: OnceLock<Binaries> = OnceLock::new();
    BINARIES.get_or_init(build)
}

/// Cargo knows nothing of a test that runs another package's binary, so it is asked to bring them up to date; it tells where they are. No package
/// is named: with the whole workspace selected, dependencies have the features that they have in any other build of it.
fn build() -> Binaries {
    let mut cargo = Command::new(env!("CARGO"));
    cargo
        .args(["build", "--bin", "broker", "--bin", "lockstep"])
        .arg("--message-format=json-render-diagnostics")
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."))
        .stderr(Stdio::inherit());
    if !cfg!(debug_assertions) {
        cargo.arg("--release");
    }
    let output = cargo.output().expect("cargo runs");
    assert!(output.status.success(), "the binaries cannot be built");
    let find = |name: &str| {
        output
            .stdout
            .split(|byte| *byte == b'\n')
            .filter_map(|line| serde_json::from_slice::<serde_json::Value>(line).ok())
            .find_map(|message| {
                let is_it = message["target"]["name"] == name && message["target"]["kind"][0] == "bin";
                if is_it { message["executable"].as_str().map(PathBuf::from) } else { None }
            })
            .unwrap_or_else(|| panic!("cargo does not say where `{name}` is"))
    };
    Binaries { broker: find("broker"), lockstep: find("lockstep") }
}
