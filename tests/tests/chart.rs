//! The Helm chart: what it renders for each platform, which values it refuses, and the manifests that are made of it.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use anyhow::{Context, Result, ensure};
use pillion_tests::{place, program};

/// Set, the files that are compared with are written anew.
const UPDATE: &str = "PILLION_UPDATE_GOLDEN";

/// Of Kubernetes, as in `deploy/render`.
const VERSION: &str = "1.34.0";

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn chart() -> PathBuf {
    repository().join("deploy/chart")
}

/// A command with nothing of this test's environment: variables change what helm does.
fn command(program: &Path) -> Result<Command> {
    ensure!(program.is_file(), "{} is not there: `make test` installs it, tests/setup test too", program.display());
    Ok(program::clean(program))
}

/// Runs `helm template` with these further arguments.
fn template(arguments: &[&str]) -> Result<Output> {
    let mut helm = command(&place::cache()?.join("tools/bin/helm"))?;
    helm.args(["template", "pillion"]).arg(chart()).args(["--namespace", "pillion-system", "--kube-version", VERSION]);
    helm.args(arguments).output().context("helm cannot be started")
}

/// What `helm template` prints with these further arguments.
fn rendered(arguments: &[&str]) -> Result<String> {
    let Output { status, stdout, stderr } = template(arguments)?;
    ensure!(status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&stderr));
    Ok(String::from_utf8(stdout)?)
}

/// The names of the YAML files in a folder, without the ending.
fn names(folder: &Path) -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        names.extend(name.strip_suffix(".yaml").map(str::to_owned));
    }
    Ok(names)
}

/// Fails where `text` is not what the file says, with the first line that differs.
fn compare(file: &Path, text: &str) -> Result<()> {
    if std::env::var_os(UPDATE).is_some() {
        return fs::write(file, text).with_context(|| file.display().to_string());
    }
    let name = file.strip_prefix(repository()).unwrap_or(file).display();
    let golden = fs::read_to_string(file).with_context(|| format!("{name}: {UPDATE}=1 writes it"))?;
    if golden == text {
        return Ok(());
    }
    let same = golden.lines().zip(text.lines()).take_while(|(old, new)| old == new).count();
    let line = |text: &str| text.lines().nth(same).unwrap_or("nothing more").to_owned();
    anyhow::bail!(
        "{name}:{}: it says {:?}, and what is rendered {:?}. {UPDATE}=1 cargo test -p pillion-tests --test chart writes it anew",
        same + 1,
        line(&golden),
        line(text)
    )
}

#[test]
fn each_platform_is_rendered_as_its_golden_file_says() -> Result<()> {
    let golden = repository().join("tests/golden/chart");
    let mut platforms = names(&chart().join("platforms"))?;
    for platform in &platforms {
        let values = chart().join("platforms").join(format!("{platform}.yaml"));
        let text = rendered(&["--values", &values.to_string_lossy()])?;
        compare(&golden.join(format!("{platform}.yaml")), &text)?;
    }
    compare(&golden.join("default.yaml"), &rendered(&[])?)?;
    platforms.insert("default".into());
    assert_eq!(names(&golden)?, platforms, "each golden file belongs to a platform");
    Ok(())
}

#[test]
fn the_manifests_are_what_deploy_render_makes() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut render = command(&repository().join("deploy/render"))?;
    let output = render.env("PILLION_CACHE", place::cache()?).arg(folder.path()).output()?;
    ensure!(output.status.success(), "deploy/render: {}", String::from_utf8_lossy(&output.stderr));
    let manifests = repository().join("deploy/manifests");
    let made = names(folder.path())?;
    assert_eq!(names(&manifests)?, made);
    for name in made {
        let file = format!("{name}.yaml");
        compare(&manifests.join(&file), &fs::read_to_string(folder.path().join(&file))?)?;
    }
    Ok(())
}

#[test]
fn wrong_values_are_refused_by_the_names_of_their_keys() -> Result<()> {
    // What is set, and what the error has to name.
    let wrong: [(&str, &[&str]); 13] = [
        ("agnet.drainSeconds=1", &["agnet"]),
        ("agent.host.storeQouta=1Gi", &["/agent/host", "storeQouta"]),
        ("agent.host.resources.limits.cpu=1", &["/agent/host/resources/limits", "cpu"]),
        ("agent.keeper.resources.limits.cpu=100m", &["/agent/keeper/resources/limits", "cpu"]),
        ("agent.host.resources.limits.memory=1 GB", &["/agent/host/resources/limits/memory", "1 GB"]),
        // With it the keeper could not tell the node's own network namespace.
        ("agent.keeper.appArmorProfile=RuntimeDefault", &["/agent/keeper", "appArmorProfile"]),
        ("node.netns=run/netns/node", &["/node/netns", "run/netns/node"]),
        ("agent.maxSurge=0", &["/agent/maxSurge"]),
        ("control.replicas=two", &["/control/replicas", "integer"]),
        ("image.digest=sha256:12", &["/image/digest", "sha256:12"]),
        ("node.cniBinDir=opt/cni/bin", &["/node/cniBinDir", "opt/cni/bin"]),
        ("networkPolicy.enabled=maybe", &["/networkPolicy/enabled", "boolean"]),
        ("registries.settings.dockerConfig=x", &["/registries/settings", "dockerConfig"]),
    ];
    for (value, named) in wrong {
        let output = template(&["--set", value])?;
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{value} is taken");
        for name in named {
            assert!(said.contains(name), "{value}: {name:?} is not named: {said}");
        }
    }
    Ok(())
}

#[test]
fn values_are_found_where_they_belong() -> Result<()> {
    let digest = format!("sha256:{}", "0".repeat(64));
    let image = format!("image.repository=registry.example/pillion,image.tag=1.0,image.digest={digest}");
    let text = rendered(&["--set", &image, "--set", "image.pullSecrets={one,two}"])?;
    // Every container of agent, control and uninstall.
    assert_eq!(text.matches(&format!("image: registry.example/pillion@{digest}\n")).count(), 6, "{text}");
    assert!(text.contains("      imagePullSecrets:\n        - name: one\n        - name: two\n"), "{text}");

    let settings = "registries.settings.registries.registry\\.example.mirrors={mirror.example:5000}";
    let text = rendered(&["--set", settings])?;
    assert!(
        text.contains("    registries:\n      registry.example:\n        mirrors:\n        - mirror.example:5000\n")
    );

    let proxy = "registries.proxy.https=http://proxy.example:3128,registries.proxy.none=a.example\\,.b.example";
    let text = rendered(&["--set", proxy])?;
    let variables = "            - name: HTTPS_PROXY\n              value: \"http://proxy.example:3128\"\n            - name: NO_PROXY\n              value: \"a.example,.b.example\"\n";
    // Of control and of the agent's host: neither of the keeper nor of the installer.
    assert_eq!((text.matches(variables).count(), text.matches("_PROXY").count()), (2, 4), "{text}");
    assert!(!rendered(&[])?.contains("_PROXY"));

    let off = "networkPolicy.enabled=false,uninstall.enabled=false";
    let text = rendered(&["--set", off])?;
    for gone in ["kind: NetworkPolicy", "pillion-uninstall", "helm.sh/hook"] {
        assert!(!text.contains(gone), "{gone}: {text}");
    }
    Ok(())
}

#[test]
fn every_value_says_what_it_is_for() -> Result<()> {
    let text = fs::read_to_string(chart().join("values.yaml"))?;
    let mut before = "";
    // Keys of resources are Kubernetes' own.
    let known = ["requests:", "limits:", "cpu:", "memory:"];
    for line in text.lines() {
        let value = line.trim_start();
        let is_key = !value.is_empty() && !value.starts_with(['#', '-']);
        if is_key && !known.iter().any(|known| value.starts_with(known)) {
            assert!(before.trim_start().starts_with('#'), "{line:?} has no comment before it");
        }
        before = line;
    }
    Ok(())
}

#[test]
fn the_chart_is_of_the_version_of_the_programs() -> Result<()> {
    let text = fs::read_to_string(chart().join("Chart.yaml"))?;
    let version = env!("CARGO_PKG_VERSION");
    for line in [format!("version: {version}"), format!("appVersion: \"{version}\"")] {
        assert!(text.lines().any(|said| said == line), "{line:?} is not in Chart.yaml");
    }
    Ok(())
}
