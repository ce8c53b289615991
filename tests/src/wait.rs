//! Waiting for conditions.

use std::future::Future;
use std::time::Duration;

use lockstep_env::tokio_env::TokioEnv;
use lockstep_env::{Env, timeout};

/// How long what happens within a second or two may take on a machine that is busy with other things.
pub const PATIENCE: Duration = Duration::from_secs(60);

const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(200);

/// Tries `attempt` again and again until it gives something.
///
/// # Panics
/// `deadline` has passed; `what` says what was waited for.
pub async fn wait_until<T, F>(what: &str, deadline: Duration, mut attempt: impl FnMut() -> F) -> T
where
    F: Future<Output = Option<T>>,
{
    let start = TokioEnv::now();
    let mut pause = FIRST_PAUSE;
    loop {
        let left = deadline.saturating_sub(start.elapsed());
        match timeout::<TokioEnv, _>(left, attempt()).await {
            Ok(Some(found)) => return found,
            Ok(None) if !left.is_zero() => {}
            _ => panic!("waited in vain for {} s: {what}", deadline.as_secs()),
        }
        TokioEnv::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Awaits `future`.
///
/// # Panics
/// It takes longer than `deadline`; `what` says what was waited for.
pub async fn within<F: Future>(what: &str, deadline: Duration, future: F) -> F::Output {
    match timeout::<TokioEnv, _>(deadline, future).await {
        Ok(output) => output,
        Err(_) => panic!("waited in vain for {} s: {what}", deadline.as_secs()),
    }
}

/// The distance between two pieces of load. Nothing is waited for in this way.
pub async fn pause(duration: Duration) {
    TokioEnv::sleep(duration).await;
}
