//! The host's events as lines of its log: SPECIFICATION.md §3's fields, with the pod's namespace and name.

use pillion_protocol::{id::ComponentId, pod::Pod};

use crate::supervisor::message::Event;

/// An event about a component, at a level of `tracing`'s, with the fields that say which one.
macro_rules! of_component {
    ($level:ident, $kind:literal, $component:expr, $pod:expr, $($rest:tt)+) => {{
        let (ComponentId { namespace, name }, pod): (&ComponentId, &Option<Pod>) = ($component, $pod);
        // With components from a folder only the pod has a namespace.
        let of_pod = pod.as_ref().map(|pod| (pod.namespace.as_str(), pod.name.as_str()));
        let namespace = of_pod.map(|(namespace, _)| namespace).or(namespace.as_ref().map(|namespace| namespace.as_str()));
        let pod = of_pod.map(|(_, pod)| pod);
        tracing::$level!(event = $kind, namespace, pod, component = name.as_str(), $($rest)+)
    }};
}

/// Writes an event to the log.
pub(super) fn log(event: &Event) {
    match event {
        Event::Worker { pid, restarts } => {
            tracing::info!(event = "worker", pid, restarts, "worker started");
        }
        Event::Pulling { component, image } => {
            of_component!(info, "pulling", component, &None, %image, "artifact is being pulled");
        }
        Event::Pulled { component, image, digest, bytes, stale, resolve_seconds, pull_seconds, verify_seconds } => {
            of_component!(
                info, "pulled", component, &None, %image, %digest, bytes, stale, resolveSeconds = resolve_seconds,
                pullSeconds = pull_seconds, verifySeconds = verify_seconds, "artifact is in the store"
            );
        }
        Event::Compiling { component, digest } => {
            of_component!(info, "compiling", component, &None, %digest, "component is being compiled");
        }
        Event::Ready {
            component,
            binding,
            pod,
            port,
            urls: _,
            digest,
            replaces,
            compiled,
            seconds,
            allowed_outbound_hosts,
        } => {
            let hosts = (!allowed_outbound_hosts.is_empty()).then(|| allowed_outbound_hosts.join(", "));
            let replaces = replaces.as_ref().map(tracing::field::display);
            of_component!(
                info, "ready", component, pod, binding = binding.as_str(), port = port.get(), %digest,
                replaces, compiled, seconds, allowedOutboundHosts = hosts, "binding is ready"
            );
        }
        Event::Failed { component, binding, pod, port, reason, message, serves } => {
            let serves = serves.as_ref().map(tracing::field::display);
            of_component!(
                warn,
                "failed",
                component,
                pod,
                binding = binding.as_str(),
                port = port.get(),
                reason = reason.as_str(),
                cause = message,
                serves,
                "binding cannot be served, or not in its new version"
            );
        }
        Event::Serving { ready, failed } => {
            tracing::info!(event = "serving", ready, failed, "every binding is decided");
        }
        Event::Drained { requests } => tracing::info!(event = "drained", requests, "worker drained"),
    }
}
