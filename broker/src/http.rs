//! The HTTP side: `/metrics` for Prometheus, `/healthz` and `/readyz` for whoever starts and stops brokers.
//!
//! It is kept apart from the brokers' own work: few connections, one request each, small headers, and all of it within a
//! fixed time.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use lockstep_env::{Connection, Either, Env, Listener, select, timeout};
use lockstep_runtime::ProposeError;
use prometheus_client::registry::Registry;
use tokio::sync::{Mutex, Semaphore};

use crate::broker::Broker;
use crate::metrics;
use crate::stop::StopSignal;

/// It is for this machine only.
pub(crate) const HOST: &str = "127.0.0.1";
/// Connections served at one time; further ones are closed at once.
const CONNECTIONS_MAX: usize = 32;
/// From accepting a connection to the last byte of its response.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);
/// Request line and headers.
const HEADER_BYTES_MAX: usize = 8 << 10;
/// What hyper may buffer of a request.
const BUFFER_BYTES_MAX: usize = 16 << 10;
const HEADERS_MAX: usize = 64;
/// Metrics are gathered at most so often, whoever asks: counting groups takes every shard's lock for a moment.
const METRICS_AGE_MAX: Duration = Duration::from_millis(200);
/// How long accepting pauses after an error such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const TEXT: &str = "text/plain; charset=utf-8";

/// What connections share.
struct Site<E: Env> {
    broker: Broker<E>,
    registry: Registry,
    gathered: Mutex<Option<(Instant, Bytes)>>,
}

/// Serves until the signal is given.
pub(crate) async fn serve<E: Env>(broker: Broker<E>, mut listener: E::Listener, stop: StopSignal) {
    let registry = metrics::registry(broker.clone());
    let site = Arc::new(Site { broker, registry, gathered: Mutex::new(None) });
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let connection = match select(stop.given(), listener.accept()).await {
            Either::First(()) => return,
            Either::Second(Ok(connection)) => connection,
            Either::Second(Err(error)) => {
                tracing::warn!(%error, "cannot accept an HTTP connection");
                E::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(permit) = Arc::clone(&room).try_acquire_owned() else {
            tracing::debug!(peer = connection.peer_address, "too many HTTP connections: one more was closed at once");
            continue;
        };
        let (site, stop) = (Arc::clone(&site), stop.clone());
        drop(E::spawn(async move {
            select(stop.given(), serve_connection(site, connection)).await;
            drop(permit);
        }));
    }
}

async fn serve_connection<E: Env>(site: Arc<Site<E>>, connection: Connection<E>) {
    let stream = TokioIo::new(tokio::io::join(connection.reader, connection.writer));
    let answering = http1::Builder::new()
        .keep_alive(false)
        .max_headers(HEADERS_MAX)
        .max_header_size(HEADER_BYTES_MAX)
        .max_buf_size(BUFFER_BYTES_MAX)
        // It would be read from a clock that is not the environment's.
        .auto_date_header(false)
        .serve_connection(
            stream,
            service_fn(move |request: Request<Incoming>| {
                let site = Arc::clone(&site);
                async move { Ok::<_, Infallible>(site.answer(request.method(), request.uri().path()).await) }
            }),
        );
    match timeout::<E, _>(CONNECTION_TIMEOUT, answering).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(peer = connection.peer_address, %error, "HTTP connection ended"),
        Err(_) => tracing::debug!(peer = connection.peer_address, "HTTP connection was too slow"),
    }
}

impl<E: Env> Site<E> {
    async fn answer(&self, method: &Method, path: &str) -> Response<Full<Bytes>> {
        if !matches!(*method, Method::GET | Method::HEAD) {
            let mut response = respond(StatusCode::METHOD_NOT_ALLOWED, TEXT, "only GET and HEAD\n");
            response.headers_mut().insert(ALLOW, hyper::header::HeaderValue::from_static("GET, HEAD"));
            return response;
        }
        match path {
            "/metrics" => match self.metrics().await {
                Some(text) => respond(StatusCode::OK, OPEN_METRICS, text),
                None => respond(StatusCode::INTERNAL_SERVER_ERROR, TEXT, "the metrics cannot be written\n"),
            },
            "/healthz" => respond(StatusCode::OK, TEXT, "ok\n"),
            "/readyz" => {
                let reasons = unready(&self.broker).await;
                if reasons.is_empty() {
                    return respond(StatusCode::OK, TEXT, "ready\n");
                }
                respond(StatusCode::SERVICE_UNAVAILABLE, TEXT, reasons.join("\n") + "\n")
            }
            _ => respond(StatusCode::NOT_FOUND, TEXT, "there are /metrics, /healthz and /readyz\n"),
        }
    }

    async fn metrics(&self) -> Option<Bytes> {
        let mut gathered = self.gathered.lock().await;
        let now = E::now();
        if let Some((at, text)) = &*gathered
            && now.saturating_duration_since(*at) < METRICS_AGE_MAX
        {
            return Some(text.clone());
        }
        let mut text = String::new();
        if let Err(error) = prometheus_client::encoding::text::encode(&mut text, &self.registry) {
            tracing::error!(%error, "the metrics cannot be written");
            return None;
        }
        let text = Bytes::from(text);
        *gathered = Some((now, text.clone()));
        Some(text)
    }
}

fn respond(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(content_type));
    response
}

/// Why clients should not be sent here yet, or any more; nothing when they may.
async fn unready<E: Env>(broker: &Broker<E>) -> Vec<String> {
    let node = broker.node();
    if broker.stop().is_given() {
        return vec!["the broker is stopping".to_owned()];
    }
    if let Either::First(reason) = select(broker.failed(), std::future::ready(())).await {
        return vec![format!("the node has failed: {reason}")];
    }
    let shards = node.shards();
    if shards.is_empty() {
        return vec!["the cluster has not been formed yet".to_owned()];
    }
    let mut reasons = Vec::new();
    if node.directory(|directory| !directory.brokers.contains_key(&node.id())) {
        reasons.push("this broker is not in the cluster's directory yet".to_owned());
    }
    for shard in shards {
        match shard.serving() {
            Err(ProposeError::Stopped(id)) => reasons.push(format!("shard {id} has stopped on this node")),
            _ if node.leader_of(shard.id()).is_none_or(|(leader, _)| !node.alive(leader)) => {
                reasons.push(format!("shard {} has no leader that this node knows", shard.id()));
            }
            _ => {}
        }
    }
    reasons
}
