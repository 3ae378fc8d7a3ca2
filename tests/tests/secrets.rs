//! Secrets that components refer to: read only where a namespace lets control read them, followed, and never written to a node's disk.

use std::{process::Command, time::Duration};

use anyhow::{Result, ensure};
use pillion_tests::{
    eventually, place,
    registry::{Artifact, Registry, docker_config},
    world::{AGAIN, SOON, World},
};
use serde_json::{Value, json};

/// What nobody but the guest may see.
const SECRET: &str = "hunter2-the-first";

/// What the ready-made advice says.
fn allow(world: &World) -> Result<()> {
    let how = ["--clusterrole=pillion-secrets", "--serviceaccount=pillion-system:pillion-control", "-n", "shop"];
    world.plane.api.kubectl(&[&["create", "rolebinding", "pillion-secrets"][..], &how].concat()).map(drop)
}

fn from_secret(key: &str) -> Value {
    json!({"env": [{"name": "NAME", "valueFrom": {"secretKeyRef": {"name": "db", "key": key}}}]})
}

#[tokio::test]
async fn a_secret_is_served_when_it_is_there_and_control_may_read_it() -> Result<()> {
    let world = World::start().await?;
    world.publish("hello", "hello:1", json!({}))?;
    world.publish_for_shop("db", &world.image("faults:1"), from_secret("password"))?;
    let netns = world.pod("shop", "cart", "hello=8081, db=8082")?;
    world
        .has_condition("db", "Accepted", "SecretForbidden", "kubectl create rolebinding pillion-secrets -n shop")
        .await?;
    world.has_event("cart", "SidecarNotAccepted", "kubectl create rolebinding").await?;
    world.answers(&netns, 8081, "/", "hello\n").await?;
    allow(&world)?;
    world.has_condition("db", "Accepted", "Invalid", r#"there is no Secret "db" in the namespace "shop""#).await?;
    world.secret("db", &json!({"password": SECRET}))?;
    world.answers(&netns, 8082, "/env?name=NAME", SECRET).await?;
    world.has_condition("db", "Accepted", "Accepted", "").await?;
    world.secret("db", &json!({"password": "hunter2-the-second"}))?;
    world.answers(&netns, 8082, "/env?name=NAME", "hunter2-the-second").await?;
    // Who had it goes on with it.
    world.plane.api.kubectl(&["delete", "rolebinding", "pillion-secrets", "-n", "shop"])?;
    world.has_condition("db", "Accepted", "SecretForbidden", "").await?;
    world.answers(&netns, 8082, "/env?name=NAME", "hunter2-the-second").await?;
    let late = world.pod("shop", "late", "db=8082")?;
    world.answers(&late, 8082, "/env?name=NAME", "may not be read by control").await
}

#[tokio::test]
async fn a_secret_is_on_no_disk_and_outlives_the_host_in_memory() -> Result<()> {
    let mut world = World::start().await?;
    allow(&world)?;
    world.secret("db", &json!({"password": SECRET}))?;
    world.publish_for_shop("db", &world.image("faults:1"), from_secret("password"))?;
    let netns = world.pod("shop", "cart", "db=8082")?;
    world.answers(&netns, 8082, "/env?name=NAME", SECRET).await?;
    world.control.kill()?;
    world.node.start_host()?;
    world.answers(&netns, 8082, "/env?name=NAME", SECRET).await?;
    let found = Command::new("grep").args(["-rlF", SECRET]).arg(world.node.folder()).output()?;
    ensure!(found.stdout.is_empty(), "the secret is in {}", String::from_utf8_lossy(&found.stdout));
    ensure!(!world.logs().contains(SECRET), "the secret is in a log");
    // A node that starts anew has an empty memory, and has to wait for control.
    world.node.kill_host()?;
    for kept in std::fs::read_dir(world.node.secrets())? {
        std::fs::remove_file(kept?.path())?;
    }
    world.control = world.plane.leader("control-1").await?;
    world.follow_control()?;
    world.answers(&netns, 8082, "/env?name=NAME", SECRET).await
}

#[tokio::test]
async fn nobody_has_what_control_itself_may_read() -> Result<()> {
    let world = World::start().await?;
    let from = json!({"secretKeyRef": {"name": "pillion-control-ca", "key": "ca.key"}});
    let component = json!({
        "apiVersion": "pillion.dev/v1alpha1", "kind": "Component", "metadata": {"name": "thief", "namespace": "pillion-system"},
        "spec": {"image": world.image("faults:1"), "env": [{"name": "NAME", "valueFrom": from}]},
    });
    world.plane.api.apply(&component.to_string())?;
    eventually("a refusal", SOON, async || {
        let output = r#"jsonpath={.status.conditions[?(@.type=="Accepted")].message}"#;
        let said = world.plane.api.kubectl(&["get", "component", "thief", "-n", "pillion-system", "-o", output])?;
        ensure!(said.contains("is of control's own namespace"), "{said}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn what_a_namespaces_login_pulled_is_served_to_no_other_before_it_was_let_to_it() -> Result<()> {
    let mut world = World::start().await?;
    allow(&world)?;
    let mut private = Registry::with_htpasswd("ann", SECRET).await?;
    let digest = Artifact::wasm(std::fs::read(place::guest("hello-wasip2")?)?).push(&private, "private:1").await?;
    // Control cannot read it: it takes the registry for one with TLS.
    let registries = json!({world.registry.host(): {"plainHttp": true}, private.host(): {"plainHttp": true}});
    std::fs::write(world.node.folder().join("registries.yaml"), json!({"registries": registries}).to_string())?;
    let login = docker_config(&private.host(), "ann", SECRET).to_string();
    world.secret("pull", &json!({".dockerconfigjson": login}))?;
    let [tag, pinned] = [format!("{}/private:1", private.host()), format!("{}/private@{digest}", private.host())];
    for (name, image) in [("tag", &tag), ("pinned", &pinned)] {
        world.publish_for_shop(name, image, json!({"imagePullSecrets": [{"name": "pull"}]}))?;
    }
    let cart = world.pod("shop", "cart", "tag=8082, pinned=8083")?;
    for port in [8082, 8083] {
        world.answers(&cart, port, "/", "hello\n").await?;
    }
    // Another namespace names the same, without a login: it is here, and not served to that.
    for (name, image) in [("thief", &tag), ("thief-pinned", &pinned)] {
        let component = json!({
            "apiVersion": "pillion.dev/v1alpha1", "kind": "Component", "metadata": {"name": name, "namespace": "bank"},
            "spec": {"image": image},
        });
        world.plane.api.apply(&component.to_string())?;
    }
    let teller = world.pod("bank", "teller", "thief=8082, thief-pinned=8083")?;
    let is_refused = async |name: &str| {
        eventually("a refusal", AGAIN, async || {
            let output = r#"jsonpath={.status.conditions[?(@.type=="Ready")].message}"#;
            let said = world.plane.api.kubectl(&["get", "component", name, "-n", "bank", "-o", output])?;
            ensure!(said.contains("there are no credentials for it"), "{name}: {said}");
            Ok(())
        })
        .await
    };
    for (name, port) in [("thief", 8082), ("thief-pinned", 8083)] {
        is_refused(name).await?;
        ensure!(world.answers_in(Duration::from_secs(1), &teller, port, "/", "hello\n").await.is_err(), "{name}");
    }
    // What was served goes on without registry and control, a new host included; and nobody else gets it for that.
    private.stop();
    world.control.kill()?;
    world.node.kill_host()?;
    world.follow_control()?;
    for port in [8082, 8083] {
        world.answers_in(AGAIN, &cart, port, "/", "hello\n").await?;
        ensure!(world.answers_in(Duration::from_secs(1), &teller, port, "/", "hello\n").await.is_err(), "{port}");
    }
    Ok(())
}

#[tokio::test]
async fn an_image_is_pulled_with_the_pull_secret_of_its_component() -> Result<()> {
    let world = World::start().await?;
    allow(&world)?;
    let private = Registry::with_htpasswd("ann", SECRET).await?;
    Artifact::wasm(std::fs::read(place::guest("hello-wasip2")?)?).push(&private, "private:1").await?;
    let registries = json!({world.registry.host(): {"plainHttp": true}, private.host(): {"plainHttp": true}});
    std::fs::write(world.node.folder().join("registries.yaml"), json!({"registries": registries}).to_string())?;
    let config = |password| json!({".dockerconfigjson": docker_config(&private.host(), "ann", password).to_string()});
    world.secret("pull", &config("wrong"))?;
    let image = format!("{}/private:1", private.host());
    world.publish_for_shop("private", &image, json!({"imagePullSecrets": [{"name": "pull"}]}))?;
    // One that has it wrong, and stays so, must not keep the other from it.
    world.secret("wrong", &config("wrong"))?;
    world.publish_for_shop("again", &image, json!({"imagePullSecrets": [{"name": "wrong"}]}))?;
    let netns = world.pod("shop", "cart", "private=8082, again=8083")?;
    world.has_condition("private", "Ready", "Failed", r#"the credentials of "ann" are refused"#).await?;
    world.secret("pull", &config(SECRET))?;
    world.answers_in(AGAIN, &netns, 8082, "/", "hello\n").await?;
    ensure!(!world.logs().contains(SECRET), "the password is in a log");
    let found = Command::new("grep").args(["-rlF", SECRET]).arg(world.node.folder()).output()?;
    ensure!(found.stdout.is_empty(), "the password is in {}", String::from_utf8_lossy(&found.stdout));
    Ok(())
}
