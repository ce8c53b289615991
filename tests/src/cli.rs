//! Running the command line and what it starts.

use std::cell::RefCell;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::wait::wait_until;

/// Runs a program to its end with `input` as standard input.
///
/// # Panics
/// It cannot be started, or does not end within `deadline`: then it is killed.
pub async fn run(program: &Path, arguments: &[&str], input: Vec<u8>, deadline: Duration) -> Output {
    let mut command = Command::new(program);
    command.args(arguments).env_remove("RUST_LOG").env_remove("LOCKSTEP_LOG");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = Ended(command.spawn().expect("the program starts"));
    let mut stdin = child.0.stdin.take().expect("standard input is a pipe");
    // A program need not read all its input.
    let writing = std::thread::spawn(move || drop(stdin.write_all(&input)));
    let stdout = read(child.0.stdout.take().expect("standard output is a pipe"));
    let stderr = read(child.0.stderr.take().expect("standard error is a pipe"));
    let what = format!("`{} {}` ends", program.display(), arguments.join(" "));
    let child = RefCell::new(&mut child);
    let status = wait_until(&what, deadline, || async {
        child.borrow_mut().0.try_wait().expect("the program can be waited for")
    })
    .await;
    writing.join().expect("the writer ends with the program");
    let text = |reading: JoinHandle<Vec<u8>>| reading.join().expect("the reader ends with the program");
    Output { status, stdout: text(stdout), stderr: text(stderr) }
}

fn read(mut pipe: impl Read + Send + 'static) -> JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        pipe.read_to_end(&mut bytes).expect("the pipe can be read");
        bytes
    })
}

/// A process that does not outlive whoever waits for it.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // It may have ended by itself; all that counts is that it has.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Standard output as text, of a program that must have succeeded.
///
/// # Panics
/// It failed.
pub fn stdout_of(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}: {}{}", output.status, text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}
