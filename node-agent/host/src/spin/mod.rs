//! Spin applications: what the artifact that `spin registry push` writes says, and how its HTTP trigger behaves.
//!
//! Only decisions: nothing here reads a file, opens a connection or runs a guest. What is not served (wagi, static files,
//! key-value stores, calls between components) is refused when the application is read, so that no half of it runs. Facts are
//! taken from the sources of Spin; each file names the ones that it follows.
//!
//! | file | holds |
//! |---|---|
//! | `locked.rs` | [`App`]: an application whose every part can be served |
//! | `lock_file.rs` | reads Spin's locked application into an [`App`], or says what is refused |
//! | `trigger.rs` | the same for a trigger |
//! | `component.rs` | the same for a component |
//! | `variables.rs` | templates; [`Settings`]: a component's environment, configuration and outbound hosts |
//! | `hosts.rs` | the grammar of Spin's `allowed_outbound_hosts` |
//! | `pattern.rs` | [`Pattern`]: a route's grammar, and which paths it matches |
//! | `routes.rs` | [`Router`]: which route a request takes |
//! | `headers.rs` | the `spin-*` headers that a guest gets |
//! | `well_known.rs` | what the host answers below `/.well-known/spin/` |

mod component;
mod headers;
mod hosts;
mod lock_file;
mod locked;
mod pattern;
mod routes;
mod trigger;
mod variables;
mod well_known;

pub use headers::{Seen, spin_headers, strip};
pub use hosts::HostError;
pub use locked::{App, AppError, Component, Handler, Route, StaticResponse, Variable};
pub use pattern::{Pattern, PatternError};
pub use routes::{Found, Router};
pub use variables::{Settings, VariableError};
pub use well_known::{WellKnown, well_known};

/// The most characters of a wrong text that an error repeats.
const SHOWN: usize = 80;

/// The most characters of a JSON error; enough for the names that it says are allowed.
const MESSAGE: usize = 240;

/// The beginning of `text`, so that a hostile artifact does not flood a log.
fn shown(text: &str) -> String {
    cut(text, SHOWN)
}

/// What is wrong with some JSON; it may repeat a part of it.
fn message(error: &serde_json::Error) -> String {
    cut(&error.to_string(), MESSAGE)
}

fn cut(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}
