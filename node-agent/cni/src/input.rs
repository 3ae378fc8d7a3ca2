//! What a runtime says to a plugin: the CNI specification's environment variables, and its configuration on standard input.

use std::{collections::BTreeMap, path::PathBuf};

use pillion_protocol::{
    annotation::{self, SIDECARS, Sidecars},
    cni::VERSIONS,
    keeper::{WAIT, Wait},
    pod::{Pod, SandboxId},
};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::output::Failure;

/// Where the keeper listens, unless the conflist entry says otherwise.
const SOCKET: &str = "/run/pillion/keeper/cni.sock";

/// `CNI_COMMAND`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    Add,
    Del,
    Check,
    Status,
    Gc,
    Version,
}

/// What the environment says of the pod.
#[derive(Clone, Debug)]
pub struct Environment {
    /// `CNI_CONTAINERID`.
    pub sandbox: SandboxId,
    /// `CNI_NETNS`; empty or missing when a sandbox's namespace is gone.
    pub netns: Option<String>,
    /// From `CNI_ARGS`; only a pod with sidecars needs it.
    pub pod: Result<Pod, Failure>,
}

/// The plugin's configuration.
#[derive(Debug, Deserialize)]
pub struct Config<'a> {
    #[serde(rename = "cniVersion", default)]
    version: String,
    /// What came before in the chain.
    #[serde(rename = "prevResult", borrow)]
    pub previous: Option<&'a RawValue>,
    #[serde(rename = "runtimeConfig", default)]
    runtime: RuntimeConfig,
    /// Where the keeper listens.
    #[serde(default = "default_socket")]
    pub socket: PathBuf,
}

/// What the runtime fills in for the capabilities that the conflist entry names.
#[derive(Debug, Default, Deserialize)]
struct RuntimeConfig {
    #[serde(rename = "io.kubernetes.cri.pod-annotations", default)]
    annotations: Option<BTreeMap<String, String>>,
}

fn default_socket() -> PathBuf {
    SOCKET.into()
}

/// The version that the configuration asks for, however broken the rest of it is.
pub fn version_in(text: &str) -> String {
    #[derive(Deserialize)]
    struct Version {
        #[serde(rename = "cniVersion")]
        version: String,
    }
    serde_json::from_str::<Version>(text).map_or_else(|_| "1.0.0".into(), |found| found.version)
}

impl Command {
    /// Reads `CNI_COMMAND`.
    pub fn read(variable: impl Fn(&str) -> Option<String>) -> Result<Self, Failure> {
        let command = variable("CNI_COMMAND").unwrap_or_default();
        Ok(match command.as_str() {
            "ADD" => Self::Add,
            "DEL" => Self::Del,
            "CHECK" => Self::Check,
            "STATUS" => Self::Status,
            "GC" => Self::Gc,
            "VERSION" => Self::Version,
            "" => {
                return Err(Failure::environment("CNI_COMMAND is not set: this is a CNI plugin, started by a runtime"));
            }
            other => {
                let allowed = "ADD, DEL, CHECK, STATUS, GC, VERSION";
                return Err(Failure::environment(&format!("CNI_COMMAND is {other:?}: known are {allowed}")));
            }
        })
    }
}

impl Environment {
    /// Reads what belongs to a sandbox.
    pub fn read(variable: impl Fn(&str) -> Option<String>) -> Result<Self, Failure> {
        let sandbox = variable("CNI_CONTAINERID").unwrap_or_default().parse();
        let sandbox = sandbox.map_err(|error| Failure::environment(&format!("CNI_CONTAINERID: {error}")))?;
        let netns = variable("CNI_NETNS").filter(|path| !path.is_empty());
        Ok(Self { sandbox, netns, pod: pod(&variable("CNI_ARGS").unwrap_or_default()) })
    }
}

/// Reads the pod from `K8S_POD_NAMESPACE=…;K8S_POD_NAME=…;K8S_POD_UID=…`.
fn pod(args: &str) -> Result<Pod, Failure> {
    let of = |key: &str| {
        let found = args.split(';').filter_map(|arg| arg.split_once('=')).find(|(name, _)| *name == key);
        let missing =
            || Failure::environment(&format!("CNI_ARGS {args:?} has no {key}: expected a Kubernetes runtime"));
        found.map(|(_, value)| value.to_owned()).ok_or_else(missing)
    };
    let uid = of("K8S_POD_UID")?.parse().map_err(|error| Failure::environment(&format!("CNI_ARGS: {error}")))?;
    Ok(Pod { uid, namespace: of("K8S_POD_NAMESPACE")?, name: of("K8S_POD_NAME")? })
}

impl<'a> Config<'a> {
    /// Reads the configuration.
    pub fn read(text: &'a str) -> Result<Self, Failure> {
        let config: Self = serde_json::from_str(text).map_err(|error| Failure::config(&error))?;
        if VERSIONS.contains(&config.version.as_str()) {
            return Ok(config);
        }
        Err(Failure::version(&config.version))
    }

    fn annotation(&self, key: &str) -> Option<&str> {
        self.runtime.annotations.as_ref()?.get(key).map(String::as_str)
    }

    fn named(&self) -> Option<&str> {
        annotation::said(self.annotation(SIDECARS))
    }

    /// Whether the pod's annotation names sidecars.
    pub fn is_ours(&self) -> bool {
        self.named().is_some()
    }

    /// What the annotation says, if there is one.
    pub fn sidecars(&self) -> Result<Option<Sidecars>, Failure> {
        let parsed = self.named().map(str::parse).transpose();
        parsed.map_err(|error: pillion_protocol::annotation::AnnotationError| Failure::annotation(SIDECARS, &error))
    }

    /// What the pod's start waits for.
    pub fn wait(&self) -> Result<Wait, Failure> {
        let parsed = self.annotation(WAIT).map(str::parse).transpose();
        Ok(parsed
            .map_err(|error: pillion_protocol::keeper::WaitError| Failure::annotation(WAIT, &error))?
            .unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pod_is_in_the_arguments() {
        let pod = pod("IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=cart-0;K8S_POD_UID=u-1").unwrap();
        assert_eq!((pod.to_string().as_str(), pod.uid.as_str()), ("shop/cart-0", "u-1"));
        assert!(super::pod("K8S_POD_NAME=x").unwrap_err().to_string().contains("has no K8S_POD_UID"));
        let path = super::pod("K8S_POD_NAMESPACE=n;K8S_POD_NAME=x;K8S_POD_UID=../u").unwrap_err().to_string();
        assert!(path.contains("\"../u\" is no pod UID"), "{path}");
    }

    #[test]
    fn configurations_that_cannot_be_served_say_why() {
        let table = [
            ("", "EOF"),
            ("[]", "invalid length"),
            (r#"{"cniVersion":"0.2.0"}"#, "\"0.2.0\""),
            (r#"{"cniVersion":"2.0.0"}"#, "0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0"),
        ];
        for (text, expected) in table {
            let error = Config::read(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn only_our_annotations_count_and_null_is_none() {
        let with = |annotations: &str| {
            format!(r#"{{"cniVersion":"1.0.0","runtimeConfig":{{"io.kubernetes.cri.pod-annotations":{annotations}}}}}"#)
        };
        for none in ["null", "{}", r#"{"pillion.dev/wait":"ready"}"#, r#"{"pillion.dev/sidecars":" "}"#] {
            assert!(!Config::read(&with(none)).unwrap().is_ours(), "{none}");
        }
        let text = with(r#"{"pillion.dev/sidecars":"clock=8081","pillion.dev/wait":"later"}"#);
        let config = Config::read(&text).unwrap();
        assert_eq!(config.sidecars().unwrap().unwrap().to_string(), "clock=8081");
        assert!(config.wait().unwrap_err().to_string().contains("pillion.dev/wait: \"later\" is nothing to wait for"));
    }
}
