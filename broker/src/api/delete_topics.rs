//! DeleteTopics, by name or (version 6) by id.

use lockstep_core::op::DeleteTopic;
use lockstep_core::{Op, TopicRecord};
use lockstep_env::Env;
use lockstep_wire::codec::delete_topics_request::DeleteTopicState;
use lockstep_wire::codec::delete_topics_response::DeletableTopicResult;
use lockstep_wire::codec::{DeleteTopicsRequest, DeleteTopicsResponse, TopicName};

use crate::api::create_topics::admin_timeout;
use crate::broker::Broker;
use crate::dispatch::RequestContext;
use crate::error_code::ErrorCode;
use crate::topics::{self, Refusal, TopicKey};

pub(crate) async fn handle<E: Env>(
    broker: &Broker<E>,
    context: &RequestContext,
    request: DeleteTopicsRequest,
) -> DeleteTopicsResponse {
    let version = context.api_version;
    let timeout = admin_timeout(request.timeout_ms);
    let wanted = if version >= 6 {
        request.topics
    } else {
        request.topic_names.into_iter().map(|name| DeleteTopicState::default().with_name(Some(name))).collect()
    };
    topics::freshen_directory(broker).await;

    let mut under_way = Vec::with_capacity(wanted.len());
    for topic in wanted {
        let outcome = find(broker, &topic).map(|record| {
            let broker = broker.clone();
            E::spawn(async move {
                let op = Op::DeleteTopic(DeleteTopic { topic_id: record.id });
                let deleted = topics::change(&broker, op, timeout).await?;
                tracing::info!(topic = deleted.name, id = %deleted.id, "topic deleted");
                Ok(deleted)
            })
        });
        under_way.push((topic, outcome));
    }
    let mut responses = Vec::with_capacity(under_way.len());
    let mut some_deleted = false;
    for (topic, outcome) in under_way {
        let outcome = match outcome {
            Ok(task) => task.await.unwrap_or_else(|error| {
                tracing::error!(%error, "deleting a topic failed unexpectedly");
                Err(Refusal::from(ErrorCode::UnknownServerError))
            }),
            Err(refusal) => Err(refusal),
        };
        some_deleted |= outcome.is_ok();
        responses.push(result(version, topic, outcome));
    }
    if some_deleted {
        // The records as they were do not tell the directory's version afterwards, the directory itself does.
        topics::freshen_directory(broker).await;
        let newest = broker.node().directory(|directory| directory.version);
        topics::settle(broker, newest, timeout).await;
    }
    DeleteTopicsResponse::default().with_responses(responses)
}

fn find<E: Env>(broker: &Broker<E>, topic: &DeleteTopicState) -> Result<TopicRecord, Refusal> {
    let key = match &topic.name {
        Some(_) if !topic.topic_id.is_nil() => {
            return Err(Refusal::new(ErrorCode::InvalidRequest, "A topic is named by name or by id, not by both."));
        }
        Some(name) => TopicKey::Name(name.to_string()),
        None => TopicKey::Id(topics::topic_id(&topic.topic_id)),
    };
    broker.node().directory(|directory| key.find(directory).cloned()).ok_or_else(|| key.unknown().into())
}

fn result(version: i16, topic: DeleteTopicState, outcome: Result<TopicRecord, Refusal>) -> DeletableTopicResult {
    let mut result = DeletableTopicResult::default().with_name(topic.name).with_topic_id(topic.topic_id);
    match outcome {
        Ok(record) => {
            result.name = Some(TopicName(record.name.into()));
            if version >= 6 {
                result.topic_id = topics::uuid(record.id);
            }
        }
        Err(refusal) => {
            result.error_code = refusal.error.code();
            if version >= 5 {
                result.error_message = Some(refusal.message.into());
            }
        }
    }
    result
}
