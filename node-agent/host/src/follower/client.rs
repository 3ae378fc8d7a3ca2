//! One connection to control: the stream, and the reports beside it.

use std::{collections::BTreeMap, fs, io, pin::Pin, time::Duration};

use pillion_protocol::{
    stream::{Key, MAX_MESSAGE, REPORT, Report, STREAM, Subscribe, ToNode, VERSIONS, Version},
    text,
};
use reqwest::{Certificate, Client, Response, StatusCode};
use serde::Deserialize;
use tokio::{sync::watch, time::timeout};

use super::{
    lines::{Line, Lines},
    message::{Settings, Word},
    say,
};
use crate::registry::chain;

/// How long a connection, and an answer's head, may take.
const CONNECT: Duration = Duration::from_secs(5);
const HEAD: Duration = Duration::from_secs(15);

/// Control says something every ten seconds.
const SILENCE: Duration = Duration::from_secs(30);

/// A burst of reports is brought as one.
const BURST: Duration = Duration::from_millis(200);

/// One that was not taken is brought again after so long.
const REPORT_AGAIN: Duration = Duration::from_secs(5);

/// The largest file of a token or an authority, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// Why there is no stream.
#[derive(Debug)]
pub(super) enum Away {
    /// Nobody hears this process any more.
    SupervisorGone(io::Error),
    /// For people.
    Control(String),
}

impl From<io::Error> for Away {
    fn from(error: io::Error) -> Self {
        Self::SupervisorGone(error)
    }
}

fn away(why: impl ToString) -> Away {
    Away::Control(why.to_string())
}

/// A connection to control.
pub(super) struct Connection<'a> {
    pub(super) settings: &'a Settings,
    /// What was handed on.
    pub(super) known: &'a mut BTreeMap<Key, Version>,
    pub(super) reports: &'a mut watch::Receiver<Option<Report>>,
    /// Control has told everything.
    pub(super) complete: bool,
}

impl Connection<'_> {
    /// Follows the stream to its end, and says why that came.
    pub(super) async fn follow(&mut self) -> Away {
        match self.run().await {
            Ok(()) => away("the stream has ended"),
            Err(away) => away,
        }
    }

    async fn run(&mut self) -> Result<(), Away> {
        let client = client(self.settings).map_err(away)?;
        let token = read(&self.settings.token).map_err(away)?;
        let token = token.trim();
        let subscribe = Subscribe { versions: VERSIONS.to_vec(), known: self.known.clone() };
        let asked = client.post(format!("{}{STREAM}", self.settings.url)).bearer_auth(token).body(json(&subscribe)?);
        let asked = asked.header("content-type", "application/json").send();
        let answer =
            timeout(HEAD, asked).await.map_err(|_| away("it does not answer"))?.map_err(|error| away(chain(&error)))?;
        let mut answer = accepted(answer).await?;
        let mut lines = Lines::default();
        // What was reported to another replica this one does not know.
        self.reports.mark_changed();
        let mut bringing: Pin<Box<dyn Future<Output = Result<(), Away>> + Send>> = Box::pin(std::future::pending());
        let (mut is_bringing, mut failed) = (false, false);
        loop {
            tokio::select! {
                chunk = timeout(SILENCE, answer.chunk()) => {
                    let chunk = chunk.map_err(|_| away("it says nothing any more"))?.map_err(|error| away(chain(&error)))?;
                    let Some(chunk) = chunk else { return Ok(()) };
                    for line in lines.take(&chunk) {
                        self.hear(line)?;
                    }
                }
                changed = self.reports.changed(), if self.complete && !is_bringing => {
                    // The supervisor's end comes as a signal.
                    if changed.is_err() { return Ok(()) }
                    let pause = if failed { REPORT_AGAIN } else { BURST };
                    let (settings, client, token) = (self.settings.clone(), client.clone(), token.to_owned());
                    let mut reports = self.reports.clone();
                    bringing = Box::pin(async move {
                        tokio::time::sleep(pause).await;
                        let report = reports.borrow_and_update().clone();
                        bring(&settings, &client, &token, report).await
                    });
                    is_bringing = true;
                }
                // A report that is not taken ends nothing: it is brought again.
                brought = &mut bringing, if is_bringing => {
                    is_bringing = false;
                    failed = brought.is_err();
                    if let Err(Away::Control(why)) = brought {
                        say(&Word::Away(format!("a report is not taken: {why}")))?;
                        self.reports.mark_changed();
                    }
                }
            }
        }
    }

    /// Hands on what control says.
    fn hear(&mut self, line: Line) -> Result<(), Away> {
        let line = match line {
            Line::Whole(line) => line,
            Line::TooLong { about, bytes } => {
                let about = about.map_or_else(|| "something".to_owned(), String::from);
                let why = format!("{about}: a line of {bytes} bytes: at most {MAX_MESSAGE} are read");
                return Ok(say(&Word::Misunderstood(why))?);
            }
        };
        // The next line may well be understood: one of a newer control must not keep this node from all others.
        let told: ToNode = match serde_json::from_slice(&line) {
            Ok(told) => told,
            // Its words could quote a secret.
            Err(error) => {
                let why = format!("column {} of a line: {:?}", error.column(), error.classify());
                return Ok(say(&Word::Misunderstood(why))?);
            }
        };
        told.note_in(self.known);
        self.complete |= told == ToNode::Complete;
        match told {
            ToNode::Heartbeat | ToNode::Unknown => Ok(()),
            told => Ok(say(&Word::Told(Box::new(told)))?),
        }
    }
}

/// Brings a report to control.
async fn bring(settings: &Settings, client: &Client, token: &str, report: Option<Report>) -> Result<(), Away> {
    let Some(report) = report else { return Ok(()) };
    let asked = client.post(format!("{}{REPORT}", settings.url)).bearer_auth(token).body(json(&report)?);
    let asked = asked.header("content-type", "application/json").send();
    let answer = timeout(HEAD, asked).await.map_err(|_| away("no answer"))?.map_err(|error| away(chain(&error)))?;
    accepted(answer).await.map(drop)
}

fn json(message: &impl serde::Serialize) -> Result<Vec<u8>, Away> {
    serde_json::to_vec(message).map_err(away)
}

fn read(path: &std::path::Path) -> Result<String, String> {
    let wrong = |error: String| format!("{}: {error}", path.display());
    let size = fs::metadata(path).map_err(|error| wrong(error.to_string()))?.len();
    if size > MAX_FILE {
        return Err(wrong(format!("{size} bytes are too many: at most {MAX_FILE} are allowed")));
    }
    fs::read_to_string(path).map_err(|error| wrong(error.to_string()))
}

/// A client that trusts control's authority, and nobody else.
fn client(settings: &Settings) -> Result<Client, String> {
    let wrong = |error: reqwest::Error| format!("{}: {}", settings.authority.display(), chain(&error));
    let authority = Certificate::from_pem_bundle(read(&settings.authority)?.as_bytes()).map_err(wrong)?;
    _ = tokio_rustls::rustls::crypto::ring::default_provider().install_default();
    Client::builder()
        .tls_certs_only(authority)
        .https_only(true)
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(CONNECT)
        .build()
        .map_err(wrong)
}

/// What control says where it says no.
#[derive(Deserialize)]
struct Said {
    title: String,
}

async fn accepted(mut answer: Response) -> Result<Response, Away> {
    let status = answer.status();
    if status.is_success() {
        return Ok(answer);
    }
    let mut body = Vec::new();
    while let Ok(Ok(Some(chunk))) = timeout(CONNECT, answer.chunk()).await
        && body.len() < MAX_MESSAGE
    {
        body.extend_from_slice(&chunk);
    }
    let said = serde_json::from_slice::<Said>(&body)
        .map_or_else(|_| String::new(), |said| format!(": {}", text::reason(&said.title)));
    let hint = match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            " (is this the agent's own service account, and its token's audience that of control?)"
        }
        _ => "",
    };
    Err(away(format!("{status}{said}{hint}")))
}
