//! The resolver: a short-lived child process of control's that finds out what an image is before any node sees it.
//!
//! It reads the manifest and the small document beside it, no layer, and believes of them only what keeps the image from being served. As a
//! puller it parses what strangers say, so it is confined as one, and control's token is a file that it cannot read. It writes nothing but its answer.

use std::{
    io::{self, Read, Write},
    time::Duration,
};

use futures::StreamExt;
use pillion_confine::Process;
use pillion_protocol::{
    digest::Digest,
    reference::Reference,
    resolution::{Question, Resolution},
};
use sha2::{Digest as _, Sha256};
use tokio::{runtime::Builder, time::timeout};

use super::{
    client::{Ask, Operation, Remote},
    credentials::Credentials,
    manifest::{self, Blob, Layout},
    message::Source,
    problem::Problem,
    puller,
    settings::{Location, SettingsError},
};
use crate::{compiler::facts::Facts, spin};

/// How long it may take: a component waits for it. Control waits a little longer.
const LONGEST: Duration = Duration::from_secs(8);

/// The child's main function; `parent` started it.
///
/// # Errors
///
/// Only what keeps it from hearing or saying anything.
pub fn main(parent: u32, registries: &Location) -> anyhow::Result<()> {
    puller::limit(parent)?;
    let mut question = Vec::new();
    io::stdin().lock().read_to_end(&mut question)?;
    let question: Question = serde_json::from_slice(&question).map_err(|_| anyhow::anyhow!("this is no question"))?;
    // Before it is confined: credential helpers are other programs.
    let asked = sources(&question, registries);
    Process::Resolver.confine()?;
    let runtime = Builder::new_current_thread().enable_all().max_blocking_threads(2).build()?;
    let resolution = match asked {
        Ok((wait, sources)) => runtime.block_on(async {
            let late = |_| Resolution::Unread(format!("no answer within {} s", LONGEST.as_secs()));
            timeout(LONGEST, resolve(&question.image, sources, wait)).await.unwrap_or_else(late)
        }),
        Err(error) => Resolution::Unread(error.to_string()),
    };
    // A name that is being looked up is not waited for.
    runtime.shutdown_background();
    Ok(io::stdout().lock().write_all(&serde_json::to_vec(&resolution)?)?)
}

/// How long a registry may say nothing, and whom to ask.
fn sources(question: &Question, registries: &Location) -> Result<(Duration, Vec<Source>), SettingsError> {
    let settings = registries.read()?;
    let sources = settings.sources(&question.image, &Credentials::default(), std::slice::from_ref(&question.login))?;
    Ok((settings.timeout.get(), sources))
}

/// Why an image is not resolved.
enum Failure {
    /// The registry does not say what it is.
    Unread(String),
    /// What it says is nothing that can be served.
    Refused(String),
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        Self::Unread(problem.text)
    }
}

/// What the first of the registries says that says what the image is; what the last one says otherwise.
async fn resolve(image: &Reference, sources: Vec<Source>, wait: Duration) -> Resolution {
    let mut unread = "there is nobody to ask".to_owned();
    for source in sources {
        let registry = source.registry.clone();
        match look_at(image, source, wait).await {
            Ok(digest) => return Resolution::Resolved(digest),
            Err(Failure::Refused(why)) => return Resolution::Refused(format!("{image} at {registry}: {why}")),
            Err(Failure::Unread(why)) => unread = format!("{image} at {registry}: {why}"),
        }
    }
    Resolution::Unread(unread)
}

async fn look_at(image: &Reference, source: Source, wait: Duration) -> Result<Digest, Failure> {
    let registry = Remote::new(source, wait)?;
    registry.log_in(image, Operation::Pull, Ask::Once).await?;
    let digest = match image.digest() {
        Some(digest) => digest,
        None => registry.digest(image, Ask::Once).await?,
    };
    let bytes = registry.manifest(image, digest).await?;
    let layout = match manifest::read(&bytes).map_err(Failure::Refused)? {
        Layout::Index(one) => manifest::read(&registry.manifest(image, one).await?).map_err(Failure::Refused)?,
        layout => layout,
    };
    match layout {
        Layout::Component { config: Some(config), layer } => {
            check_component(&document(&registry, image, &config).await?, &layer)?;
        }
        // What it is its compiler finds out.
        Layout::Component { config: None, .. } => {}
        Layout::Index(_) => return Err(Failure::Refused(manifest::INDEX_OF_INDEX.to_owned())),
        Layout::App { lock, components } => {
            let app = spin::App::read(&document(&registry, image, &lock).await?);
            let app = app.map_err(|error| Failure::Refused(error.to_string()))?;
            manifest::layers_of(&app, &components).map_err(Failure::Refused)?;
        }
    }
    Ok(digest)
}

fn check_component(config: &[u8], layer: &Blob) -> Result<(), Failure> {
    manifest::check_config(config, layer).map_err(Failure::Refused)?;
    match manifest::interfaces(config).map(|interfaces| Facts::of(interfaces)?.accept()) {
        Some(Err(refusal)) => Err(Failure::Refused(format!("by what its configuration says: {refusal}"))),
        Some(Ok(_)) | None => Ok(()),
    }
}

/// A small blob, whole.
async fn document(registry: &Remote, image: &Reference, blob: &Blob) -> Result<Vec<u8>, Failure> {
    let mut incoming = registry.blob(image, blob, 0).await?;
    let mut document = Vec::new();
    while let Some(bytes) = incoming.bytes.next().await {
        // That it broke off is said by its digest.
        let Ok(bytes) = bytes else { break };
        document.extend_from_slice(&bytes);
        if document.len() as u64 > blob.size {
            break;
        }
    }
    if Digest::from_sha256(Sha256::digest(&document).into()) == blob.digest {
        Ok(document)
    } else {
        Err(Failure::Unread(format!("what comes for {} has another digest, or broke off", blob.digest)))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_a_configuration_says_of_its_component_counts_if_it_says_anything() {
        let layer = Blob { digest: Digest::from_sha256([7; 32]), size: 7 };
        let check = |component: serde_json::Value| {
            let config = serde_json::to_vec(&json!({"component": component})).unwrap();
            check_component(&config, &layer).map_err(|failure| match failure {
                Failure::Refused(why) | Failure::Unread(why) => why,
            })
        };
        let http = "wasi:http/incoming-handler@0.2.0";
        check(json!(null)).unwrap();
        check(json!({"imports": ["acme:missing/thing@1.2.3"]})).unwrap();
        check(json!({"exports": [http], "imports": ["wasi:cli/environment@0.2.0"], "target": "acme:world"})).unwrap();
        let error = check(json!({"exports": [http], "imports": ["acme:missing/thing@1.2.3"]})).unwrap_err();
        assert!(error.contains("acme:missing/thing@1.2.3"), "{error}");
        let error = check(json!({"exports": ["wasi:cli/run@0.2.0"]})).unwrap_err();
        assert!(error.contains("no HTTP export"), "{error}");
    }
}
