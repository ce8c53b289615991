//! One connection to one broker: requests in order, answers matched by correlation id.

use std::collections::BTreeMap;
use std::io;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use lockstep_env::tokio_env::TokioEnv;
use lockstep_env::{Connection, Env, Task, timeout};
use lockstep_wire::api::Call;
use lockstep_wire::codec::{ApiVersionsRequest, ApiVersionsResponse, StrBytes};
use lockstep_wire::frame::{RESPONSE_LEN_MAX, decode_response, encode_request, response_correlation_id};
use lockstep_wire::versions::VersionRange;
use lockstep_wire::{ApiKey, EncodedFrame, Request, Response};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, BufWriter};
use tokio::sync::{mpsc, oneshot};

use crate::error::{ClientError, ErrorCode};

/// How much is allocated for an answer before its bytes are there.
const READ_STEP_LEN: usize = 1 << 20;
const BUFFER_LEN: usize = 16 << 10;

/// A connection whose broker's versions are known, for those who speak the protocol themselves: requests and answers are
/// the messages of `lockstep_wire`. Made by [`Client::open_connection`](crate::Client::open_connection). Shared by
/// reference: many requests may be under way, and are answered in the order in which they were sent.
pub struct BrokerConnection<E: Env = TokioEnv> {
    address: String,
    client_id: String,
    waiting: Arc<Waiting>,
    outgoing: mpsc::UnboundedSender<EncodedFrame>,
    versions: BTreeMap<ApiKey, VersionRange>,
    /// Behind a lock only because a task need not be `Sync`.
    tasks: Mutex<[E::Task<()>; 2]>,
}

impl<E: Env> Drop for BrokerConnection<E> {
    fn drop(&mut self) {
        self.waiting.close("dropped");
        for task in self.tasks.get_mut().unwrap_or_else(PoisonError::into_inner) {
            task.abort();
        }
    }
}

impl<E: Env> std::fmt::Debug for BrokerConnection<E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BrokerConnection").field("address", &self.address).finish_non_exhaustive()
    }
}

/// Requests that have no answer yet.
#[derive(Default)]
struct Waiting {
    state: Mutex<WaitingState>,
}

#[derive(Default)]
struct WaitingState {
    /// Why the connection is of no use any more.
    closed: Option<String>,
    correlation_id_next: i32,
    by_correlation_id: BTreeMap<i32, oneshot::Sender<Bytes>>,
}

impl Waiting {
    fn lock(&self) -> MutexGuard<'_, WaitingState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nothing more is sent, and all that wait get an error. The first reason stays.
    fn close(&self, reason: &str) {
        let mut state = self.lock();
        state.closed.get_or_insert_with(|| reason.to_owned());
        let abandoned = std::mem::take(&mut state.by_correlation_id);
        drop(state);
        drop(abandoned);
    }

    fn closed_reason(&self) -> Option<String> {
        self.lock().closed.clone()
    }
}

/// A request that has been handed to the connection, and is sent whether or not anybody waits for its answer.
#[must_use = "an error in the answer would go unnoticed"]
pub struct InFlight<R> {
    api_version: i16,
    address: String,
    waiting: Arc<Waiting>,
    answer: oneshot::Receiver<Bytes>,
    response: PhantomData<fn() -> R>,
}

impl<R: Call> InFlight<R> {
    /// Waits for the answer. A broker that does not answer in time is given up, with all that others ask it on this
    /// connection: answers come in order, so none of them would come sooner.
    ///
    /// # Errors
    /// The connection broke, no answer came within `patience`, or it cannot be decoded. What the broker says is not
    /// looked at.
    pub async fn answer<E: Env>(self, patience: Duration) -> Result<R::Response, ClientError> {
        let disconnected = |reason: String| ClientError::Disconnected { address: self.address.clone(), reason };
        let frame = match timeout::<E, _>(patience, self.answer).await {
            Ok(Ok(frame)) => frame,
            Ok(Err(_)) => {
                return Err(disconnected(self.waiting.closed_reason().unwrap_or_else(|| "closed".to_owned())));
            }
            Err(_) => {
                let reason = format!("no answer to {} within {} ms", R::API_KEY.name(), patience.as_millis());
                self.waiting.close(&reason);
                return Err(disconnected(reason));
            }
        };
        let (_, response) = decode_response(R::API_KEY, self.api_version, frame).map_err(|error| {
            self.waiting.close("an answer that cannot be decoded");
            ClientError::bad_frame(&self.address, &error)
        })?;
        response_of::<R>(response, &self.address)
    }
}

fn response_of<R: Call>(response: Response, address: &str) -> Result<R::Response, ClientError> {
    R::from_response(response).ok_or_else(|| ClientError::bad_answer(address, "the answer to another request"))
}

impl<E: Env> BrokerConnection<E> {
    /// Connects and asks for the broker's versions, all within `patience`.
    pub(crate) async fn open(env: &E, address: &str, client_id: &str, patience: Duration) -> Result<Self, ClientError> {
        let disconnected = |reason: String| ClientError::Disconnected { address: address.to_owned(), reason };
        let opening = async {
            let connection = env.connect(address).await.map_err(|error| disconnected(error.to_string()))?;
            let mut opened = Self::start(connection, address, client_id);
            opened.negotiate(patience).await?;
            Ok(opened)
        };
        match timeout::<E, _>(patience, opening).await {
            Ok(result) => result,
            Err(_) => Err(disconnected(format!("not connected within {} ms", patience.as_millis()))),
        }
    }

    fn start(connection: Connection<E>, address: &str, client_id: &str) -> Self {
        let waiting = Arc::new(Waiting::default());
        let (outgoing, to_write) = mpsc::unbounded_channel();
        let reading = E::spawn({
            let waiting = Arc::clone(&waiting);
            async move {
                let error = read_answers(connection.reader, &waiting).await;
                waiting.close(&error.to_string());
            }
        });
        let writing = E::spawn({
            let waiting = Arc::clone(&waiting);
            async move {
                if let Err(error) = write_requests(connection.writer, to_write, &waiting).await {
                    waiting.close(&error.to_string());
                }
            }
        });
        Self {
            address: address.to_owned(),
            client_id: client_id.to_owned(),
            waiting,
            outgoing,
            versions: BTreeMap::new(),
            tasks: Mutex::new([reading, writing]),
        }
    }

    async fn negotiate(&mut self, patience: Duration) -> Result<(), ClientError> {
        let mut request = ApiVersionsRequest::default();
        request.client_software_name = StrBytes::from_static_str("lockstep-client");
        request.client_software_version = StrBytes::from_static_str(env!("CARGO_PKG_VERSION"));
        let mut answer: ApiVersionsResponse = self.send(3, request)?.answer::<E>(patience).await?;
        if answer.error_code == ErrorCode::UnsupportedVersion.code() {
            answer = self.send(0, ApiVersionsRequest::default())?.answer::<E>(patience).await?;
        }
        if answer.error_code != 0 {
            return Err(ClientError::broker(format!("versions of {}", self.address), answer.error_code, None));
        }
        self.versions.extend(
            ApiKey::ALL.iter().filter(|key| !key.is_advertised()).map(|&api_key| (api_key, api_key.versions())),
        );
        for row in &answer.api_keys {
            if let Some(api_key) = ApiKey::from_code(row.api_key) {
                self.versions.insert(api_key, VersionRange { min: row.min_version, max: row.max_version });
            }
        }
        Ok(())
    }

    /// The broker's address, `host:port`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Nothing more is sent, and all that wait for an answer get an error.
    pub(crate) fn close(&self, reason: &str) {
        self.waiting.close(reason);
        for task in &*self.tasks.lock().unwrap_or_else(PoisonError::into_inner) {
            task.abort();
        }
    }

    /// It is of no use any more.
    pub fn is_closed(&self) -> bool {
        self.waiting.lock().closed.is_some()
    }

    /// The highest version of a request that both sides know.
    ///
    /// # Errors
    /// There is none.
    pub fn version_of(&self, api_key: ApiKey) -> Result<i16, ClientError> {
        self.versions
            .get(&api_key)
            .and_then(|range| range.highest_common(api_key.versions()))
            .ok_or_else(|| ClientError::Unsupported { address: self.address.clone(), api: api_key.name() })
    }

    /// Hands a request to the connection. Requests leave, and are answered, in the order of the calls.
    ///
    /// # Errors
    /// The connection is closed, or the request has a field that the version does not.
    pub fn send<R: Call>(&self, api_version: i16, request: R) -> Result<InFlight<R>, ClientError> {
        let (sender, answer) = oneshot::channel();
        self.enqueue(api_version, &request.into(), Some(sender))?;
        Ok(InFlight {
            api_version,
            address: self.address.clone(),
            waiting: Arc::clone(&self.waiting),
            answer,
            response: PhantomData,
        })
    }

    /// Hands over a request that is not answered: Produce with acks=0.
    pub(crate) fn send_unanswered(&self, api_version: i16, request: &Request) -> Result<(), ClientError> {
        self.enqueue(api_version, request, None)
    }

    fn enqueue(
        &self,
        api_version: i16,
        request: &Request,
        answer_to: Option<oneshot::Sender<Bytes>>,
    ) -> Result<(), ClientError> {
        let disconnected =
            |reason: &str| ClientError::Disconnected { address: self.address.clone(), reason: reason.to_owned() };
        let correlation_id = {
            let mut state = self.waiting.lock();
            let id = state.correlation_id_next;
            state.correlation_id_next = id.wrapping_add(1);
            id
        };
        let frame = encode_request(api_version, correlation_id, Some(&self.client_id), request)?;
        // The lock is held until the frame is queued, so that closing cannot come between and leave one waiting for
        // ever.
        let mut state = self.waiting.lock();
        if let Some(reason) = &state.closed {
            return Err(disconnected(reason));
        }
        if let Some(answer_to) = answer_to {
            let previous = state.by_correlation_id.insert(correlation_id, answer_to);
            assert!(previous.is_none(), "a correlation id is in use once at a time");
        }
        self.outgoing.send(frame).map_err(|_| disconnected("closed"))
    }

    /// Sends a request of the highest common version, which `request` is told, and waits for the answer.
    ///
    /// # Errors
    /// As [`BrokerConnection::version_of`], [`BrokerConnection::send`] and [`InFlight::answer`].
    pub async fn call<R: Call>(
        &self,
        patience: Duration,
        request: impl FnOnce(i16) -> R,
    ) -> Result<R::Response, ClientError> {
        let version = self.version_of(R::API_KEY)?;
        self.send(version, request(version))?.answer::<E>(patience).await
    }
}

async fn read_answers<R: AsyncRead + Unpin>(reader: R, waiting: &Waiting) -> io::Error {
    let mut reader = BufReader::with_capacity(BUFFER_LEN, reader);
    loop {
        let frame = match read_frame(&mut reader).await {
            Ok(frame) => frame,
            Err(error) => return error,
        };
        let Ok(correlation_id) = response_correlation_id(&frame) else {
            return io::Error::new(io::ErrorKind::InvalidData, "an answer shorter than its header");
        };
        let Some(answer_to) = waiting.lock().by_correlation_id.remove(&correlation_id) else {
            return io::Error::new(io::ErrorKind::InvalidData, "an answer to nothing that was asked");
        };
        // Whoever asked may have stopped waiting.
        let _ = answer_to.send(frame);
    }
}

async fn read_frame<R: AsyncRead + Unpin>(reader: &mut R) -> io::Result<Bytes> {
    let len = match reader.read_u32().await {
        Ok(len) => len as usize,
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            return Err(io::Error::new(error.kind(), "closed by the broker"));
        }
        Err(error) => return Err(error),
    };
    if len > RESPONSE_LEN_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("an answer of {len} bytes")));
    }
    let mut frame = BytesMut::new();
    while frame.len() < len {
        let missing = len - frame.len();
        frame.reserve(missing.min(READ_STEP_LEN));
        if (&mut *reader).take(missing as u64).read_buf(&mut frame).await? == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "closed by the broker amid an answer"));
        }
    }
    Ok(frame.freeze())
}

async fn write_requests<W: AsyncWrite + Unpin>(
    writer: W,
    mut frames: mpsc::UnboundedReceiver<EncodedFrame>,
    waiting: &Waiting,
) -> io::Result<()> {
    let mut writer = BufWriter::with_capacity(BUFFER_LEN, writer);
    while let Some(frame) = frames.recv().await {
        let mut next = Some(frame);
        while let Some(frame) = next {
            // What was given up must not arrive after it was sent again elsewhere.
            if waiting.closed_reason().is_some() {
                return Ok(());
            }
            for segment in &frame.segments {
                writer.write_all(segment).await?;
            }
            next = frames.try_recv().ok();
        }
        writer.flush().await?;
    }
    writer.shutdown().await
}
