//! What supervisor and worker say to each other. Both are the same program, so there are no versions.

use std::path::PathBuf;

use pillion_protocol::{
    annotation::Port,
    component::ComponentSpec,
    digest::Digest,
    id::ComponentId,
    name::Name,
    pod::{Pod, PodUid},
    quantity::{ByteSize, Span},
    reference::Reference,
};
use serde::{Deserialize, Serialize};

use crate::{
    catalog::told::Verdict,
    compiler::facts::Facts,
    log::Log,
    registry::message::{Failure, Pulled},
    sys::ThreadClass,
};

/// How a worker works.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Settings {
    /// The store's directory.
    pub store: PathBuf,
    /// How much the store may hold.
    pub store_quota: ByteSize,
    /// How often it is looked whether tags lead elsewhere; `None` for never.
    pub tag_refresh: Option<Span>,
    /// How the threads of guests that run for long give way.
    pub back: ThreadClass,
    /// Memory for all guests; `None` for what the machine or the cgroup allows, less a reserve.
    pub memory: Option<ByteSize>,
    /// How long requests in flight may take when the worker drains.
    pub drain_timeout: Span,
    /// What is logged, and how.
    pub log: Log,
}

/// A component at a port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Binding {
    /// The binding's name.
    pub name: Name,
    /// The component.
    pub component: ComponentId,
    /// The port.
    pub port: Port,
    /// The pod that it is in; `None` on a laptop.
    pub pod: Option<Pod>,
    /// Whether that may have the component.
    pub verdict: Verdict,
}

/// From the supervisor to its worker.
#[derive(Debug, Serialize, Deserialize)]
pub enum ToWorker {
    /// Always first.
    Settings(Settings),
    /// A component is new or has changed.
    Component {
        /// Which one.
        id: ComponentId,
        /// What it is.
        spec: Box<ComponentSpec>,
        /// The version that a worker before this one served of it, to go on with; `None` to read its file, or ask what its tag leads to.
        served: Option<Digest>,
        /// Its namespace has to be let to its image by the registry, whoever had it pulled.
        unproven: bool,
    },
    /// A component is no more.
    ComponentGone(ComponentId),
    /// Bindings, and how many listeners each has. They come as descriptors, one binding's after the other's, and replace those that
    /// came before.
    Bind(Vec<(Binding, usize)>),
    /// A pod's binding is no more.
    Unbind(PodUid, Port),
    /// Whether a binding's pod may have its component is otherwise now.
    Verdict(PodUid, Port, Verdict),
    /// What has this digest took workers down: it is not run.
    Quarantined(Digest),
    /// Everything there is was told.
    Complete,
    /// A compilation ended.
    Compiled {
        /// Which one.
        id: u64,
        /// What was found out, or why there is no native code.
        result: Result<Facts, String>,
    },
    /// A pull ended.
    Pulled {
        /// Which one.
        id: u64,
        /// What is in the store now, or why it is not.
        result: Result<Pulled, Failure>,
    },
    /// Accept nothing more, end what is in flight, then say [`Event::Drained`].
    Drain,
}

/// An artifact that is to be in the store.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Wish {
    /// The artifact.
    pub reference: Reference,
    /// The namespace that its registry has to let to it, with a login of that namespace's, be it in the store or not; none where that is known.
    pub namespace: Option<Name>,
}

/// From the worker to its supervisor.
#[derive(Debug, Serialize, Deserialize)]
pub enum FromWorker {
    /// Compile a component. Two descriptors: the component to read, the file to write.
    Compile {
        /// For the answer.
        id: u64,
    },
    /// Bring an artifact into the store.
    Pull {
        /// For the answer.
        id: u64,
        /// The artifact.
        wish: Wish,
        /// Why nothing may be added to the store, if that is so.
        full: Option<String>,
    },
    /// What became of a component, whether it is bound or not: what is there to serve, or why nothing new is.
    Decided {
        /// The component.
        component: ComponentId,
        /// What became of it.
        result: Result<Served, String>,
    },
    /// Something that people want to know.
    Event(Event),
}

/// What is served of a component.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Served {
    /// The digest of its file, or of its artifact's manifest.
    pub version: Digest,
    /// The digests of the code in it.
    pub parts: Vec<Digest>,
    /// Where its guests may call out to, in words, as far as people are shown it.
    pub outbound: Vec<String>,
}

/// What people want to know: SPECIFICATION.md §3.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase", rename_all_fields = "camelCase")]
pub enum Event {
    /// A worker process started.
    Worker {
        /// Its process id.
        pid: u32,
        /// How many workers there were before it.
        restarts: u32,
    },
    /// An artifact is being pulled, or it is looked where its tag leads.
    Pulling {
        /// The component, or the first of those that wait for it.
        component: ComponentId,
        /// The artifact.
        image: Reference,
    },
    /// An artifact is in the store.
    Pulled {
        /// The component, or the first of those that have waited for it.
        component: ComponentId,
        /// The artifact.
        image: Reference,
        /// Its manifest's digest.
        digest: Digest,
        /// Bytes that were pulled; 0 if it was in the store.
        bytes: u64,
        /// The registry could not be asked where the tag leads: this is where it led before.
        stale: bool,
        /// How long it took to find out where the tag leads, in seconds.
        resolve_seconds: f64,
        /// How long it took to pull what was missing.
        pull_seconds: f64,
        /// How much of that went into checking digests.
        verify_seconds: f64,
    },
    /// Native code is being made.
    Compiling {
        /// The component.
        component: ComponentId,
        /// Its digest.
        digest: Digest,
    },
    /// A binding answers.
    Ready {
        /// The component.
        component: ComponentId,
        /// The binding.
        binding: Name,
        /// The pod that it is in; none on a laptop.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pod: Option<Pod>,
        /// Its port.
        port: Port,
        /// Where it is reached.
        urls: Vec<String>,
        /// The component's digest.
        digest: Digest,
        /// The digest of what it served until now: the same where only settings changed.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        replaces: Option<Digest>,
        /// Whether native code had to be made.
        compiled: bool,
        /// How long it took from the file to being ready.
        seconds: f64,
        /// Where its guests may call out to, as far as people are shown it.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        allowed_outbound_hosts: Vec<String>,
    },
    /// A binding cannot be served, or not in its new version.
    Failed {
        /// The component.
        component: ComponentId,
        /// The binding.
        binding: Name,
        /// The pod that it is in; none on a laptop.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pod: Option<Pod>,
        /// Its port.
        port: Port,
        /// One word.
        reason: Reason,
        /// For people.
        message: String,
        /// The digest of what it serves on.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        serves: Option<Digest>,
    },
    /// Every binding is decided.
    Serving {
        /// Bindings that answer.
        ready: usize,
        /// Bindings that cannot be served.
        failed: usize,
    },
    /// Nothing is in flight any more.
    Drained {
        /// Requests that were served.
        requests: usize,
    },
}

/// Why a binding cannot be served, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// The component's file cannot be read or stored, or its artifact not be pulled.
    Image,
    /// The component cannot be compiled, or is refused.
    Component,
    /// The component needs more than its limits allow.
    Limits,
    /// There is no component of that name.
    Unknown,
    /// The port cannot be listened on.
    Port,
    /// The component took workers down.
    Quarantined,
}

impl Reason {
    /// The word, as machines read it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Image => "image",
            Self::Component => "component",
            Self::Limits => "limits",
            Self::Unknown => "unknown",
            Self::Port => "port",
            Self::Quarantined => "quarantined",
        }
    }
}
