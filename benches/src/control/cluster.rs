//! A cluster as control sees it: thousands of pods that no kubelet runs, and the streams of nodes that are none.

use std::{
    net::Ipv4Addr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use anyhow::{Context, ensure};
use futures::{StreamExt, TryStreamExt, stream};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::{
    authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec},
    core::v1::{Pod, ServiceAccount},
};
use kube::{
    Api, Client, Config, ResourceExt,
    api::{ApiResource, DynamicObject, GroupVersionKind, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use pillion_tests::{
    client::{full, request},
    control::{AGENT, AUDIENCE, NAMESPACE, Plane},
    tls,
};
use serde_json::{Value, json};
use tokio::{net::TcpStream, sync::Semaphore, task::JoinSet, time::timeout};
use tokio_rustls::{TlsConnector, rustls::pki_types::ServerName};

/// Requests to the API server at once.
const AT_ONCE: usize = 48;

/// Nodes that connect at once.
pub(super) const CONNECTING: usize = 128;

/// How long a node may wait for what it needs.
const TOLD: Duration = Duration::from_secs(300);

/// The administrator of a cluster.
pub(super) async fn client(plane: &Plane) -> anyhow::Result<Client> {
    let kubeconfig = Kubeconfig::read_from(plane.api.kubeconfig())?;
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    Ok(Client::try_from(config)?)
}

/// The cluster's components.
pub(super) fn components(client: Client) -> Api<DynamicObject> {
    let kind = GroupVersionKind::gvk("pillion.dev", "v1alpha1", "ClusterComponent");
    Api::all_with(client, &ApiResource::from_gvk(&kind))
}

/// The name of a node.
pub(super) fn node(number: usize) -> String {
    format!("node-{number}")
}

/// Makes pods of the namespace `shop`, in turn on the nodes; with sidecars, if that is said.
pub(super) async fn pods(
    client: &Client,
    names: &str,
    count: usize,
    nodes: usize,
    sidecars: Option<&str>,
) -> anyhow::Result<()> {
    let api: Api<Pod> = Api::namespaced(client.clone(), "shop");
    let annotations = sidecars.map(|sidecars| json!({"pillion.dev/sidecars": sidecars}));
    let pod = |number: usize| -> anyhow::Result<Pod> {
        Ok(serde_json::from_value(json!({
            "metadata": {"name": format!("{names}-{number}"), "annotations": annotations, "labels": {"app": names, "release": "r"}},
            "spec": {"nodeName": node(number % nodes.max(1)), "containers": [{"name": "app", "image": "r.example/app:1"}]},
        }))?)
    };
    let parameters = PostParams::default();
    let make = async |number: usize| api.create(&parameters, &pod(number)?).await.map(drop).context("a pod");
    stream::iter(0..count).map(make).buffer_unordered(AT_ONCE).try_collect().await
}

/// Makes a pod of the agent on each node; gives a token of each.
pub(super) async fn agents(client: &Client, nodes: usize) -> anyhow::Result<Vec<String>> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), NAMESPACE);
    let parameters = PostParams::default();
    let make = async |number: usize| -> anyhow::Result<String> {
        let owner =
            json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "name": AGENT, "uid": "d", "controller": true});
        let name = format!("{AGENT}-{number}");
        let containers = json!([{"name": "host", "image": "r.example/agent:1"}]);
        let pod = serde_json::from_value(json!({
            "metadata": {"name": name, "ownerReferences": [owner]},
            "spec": {"nodeName": node(number), "serviceAccountName": AGENT, "containers": containers},
        }))?;
        let pod = pods.create(&parameters, &pod).await.context("an agent's pod")?;
        let bound_object_ref = Some(BoundObjectReference {
            kind: Some("Pod".into()),
            name: Some(name),
            uid: pod.uid(),
            ..Default::default()
        });
        let spec =
            TokenRequestSpec { audiences: vec![AUDIENCE.into()], bound_object_ref, expiration_seconds: Some(7200) };
        let asked = TokenRequest { spec, ..TokenRequest::default() };
        let token = accounts.create_token_request(AGENT, &parameters, &asked).await.context("a token")?;
        Ok(token.status.context("a token without a status")?.token)
    };
    stream::iter(0..nodes).map(make).buffered(AT_ONCE).try_collect().await
}

/// Streams of nodes. They end when this is dropped.
pub(super) struct Nodes {
    _streams: JoinSet<()>,
    /// What was said to all of them since each had everything, but heartbeats.
    pub(super) said: Arc<AtomicUsize>,
}

impl Nodes {
    /// Has each node follow control, and waits until all have what they need.
    pub(super) async fn connect(port: u16, authority: &std::path::Path, tokens: &[String]) -> anyhow::Result<Self> {
        let connector = tls::connector(authority)?;
        let (said, room) = (Arc::new(AtomicUsize::new(0)), Arc::new(Semaphore::new(CONNECTING)));
        let (sender, mut complete) = tokio::sync::mpsc::unbounded_channel();
        let mut streams = JoinSet::new();
        for token in tokens {
            let (connector, token, room) = (connector.clone(), token.clone(), Arc::clone(&room));
            let (sender, said) = (sender.clone(), Arc::clone(&said));
            streams.spawn(async move {
                let connected = {
                    let _room = room.acquire().await;
                    stream_of(port, &connector, &token).await
                };
                let followed = match connected {
                    Ok((body, _held)) => follow(body, &said, || _ = sender.send(Ok(()))).await,
                    Err(error) => Err(error),
                };
                if let Err(error) = followed {
                    _ = sender.send(Err(error));
                }
            });
        }
        for _ in tokens {
            timeout(TOLD, complete.recv())
                .await
                .context("a node was not told everything")?
                .context("no node is left")??;
        }
        Ok(Self { _streams: streams, said })
    }
}

/// What holds a connection open.
type Held = hyper::client::conn::http1::SendRequest<pillion_tests::client::Body>;

async fn stream_of(port: u16, connector: &TlsConnector, token: &str) -> anyhow::Result<(Incoming, Held)> {
    let socket = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
    let socket = connector.connect(ServerName::from(Ipv4Addr::LOCALHOST), socket).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(socket)).await?;
    tokio::spawn(connection);
    let mut asked = request("POST", "/v1/stream", full(json!({"versions": [1]}).to_string()))?;
    let headers = asked.headers_mut();
    headers.insert("authorization", format!("Bearer {token}").parse()?);
    headers.insert("content-type", "application/json".parse()?);
    headers.insert("host", "127.0.0.1".parse()?);
    let answer = sender.send_request(asked).await?;
    ensure!(answer.status().is_success(), "a node's stream: {}", answer.status());
    Ok((answer.into_body(), sender))
}

/// Reads a stream to its end.
async fn follow(mut body: Incoming, said: &AtomicUsize, complete: impl FnOnce()) -> anyhow::Result<()> {
    let (mut rest, mut complete) = (Vec::new(), Some(complete));
    while let Some(frame) = body.frame().await {
        rest.extend_from_slice(&frame?.into_data().unwrap_or_default());
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = rest.drain(..=end).collect();
            let told: Value = serde_json::from_slice(&line)?;
            match told.get("type").and_then(Value::as_str) {
                Some("complete") => {
                    if let Some(complete) = complete.take() {
                        complete();
                    }
                }
                Some("heartbeat") => {}
                _ if complete.is_none() => _ = said.fetch_add(1, Relaxed),
                _ => {}
            }
        }
    }
    anyhow::bail!("a node's stream has ended")
}
