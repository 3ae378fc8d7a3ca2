//! `pillion inspect`: what a component is, for people who build components.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context;
use pillion_protocol::{component::Limits, digest::Digest, quantity::ByteSize};
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use super::Output;
use crate::{
    compiler::{
        MAX_COMPONENT,
        facts::{Facts, Interfaces, is_offered},
    },
    engine::settings::World,
};

/// Shows what a component exports and imports, and whether it can be served.
#[derive(clap::Args)]
pub(super) struct Inspect {
    /// Component files
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// How results are written
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Seen {
    file: PathBuf,
    size: u64,
    digest: Digest,
    /// Through which it can be served, if it can.
    #[serde(skip_serializing_if = "Option::is_none")]
    world: Option<World>,
    #[serde(flatten)]
    interfaces: Option<Interfaces>,
    /// Why it cannot be served.
    refused: Option<String>,
}

impl Seen {
    fn read(file: &Path) -> anyhow::Result<Self> {
        let size = fs::metadata(file).with_context(|| file.display().to_string())?.len();
        anyhow::ensure!(size <= MAX_COMPONENT, "{}: {size} bytes: at most {MAX_COMPONENT} are allowed", file.display());
        let wasm = fs::read(file).with_context(|| file.display().to_string())?;
        let digest = Digest::from_sha256(Sha256::digest(&wasm).into());
        let facts = Facts::read(&wasm);
        let world = facts.as_ref().ok().map(|facts| facts.world);
        let refused = facts.and_then(Facts::accept).err().map(|refusal| refusal.to_string());
        let interfaces = Interfaces::read(&wasm).ok();
        Ok(Self { file: file.to_owned(), size, digest, world, interfaces, refused })
    }

    fn print(&self) {
        println!("{}", self.file.display());
        println!("  size     {} bytes", self.size);
        println!("  digest   {}", self.digest);
        if let Some(world) = self.world {
            println!("  world    {world}");
        }
        if let Some(Interfaces { imports, exports, memory_minimum }) = &self.interfaces {
            let (needs, default) = (ByteSize::bytes(*memory_minimum), Limits::default().memory.get());
            let above = needs > default;
            let note = if above { format!(": set limits.memory, its default is {default}") } else { String::new() };
            println!("  memory   at least {needs}{note}");
            for export in exports {
                println!("  exports  {export}");
            }
            for import in imports {
                let offered = self.world.is_none_or(|world| is_offered(import, world));
                println!("  imports  {import}{}", if offered { "" } else { "   <- not offered" });
            }
        }
        match &self.refused {
            None => println!("  served   yes"),
            Some(why) => println!("  served   no: {why}"),
        }
    }
}

impl Inspect {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let mut good = true;
        for file in &self.files {
            let seen = match Seen::read(file) {
                Ok(seen) => seen,
                Err(error) => {
                    eprintln!("error: {error:#}");
                    good = false;
                    continue;
                }
            };
            good &= seen.refused.is_none();
            match self.output {
                Output::Text => seen.print(),
                Output::Json => println!("{}", serde_json::to_string(&seen)?),
            }
        }
        Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}
