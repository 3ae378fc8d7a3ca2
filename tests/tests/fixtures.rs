//! The fixtures that other tests build on: an API server alone, and a whole cluster.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use pillion_tests::{
    cluster::{ApiServer, BUSYBOX, Cluster, ISSUER},
    eventually,
};
use serde_json::{Value, json};

/// Longer than it takes until everybody has heard of what the API server stores.
const SOON: Duration = Duration::from_secs(20);

/// No token lives for less.
const TEN_MINUTES: Duration = Duration::from_secs(600);

/// For whom tokens are, in these tests.
const AUDIENCE: &str = "pillion.test";

#[tokio::test]
async fn an_api_server_alone_reviews_tokens_bound_to_pods() {
    let began = Instant::now();
    let mut api = ApiServer::start().await.unwrap();
    println!("the API server started in {:.1?}", began.elapsed());
    // A panic, not an error, so that the fixture prints its logs.
    reviews(&mut api).await.unwrap();
}

async fn reviews(api: &mut ApiServer) -> Result<()> {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "cart", "namespace": "shop"},
        "spec": {
            "serviceAccountName": "agent", "nodeName": "node-7",
            "containers": [{"name": "main", "image": "pillion.test/none:1"}],
        },
    });
    api.kubectl(&["create", "namespace", "shop"])?;
    api.kubectl(&["create", "serviceaccount", "agent", "--namespace", "shop"])?;
    let made = api.create(&pod.to_string())?;
    let uid = made.pointer("/metadata/uid").and_then(Value::as_str).context("no UID")?;
    let token = || api.token_for("shop", "agent", AUDIENCE, Some(("cart", uid)), TEN_MINUTES);
    let first = token()?;
    let status = review(api, &first, AUDIENCE)?;
    ensure!(status.get("authenticated") == Some(&json!(true)), "{status}");
    let user = status.get("user").context("no user")?;
    ensure!(user.get("username") == Some(&json!("system:serviceaccount:shop:agent")), "{user}");
    for (name, expected) in [("pod-name", "cart"), ("pod-uid", uid), ("node-name", "node-7")] {
        let said = user.get("extra").and_then(|extra| extra.get(format!("authentication.kubernetes.io/{name}")));
        ensure!(said == Some(&json!([expected])), "{name} is {said:?}");
    }
    ensure!(refuses(&review(api, &first, "somebody.else")?), "a token for somebody else is taken");

    // Whom nobody knows is told nothing but whether it is well; an account may do what roles say; the fixture's user anything.
    let other = token()?;
    let own = api.token_for("shop", "agent", ISSUER, None, TEN_MINUTES)?;
    let kubeconfig = api.kubeconfig_with_token(&own)?.to_string_lossy().into_owned();
    let with_own = ["--kubeconfig", &kubeconfig, "get", "pod", "cart", "--namespace", "shop", "--output", "name"];
    let error = api.kubectl(&with_own).err().context("a role is needed")?;
    ensure!(format!("{error:#}").contains(r#"User "system:serviceaccount:shop:agent" cannot get resource "pods""#));
    let role = ["create", "role", "reader", "--verb", "get", "--resource", "pods", "--namespace", "shop"];
    api.kubectl(&role)?;
    let to = ["create", "rolebinding", "reader", "--role", "reader", "--serviceaccount", "shop:agent"];
    api.kubectl(&[&to[..], &["--namespace", "shop"]].concat())?;
    eventually("the role", SOON, || async { says(&api.kubectl(&with_own)?, "pod/cart\n") }).await?;

    // A second API server has nothing of the first, which goes away and comes back with all of it.
    let another = ApiServer::start().await?;
    ensure!(another.url() != api.url());
    ensure!(another.kubectl(&["get", "namespace", "shop"]).is_err());
    let url = api.url();
    api.stop();
    let error = api.kubectl(&["get", "--raw", "/readyz"]).err().context("it answers")?;
    ensure!(format!("{error:#}").contains("refused"), "{error:#}");
    let began = Instant::now();
    api.restart().await?;
    println!("it started again in {:.1?}", began.elapsed());
    ensure!(api.url() == url, "{url} became {}", api.url());
    says(&api.kubectl(&["get", "pod", "cart", "--namespace", "shop", "--output", "jsonpath={.metadata.uid}"])?, uid)?;

    // Not the first token: what was reviewed is remembered for 10 s.
    ensure!(review(api, &first, AUDIENCE)?.get("authenticated") == Some(&json!(true)));
    api.kubectl(&["delete", "pod", "cart", "--namespace", "shop", "--grace-period", "0", "--force"])?;
    eventually("the token is refused", SOON, || async {
        let status = review(api, &other, AUDIENCE)?;
        ensure!(refuses(&status), "{status}");
        Ok(())
    })
    .await
}

/// What the API server says of a token.
fn review(api: &ApiServer, token: &str, audience: &str) -> Result<Value> {
    let review = json!({
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
        "spec": {"token": token, "audiences": [audience]},
    });
    api.create(&review.to_string())?.get("status").cloned().context("no status")
}

fn refuses(status: &Value) -> bool {
    status.get("authenticated") != Some(&json!(true)) && status.get("error").is_some()
}

#[tokio::test]
async fn a_whole_cluster_runs_deployments_services_and_dns() {
    let began = Instant::now();
    let cluster = Cluster::whole().await.unwrap();
    println!("the cluster started in {:.1?}", began.elapsed());
    runs(&cluster).await.unwrap();
    let began = Instant::now();
    drop(cluster);
    println!("the cluster ended in {:.1?}", began.elapsed());
}

/// A page, in a volume; a Deployment of pods that serve it, with a service; and a client on each node, with a token.
const WORKLOADS: &str = r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: page}
data: {index.html: "a page\n"}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      volumes: [{name: page, configMap: {name: page}}]
      containers:
      - name: web
        image: BUSYBOX
        imagePullPolicy: Never
        command: [httpd, -f, -p, "8080", -h, /page]
        volumeMounts: [{name: page, mountPath: /page}]
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: caller}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: caller}
spec:
  selector: {matchLabels: {app: caller}}
  template:
    metadata: {labels: {app: caller}}
    spec:
      serviceAccountName: caller
      terminationGracePeriodSeconds: 1
      volumes:
      - name: token
        projected: {sources: [{serviceAccountToken: {path: token, audience: AUDIENCE}}]}
      - name: namespaces
        hostPath: {path: /run/netns}
      containers:
      - name: caller
        image: pillion.test/caller:1
        imagePullPolicy: Never
        securityContext: {runAsUser: 65532, runAsGroup: 65532, allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
        volumeMounts:
        - {name: token, mountPath: /var/run/token}
        - {name: namespaces, mountPath: /run/netns, mountPropagation: HostToContainer}
"#;

async fn runs(cluster: &Cluster) -> Result<()> {
    // The first is linked dynamically, with a long list of libraries; the second is not.
    let files = [(program("curl")?, "/usr/bin/curl"), (program("busybox")?, "/bin/busybox")];
    let began = Instant::now();
    cluster.load_image("pillion.test/caller:1", &files, &["/bin/busybox", "sleep", "1000"])?;
    println!("an image of curl was loaded in {:.1?}", began.elapsed());
    let began = Instant::now();
    cluster.apply(&WORKLOADS.replace("BUSYBOX", BUSYBOX).replace("AUDIENCE", AUDIENCE))?;
    for workload in ["deployment/web", "daemonset/caller"] {
        cluster.kubectl(&["rollout", "status", workload, "--timeout", "90s"]).with_context(|| events(cluster))?;
    }
    println!("deployment and daemon set run after {:.1?}", began.elapsed());
    let name = ["get", "pods", "--selector", "app=caller", "--output", "jsonpath={.items[*].metadata.name}"];
    let caller = cluster.kubectl(&name)?;
    let address = cluster.kubectl(&["get", "service", "web", "--output", "jsonpath={.spec.clusterIP}"])?;
    for host in [address.as_str(), "web", "web.default.svc.cluster.local"] {
        let url = format!("http://{host}/");
        let fetch = ["curl", "--silent", "--show-error", "--max-time", "5", &url];
        eventually(host, SOON, || async { says(&cluster.exec(&caller, "caller", &fetch)?, "a page\n") }).await?;
    }
    let error = cluster.exec(&caller, "caller", &["curl", "--silent", "--show-error", "http://nobody/"]).err();
    ensure!(error.is_some_and(|error| format!("{error:#}").contains("Could not resolve host")), "`nobody` is found");

    let read = |file: &str| cluster.exec(&caller, "caller", &["/bin/busybox", "cat", file]);
    let status = review(cluster.api(), &read("/var/run/token/token")?, AUDIENCE)?;
    let user = status.get("user").with_context(|| status.to_string())?;
    ensure!(user.get("username") == Some(&json!("system:serviceaccount:default:caller")), "{user}");
    let pod = user.pointer("/extra/authentication.kubernetes.io~1pod-name");
    ensure!(pod == Some(&json!([caller])), "{user}");
    // The one that every pod has is for the API server, which pods reach by its service and trust by what comes with it.
    let own = read("/var/run/secrets/kubernetes.io/serviceaccount/token")?;
    let authorization = format!("Authorization: Bearer {own}");
    let authority = "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt";
    let ask = ["curl", "--silent", "--show-error", "--fail", "--cacert", authority, "--header", &authorization];
    let api = "https://kubernetes.default.svc/api";
    let answer = cluster.exec(&caller, "caller", &[&ask[..], &[api]].concat())?;
    ensure!(answer.contains(r#""kind": "APIVersions""#), "{answer}");

    // A namespace that is younger than a pod that has mounted their folder.
    // Mounts are counted, not names: one of a pod that another test's cluster left behind may be an empty file.
    let namespaces = || -> Result<usize> {
        let mounts = cluster.exec(&caller, "caller", &["/bin/busybox", "cat", "/proc/mounts"])?;
        Ok(mounts.lines().filter(|line| line.starts_with("nsfs /run/netns/")).count())
    };
    let before = namespaces()?;
    cluster.kubectl(&["scale", "deployment/web", "--replicas", "3"])?;
    cluster.kubectl(&["rollout", "status", "deployment/web", "--timeout", "90s"])?;
    let now = namespaces()?;
    ensure!(now > before, "{before} namespaces, then {now}");
    Ok(())
}

fn events(cluster: &Cluster) -> String {
    cluster.kubectl(&["get", "pods,events", "--output", "wide"]).unwrap_or_default()
}

/// A program of this machine.
fn program(name: &str) -> Result<PathBuf> {
    let found = ["/usr/bin", "/bin"].iter().map(|folder| PathBuf::from(folder).join(name)).find(|path| path.is_file());
    found.with_context(|| format!("there is no {name}: `make test` installs it"))
}

fn says(said: &str, expected: &str) -> Result<()> {
    ensure!(said == expected, "expected {expected:?}, got {said:?}");
    Ok(())
}
