//! A bare connection that speaks Kafka's protocol request by request.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use lockstep_env::tokio_env::{TokioEnv, TokioListener};
use lockstep_env::{Connection, Env, timeout};
use lockstep_wire::api::Call;
use lockstep_wire::frame::{decode_response, encode_request};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const TIMEOUT: Duration = Duration::from_secs(30);

/// A connection to a broker, or to whatever listens there.
#[derive(Debug)]
pub struct WireConnection {
    connection: Connection<TokioEnv>,
    correlation_id: i32,
}

impl WireConnection {
    /// Connects to `address`.
    ///
    /// # Errors
    /// The operating system's, or `TimedOut`.
    pub async fn connect(address: &str) -> io::Result<Self> {
        let connection = in_time(TokioEnv::new().connect(address)).await?;
        Ok(Self { connection, correlation_id: 0 })
    }

    /// Sends a request in `version` and gives the answer's body.
    ///
    /// # Errors
    /// The connection was closed, or the answer cannot be decoded.
    pub async fn call<R: Call>(&mut self, version: i16, request: R) -> io::Result<R::Response> {
        self.correlation_id += 1;
        let frame = encode_request(version, self.correlation_id, Some("wire-test"), &request.into())
            .map_err(io::Error::other)?
            .into_bytes();
        self.write(&frame).await?;
        let mut length = [0; 4];
        in_time(self.connection.reader.read_exact(&mut length)).await?;
        let mut answer = vec![0; u32::from_be_bytes(length) as usize];
        in_time(self.connection.reader.read_exact(&mut answer)).await?;
        let (correlation_id, response) =
            decode_response(R::API_KEY, version, Bytes::from(answer)).map_err(io::Error::other)?;
        assert_eq!(correlation_id, self.correlation_id, "answers come in order");
        R::from_response(response).ok_or_else(|| io::Error::other("an answer to another request"))
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    /// The connection was closed.
    pub async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        in_time(async {
            self.connection.writer.write_all(bytes).await?;
            self.connection.writer.flush().await
        })
        .await
    }

    /// Says that nothing more will be sent.
    ///
    /// # Errors
    /// The connection was closed.
    pub async fn finish(&mut self) -> io::Result<()> {
        in_time(self.connection.writer.shutdown()).await
    }

    /// Reads and forgets what comes until the other side closes the connection.
    ///
    /// # Errors
    /// `TimedOut` if it does not within `deadline`.
    pub async fn closed_within(&mut self, deadline: Duration) -> io::Result<()> {
        let mut sink = [0; 4_096];
        let closed = async { while !matches!(self.connection.reader.read(&mut sink).await, Ok(0) | Err(_)) {} };
        timeout::<TokioEnv, _>(deadline, closed).await.map_err(|_| io::ErrorKind::TimedOut.into())
    }
}

/// A port on which something listens, for tests of ports that are taken.
///
/// # Panics
/// It is taken already.
pub async fn occupy(port: u16) -> TokioListener {
    TokioEnv::new().listen(&format!("127.0.0.1:{port}")).await.expect("the port is free")
}

async fn in_time<T>(operation: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout::<TokioEnv, _>(TIMEOUT, operation).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}
