//! Ports that a pod's containers say are theirs. One that is a sidecar's, too, they do not get. Decides, and does no IO.

use std::fmt;

use k8s_openapi::{
    api::core::v1::{Container, ContainerPort, HTTPGetAction, LifecycleHandler, PodSpec, Probe, TCPSocketAction},
    apimachinery::pkg::util::intstr::IntOrString,
};
use pillion_protocol::annotation::Sidecar;

/// A port that a container says is its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    port: u16,
    /// The container's name.
    container: Box<str>,
    by: By,
}

/// How a container says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    ContainerPort,
    /// The kubelet asks there, at the pod's address.
    Asked,
}

impl Claim {
    /// What to do about it where it is a sidecar's, too.
    pub fn advice(&self) -> &'static str {
        match self.by {
            By::ContainerPort => {
                "give the sidecar or the container another port; what a sidecar serves no containerPort has to name"
            }
            By::Asked => {
                "give the sidecar or the container another port: at the pod's address, where the kubelet asks, no sidecar answers"
            }
        }
    }
}

impl fmt::Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { port, container, by } = self;
        match by {
            By::ContainerPort => write!(
                f,
                "port {port} is a containerPort of the container {container:?}, which cannot listen there as well"
            ),
            By::Asked => write!(f, "port {port} is where a probe or a hook of the container {container:?} asks"),
        }
    }
}

/// What the containers of a pod claim.
pub fn of(pod: &PodSpec) -> Box<[Claim]> {
    of_containers(pod.init_containers.iter().flatten().chain(&pod.containers))
}

/// What containers claim: each port of a container once. That a name leads to a port its containerPort says already.
pub fn of_containers<'a>(containers: impl IntoIterator<Item = &'a Container>) -> Box<[Claim]> {
    let mut claims: Vec<Claim> = Vec::new();
    for container in containers {
        let is_tcp = |port: &&ContainerPort| port.protocol.as_deref().is_none_or(|protocol| protocol == "TCP");
        let own = container.ports.iter().flatten().filter(is_tcp).map(|port| (port.container_port, By::ContainerPort));
        for (port, by) in own.chain(asked(container).map(|port| (port, By::Asked))) {
            let Ok(port) = u16::try_from(port) else { continue };
            if !claims.iter().any(|known| known.port == port && *known.container == *container.name) {
                claims.push(Claim { port, container: container.name.as_str().into(), by });
            }
        }
    }
    claims.into()
}

/// Which of them is a sidecar's port, too.
pub fn of_port<'a>(claims: &'a [Claim], sidecar: &Sidecar) -> Option<&'a Claim> {
    claims.iter().find(|claim| claim.port == sidecar.port.get())
}

/// The ports of the pod that the kubelet asks for a container.
fn asked(container: &Container) -> impl Iterator<Item = i32> {
    let probes = [&container.startup_probe, &container.readiness_probe, &container.liveness_probe];
    let hooks = container.lifecycle.iter().flat_map(|hooks| [&hooks.post_start, &hooks.pre_stop]);
    probes.into_iter().flatten().filter_map(probed).chain(hooks.flatten().filter_map(hooked))
}

fn probed(probe: &Probe) -> Option<i32> {
    probe.grpc.as_ref().map(|grpc| grpc.port).or_else(|| of_the_pod(&probe.http_get, &probe.tcp_socket))
}

fn hooked(hook: &LifecycleHandler) -> Option<i32> {
    of_the_pod(&hook.http_get, &hook.tcp_socket)
}

/// Where a host is said, the port is that host's.
fn of_the_pod(http: &Option<HTTPGetAction>, tcp: &Option<TCPSocketAction>) -> Option<i32> {
    let http = http.as_ref().map(|get| (&get.host, &get.port));
    let (host, port) = http.or_else(|| tcp.as_ref().map(|tcp| (&tcp.host, &tcp.port)))?;
    match port {
        IntOrString::Int(port) if host.as_ref().is_none_or(String::is_empty) => Some(*port),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn the_ports_that_are_a_sidecars_too_are_found_wherever_they_are_said() {
        let http = |get: Value| json!({"httpGet": get});
        let table: [(Value, Option<&str>); 15] = [
            (json!({}), None),
            (json!({"ports": [{"containerPort": 8080}]}), None),
            (json!({"ports": [{"containerPort": 8081, "protocol": "UDP"}]}), None),
            (
                json!({"ports": [{"containerPort": 8080}, {"containerPort": 8081, "protocol": "TCP"}]}),
                Some("a containerPort of the container \"main\""),
            ),
            (
                json!({"ports": [{"containerPort": 8081, "name": "http"}], "livenessProbe": http(json!({"port": "http"}))}),
                Some("a containerPort"),
            ),
            (
                json!({"livenessProbe": http(json!({"port": 8081}))}),
                Some("a probe or a hook of the container \"main\""),
            ),
            (json!({"readinessProbe": http(json!({"port": 8081, "host": ""}))}), Some("a probe")),
            (json!({"readinessProbe": http(json!({"port": 8081, "host": "127.0.0.1"}))}), None),
            (json!({"readinessProbe": http(json!({"port": 8080}))}), None),
            (json!({"readinessProbe": {"exec": {"command": ["wget", "localhost:8081"]}}}), None),
            (json!({"startupProbe": {"tcpSocket": {"port": 8081}}}), Some("a probe")),
            (json!({"startupProbe": {"grpc": {"port": 8081}}}), Some("a probe")),
            (json!({"lifecycle": {"preStop": http(json!({"port": 8081}))}}), Some("hook")),
            (json!({"lifecycle": {"postStart": {"tcpSocket": {"port": 8081}}}}), Some("hook")),
            (json!({"lifecycle": {"preStop": {"sleep": {"seconds": 8081}}}}), None),
        ];
        let sidecar: Sidecar = "clock=8081".parse().unwrap();
        for kind in ["containers", "initContainers"] {
            for (container, expected) in &table {
                let mut container = container.clone();
                container["name"] = "main".into();
                let mut pod = json!({"containers": []});
                pod[kind] = json!([container]);
                let claims = of(&serde_json::from_value(pod).unwrap());
                let found = of_port(&claims, &sidecar).map(Claim::to_string);
                assert_eq!(found.is_some(), expected.is_some(), "{container}: {found:?}");
                assert!(found.unwrap_or_default().contains(expected.unwrap_or_default()), "{container}");
            }
        }
    }
}
