//! The catalog: components and bindings, as read from files; and, in a cluster, as control tells them.

pub mod folder;
pub mod kept;
pub mod nested;
pub mod short;
pub mod told;
pub mod watch;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use pillion_protocol::{annotation::Port, component::ComponentSpec, name::Name};

/// Components by name.
pub type Components = BTreeMap<Name, Entry>;

/// A component and the file that says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What it is; a path in it is absolute.
    pub spec: ComponentSpec,
    /// Where it was read.
    pub source: PathBuf,
}

/// Why components or bindings could not be read. Every message names the file and the text at fault.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// A file that cannot be read.
    #[error("{path}: {error}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the file system said.
        error: std::io::Error,
    },
    /// A folder without components.
    #[error("{}: there is no .yaml or .yml file in this folder{}", path.display(), in_folders(.nested))]
    EmptyFolder {
        /// The folder.
        path: PathBuf,
        /// Folders in it that hold components.
        nested: BTreeSet<PathBuf>,
    },
    /// A file that is no component.
    #[error("{path}: {error}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong in it, and where.
        error: String,
    },
    /// Two components with one name.
    #[error("{second}: the component {name:?} is already in {first}")]
    Twice {
        /// The name.
        name: Name,
        /// The file that has it.
        first: PathBuf,
        /// The file that has it too.
        second: PathBuf,
    },
    /// A short form with a name that is taken.
    #[error("the component {name:?} is already in {first}: give this one another name: \"NAME={text}\"")]
    ShortTwice {
        /// The name.
        name: Name,
        /// The file, or the artifact, that has it.
        first: PathBuf,
        /// The second short form.
        text: String,
    },
    /// Hosts for short forms, and none of these.
    #[error(
        "--allow-outbound is for components that are given as FILE.wasm=PORT or by --image, and there are none: those of YAML have \
         spec.allowedOutboundHosts"
    )]
    HostsForNothing,
    /// A short form that is not `[NAME=]FILE.wasm=PORT`.
    #[error("{text:?} is no component: expected [NAME=]FILE.wasm=PORT, for example \"./hello.wasm=8080\"; {problem}")]
    Short {
        /// The argument.
        text: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A short form that is not `[NAME=]REGISTRY/REPOSITORY:TAG=PORT`.
    #[error(
        "{text:?} is no artifact with a port: expected [NAME=]REGISTRY/REPOSITORY:TAG=PORT, for example \"registry.example/acme/clock:1.0=8080\"; {problem}"
    )]
    ShortImage {
        /// The argument.
        text: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A name that no component has.
    #[error("there is no component {name:?}: there are {}", names(.known))]
    Unknown {
        /// The name.
        name: Name,
        /// The names there are.
        known: Vec<Name>,
    },
    /// The same port for two components.
    #[error("port {port} is given to both {first:?} and {second:?}: each needs a port of its own")]
    PortTwice {
        /// The port.
        port: Port,
        /// The first.
        first: Name,
        /// The second.
        second: Name,
    },
    /// Nothing to do.
    #[error("no component is named: give -f FILE_OR_FOLDER, FILE.wasm=PORT, or --image REFERENCE=PORT")]
    Nothing,
    /// More components than ports.
    #[error("there is no free port from {first} on for the component {name:?}")]
    NoPort {
        /// The component.
        name: Name,
        /// Where the search began.
        first: u16,
    },
}

impl CatalogError {
    /// Whether the command line is at fault, and not what it names.
    pub fn is_usage(&self) -> bool {
        match self {
            Self::Short { .. }
            | Self::ShortImage { .. }
            | Self::ShortTwice { .. }
            | Self::HostsForNothing
            | Self::Unknown { .. }
            | Self::PortTwice { .. }
            | Self::Nothing
            | Self::NoPort { .. } => true,
            Self::Io { .. } | Self::EmptyFolder { .. } | Self::Parse { .. } | Self::Twice { .. } => false,
        }
    }
}

/// What to add where a folder is empty but for folders.
fn in_folders(nested: &BTreeSet<PathBuf>) -> String {
    let more = nested.len().saturating_sub(1);
    let more = if more > 0 { format!(" (and {more} more)") } else { String::new() };
    let folder = nested.first().map(|folder| folder.display());
    folder.map_or_else(String::new, |folder| {
        format!("; {folder}{more} holds components: folders in it are not read, name them themselves")
    })
}

fn names(known: &[Name]) -> String {
    /// More would not help.
    const SHOWN: usize = 20;
    match known {
        [] => "none".into(),
        known => {
            let more = known.len().checked_sub(SHOWN).filter(|&n| n > 0).map(|n| format!(" and {n} more"));
            known.iter().take(SHOWN).map(Name::as_str).collect::<Vec<_>>().join(", ") + &more.unwrap_or_default()
        }
    }
}
