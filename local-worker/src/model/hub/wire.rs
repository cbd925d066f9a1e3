//! HTTP with a hub: requests, redirects, statuses. The token goes to the hub's own origin and nowhere else, which is why
//! redirects are followed here and not by the client.

use super::checksum::Checksum;
use super::{HubConfig, HubError};
use reqwest::header::{
    ACCEPT_ENCODING, AUTHORIZATION, CONTENT_LENGTH, ETAG, HeaderMap, HeaderName, HeaderValue, LOCATION, RANGE,
    RETRY_AFTER,
};
use reqwest::{Client, Method, Response, StatusCode, Url};
use secrecy::{ExposeSecret as _, SecretString};
use std::time::Duration;

/// Redirects followed for one request.
const MOST_REDIRECTS: usize = 6;
/// The longest wait that a server may ask for.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// Most bytes of a repository's description.
const MOST_DESCRIPTION: usize = 32 << 20;

/// Why a request gave nothing.
#[derive(Debug)]
pub(super) enum Failure {
    /// It won't work next time either.
    Lasting(HubError),
    /// It may work next time.
    Passing {
        /// What happened.
        why: String,
        /// How long the server wants to be left alone.
        wait: Option<Duration>,
    },
}

impl From<HubError> for Failure {
    fn from(error: HubError) -> Self {
        Self::Lasting(error)
    }
}

/// What a hub tells of a file before it is fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FileFacts {
    /// Bytes.
    pub size: u64,
    /// What they hash to.
    pub checksum: Checksum,
    /// The commit it is of, where the hub says.
    pub commit: Option<String>,
}

/// A client for one hub.
#[derive(Clone, Debug)]
pub(super) struct Wire {
    client: Client,
    endpoint: Url,
    token: Option<SecretString>,
    idle: Duration,
}

impl Wire {
    /// A client with the settings' time-outs.
    pub fn new(config: &HubConfig) -> Result<Self, HubError> {
        let wrong = |problem: String| HubError::Config { setting: "hub.endpoint", problem };
        let mut endpoint =
            Url::parse(&config.endpoint).map_err(|error| wrong(format!("`{}` is no URL: {error}", config.endpoint)))?;
        if !matches!(endpoint.scheme(), "http" | "https") || endpoint.cannot_be_a_base() {
            return Err(wrong(format!("`{endpoint}` must begin with https:// or http://")));
        }
        if !endpoint.path().ends_with('/') {
            let path = format!("{}/", endpoint.path());
            endpoint.set_path(&path);
        }
        let mut builder = Client::builder()
            .connect_timeout(config.connect_timeout)
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .referer(false)
            .user_agent(concat!("sluice/", env!("CARGO_PKG_VERSION")));
        if endpoint.host_str().is_some_and(|host| matches!(host, "127.0.0.1" | "localhost" | "[::1]")) {
            // A proxy is never the way to this very machine.
            builder = builder.no_proxy();
        }
        if endpoint.scheme() == "http" {
            // Without this a machine without root certificates could not even ask itself.
            builder = builder.tls_certs_only([]);
        }
        let client = builder.build().map_err(|error| wrong(format!("can't be used: {}", innermost(&error))))?;
        Ok(Self { client, endpoint, token: config.token.clone(), idle: config.idle_timeout })
    }

    /// The text of `api/models/{repository}/revision/{revision}`.
    pub async fn describe(&self, what: &str, repository: &str, revision: &str) -> Result<Vec<u8>, Failure> {
        let url = self.at(&format!("api/models/{repository}/revision/{revision}"), what)?;
        let mut response = self.send(what, Method::GET, url, None).await?;
        let mut body = Vec::new();
        while let Some(chunk) = self.chunk(&mut response).await? {
            body.extend_from_slice(chunk.as_ref());
            if body.len() > MOST_DESCRIPTION {
                return Err(malformed(what, format!("its description has more than {MOST_DESCRIPTION} bytes")));
            }
        }
        Ok(body)
    }

    /// Where a file is fetched from.
    pub fn file_url(&self, what: &str, repository: &str, commit: &str, file: &str) -> Result<Url, Failure> {
        let mut url = self.at(&format!("{repository}/resolve/{commit}"), what)?;
        match url.path_segments_mut() {
            // Escapes what is special in a URL.
            Ok(mut segments) => drop(segments.extend(file.split('/'))),
            Err(()) => return Err(malformed(what, "the endpoint can't have paths".to_owned())),
        }
        Ok(url)
    }

    /// Asks for a file's size and checksum.
    pub async fn facts(&self, what: &str, url: Url) -> Result<FileFacts, Failure> {
        let response = self.send(what, Method::HEAD, url, None).await?;
        let headers = response.headers();
        let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
        let etag = text(LINKED_ETAG).or_else(|| text(ETAG)).unwrap_or_default();
        let checksum = Checksum::from_etag(etag)
            .ok_or_else(|| malformed(what, format!("its ETag is {etag:?}, no SHA-256 and no git object name")))?;
        let size = text(LINKED_SIZE).or_else(|| text(CONTENT_LENGTH)).and_then(|size| size.parse().ok());
        let size = size.ok_or_else(|| malformed(what, "the hub does not tell its size".to_owned()))?;
        Ok(FileFacts { size, checksum, commit: text(REPO_COMMIT).map(str::to_owned) })
    }

    /// Begins to fetch a file at a byte. The status is 200, 206 or 416.
    pub async fn fetch(&self, what: &str, url: Url, from: u64) -> Result<Response, Failure> {
        self.send(what, Method::GET, url, (from > 0).then_some(from)).await
    }

    /// The next bytes of a body; `None` at its end.
    pub async fn chunk(&self, response: &mut Response) -> Result<Option<impl AsRef<[u8]> + use<>>, Failure> {
        let passing = |why: String| Failure::Passing { why, wait: None };
        match tokio::time::timeout(self.idle, response.chunk()).await {
            Ok(Ok(chunk)) => Ok(chunk),
            Ok(Err(error)) => Err(passing(format!("the connection was cut: {}", innermost(&error)))),
            Err(_) => Err(passing(format!("nothing came for {:?}", self.idle))),
        }
    }

    fn at(&self, path: &str, what: &str) -> Result<Url, Failure> {
        self.endpoint.join(path).map_err(|error| malformed(what, format!("no URL can be made of it: {error}")))
    }

    async fn send(&self, what: &str, method: Method, mut url: Url, from: Option<u64>) -> Result<Response, Failure> {
        for _ in 0..=MOST_REDIRECTS {
            let own = url.origin() == self.endpoint.origin();
            let mut request = self.client.request(method.clone(), url.clone()).header(ACCEPT_ENCODING, "identity");
            if let Some(token) = self.token.as_ref().filter(|_| own) {
                request = request.header(AUTHORIZATION, bearer(token)?);
            }
            if let Some(from) = from {
                request = request.header(RANGE, format!("bytes={from}-"));
            }
            let sent = tokio::time::timeout(self.idle, request.send()).await;
            let response = match sent {
                Ok(Ok(response)) => response,
                Ok(Err(error)) => return Err(Failure::Passing { why: innermost(&error), wait: None }),
                Err(_) => {
                    return Err(Failure::Passing { why: format!("no answer for {:?}", self.idle), wait: None });
                }
            };
            let status = response.status();
            let linked = response.headers().contains_key(LINKED_ETAG) && response.headers().contains_key(LINKED_SIZE);
            if !status.is_redirection() || (method == Method::HEAD && linked) {
                return judge(what, response, own && self.token.is_some());
            }
            url = next(what, &url, response.headers())?;
        }
        Err(malformed(what, format!("the hub redirects more than {MOST_REDIRECTS} times")))
    }
}

const LINKED_ETAG: HeaderName = HeaderName::from_static("x-linked-etag");
const LINKED_SIZE: HeaderName = HeaderName::from_static("x-linked-size");
const REPO_COMMIT: HeaderName = HeaderName::from_static("x-repo-commit");
const ERROR_CODE: HeaderName = HeaderName::from_static("x-error-code");

fn bearer(token: &SecretString) -> Result<HeaderValue, HubError> {
    let value = HeaderValue::from_str(&format!("Bearer {}", token.expose_secret()));
    let mut value = value.map_err(|_| HubError::Config {
        setting: "hub.token",
        problem: "holds a line break or a control character; give the token alone".to_owned(),
    })?;
    value.set_sensitive(true);
    Ok(value)
}

/// Where a redirect leads. Never from https to http: that would show to the net what was asked.
fn next(what: &str, url: &Url, headers: &HeaderMap) -> Result<Url, Failure> {
    let location = headers.get(LOCATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let target = url.join(location).ok().filter(|_| !location.is_empty());
    match target {
        Some(target) if target.scheme() == "https" || (target.scheme() == "http" && url.scheme() == "http") => {
            Ok(target)
        }
        Some(target) => Err(malformed(what, format!("the hub redirects to {}://, which is not safe", target.scheme()))),
        None => Err(malformed(what, "the hub redirects to nowhere".to_owned())),
    }
}

/// Good statuses pass, the others become failures.
fn judge(what: &str, response: Response, token_sent: bool) -> Result<Response, Failure> {
    let what = what.to_owned();
    let status = response.status();
    let code = response.headers().get(ERROR_CODE).and_then(|code| code.to_str().ok()).unwrap_or_default();
    let error = match status {
        _ if status.is_success() || status.is_redirection() => return Ok(response),
        StatusCode::RANGE_NOT_SATISFIABLE => return Ok(response),
        StatusCode::UNAUTHORIZED => HubError::Unauthorized { what, token_sent },
        StatusCode::FORBIDDEN => HubError::Forbidden { what, gated: code == "GatedRepo" },
        StatusCode::NOT_FOUND => {
            let problem = match code {
                "RevisionNotFound" => "the hub has no such revision",
                "EntryNotFound" => "the hub has no such file",
                _ => "the hub has no such model",
            };
            HubError::NotFound { what, problem: problem.to_owned() }
        }
        _ if status.is_server_error()
            || matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT) =>
        {
            let asked = response.headers().get(RETRY_AFTER).and_then(|wait| wait.to_str().ok()?.parse().ok());
            let wait = asked.map(|seconds| Duration::from_secs(seconds).min(LONGEST_WAIT));
            return Err(Failure::Passing { why: format!("the hub answers {}", status.as_u16()), wait });
        }
        _ => HubError::Status { what, status: status.as_u16() },
    };
    Err(Failure::Lasting(error))
}

pub(super) fn malformed(what: &str, problem: String) -> Failure {
    Failure::Lasting(HubError::Malformed { what: what.to_owned(), problem })
}

/// The cause at the bottom; the ones above repeat the URL.
fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
