//! A node: pods reach components at their localhost, through whatever dies on the way.

use std::{
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use pillion_tests::{
    Component,
    netns::Netns,
    node::{Node, Sandbox},
    place, process,
    registry::{Artifact, Registry},
    soon,
};
use rustix::process::Signal;

const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

/// A node whose catalog has `hello`, `faults` and `env`, with keeper and host.
fn node() -> Result<Node> {
    let mut node = Node::with_keeper()?;
    node.add(&Component::guest("hello", "hello-wasip2")?)?;
    node.add(&Component::guest("faults", "faults-p2")?)?;
    node.add(&Component::guest("late", "faults-p3")?)?;
    node.start_host()?;
    Ok(node)
}

fn says(netns: &Netns, address: IpAddr, port: u16, path: &str, expected: &str) -> Result<()> {
    let answer = netns.get(address, port, path)?;
    ensure!(answer.contains(expected), "{address} {port}{path}: {answer}");
    Ok(())
}

/// The node's host asks the registry as a user of its own, and pods that start while it is away are served what was there.
#[tokio::test]
async fn a_pod_reaches_a_component_from_a_registry_also_when_that_is_away() -> Result<()> {
    let mut registry = Registry::start().await?;
    Artifact::wasm(std::fs::read(place::guest("hello-wasip2")?)?).push(&registry, "hello:1").await?;
    let mut node = Node::with_keeper()?;
    let settings = serde_json::json!({"registries": {registry.host(): {"plainHttp": true}}});
    std::fs::write(node.folder().join("registries.yaml"), settings.to_string())?;
    node.add_image("hello", &format!("{}/hello:1", registry.host()))?;
    node.start_host()?;
    let first = Netns::with_loopback(node.folder(), "a")?;
    assert!(node.cni("ADD", &Sandbox::new("cart-0", "c1", &first, "hello=8081"))?.success, "{}", node.log());
    says(&first, V4, 8081, "/", "hello\n")?;
    registry.stop();
    node.start_host()?;
    let second = Netns::with_loopback(node.folder(), "b")?;
    assert!(node.cni("ADD", &Sandbox::new("cart-1", "c2", &second, "hello=8081"))?.success, "{}", node.log());
    says(&first, V4, 8081, "/", "hello\n")?;
    says(&second, V6, 8081, "/", "hello\n")
}

/// Looks for an event of the binding `clock` in the host's log, with its reason if it has one.
fn event(node: &Node, kind: &str, reason: &str) -> Result<()> {
    let texts = [
        ("event", kind),
        ("namespace", "shop"),
        ("pod", "cart-0"),
        ("component", "clock"),
        ("binding", "clock"),
        ("reason", reason),
    ];
    let log = node.log();
    let is_it = |line: &serde_json::Value| {
        let text = |field: &str| line.get(field).and_then(serde_json::Value::as_str).unwrap_or_default();
        texts.iter().all(|(field, expected)| text(field) == *expected) && line.get("port") == Some(&8081.into())
    };
    ensure!(log.lines().filter_map(|line| serde_json::from_str(line).ok()).any(|line| is_it(&line)), "{log}");
    Ok(())
}

#[test]
fn a_pod_reaches_three_components_at_its_localhost_and_nobody_else_does() -> Result<()> {
    let node = node()?;
    let (netns, other) = (Netns::with_loopback(node.folder(), "a")?, Netns::with_loopback(node.folder(), "b")?);
    let sandbox = Sandbox::new("cart-0", "c1", &netns, "hello=8081, faults=8082, late=8083");
    assert!(node.cni("ADD", &sandbox)?.success);
    for address in [V4, V6] {
        for port in 8081..=8083 {
            says(&netns, address, port, "/hello", "hello\n")?;
        }
    }
    assert_eq!(other.accepts(8081), (false, false));
    says(&netns, V4, 8082, "/log?lines=1&bytes=9", "HTTP/1.1 200")?;
    let named = r#""namespace":"shop","pod":"cart-0","component":"faults","binding":"faults""#;
    soon("a log line that names the pod", || {
        ensure!(node.log().contains(named), "{}", node.log());
        Ok(())
    })?;
    assert!(node.cni("DEL", &sandbox)?.success);
    soon("the end of the endpoints, on both sides", || {
        ensure!(netns.accepts(8081) == (false, false), "it accepts");
        Ok(())
    })
}

#[test]
fn a_component_that_is_not_known_is_said_so_until_it_is() -> Result<()> {
    let node = node()?;
    let netns = Netns::with_loopback(node.folder(), "a")?;
    assert!(node.cni("ADD", &Sandbox::new("cart-0", "c1", &netns, "clock=8081"))?.success, "it binds all the same");
    let expected = "there is no component \\\"clock\\\"";
    soon("an answer that names it", || says(&netns, V4, 8081, "/", expected))?;
    node.add(&Component::guest("clock", "not-http")?)?;
    soon("the event of one that cannot be served", || event(&node, "failed", "component"))?;
    node.add(&Component::guest("clock", "hello-wasip2")?)?;
    soon("the component", || says(&netns, V4, 8081, "/", "hello\n"))?;
    soon("the event of one that can", || event(&node, "ready", ""))
}

#[test]
fn a_pod_that_wants_its_components_ready_waits_for_them() -> Result<()> {
    let node = node()?;
    let wait = |pod, id, netns: &Netns, sidecars: &str| {
        let mut sandbox = Sandbox::new(pod, id, netns, sidecars);
        sandbox.annotations["pillion.dev/wait"] = "ready".into();
        node.cni("ADD", &sandbox)
    };
    let netns = Netns::with_loopback(node.folder(), "a")?;
    soon("components that are compiled", || {
        let said = wait("cart-0", "c1", &netns, "hello=8081, faults=8082")?;
        ensure!(said.success, "{said:?}");
        Ok(())
    })?;
    let began = Instant::now();
    says(&netns, V4, 8082, "/hello", "hello\n")?;
    assert!(began.elapsed() < Duration::from_secs(4), "nothing is compiled any more");

    let other = Netns::with_loopback(node.folder(), "b")?;
    let said = wait("cart-1", "c2", &other, "hello=8081, clock=8082")?;
    let (code, text) = said.error()?;
    assert_eq!(code, 101);
    assert!(text.contains("clock cannot be served: there is no component"), "{text}");
    assert!(said.took < Duration::from_secs(10), "{said:?}");
    node.add(&Component::guest("clock", "hello-wasip2")?)?;
    soon("the kubelet's next try", || {
        let said = wait("cart-1", "c3", &other, "hello=8081, clock=8082")?;
        ensure!(said.success, "{said:?}");
        Ok(())
    })?;
    says(&other, V6, 8082, "/", "hello\n")
}

#[test]
fn what_dies_is_not_noticed_by_who_connects() -> Result<()> {
    let mut node = node()?;
    let netns = Netns::with_loopback(node.folder(), "a")?;
    assert!(node.cni("ADD", &Sandbox::new("cart-0", "c1", &netns, "hello=8081"))?.success);
    says(&netns, V4, 8081, "/", "hello\n")?;

    let worker = node.worker()?;
    process::signal(worker, Signal::KILL)?;
    soon("the end of the worker", || {
        ensure!(!process::runs(worker), "it runs");
        Ok(())
    })?;
    says(&netns, V4, 8081, "/", "hello\n")?;

    node.kill_keeper()?;
    says(&netns, V6, 8081, "/", "hello\n")?;
    node.start_keeper()?;
    soon("listeners that the host hands back", || {
        let status = node.status()?;
        ensure!(status["listeners"] == 2, "{status}");
        Ok(())
    })?;

    node.kill_host()?;
    let queued: Vec<_> = (0..20).map(|_| netns.connect(V4, 8081)).collect::<Result<_>>()?;
    node.start_host()?;
    for mut stream in queued {
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        assert!(answer.ends_with("hello\n"), "{answer:?}");
    }

    let other = Netns::with_loopback(node.folder(), "b")?;
    assert!(node.cni("ADD", &Sandbox::new("cart-1", "c2", &other, "hello=8081"))?.success);
    says(&other, V6, 8081, "/", "hello\n")
}

#[test]
fn a_pod_that_goes_while_the_host_is_away_is_not_served_by_the_next_one() -> Result<()> {
    let mut node = node()?;
    let netns = Netns::with_loopback(node.folder(), "a")?;
    let sandbox = Sandbox::new("cart-0", "c1", &netns, "hello=8081");
    assert!(node.cni("ADD", &sandbox)?.success);
    says(&netns, V4, 8081, "/", "hello\n")?;
    node.kill_host()?;
    assert!(node.cni("DEL", &sandbox)?.success);
    node.start_host()?;
    assert!(node.cni("ADD", &Sandbox::new("cart-1", "c2", &netns, "faults=8081"))?.success);
    soon("the other pod's component", || says(&netns, V4, 8081, "/no-response", "no-response"))
}

#[test]
fn every_thread_is_at_home_when_it_does_nothing() -> Result<()> {
    let node = node()?;
    let netns = Netns::with_loopback(node.folder(), "a")?;
    assert!(node.cni("ADD", &Sandbox::new("cart-0", "c1", &netns, "hello=8081"))?.success);
    says(&netns, V4, 8081, "/", "hello\n")?;
    let own = std::fs::read_link("/proc/self/ns/net")?;
    for process in [node.worker()?, node.keeper()?] {
        for task in std::fs::read_dir(format!("/proc/{process}/task"))? {
            let namespace = std::fs::read_link(task?.path().join("ns/net"))?;
            assert_eq!(namespace, own);
        }
    }
    Ok(())
}

#[test]
fn a_component_in_a_folder_of_the_catalog_is_said_not_to_be_read() -> Result<()> {
    let mut node = Node::with_keeper()?;
    let nested = node.folder().join("catalog/shop");
    std::fs::create_dir(&nested)?;
    std::fs::write(nested.join("clock.yaml"), Component::guest("clock", "hello-wasip2")?.yaml())?;
    node.start_host()?;
    let is_said = |line: &str| line.contains("are not read") && line.contains(&*nested.to_string_lossy());
    soon("a warning that names the folder", || {
        ensure!(node.log().lines().any(is_said), "{}", node.log());
        Ok(())
    })
}
