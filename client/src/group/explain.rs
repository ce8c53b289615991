//! Why a group rebalanced.

use lockstep_env::Env;
use lockstep_wire::private::{GroupTimeline, GroupTimelineRequest};

use crate::admin::Admin;
use crate::error::{ClientError, check_code};

impl<E: Env> Admin<E> {
    /// What happened to a group lately: who came and went and why, which epoch that caused, which partitions moved from whom to
    /// whom, and how long it took. Any broker tells the same, and nothing that was acknowledged before the call is missing.
    /// Only Lockstep's brokers know this request.
    ///
    /// # Errors
    /// The group does not exist, or the cluster did not answer in time.
    pub async fn explain_group(&self, group: &str) -> Result<GroupTimeline, ClientError> {
        let what = || format!("explaining group {group}");
        let mut retry = self.client().retry(what());
        loop {
            let attempt = async {
                let request = |_| GroupTimelineRequest { group_id: group.to_owned() };
                let (address, response) = self.client().ask_any(request).await?;
                check_code(what, response.error_code, None)?;
                serde_json::from_slice(&response.json)
                    .map_err(|error| ClientError::bad_answer(&address, format!("timeline of a group: {error}")))
            };
            match attempt.await {
                Ok(timeline) => return Ok(timeline),
                Err(error) => retry.pause(error).await?,
            }
        }
    }
}
