//! What a component is given: its templates with the variables' values in them.
//!
//! As in Spin (`crates/expressions/src/template.rs`): `{{ name }}` is the variable's value, spaces inside do not count, and
//! there is no way to write `{{` itself; a value is not read as a template again. No error shows a value.

use std::{collections::BTreeMap, fmt};

use pillion_protocol::hosts::AllowedHost;

use super::{
    hosts::{self, HostError},
    locked::{App, Component},
    shown,
};

/// The most bytes that the templates of one component may come to.
const BYTES: usize = 1024 * 1024;

/// What a component is given.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Settings {
    /// Its environment, sorted by name.
    pub env: Vec<(String, String)>,
    /// Its configuration, sorted by name. May hold secrets.
    pub config: Vec<(String, String)>,
    /// Where it may call out to.
    pub allowed_outbound_hosts: Vec<AllowedHost>,
}

/// Why a component cannot be given its settings.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VariableError {
    /// Nothing is known of a value.
    #[error(
        "variable {variable:?}, which {place} uses, has no default: give it a value in spec.config of the Component resource"
    )]
    Missing {
        /// The variable.
        variable: String,
        /// What uses it.
        place: String,
    },
    /// The application declares no such variable.
    #[error("{place} uses {variable:?}, which is no variable of the application")]
    Unknown {
        /// The variable.
        variable: String,
        /// What uses it.
        place: String,
    },
    /// A `{{` without `}}`.
    #[error("{0} has a {{{{ without a }}}} after it")]
    Unmatched(String),
    /// Templates that come to too much.
    #[error("the templates of the component come to more than {BYTES} bytes")]
    TooLong,
    /// An outbound host that is not served.
    #[error("{place} {why}")]
    Host {
        /// The entry.
        place: String,
        /// What is wrong.
        why: HostError,
    },
}

/// Expands the templates of one component.
struct Expander<'a> {
    app: &'a App,
    given: BTreeMap<&'a str, &'a str>,
    /// How many bytes are left.
    left: usize,
}

impl App {
    /// What `component` is given, with the values of `given` in place of the variables' defaults. A name in `given` that is no
    /// variable does nothing; of two of one name the last counts.
    ///
    /// # Errors
    ///
    /// A template that is none or uses a variable that is not there or has no value, and an outbound host that is not served.
    pub fn settings_of(&self, component: &Component, given: &[(String, String)]) -> Result<Settings, VariableError> {
        let given = given.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let mut expander = Expander { app: self, given, left: BYTES };
        let mut config = Vec::with_capacity(component.config.len());
        for (name, template) in &component.config {
            let value = expander.expand(template, || format!("variable {:?} of the component", shown(name)))?;
            config.push((name.clone(), value));
        }
        let mut allowed_outbound_hosts = Vec::with_capacity(component.allowed_outbound_hosts.len());
        for entry in &component.allowed_outbound_hosts {
            let place = || format!("{:?} of allowed_outbound_hosts", shown(entry));
            let expanded = expander.expand(entry, place)?;
            let host = hosts::parse(&expanded).map_err(|why| VariableError::Host { place: place(), why })?;
            allowed_outbound_hosts.push(host);
        }
        Ok(Settings { env: component.env.clone(), config, allowed_outbound_hosts })
    }
}

impl<'a> Expander<'a> {
    fn expand(&mut self, template: &str, place: impl Fn() -> String) -> Result<String, VariableError> {
        let mut expanded = String::new();
        let mut rest = template;
        while let Some((literal, after)) = rest.split_once("{{") {
            let (name, after) = after.split_once("}}").ok_or_else(|| VariableError::Unmatched(place()))?;
            self.push(&mut expanded, literal)?;
            self.push(&mut expanded, self.value(name.trim(), &place)?)?;
            rest = after;
        }
        self.push(&mut expanded, rest)?;
        Ok(expanded)
    }

    fn value(&self, name: &str, place: impl Fn() -> String) -> Result<&'a str, VariableError> {
        let Some(variable) = self.app.variables.get(name) else {
            return Err(VariableError::Unknown { variable: shown(name), place: place() });
        };
        let value = self.given.get(name).copied().or(variable.default.as_deref());
        value.ok_or_else(|| VariableError::Missing { variable: shown(name), place: place() })
    }

    fn push(&mut self, expanded: &mut String, text: &str) -> Result<(), VariableError> {
        self.left = self.left.checked_sub(text.len()).ok_or(VariableError::TooLong)?;
        expanded.push_str(text);
        Ok(())
    }
}

impl fmt::Debug for Settings {
    /// Without the configuration's values, which may be secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("env", &self.env)
            .field("config", &self.config.iter().map(|(name, _)| name).collect::<Vec<_>>())
            .field("allowed_outbound_hosts", &self.allowed_outbound_hosts)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::{super::lock_file::tests::pushed, *};

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
    }

    fn app() -> App {
        App::read(pushed().to_string().as_bytes()).unwrap()
    }

    /// What a template comes to, and what a host that is a template comes to.
    fn settings(template: &str, host: &str, given: &[(&str, &str)]) -> Result<Settings, VariableError> {
        let app = app();
        let mut component = app.components["toys"].clone();
        component.config = [("key".to_owned(), template.to_owned())].into();
        component.allowed_outbound_hosts = vec![host.to_owned()];
        app.settings_of(&component, &pairs(given))
    }

    #[test]
    fn a_component_gets_defaults_and_what_is_given_instead() {
        let app = app();
        let hosts =
            |settings: &Settings| settings.allowed_outbound_hosts.iter().map(ToString::to_string).collect::<Vec<_>>();
        let settings = app.settings_of(&app.components["toys"], &[]).unwrap();
        assert_eq!(settings.env, pairs(&[("COLOR", "{{ not a template }}"), ("LOG", "info")]));
        assert_eq!(settings.config, pairs(&[("auth", "Basic hunter2"), ("greeting", "hello")]));
        assert_eq!(hosts(&settings), ["https://api.example.com:443", "http://cache.example:8080"]);
        let given = pairs(&[("password", "a"), ("api_host", "b.example"), ("greeting", "c"), ("password", "d")]);
        let settings = app.settings_of(&app.components["toys"], &given).unwrap();
        assert_eq!(settings.config, pairs(&[("auth", "Basic d"), ("greeting", "hello")]));
        assert_eq!(hosts(&settings), ["https://b.example:443", "http://cache.example:8080"]);
    }

    #[test]
    fn templates_are_expanded_as_in_spin() {
        let table = [
            ("", ""),
            ("plain }} { }", "plain }} { }"),
            ("{{token}}", "T"),
            ("a-{{ token }}-b", "a-T-b"),
            ("{{ token }}{{\ttoken\n}}", "TT"),
            ("{{ nested }}", "{{ token }}"),
            ("ä{{ token }}ö", "äTö"),
        ];
        for (template, expected) in table {
            let mut app = app();
            app.variables.insert("nested".into(), super::super::Variable { default: None, secret: false });
            let mut component = app.components["toys"].clone();
            component.config = [("key".to_owned(), template.to_owned())].into();
            let given = pairs(&[("token", "T"), ("nested", "{{ token }}")]);
            assert_eq!(app.settings_of(&component, &given).unwrap().config, pairs(&[("key", expected)]), "{template}");
        }
    }

    #[test]
    fn what_is_wrong_is_said_with_what_to_do_and_without_a_value() {
        let good = "https://x";
        let table = [
            (
                "{{ token }}",
                good,
                "variable \"token\", which variable \"key\" of the component uses, has no default: give it",
            ),
            ("{{ token }}", good, "in spec.config of the Component resource"),
            ("{{ nobody }}", good, "variable \"key\" of the component uses \"nobody\", which is no variable"),
            ("{{}}", good, "uses \"\", which is no variable"),
            ("{{{{ password }}}}", good, "uses \"{{ password\", which is no variable"),
            ("{{ password }} {{ password", good, "variable \"key\" of the component has a {{ without a }} after it"),
            ("", "https://{{ token }}", "which \"https://{{ token }}\" of allowed_outbound_hosts uses, has no default"),
            ("", "https://{{ nobody }}", "\"https://{{ nobody }}\" of allowed_outbound_hosts uses \"nobody\""),
            ("", "{{ password }}://x", "\"{{ password }}://x\" of allowed_outbound_hosts has another scheme"),
            ("", "https://{{ password }}/a", "\"https://{{ password }}/a\" of allowed_outbound_hosts has a path"),
            ("", "https://{{ password }} ?", "has no host and port that this host knows"),
            ("", "redis://*:*", "\"redis://*:*\" of allowed_outbound_hosts has another scheme than http, https and *"),
            ("", "http://self", "calls within an application are not served"),
            ("", "insecure:allow-all", "write *://*:* if every host is meant"),
        ];
        for (template, host, expected) in table {
            let error = settings(template, host, &[]).unwrap_err().to_string();
            assert!(error.contains(expected) && !error.contains("hunter2"), "{template} {host}: {error}");
        }
    }

    #[test]
    fn a_template_cannot_fill_the_memory() {
        let long = "x".repeat(1_000);
        let template = "{{token}}".repeat(1_100);
        assert_eq!(settings(&template, "https://x", &[("token", &long)]), Err(VariableError::TooLong));
    }

    #[test]
    fn settings_are_shown_without_their_values() {
        let shown = format!("{:?}", settings("{{ password }}", "https://x", &[]).unwrap());
        assert!(shown.contains("key") && !shown.contains("hunter2"), "{shown}");
    }
}
