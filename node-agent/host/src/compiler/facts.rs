//! What a component is, read from its bytes without running or compiling anything.

use pillion_protocol::text;
use serde::{Deserialize, Serialize};
use wasmparser::{Encoding, Parser, Payload};

use crate::{engine::settings::World, guest::config};

/// What a component says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Facts {
    /// The interface it serves HTTP through.
    pub world: World,
    /// The names of its imports.
    pub imports: Vec<String>,
    /// The names of its exports.
    pub exports: Vec<String>,
    /// The least linear memory of one instance, in bytes: the sum over its core modules.
    pub memory_minimum: u64,
}

/// Why a component cannot be served.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Other bytes.
    #[error("this is not WebAssembly: it begins with {0}, expected the bytes 00 61 73 6d")]
    NotWasm(String),
    /// A core module.
    #[error(
        "this is a core WebAssembly module, expected a component: make one with a wasm32-wasip2 toolchain or `wasm-tools component new`"
    )]
    CoreModule,
    /// Cut off or broken.
    #[error("this is no whole component: {0}")]
    Broken(String),
    /// A proposal that is not offered.
    #[error("uses WebAssembly's proposal for {0}, which is not offered here: compile it without")]
    Proposal(&'static str),
    /// Several of them.
    #[error("uses several proposals of WebAssembly that are not offered here, the first one where it says: {0}")]
    Proposals(String),
    /// An export of the right name and the wrong type.
    #[error(
        "exports {0} with a function `handle` of another type: expected that of the package wasi:http, with its resources"
    )]
    Handler(String),
    /// An import of another type, or what is not in its interface.
    #[error("does not link: {0}")]
    Link(String),
    /// More than an instance's part of the pool, or what the engine does not read.
    #[error("cannot be held by the engine here: {0}")]
    Misfit(String),
    /// The engine cannot be made, so that nothing is known of the component.
    #[error("this machine has no room for the engine, not even to look at a component: {0}")]
    Engine(String),
    /// Nothing that serves HTTP.
    #[error(
        "no HTTP export: expected wasi:http/incoming-handler@0.2.x or wasi:http/handler@0.3.x, found {}",
        if .0.is_empty() { "no export".to_owned() } else { listed(.0) }
    )]
    NoHttpExport(Vec<String>),
    /// Imports that are not offered.
    #[error("imports what is not offered here: {}; `pillion inspect --offered` lists what is", listed(.0))]
    Imports(Vec<String>),
}

/// The most names that an error lists, and the most characters of one: a stranger's component may have thousands of 100 kB each.
const LISTED: usize = 10;
const NAME: usize = 70;

fn listed(names: &[String]) -> String {
    let mut shown: Vec<_> = names.iter().take(LISTED).map(|name| text::shown(name, NAME)).collect();
    if let Some(more) = names.len().checked_sub(LISTED).filter(|more| *more > 0) {
        shown.push(format!("and {more} more"));
    }
    shown.join(", ")
}

const RANDOM: &str = "random insecure insecure-seed";

/// Any patch release of these, for either world. `guest::link` links them.
const P2: [(&str, &str); 7] = [
    (
        "wasi:cli",
        "environment exit stdin stdout stderr terminal-input terminal-output terminal-stdin terminal-stdout terminal-stderr",
    ),
    ("wasi:clocks", "wall-clock monotonic-clock"),
    ("wasi:filesystem", "types preopens"),
    ("wasi:http", "types outgoing-handler"),
    ("wasi:io", "error poll streams"),
    ("wasi:random", RANDOM),
    ("wasi:sockets", "network instance-network tcp tcp-create-socket udp udp-create-socket ip-name-lookup"),
];

/// Any patch release of these, for p3 alone.
const P3: [(&str, &str); 6] = [
    (
        "wasi:cli",
        "types environment exit stdin stdout stderr terminal-input terminal-output terminal-stdin terminal-stdout terminal-stderr",
    ),
    ("wasi:clocks", "types system-clock monotonic-clock"),
    ("wasi:filesystem", "types preopens"),
    ("wasi:http", "types client"),
    ("wasi:random", RANDOM),
    ("wasi:sockets", "types ip-name-lookup"),
];

/// Drafts, and what others have defined, have exact versions.
const CONFIG: [&str; 3] = ["wasi:config/store@0.2.0-rc.1", config::WASI_DRAFT, config::SPIN_P2];

/// The names of all that is offered, in order. The patch release of `0.2.0` and `0.3.0` may be any; what is of 0.3 is for p3 alone.
pub fn offered() -> Vec<String> {
    let releases = [(&P2[..], "0.2.0"), (&P3[..], "0.3.0")];
    let mut names: Vec<_> = releases
        .into_iter()
        .flat_map(|(packages, version)| {
            packages.iter().map(move |(package, interfaces)| (*package, *interfaces, version))
        })
        .flat_map(|(package, interfaces, version)| {
            interfaces.split(' ').map(move |interface| format!("{package}/{interface}@{version}"))
        })
        .chain(CONFIG.into_iter().chain([config::SPIN_P3]).map(str::to_owned))
        .collect();
    names.sort_unstable();
    names
}

/// Whether a component of `world` finds what it imports by this name.
pub fn is_offered(import: &str, world: World) -> bool {
    let Some((name, version)) = import.split_once('@') else { return false };
    let Some((package, interface)) = name.split_once('/').filter(|(_, interface)| !interface.is_empty()) else {
        return false;
    };
    let holds = |packages: &[(&str, &str)]| {
        packages.iter().any(|(p, list)| *p == package && list.split(' ').any(|i| i == interface))
    };
    let release = |minor: &str| version.starts_with(minor) && !version.contains('-');
    CONFIG.contains(&import)
        || world == World::P3 && import == config::SPIN_P3
        || release("0.2.") && holds(&P2)
        || world == World::P3 && release("0.3.") && holds(&P3)
}

/// What a component asks for and gives.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Interfaces {
    /// The names of its imports.
    pub imports: Vec<String>,
    /// The names of its exports.
    pub exports: Vec<String>,
    /// The least linear memory of one instance, in bytes: the sum over its core modules.
    pub memory_minimum: u64,
}

impl Facts {
    /// Reads a component. Whether what it imports is offered is not looked at: see [`Facts::accept`].
    ///
    /// # Errors
    ///
    /// What is not a component that serves HTTP.
    pub fn read(wasm: &[u8]) -> Result<Self, Refusal> {
        Self::of(Interfaces::read(wasm)?)
    }

    /// What something with these interfaces is.
    ///
    /// # Errors
    ///
    /// What does not serve HTTP.
    pub fn of(interfaces: Interfaces) -> Result<Self, Refusal> {
        let Interfaces { imports, exports, memory_minimum } = interfaces;
        let world = exports.iter().find_map(|export| world_of(export));
        let Some(world) = world else { return Err(Refusal::NoHttpExport(exports)) };
        Ok(Self { world, imports, exports, memory_minimum })
    }

    /// Refuses imports that are not offered.
    ///
    /// # Errors
    ///
    /// [`Refusal::Imports`] with all of their names.
    pub fn accept(self) -> Result<Self, Refusal> {
        let missing: Vec<_> = self.imports.iter().filter(|import| !is_offered(import, self.world)).cloned().collect();
        if missing.is_empty() { Ok(self) } else { Err(Refusal::Imports(missing)) }
    }
}

impl Interfaces {
    /// Reads a component, whatever it is for.
    ///
    /// # Errors
    ///
    /// What is not a component.
    pub fn read(wasm: &[u8]) -> Result<Self, Refusal> {
        if !wasm.starts_with(b"\0asm") {
            let start = wasm.iter().take(4).map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(" ");
            return Err(Refusal::NotWasm(if start.is_empty() { "nothing (it is empty)".into() } else { start }));
        }
        found(wasm)
    }
}

/// Through which world an export of this name serves HTTP, if it does.
pub(super) fn world_of(export: &str) -> Option<World> {
    let (interface, version) = export.split_once('@')?;
    match interface {
        "wasi:http/incoming-handler" if version.starts_with("0.2.") => Some(World::P2),
        "wasi:http/handler" if version.starts_with("0.3.") && !version.contains('-') => Some(World::P3),
        _ => None,
    }
}

fn found(wasm: &[u8]) -> Result<Interfaces, Refusal> {
    let broken = |error: wasmparser::BinaryReaderError| Refusal::Broken(error.to_string());
    let mut found = Interfaces::default();
    // Components and modules nest; only the outermost component's imports and exports are the component's own.
    let mut depth = 0u32;
    for payload in Parser::new(0).parse_all(wasm) {
        match payload.map_err(broken)? {
            Payload::Version { encoding: Encoding::Module, .. } if depth == 0 => return Err(Refusal::CoreModule),
            Payload::Version { .. } => depth += 1,
            Payload::End(_) => depth = depth.saturating_sub(1),
            Payload::ComponentImportSection(imports) if depth == 1 => {
                for import in imports {
                    found.imports.push(import.map_err(broken)?.name.name.to_owned());
                }
            }
            Payload::ComponentExportSection(exports) if depth == 1 => {
                for export in exports {
                    found.exports.push(export.map_err(broken)?.name.name.to_owned());
                }
            }
            Payload::MemorySection(memories) => {
                for memory in memories {
                    let memory = memory.map_err(broken)?;
                    let page = 1u64.checked_shl(memory.page_size_log2.unwrap_or(16)).unwrap_or(u64::MAX);
                    found.memory_minimum = found.memory_minimum.saturating_add(memory.initial.saturating_mul(page));
                }
            }
            _ => {}
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offered_are_releases_of_the_known_interfaces_and_nothing_else() {
        let p2 = [
            "wasi:cli/environment@0.2.0",
            "wasi:cli/terminal-stdin@0.2.6",
            "wasi:http/types@0.2.12",
            CONFIG[0],
            CONFIG[2],
        ];
        for offered in p2 {
            assert!(is_offered(offered, World::P2) && is_offered(offered, World::P3), "{offered}");
        }
        assert!(is_offered("wasi:http/client@0.3.0", World::P3));
        assert!(!is_offered("wasi:http/client@0.3.0", World::P2));
        assert!(is_offered(config::SPIN_P3, World::P3) && !is_offered(config::SPIN_P3, World::P2));
        for other in [
            "wasi:keyvalue/store@0.2.0",
            "acme:missing/thing@1.2.3",
            "wasi:io/streams@0.3.0",
            "wasi:http/types@0.3.0-rc-2026-03-15",
            "wasi:http/types@0.1.0",
            "wasi:http/types",
            "thing",
            "",
            "wasi:cli-evil/x@0.2.0",
            "wasi:cli/nonsense@0.2.0",
            "wasi:http/terminal-stdin@0.2.0",
            "wasi:cli/@0.2.0",
        ] {
            assert!(!is_offered(other, World::P3), "{other}");
        }
    }

    #[test]
    fn what_is_listed_is_what_is_offered() {
        let listed = offered();
        assert!(listed.iter().all(|import| is_offered(import, World::P3)), "{listed:?}");
        for import in ["wasi:cli/terminal-stdin@0.2.0", "wasi:http/client@0.3.0", CONFIG[0], config::SPIN_P3] {
            assert!(listed.iter().any(|listed| listed == import), "{import}");
        }
    }

    #[test]
    fn what_is_no_component_is_refused_by_what_it_is() {
        let table: [(&[u8], &str); 5] = [
            (b"", "it begins with nothing"),
            (b"hello", "it begins with 68 65 6c 6c"),
            (b"\0asm\x01\0\0\0", "a core WebAssembly module"),
            (
                b"\0asm\x0d\0\x01\0",
                "no HTTP export: expected wasi:http/incoming-handler@0.2.x or wasi:http/handler@0.3.x, found no export",
            ),
            (b"\0asm\x0d\0\x01\0\x07\xff", "no whole component"),
        ];
        for (wasm, expected) in table {
            let refusal = Facts::read(wasm).unwrap_err().to_string();
            assert!(refusal.contains(expected), "{refusal}");
        }
    }
}
