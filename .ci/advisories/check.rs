//! Known faults of the crates that we build with: `crates/` holds those of RustSec's database, `deny.toml` what we live with.

use std::{collections::BTreeSet, path::Path};

use anyhow::{Context, Result, ensure};
use rustsec::{
    Database, Lockfile, Report,
    advisory::{Id, Informational},
    report::Settings,
};
use serde::Deserialize;

const LOCK_FILES: [&str; 4] =
    ["Cargo.lock", ".ci/advisories/Cargo.lock", "deploy/catalog/Cargo.lock", "tests/guests/Cargo.lock"];

#[derive(Deserialize)]
struct Deny {
    advisories: Advisories,
}

#[derive(Deserialize)]
struct Advisories {
    ignore: Vec<Ignored>,
}

#[derive(Deserialize)]
struct Ignored {
    id: String,
    reason: String,
}

fn repository() -> Result<&'static Path> {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).context("this crate is in no repository")
}

fn database() -> Result<Database> {
    Ok(Database::open(&repository()?.join(".ci/advisories"))?)
}

/// What concerns the crates of a lock file: the advisory, and a line about it.
fn concerning(database: &Database, lock: &Lockfile) -> Vec<(Id, String)> {
    let informational_warnings = vec![Informational::Notice, Informational::Unmaintained, Informational::Unsound];
    let report = Report::generate(database, lock, &Settings { informational_warnings, ..Settings::default() });
    let faults = report.vulnerabilities.list.into_iter().map(|found| (Some(found.advisory), found.package));
    let warnings = report.warnings.into_values().flatten().map(|found| (found.advisory, found.package));
    let concerning = faults.chain(warnings).filter_map(|(advisory, package)| {
        let advisory = advisory?;
        let line = format!("{} {}: {} ({})", package.name, package.version, advisory.title, advisory.id);
        Some((advisory.id, line))
    });
    concerning.collect()
}

/// Whether a reason begins with a day, and says something.
fn is_dated(reason: &str) -> bool {
    let is_day = |day: &str| {
        let parts: Vec<_> = day.split('-').map(|part| (part.len(), part.bytes().all(|c| c.is_ascii_digit()))).collect();
        parts == [(4, true), (2, true), (2, true)]
    };
    reason.split_once(": ").is_some_and(|(day, why)| is_day(day) && why.len() > 20)
}

#[test]
fn no_advisory_concerns_us_but_those_that_are_listed_with_date_and_reason() -> Result<()> {
    let (database, repository) = (database()?, repository()?);
    let deny: Deny = toml::from_str(&std::fs::read_to_string(repository.join("deny.toml"))?)?;
    let listed: BTreeSet<_> = deny.advisories.ignore.iter().map(|ignored| ignored.id.as_str()).collect();
    for Ignored { id, reason } in &deny.advisories.ignore {
        ensure!(
            is_dated(reason),
            "deny.toml lists {id} for {reason:?}: expected a reason as \"2026-11-28: why it does no harm\""
        );
    }
    let (mut needed, mut unlisted) = (BTreeSet::new(), Vec::new());
    for file in LOCK_FILES {
        let lock = Lockfile::load(repository.join(file)).with_context(|| file.to_owned())?;
        for (id, line) in concerning(&database, &lock) {
            match listed.get(id.as_str()) {
                Some(id) => _ = needed.insert(*id),
                None => unlisted.push(format!("{file}: {line}")),
            }
        }
    }
    ensure!(
        unlisted.is_empty(),
        "take a fixed version by \"cargo update -p NAME\", or list it in deny.toml with date and reason:\n{}",
        unlisted.join("\n")
    );
    let needless: Vec<_> = listed.difference(&needed).collect();
    ensure!(needless.is_empty(), "deny.toml lists what concerns us no more: {needless:?}");
    Ok(())
}

#[test]
fn an_older_engine_is_found_to_be_at_fault() -> Result<()> {
    let package = |name: &str, version: &str| {
        let source = "registry+https://github.com/rust-lang/crates.io-index";
        format!("[[package]]\nname = \"{name}\"\nversion = \"{version}\"\nsource = \"{source}\"\n")
    };
    let found = |name: &str, version: &str| -> Result<Vec<String>> {
        let lock: Lockfile = format!("version = 4\n\n{}", package(name, version)).parse()?;
        Ok(concerning(&database()?, &lock).into_iter().map(|(id, _)| id.to_string()).collect())
    };
    let expected = ["RUSTSEC-2026-0325", "RUSTSEC-2026-0326", "RUSTSEC-2026-0327"];
    let mut engine = found("wasmtime", "48.0.3")?;
    engine.sort();
    ensure!(engine == expected, "{engine:?}");
    ensure!(found("rand", "0.8.5")? == ["RUSTSEC-2026-0097"], "what is unsound");
    ensure!(found("instant", "0.1.13")? == ["RUSTSEC-2024-0384"], "what is unmaintained");
    Ok(())
}
