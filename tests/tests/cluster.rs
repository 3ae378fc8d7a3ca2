//! Pods of a real cluster: the API server, a kubelet, containerd, and a chain of CNI plugins that ends with ours.
//!
//! It is one test of many steps, since a cluster takes seconds to start and its pods start at the same time.

use std::{
    io::ErrorKind,
    net::{SocketAddr, TcpStream},
    os::unix::net::UnixStream,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use pillion_protocol::{self as protocol, keeper};
use pillion_sockets::link::Link;
use pillion_tests::{
    Component,
    cluster::{Cluster, Pod},
    eventually,
    node::{self, Node},
    place, process,
};
use serde_json::{Value, json};

/// Longer than the kubelet takes to notice something, and to try again what failed once or twice.
const SOON: Duration = Duration::from_secs(60);

/// Calls three components by name and by both addresses, once each, and prints the answers. The first two say their names.
const CALL_ALL: &str = r#"
for host in localhost 127.0.0.1 '[::1]'; do
  for port in 8081 8082 8083; do echo "$(wget -q -O - "http://$host:$port/env?name=NAME")"; done
done"#;

/// What that prints.
const ALL: &str = "a\nb\nhello\na\nb\nhello\na\nb\nhello\n";

const SIDECARS: &str = "a=8081, b=8082, c=8083";

/// Serves at 9000 at all of the pod's addresses, as many containers do, for as long as the pod is there.
const SERVE: &str = "httpd -p 9000 -h /etc; exec sleep 1000";

#[tokio::test]
async fn pods_of_a_cluster_reach_components_at_their_localhost() {
    let mut node = node().unwrap();
    let began = Instant::now();
    let cluster = Cluster::start(&node.cni_socket()).await.unwrap();
    println!("the cluster started in {:.1?}", began.elapsed());
    // A panic, not an error, so that the fixtures print their logs.
    steps(&cluster, &mut node).await.unwrap();
    let began = Instant::now();
    drop(cluster);
    println!("the cluster ended in {:.1?}", began.elapsed());
}

/// A node whose catalog has `a`, `b` and `c`, with keeper and host.
fn node() -> Result<Node> {
    let mut node = Node::with_keeper()?;
    node.add(&Component::guest("a", "faults-p2")?.env("NAME", "a"))?;
    node.add(&Component::guest("b", "faults-p3")?.env("NAME", "b"))?;
    node.add(&Component::guest("c", "hello-wasip2")?)?;
    node.start_host()?;
    Ok(node)
}

async fn steps(cluster: &Cluster, node: &mut Node) -> Result<()> {
    let on_the_node = place::free_port()?;
    cluster.create(&[
        Pod::new("first").sidecars(SIDECARS).container("first", CALL_ALL).container("second", "true").that_ends(),
        Pod::new("early").sidecars(SIDECARS).init("init", CALL_ALL).container("main", "true").that_ends(),
        Pod::new("cart").sidecars("a=8081").container("main", SERVE),
        Pod::new("plain").container("main", SERVE),
        Pod::new("wrong").sidecars("clock=80").container("main", SERVE),
        Pod::new("bare")
            .sidecars(&format!("a={on_the_node}"))
            .on_the_nodes_network()
            .container("main", "exec sleep 1000"),
    ])?;
    step("the first container reaches all components at once", async {
        cluster.wait_for_phase("first", "Succeeded")?;
        says(&cluster.logs("first", "first")?, ALL)
    })
    .await?;
    step("an init container reaches them too", async {
        cluster.wait_for_phase("early", "Succeeded")?;
        says(&cluster.logs("early", "init")?, ALL)
    })
    .await?;
    step("a pod without the annotation has nothing of ours", without_the_annotation(cluster)).await?;
    step("nobody else reaches a pod's components", nobody_else(cluster)).await?;
    step("a wrong annotation is an event that quotes it", wrong_annotation(cluster)).await?;
    step("a pod on the node's network has no endpoints", on_the_nodes_network(cluster, node, on_the_node)).await?;
    step("what a deleted pod had is gone", deleted(cluster, node)).await?;
    step("a new sandbox has the endpoints again", new_sandbox(cluster, node)).await?;
    step("a pod that no plugin was asked for gets endpoints when a host names it", older_than_the_agent(cluster, node))
        .await?;
    step("without a keeper only pods with the annotation wait", without_a_keeper(cluster, node)).await?;
    step("without the plugin pods start as if we had never been there", uninstalled(cluster)).await
}

async fn step(name: &str, step: impl Future<Output = Result<()>>) -> Result<()> {
    let began = Instant::now();
    step.await.with_context(|| name.to_owned())?;
    println!("{name}: {:.1?}", began.elapsed());
    Ok(())
}

fn says(said: &str, expected: &str) -> Result<()> {
    ensure!(said == expected, "expected {expected:?}, got {said:?}");
    Ok(())
}

/// Fetches something inside a pod.
fn fetch(cluster: &Cluster, pod: &str, url: &str) -> Result<String> {
    cluster.exec(pod, "main", &["wget", "-q", "-O", "-", url])
}

/// A name that only the component `a` knows, over both addresses.
fn reaches_a(cluster: &Cluster, pod: &str) -> Result<()> {
    for host in ["127.0.0.1", "[::1]"] {
        says(&fetch(cluster, pod, &format!("http://{host}:8081/env?name=NAME"))?, "a")?;
    }
    Ok(())
}

fn is_refused(fetched: Result<String>) -> Result<()> {
    let error = fetched.err().context("it answered")?;
    ensure!(format!("{error:#}").contains("Connection refused"), "{error:#}");
    Ok(())
}

async fn without_the_annotation(cluster: &Cluster) -> Result<()> {
    cluster.wait_for_phase("plain", "Running")?;
    let listening = cluster.exec("plain", "main", &["netstat", "-l", "-t", "-n"])?;
    let ports: Vec<&str> = listening.lines().filter(|line| line.starts_with("tcp")).collect();
    ensure!(matches!(ports[..], [own] if own.contains(":9000")), "{listening}");
    is_refused(fetch(cluster, "plain", "http://127.0.0.1:8081/"))
}

async fn nobody_else(cluster: &Cluster) -> Result<()> {
    cluster.wait_for_phase("cart", "Running")?;
    reaches_a(cluster, "cart")?;
    let address = cluster.part("cart", "{.status.podIP}")?;
    // The way is open: what the container itself serves is reached.
    fetch(cluster, "plain", &format!("http://{address}:9000/passwd"))?;
    is_refused(fetch(cluster, "plain", &format!("http://{address}:8081/")))?;
    is_refused(fetch(cluster, "cart", &format!("http://{address}:8081/")))?;
    let from_the_node = |port: u16| {
        TcpStream::connect_timeout(&SocketAddr::new(address.parse()?, port), SOON).map_err(anyhow::Error::from)
    };
    from_the_node(9000)?;
    let error = from_the_node(8081).err().context("it accepted")?;
    ensure!(error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == ErrorKind::ConnectionRefused));
    Ok(())
}

async fn wrong_annotation(cluster: &Cluster) -> Result<()> {
    let expected = r#"annotation pillion.dev/sidecars: "80" is no port for a sidecar: allowed are 1024 to 65535"#;
    has_event(cluster, "wrong", expected).await?;
    cluster.delete("wrong")
}

/// Waits for an event of a sandbox that cannot be made, with a text of our plugin's.
async fn has_event(cluster: &Cluster, pod: &str, text: &str) -> Result<()> {
    eventually("an event", SOON, || async {
        let events = cluster.events(pod)?.replace('\\', "");
        let is_it = |line: &str| {
            line.starts_with("FailedCreatePodSandBox ") && line.contains(r#"type="pillion-cni""#) && line.contains(text)
        };
        ensure!(events.lines().any(is_it), "expected {text:?}, got:\n{events}");
        Ok(())
    })
    .await
}

/// The runtime calls no CNI plugin for such a pod, so nobody binds anything: its localhost is the node's, where ports of pods would
/// be in each other's way.
async fn on_the_nodes_network(cluster: &Cluster, node: &Node, port: u16) -> Result<()> {
    cluster.wait_for_phase("bare", "Running")?;
    ensure!(cluster.sandbox("bare")?.netns.is_none(), "it has a namespace of its own");
    for host in ["127.0.0.1", "::1"] {
        let connected = TcpStream::connect_timeout(&SocketAddr::new(host.parse()?, port), SOON);
        ensure!(connected.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused), "{host} is not refused");
    }
    ensure!(!node.log().contains("\"bare\""), "the keeper was told of it: {}", node.log());
    Ok(())
}

async fn deleted(cluster: &Cluster, node: &Node) -> Result<()> {
    // What ended by itself is taken out of the count: its sandboxes may still be ending.
    cluster.delete("first")?;
    cluster.delete("early")?;
    let held = || process::sockets(node.keeper()?);
    let before = held()?;
    cluster.create(&[Pod::new("short").sidecars(SIDECARS).container("main", SERVE)])?;
    cluster.wait_for_phase("short", "Running")?;
    let (with_it, netns) = (held()?, cluster.sandbox("short")?.netns.context("it has no namespace")?);
    ensure!(with_it == before + 6, "three ports at two addresses: {before} sockets became {with_it}");
    ensure!(netns.exists(), "{} is not there", netns.display());
    cluster.delete("short")?;
    eventually("the end of all it had", SOON, || async {
        let now = held()?;
        ensure!(now == before, "the keeper holds {now} sockets, {before} before");
        ensure!(!netns.exists(), "{} is there", netns.display());
        Ok(())
    })
    .await
}

async fn new_sandbox(cluster: &Cluster, node: &Node) -> Result<()> {
    let old = cluster.sandbox("cart")?;
    let uid = cluster.part("cart", "{.metadata.uid}")?;
    cluster.kill_pause("cart")?;
    eventually("another sandbox that answers", SOON, || async {
        ensure!(cluster.sandbox("cart")?.id != old.id, "it has the old one");
        reaches_a(cluster, "cart")
    })
    .await?;
    // The runtime's own DEL of the old one comes first. One that comes late, or again:
    let late = node::Sandbox {
        pod: &uid,
        name: ("default", "cart"),
        id: &old.id,
        netns: old.netns.context("it had no namespace")?,
        annotations: json!({"pillion.dev/sidecars": "a=8081"}),
    };
    ensure!(node.cni("DEL", &late)?.success, "DEL fails");
    reaches_a(cluster, "cart")
}

async fn without_a_keeper(cluster: &Cluster, node: &mut Node) -> Result<()> {
    node.kill_keeper()?;
    cluster.create(&[
        Pod::new("waiting").sidecars("a=8081").container("main", SERVE),
        Pod::new("other").container("main", SERVE),
    ])?;
    cluster.wait_for_phase("other", "Running")?;
    let text = format!("pillion: the keeper does not answer at {}", node.cni_socket().display());
    has_event(cluster, "waiting", &text).await?;
    has_event(cluster, "waiting", "does the Pillion agent run on this node?").await?;
    says(&cluster.part("waiting", "{.status.containerStatuses[0].state.waiting.reason}")?, "ContainerCreating")?;
    reaches_a(cluster, "cart").context("a pod that was there before")?;
    node.start_keeper()?;
    cluster.wait_for_phase("waiting", "Running")?;
    reaches_a(cluster, "waiting")?;
    reaches_a(cluster, "cart")?;
    // Also a pod whose end the keeper was not told of ends.
    node.kill_keeper()?;
    let netns = cluster.sandbox("waiting")?.netns.context("it has no namespace")?;
    cluster.delete("waiting")?;
    eventually("the end of its namespace", SOON, || async { is_gone(&netns) }).await?;
    node.start_keeper()
}

/// What a host says that control has told of the node's pods: here, this test is one.
async fn older_than_the_agent(cluster: &Cluster, node: &Node) -> Result<()> {
    cluster.create(&[Pod::new("old").container("main", SERVE)])?;
    cluster.wait_for_phase("old", "Running")?;
    let pod = |name: &str| -> Result<keeper::FromHost> {
        let uid = cluster.part(name, "{.metadata.uid}")?.parse()?;
        let pod = protocol::pod::Pod { uid, namespace: "default".into(), name: name.into() };
        Ok(keeper::FromHost::Desired { pod, sidecars: "a=8081, b=9000".parse()?, netns: None })
    };
    let stream = UnixStream::connect(node.host_socket())?;
    stream.set_read_timeout(Some(SOON))?;
    let mut link = Link::bounded(stream, keeper::MAX_MESSAGE);
    link.send(&keeper::FromHost::Hello { version: keeper::VERSION, listeners_max: 1_000 }, &[])?;
    link.send(&keeper::FromHost::Complete, &[])?;
    link.send(&pod("old")?, &[])?;
    eventually("its endpoints", SOON, || async { reaches_a(cluster, "old") }).await?;
    // The container has that port already: the other one is there all the same.
    let why = failure(&mut link, "old")?;
    ensure!(why.contains("port 9000 cannot be listened on in the pod"), "{why}");
    // Another component at the same port, as when the annotation changes.
    let keeper::FromHost::Desired { pod: old, .. } = pod("old")? else { unreachable!() };
    link.send(&keeper::FromHost::Desired { pod: old, sidecars: "b=8081".parse()?, netns: None }, &[])?;
    let says_b = || says(&fetch(cluster, "old", "http://127.0.0.1:8081/env?name=NAME")?, "b");
    eventually("the other component", SOON, || async { says_b() }).await?;
    link.send(&pod("bare")?, &[])?;
    let why = failure(&mut link, "bare")?;
    ensure!(why.contains("the node's network (hostNetwork)"), "{why}");
    let pods = || node.status()?.get("pods").and_then(Value::as_u64).context("no number of pods");
    let with_it = pods()?;
    let uid = cluster.part("old", "{.metadata.uid}")?.parse()?;
    cluster.delete("old")?;
    // Without the annotation the runtime's DEL says nothing to the keeper: the next comparison would find out.
    link.send(&keeper::FromHost::Ended(uid), &[])?;
    eventually("the end of what it had", SOON, || async {
        ensure!(pods()? == with_it - 1, "{} pods are held", pods()?);
        Ok(())
    })
    .await
}

/// Waits until a host is told why a pod has not what it should.
fn failure(link: &mut Link, name: &str) -> Result<String> {
    loop {
        match link.receive::<keeper::ToHost>()?.message {
            keeper::ToHost::Failed { pod, why } if pod.name == name => return Ok(why),
            _ => {}
        }
    }
}

/// Afterwards the annotation means nothing.
async fn uninstalled(cluster: &Cluster) -> Result<()> {
    cluster.plugin(&["uninstall-cni"])?;
    // The runtime reads its folder when that changes.
    eventually("a pod that starts without us", SOON, || async {
        cluster.create(&[Pod::new("after").sidecars(SIDECARS).container("main", SERVE)])?;
        cluster.wait_for_phase("after", "Running")?;
        let refused = is_refused(fetch(cluster, "after", "http://127.0.0.1:8081/"));
        cluster.delete("after")?;
        refused
    })
    .await
}

fn is_gone(path: &Path) -> Result<()> {
    ensure!(!path.exists(), "{} is there", path.display());
    Ok(())
}
