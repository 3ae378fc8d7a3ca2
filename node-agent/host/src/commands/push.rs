//! `pillion push`: a component into a registry.

use std::{fs, path::PathBuf, process::ExitCode};

use anyhow::Context;
use bytes::Bytes;
use pillion_protocol::{digest::Digest, reference::Reference};
use serde::Serialize;

use super::{Output, RegistryArgs, output, say};
use crate::{
    compiler::{MAX_COMPONENT, facts::Interfaces},
    registry::{credentials::Credentials, push::Artifact},
};

/// Brings a component into a registry, as a CNCF Wasm artifact.
#[derive(clap::Args)]
pub(super) struct Push {
    /// The component's file
    #[arg(value_name = "FILE.wasm")]
    file: PathBuf,
    /// Where it is to be
    #[arg(value_name = "REGISTRY/REPOSITORY:TAG")]
    image: Reference,
    #[command(flatten)]
    registry: RegistryArgs,
    /// How results are written
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Pushed<'a> {
    image: &'a Reference,
    digest: Digest,
    bytes: u64,
}

impl Push {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let Self { file, image, registry, output } = self;
        anyhow::ensure!(image.digest().is_none(), "{image}: a push needs a tag; the digest comes of what is pushed");
        let component = Bytes::from(fs::read(&file).with_context(|| file.display().to_string())?);
        let size = component.len() as u64;
        anyhow::ensure!(size <= MAX_COMPONENT, "{}: {size} bytes: at most {MAX_COMPONENT} are allowed", file.display());
        let interfaces = Interfaces::read(&component).with_context(|| file.display().to_string())?;
        let artifact = Artifact::new(component, &interfaces)?;
        let (digest, bytes) = (artifact.digest(), artifact.size());
        let source = registry.location().read()?.source(&image, &Credentials::default(), None)?;
        let bar = output::bytes();
        bar.set_message(format!("pushing {image}"));
        bar.set_length(bytes);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let pushed = runtime.block_on(artifact.push(&image, source, |done| bar.set_position(done)));
        bar.finish_and_clear();
        pushed?;
        match output {
            Output::Json => say::json(&Pushed { image: &image, digest, bytes })?,
            Output::Text => say::out(format_args!("{image}: {bytes} bytes pushed, {digest}")),
        }
        Ok(ExitCode::SUCCESS)
    }
}
