//! The child process that asks a registry.

use std::{io, path::PathBuf, process::Stdio, time::Duration};

use clap::Args;
use pillion_protocol::{
    resolution::{Question, Resolution},
    text,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    process::Command,
    time::timeout,
};

/// How long it may take; it ends by itself before.
const LONGEST: Duration = Duration::from_secs(10);

/// The most that is read of its answer, in bytes.
const ANSWER: u64 = 64 << 10;

/// How registries are asked.
#[derive(Args, Clone, Debug)]
pub struct Resolver {
    /// The program `pillion`, which asks registries [default: beside this program]
    #[arg(long, value_name = "FILE", env = "PILLION_RESOLVER")]
    pub resolver: Option<PathBuf>,
    /// Settings for registries: authorities and mirrors; a YAML file, see SPECIFICATION.md §7
    #[arg(long, value_name = "FILE", env = "PILLION_REGISTRIES")]
    pub registries: Option<PathBuf>,
    /// A registry that speaks HTTP without TLS
    #[arg(long, value_name = "HOST[:PORT]")]
    pub plain_http: Vec<String>,
}

/// What an image is, or why that cannot be said.
pub async fn ask(resolver: &Resolver, question: &Question) -> Resolution {
    match timeout(LONGEST, run(resolver, question)).await {
        // It has parsed what strangers say.
        Ok(Ok(Resolution::Refused(why))) => Resolution::Refused(text::reason(&why)),
        Ok(Ok(Resolution::Unread(why))) => Resolution::Unread(text::reason(&why)),
        Ok(Ok(Resolution::Resolved(digest))) => Resolution::Resolved(digest),
        Ok(Err(error)) => Resolution::Unread(format!("{}: the resolver: {error}", question.image)),
        Err(_) => Resolution::Unread(format!("{}: no answer within {} s", question.image, LONGEST.as_secs())),
    }
}

async fn run(resolver: &Resolver, question: &Question) -> io::Result<Resolution> {
    let program = match &resolver.resolver {
        Some(program) => program.clone(),
        None => std::env::current_exe()?.with_file_name("pillion"),
    };
    let mut command = Command::new(&program);
    command.arg("resolver").arg(std::process::id().to_string());
    if let Some(file) = &resolver.registries {
        command.arg("--registries").arg(file);
    }
    for registry in &resolver.plain_http {
        command.args(["--plain-http", registry]);
    }
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
    let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", program.display()));
    let mut child = command.spawn().map_err(named)?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(&serde_json::to_vec(question)?).await?;
    }
    let mut answer = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        stdout.take(ANSWER).read_to_end(&mut answer).await?;
    }
    let status = child.wait().await?;
    serde_json::from_slice(&answer).map_err(|_| io::Error::other(format!("it gave no answer ({status})")))
}
