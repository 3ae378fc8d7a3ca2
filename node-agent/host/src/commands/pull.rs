//! `pillion pull`: artifacts into the store, by the same puller child as the node's.

use std::{path::Path, process::ExitCode, time::Instant};

use anyhow::Context;
use pillion_protocol::{digest::Digest, reference::Reference};
use serde::Serialize;

use super::{Output, RegistryArgs, StoreArgs, output, say};
use crate::{
    registry::{
        credentials::Credentials,
        message::{Pulled, Word},
        settings::Location,
    },
    store::{Image, Store},
    supervisor::child,
};

/// Brings artifacts from registries into the store.
#[derive(clap::Args)]
pub(super) struct Pull {
    /// Artifacts
    #[arg(required = true, value_name = "REGISTRY/REPOSITORY:TAG")]
    images: Vec<Reference>,
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    registry: RegistryArgs,
    /// How results are written
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Line<'a> {
    image: &'a Reference,
    digest: Digest,
    components: Vec<Digest>,
    /// 0: all of it was in the store.
    bytes: u64,
    seconds: f64,
}

/// Pulls an artifact into `store`, with a bar on a terminal.
pub(super) fn pull(reference: &Reference, store: &Path, registries: &Location) -> anyhow::Result<Pulled> {
    let request = registries.request(reference.clone(), store.to_owned(), &Credentials::default(), &[])?;
    let bar = output::bytes();
    bar.set_message(reference.to_string());
    let pulled = child::pull(&request, |word| match word {
        Word::Progress { done, total } => {
            bar.set_length(*total);
            bar.set_position(*done);
        }
        Word::Warning(warning) => bar.suspend(|| say::err(format_args!("warning: {warning}"))),
        Word::Pulled(_) | Word::Failed(_) => {}
    });
    bar.finish_and_clear();
    Ok(pulled?)
}

impl Pull {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let (store, registries) = (self.store.path()?, self.registry.location());
        let mut good = true;
        for image in &self.images {
            let began = Instant::now();
            match pull(image, &store, &registries) {
                Ok(Pulled { digest, bytes, .. }) => {
                    let (content, _) =
                        Store::open_as_child(&store)?.image(digest).context("it has gone from the store")?;
                    let (components, seconds) = (content.components(), began.elapsed().as_secs_f64());
                    match self.output {
                        Output::Json => say::json(&Line { image, digest, components, bytes, seconds })?,
                        Output::Text => {
                            let (what, how) = (what(&content), how(bytes, seconds));
                            say::out(format_args!("{image}: {what}, {how}, {digest}"));
                        }
                    }
                }
                Err(error) => {
                    good = false;
                    say::err(format_args!("error: {error:#}"));
                }
            }
        }
        Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

fn what(image: &Image) -> String {
    match image {
        Image::Component(_) => "a component".into(),
        Image::App(app) => format!("the Spin application {:?} of {} components", app.name, app.components.len()),
    }
}

fn how(bytes: u64, seconds: f64) -> String {
    match bytes {
        0 => "was in the store".into(),
        bytes => format!("{bytes} bytes pulled in {seconds:.2} s"),
    }
}
