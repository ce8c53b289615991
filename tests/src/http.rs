//! Just enough of HTTP to ask a broker how it is.

use std::io;

use lockstep_env::tokio_env::TokioEnv;
use lockstep_env::{Env, timeout};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const TIMEOUT: Duration = Duration::from_secs(10);

/// What came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// 200, 404, …
    pub status: u16,
    /// Header lines in lower case.
    pub head: String,
    /// The body as text.
    pub body: String,
}

/// GET `path` of `address`.
///
/// # Errors
/// No connection, or no answer that can be understood.
pub async fn get(address: &str, path: &str) -> io::Result<Response> {
    request("GET", address, path).await
}

/// Any request without a body.
///
/// # Errors
/// As [`get`].
pub async fn request(method: &str, address: &str, path: &str) -> io::Result<Response> {
    let exchange = async {
        let mut connection = TokioEnv::new().connect(address).await?;
        let request = format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
        connection.writer.write_all(request.as_bytes()).await?;
        connection.writer.flush().await?;
        let mut answer = Vec::new();
        connection.reader.read_to_end(&mut answer).await?;
        parse(&answer).ok_or_else(|| io::Error::other("not an HTTP response"))
    };
    timeout::<TokioEnv, _>(TIMEOUT, exchange).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

fn parse(answer: &[u8]) -> Option<Response> {
    let text = String::from_utf8_lossy(answer);
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?;
    Some(Response { status, head: head.to_ascii_lowercase(), body: body.to_owned() })
}
