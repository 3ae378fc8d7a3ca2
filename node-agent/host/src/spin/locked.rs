//! An application that was read and can be served as a whole.
//!
//! It is kept on disk as JSON, so that an artifact is read once. Whatever is in it was checked by `lock_file.rs`.

use std::{collections::BTreeMap, fmt};

use pillion_protocol::digest::{Digest, DigestError};
use serde::{Deserialize, Serialize};

use super::{
    lock_file,
    pattern::{Pattern, PatternError},
};

/// A Spin application.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct App {
    /// Its name; empty if it says none.
    pub name: String,
    /// Its version.
    pub version: Option<String>,
    /// The variables that templates may use, by name.
    pub variables: BTreeMap<String, Variable>,
    /// The HTTP triggers, in the artifact's order.
    pub routes: Vec<Route>,
    /// The components that a trigger names, by id.
    pub components: BTreeMap<String, Component>,
}

/// A variable of an application.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Variable {
    /// What it is if nothing is given from outside; without it something must be given.
    pub default: Option<String>,
    /// Whether its value must not be shown.
    pub secret: bool,
}

/// A component of an application.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Component {
    /// Its code: the layer of this digest.
    pub source: Digest,
    /// Its environment, sorted by name. Spin has no templates here.
    pub env: Vec<(String, String)>,
    /// The templates of what it reads as its configuration, by name.
    pub config: BTreeMap<String, String>,
    /// Where it may call out to, as Spin writes it; may be templates.
    pub allowed_outbound_hosts: Vec<String>,
}

/// An HTTP trigger.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// The paths that lead here; `None` if it is private, so that none does.
    pub pattern: Option<Pattern>,
    /// Who answers.
    pub handler: Handler,
}

/// Who answers a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Handler {
    /// The component of this id.
    Component(String),
    /// Nobody: the answer is known.
    Static(StaticResponse),
}

/// An answer that needs no guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StaticResponse {
    /// 200 to 599.
    pub status: u16,
    /// Valid headers, none of which is about the connection or the body's length.
    pub headers: Vec<(String, String)>,
    /// The body; `None` for an empty one.
    pub body: Option<String>,
}

/// Why an application is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AppError {
    /// Too many bytes, components or triggers.
    #[error("the application has {count} {what}: allowed are {most}")]
    TooMany {
        /// What there is too much of.
        what: &'static str,
        /// How many there are.
        count: usize,
        /// How many are allowed.
        most: usize,
    },
    /// Not JSON, or not of this shape.
    #[error("this is no locked Spin application: {0}")]
    Json(String),
    /// A version that is not known.
    #[error("spin_lock_version {0} is not known: allowed are 0 and 1")]
    Version(String),
    /// Something that must be understood and is not.
    #[error(
        "must_understand names {0:?}, which is not known: allowed are host_requirements and component_host_requirements"
    )]
    MustUnderstand(String),
    /// A feature of the host that is not there.
    #[error("{place} requires {feature:?} of its host{}: only \"optional\" requirements are allowed", meaning(feature))]
    Requirement {
        /// `the application` or which component.
        place: String,
        /// The feature.
        feature: String,
    },
    /// Another trigger than HTTP.
    #[error("trigger {trigger:?} is of type {kind:?}: only http triggers are served")]
    TriggerType {
        /// The trigger's id.
        trigger: String,
        /// Its type.
        kind: String,
    },
    /// Nothing to serve.
    #[error("the application has no trigger: at least one http trigger is needed")]
    NoTrigger,
    /// A trigger that cannot be served.
    #[error("trigger {trigger:?} {why}")]
    Trigger {
        /// The trigger's id.
        trigger: String,
        /// What is wrong, and what is allowed.
        why: String,
    },
    /// A route that is none.
    #[error("trigger {trigger:?}: {source}")]
    Pattern {
        /// The trigger's id.
        trigger: String,
        /// What is wrong.
        source: PatternError,
    },
    /// A name or version that no terminal should show.
    #[error("its {key} {text:?} is not fit for logs: allowed are up to 256 bytes without control characters")]
    Name {
        /// Which one.
        key: &'static str,
        /// The text.
        text: String,
    },
    /// An id that is none.
    #[error("{0:?} is no id of a component: allowed are up to 64 of A-Z a-z 0-9 - _ .")]
    Id(String),
    /// Two components of one id.
    #[error("component {0:?} is there twice: ids must differ")]
    Twice(String),
    /// A component that cannot be served.
    #[error("component {component:?} {why}")]
    Component {
        /// The component's id.
        component: String,
        /// What is wrong, and what is allowed.
        why: String,
    },
    /// A digest that is none.
    #[error("component {component:?}: {source}")]
    Digest {
        /// The component's id.
        component: String,
        /// What is wrong.
        source: DigestError,
    },
}

/// What a feature is for, where a person could not guess.
fn meaning(feature: &str) -> &'static str {
    match feature {
        "local_service_chaining" => " (calls to COMPONENT.spin.internal), which is not served",
        "middleware" => " (components in front of a component), which is not served",
        _ => ", which is not known",
    }
}

impl App {
    /// Reads the locked application that is a layer, or the config, of Spin's artifact.
    ///
    /// # Errors
    ///
    /// What is no application, and every application of which a part cannot be served. Components that no trigger names are
    /// left out and not looked at.
    pub fn read(json: &[u8]) -> Result<Self, AppError> {
        lock_file::read(json)
    }

    /// The digests of the layers that hold the components, in the order of their ids; several may be the same.
    pub fn digests(&self) -> impl Iterator<Item = Digest> + '_ {
        self.components.values().map(|component| component.source)
    }
}

impl fmt::Debug for Variable {
    /// A secret's default is a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let default = self.default.as_deref().map(|value| if self.secret { "***" } else { value });
        f.debug_struct("Variable").field("default", &default).field("secret", &self.secret).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::lock_file::tests::{TOYS, pushed},
        *,
    };

    #[test]
    fn an_application_survives_being_written_and_read() {
        let app = App::read(pushed().to_string().as_bytes()).unwrap();
        let text = serde_json::to_vec(&app).unwrap();
        assert_eq!(serde_json::from_slice::<App>(&text).unwrap(), app);
    }

    #[test]
    fn layers_that_are_needed_are_named_in_the_order_of_the_components() {
        let app = App::read(pushed().to_string().as_bytes()).unwrap();
        let digests: Vec<_> = app.digests().map(|digest| digest.to_string()).collect();
        assert_eq!(digests, [TOYS, TOYS], "two components may be of the same code");
    }

    #[test]
    fn the_default_of_a_secret_is_not_shown() {
        let app = App::read(pushed().to_string().as_bytes()).unwrap();
        let shown = format!("{app:?}");
        assert!(!shown.contains("hunter2") && shown.contains("***") && shown.contains("api.example.com"), "{shown}");
    }
}
