//! Deleting a group.

use lockstep_env::Env;
use lockstep_wire::codec::DeleteGroupsRequest;

use super::describe::group_id;
use crate::admin::Admin;
use crate::client::Purpose;
use crate::error::{ClientError, check_code};

impl<E: Env> Admin<E> {
    /// Deletes a group that has no members, with its committed offsets.
    ///
    /// # Errors
    /// The group does not exist or has members, or the cluster did not answer in time. After a lost answer the retry may find that the
    /// first attempt deleted the group; that is then an error too.
    pub async fn delete_group(&self, group: &str) -> Result<(), ClientError> {
        let what = || format!("deleting group {group}");
        let mut retry = self.client().retry(what());
        loop {
            match self.try_delete_group(group).await {
                Ok(()) => return Ok(()),
                Err(error) => retry.pause(error).await?,
            }
        }
    }

    async fn try_delete_group(&self, group: &str) -> Result<(), ClientError> {
        let client = self.client();
        let coordinator = client.coordinator(group).await?;
        let response = client
            .ask_coordinator(
                group,
                Purpose::General,
                client.patience(),
                |_| {
                    let mut request = DeleteGroupsRequest::default();
                    request.groups_names = vec![group_id(group)];
                    request
                },
                |response| response.results.first().map_or(0, |result| result.error_code),
            )
            .await?;
        let result = response.results.first().ok_or_else(|| ClientError::bad_answer(&coordinator, "no result"))?;
        check_code(|| format!("deleting group {group}"), result.error_code, None)
    }
}
