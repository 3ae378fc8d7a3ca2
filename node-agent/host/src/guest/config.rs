//! Configuration as guests read it: `wasi:config`, and the interfaces that Spin had before and has beside it.

use std::collections::HashMap;

use wasmtime::component::{ComponentType, Lift, Linker, Lower};
use wasmtime_wasi_config::{WasiConfig, WasiConfigVariables};

use super::Guest;
use crate::engine::settings::World;

/// `wasi:config` as Spin's toolchains import it: a draft of the one that is offered else.
pub const WASI_DRAFT: &str = "wasi:config/store@0.2.0-draft-2024-09-27";

/// Spin's variables, for p2.
pub const SPIN_P2: &str = "fermyon:spin/variables@2.0.0";

/// Spin's variables, for p3: the function is asynchronous.
pub const SPIN_P3: &str = "spin:variables/variables@3.0.0";

/// A component's configuration.
#[derive(Default)]
pub struct Config {
    values: HashMap<String, String>,
    /// The same, as the library wants it.
    wasi: WasiConfigVariables,
}

/// `variables.error`, the same in both versions.
#[derive(Clone, Debug, PartialEq, Eq, ComponentType, Lift, Lower)]
#[component(variant)]
enum VariableError {
    #[component(name = "invalid-name")]
    InvalidName(String),
    #[component(name = "undefined")]
    Undefined(String),
    #[component(name = "provider")]
    Provider(String),
    #[component(name = "other")]
    Other(String),
}

/// `store.error` of the draft.
#[derive(Clone, Debug, PartialEq, Eq, ComponentType, Lift, Lower)]
#[component(variant)]
enum StoreError {
    #[component(name = "upstream")]
    Upstream(String),
    #[component(name = "io")]
    Io(String),
}

impl Config {
    /// A configuration of these names and values.
    pub fn new(values: Vec<(String, String)>) -> Self {
        Self { wasi: WasiConfigVariables::from_iter(values.clone()), values: values.into_iter().collect() }
    }

    fn variable(&self, name: &str) -> Result<String, VariableError> {
        // The grammar of Spin's names.
        let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
        if !name.bytes().all(word) || !name.starts_with(|c: char| c.is_ascii_lowercase()) {
            return Err(VariableError::InvalidName(format!("{name:?}: allowed are a-z, 0-9 and _, a letter first")));
        }
        self.values.get(name).cloned().ok_or_else(|| VariableError::Undefined(name.to_owned()))
    }
}

impl Guest {
    /// What `wasi:config` reads from.
    fn wasi_config(&mut self) -> WasiConfig<'_> {
        WasiConfig::from(&self.config.wasi)
    }
}

/// Adds all interfaces of configuration.
///
/// # Errors
///
/// An interface that is defined twice, which a test would show.
pub fn add_to_linker(linker: &mut Linker<Guest>, world: World) -> wasmtime::Result<()> {
    wasmtime_wasi_config::add_to_linker(linker, Guest::wasi_config)?;
    let mut draft = linker.instance(WASI_DRAFT)?;
    draft.func_wrap("get", |store, (key,): (String,)| {
        Ok((Ok::<_, StoreError>(store.data().config.values.get(&key).cloned()),))
    })?;
    draft.func_wrap("get-all", |store, (): ()| {
        let values = store.data().config.values.iter().map(|(key, value)| (key.clone(), value.clone()));
        Ok((Ok::<_, StoreError>(values.collect::<Vec<_>>()),))
    })?;
    linker
        .instance(SPIN_P2)?
        .func_wrap("get", |store, (name,): (String,)| Ok((store.data().config.variable(&name),)))?;
    if world == World::P3 {
        linker.instance(SPIN_P3)?.func_wrap_concurrent("get", |accessor, (name,): (String,)| {
            let value = accessor.with(|mut store| store.get().config.variable(&name));
            Box::pin(async move { Ok((value,)) })
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_is_there_or_it_is_said_why_not() {
        let config = Config::new(vec![("greeting".into(), "hello".into())]);
        assert_eq!(config.variable("greeting"), Ok("hello".into()));
        assert_eq!(config.variable("missing"), Err(VariableError::Undefined("missing".into())));
        assert!(matches!(config.variable("Not a name"), Err(VariableError::InvalidName(_))));
    }
}
