//! `--watch`: new versions are served from one request to the next, and none is lost.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use pillion_tests::{Component, Connection, Host, Protocol, eventually, get, place};
use serde_json::Value;

/// Nothing here compiles for long.
const SWITCH: Duration = Duration::from_secs(30);

/// A file that is replaced as tools do it: written beside, then renamed.
struct Image {
    folder: tempfile::TempDir,
}

impl Image {
    fn of(guest: &str) -> Result<Self> {
        let image = Self { folder: tempfile::tempdir()? };
        image.replace(&fs::read(place::guest(guest)?)?)?;
        Ok(image)
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("image.wasm")
    }

    fn replace(&self, bytes: &[u8]) -> Result<()> {
        let new = self.folder.path().join("new");
        fs::write(&new, bytes)?;
        Ok(fs::rename(new, self.path())?)
    }

    fn replace_by(&self, guest: &str) -> Result<()> {
        self.replace(&fs::read(place::guest(guest)?)?)
    }
}

async fn watching(component: Component) -> Result<Host> {
    Host::of([component]).args(["--watch"]).start().await
}

/// Waits for the next `ready` event that there was not when `seen` was looked at.
async fn ready_after(host: &Host, seen: &[Value]) -> Result<Value> {
    let many = seen.iter().filter(|event| event["event"] == "ready").count();
    let more = async || {
        let ready = host.events_of("ready");
        ready.get(many).cloned().with_context(|| format!("no new event `ready`: {:?}", host.events()))
    };
    eventually("an event `ready` of the new version", SWITCH, more).await
}

/// Which guest answers: `hello-wasip2` answers every path, the faults guests do not know this one.
async fn status(host: &Host) -> Result<u16> {
    Ok(get(Protocol::H1, host.port("x")?, "/nowhere").await?.status.as_u16())
}

/// Calls `/hello` without a pause until it is told to stop; counts what it got.
struct Load {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    callers: Vec<tokio::task::JoinHandle<Result<()>>>,
}

impl Load {
    fn start(port: u16) -> Self {
        let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let callers = (0..8).map(|number| {
            let (stop, answered) = (Arc::clone(&stop), Arc::clone(&answered));
            let protocol = if number % 2 == 0 { Protocol::H1 } else { Protocol::H2 };
            tokio::spawn(async move {
                let mut connection = Connection::open(protocol, port).await?;
                while !stop.load(Relaxed) {
                    // A quarter of the requests comes over new connections.
                    if answered.fetch_add(1, Relaxed) % 4 == 0 {
                        connection = Connection::open(protocol, port).await?;
                    }
                    let answer = connection.get("/hello").await?;
                    ensure!(answer.status == 200 && answer.text() == "hello\n", "{protocol:?}: {answer:?}");
                }
                Ok(())
            })
        });
        let callers = callers.collect();
        Self { stop, answered, callers }
    }

    /// The number of requests; an error if one failed.
    async fn end(self) -> Result<usize> {
        self.stop.store(true, Relaxed);
        for caller in self.callers {
            caller.await??;
        }
        Ok(self.answered.load(Relaxed))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_file_is_served_under_load_without_a_failed_request() -> Result<()> {
    let image = Image::of("hello-wasip2")?;
    let host = watching(Component::file("x", image.path())).await?;
    let load = Load::start(host.port("x")?);
    let mut digest = host.event("ready").context("no event `ready`")?["digest"].clone();
    for (guest, expected) in [("faults-p2", 404), ("hello-wasip2", 200), ("faults-p3", 404), ("hello-wasip2", 200)] {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let seen = host.events();
        image.replace_by(guest)?;
        let ready = ready_after(&host, &seen).await?;
        assert_ne!(ready["digest"], digest, "{guest}");
        assert_eq!(ready["port"], host.port("x")?, "{guest}");
        digest = ready["digest"].clone();
        assert_eq!(status(&host).await?, expected, "{guest} is served when it says so");
    }
    let many = load.end().await?;
    assert!(many > 100, "{many} requests are no load");
    Ok(())
}

#[tokio::test]
async fn requests_in_flight_finish_on_the_old_version() -> Result<()> {
    let image = Image::of("faults-p2")?;
    let host = watching(Component::file("x", image.path())).await?;
    let port = host.port("x")?;
    // Compiled already, so that the switch is quick.
    drop(Host::of([Component::guest("hello", "hello-wasip2")?]).start().await?);
    let in_flight = Protocol::ALL.map(|protocol| tokio::spawn(get(protocol, port, "/sleep?ms=2000")));
    tokio::time::sleep(Duration::from_millis(200)).await;
    let seen = host.events();
    image.replace_by("hello-wasip2")?;
    let ready = ready_after(&host, &seen).await?;
    let before = host.event("ready").context("no first event `ready`")?;
    assert!(before["replaces"].is_null() && before["digest"] != ready["digest"], "{before} {ready}");
    assert_eq!(ready["replaces"], before["digest"], "{ready}");
    assert_eq!(status(&host).await?, 200, "the new version answers");
    assert!(in_flight.iter().all(|request| !request.is_finished()), "the switch took too long to tell anything");
    for request in in_flight {
        // The new version would have said hello.
        assert_eq!(request.await??.text(), "done\n");
    }
    Ok(())
}

#[tokio::test]
async fn a_broken_new_file_leaves_the_old_version_serving() -> Result<()> {
    let image = Image::of("hello-wasip2")?;
    let host = watching(Component::file("x", image.path())).await?;
    let not_http = fs::read(place::guest("not-http")?)?;
    let broken: [(&[u8], &str); 3] =
        [(b"garbage", "not WebAssembly"), (b"", "it is empty"), (&not_http, "no HTTP export")];
    for (bytes, expected) in broken {
        image.replace(bytes)?;
        let failed = host.wait_for("an event `failed`", SWITCH, |event| {
            event["event"] == "failed" && event["message"].as_str().is_some_and(|message| message.contains(expected))
        });
        let failed = failed.await?;
        assert_eq!((&failed["component"], &failed["port"]), (&"x".into(), &host.port("x")?.into()), "{failed}");
        let ready = host.event("ready").context("no event `ready`")?;
        assert_eq!(failed["serves"], ready["digest"], "{failed}");
        assert_eq!(status(&host).await?, 200, "after {expected}");
    }
    let seen = host.events();
    image.replace_by("faults-p2")?;
    ready_after(&host, &seen).await?;
    assert_eq!(status(&host).await?, 404, "a good file is served after broken ones");
    Ok(())
}

#[tokio::test]
async fn a_file_that_goes_away_leaves_the_old_version_serving() -> Result<()> {
    let image = Image::of("hello-wasip2")?;
    let host = watching(Component::file("x", image.path())).await?;
    fs::remove_file(image.path())?;
    host.wait_for("an event `failed`", SWITCH, |event| event["event"] == "failed").await?;
    assert_eq!(status(&host).await?, 200);
    let seen = host.events();
    image.replace_by("faults-p2")?;
    ready_after(&host, &seen).await?;
    assert_eq!(status(&host).await?, 404);
    Ok(())
}

#[tokio::test]
async fn files_that_are_not_the_catalogs_and_folders_that_are_not_there_do_not_matter() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = |name: &str| folder.path().join(name);
    fs::write(path("x.wasm"), fs::read(place::guest("hello-wasip2")?)?)?;
    fs::write(path("x.yaml"), Component::file("x", path("x.wasm")).yaml())?;
    fs::write(path("y.yaml"), Component::file("y", path("nowhere/y.wasm")).yaml())?;
    let sidecars = format!("x={}, y={}", place::free_port()?, place::free_port()?);
    let args = ["-f", &folder.path().display().to_string(), "--sidecars", &sidecars, "--watch"].map(String::from);
    let host = Host::of([]).args(args).start().await?;
    let failed = host.events_of("failed").len();
    assert_eq!(failed, 1, "y's file is not there: {:?}", host.events());
    // As `pillion run -o json > FOLDER/events.json` does, without an end.
    for number in 0..20 {
        fs::write(path("events.json"), format!("{number}"))?;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(host.events_of("failed").len(), failed, "nothing was read again");
    fs::create_dir(path("nowhere"))?;
    fs::write(path("nowhere/y.wasm"), fs::read(place::guest("hello-wasip2")?)?)?;
    // Whoever writes the YAML after the file is there has it served.
    fs::write(path("y.yaml"), Component::file("y", path("nowhere/y.wasm")).yaml())?;
    let ready = |event: &Value| event["event"] == "ready" && event["component"] == "y";
    host.wait_for("an event `ready` of y", SWITCH, ready).await?;
    Ok(())
}

fn replace_yaml(host: &Host, yaml: &str) -> Result<()> {
    let (new, file) = (host.folder().join("new.yaml"), yaml_of(host.folder()));
    fs::write(&new, yaml)?;
    Ok(fs::rename(new, file)?)
}

fn yaml_of(folder: &Path) -> PathBuf {
    folder.join("components/x.yaml")
}

async fn greeting(host: &Host) -> Result<String> {
    Ok(get(Protocol::H1, host.port("x")?, "/env?name=GREETING").await?.text())
}

#[tokio::test]
async fn a_change_of_yaml_is_applied() -> Result<()> {
    let component = || Component::guest("x", "faults-p2");
    let host = watching(component()?.env("GREETING", "hello")).await?;
    assert_eq!(greeting(&host).await?, "hello");
    for text in ["good day", "good night"] {
        let seen = host.events();
        replace_yaml(&host, &component()?.env("GREETING", text).yaml())?;
        ready_after(&host, &seen).await?;
        assert_eq!(greeting(&host).await?, text);
    }
    let seen = host.events();
    replace_yaml(&host, &component()?.limit("headTimeout", "100ms").yaml())?;
    ready_after(&host, &seen).await?;
    assert_eq!(get(Protocol::H1, host.port("x")?, "/never").await?.header("pillion-error"), "head-timeout");
    Ok(())
}

#[tokio::test]
async fn yaml_that_cannot_be_read_changes_nothing_and_is_told() -> Result<()> {
    let component = || Component::guest("x", "faults-p2");
    let host = watching(component()?.env("GREETING", "hello")).await?;
    replace_yaml(&host, "a: [")?;
    let told = async || {
        let told = host.log().iter().any(|line| line.contains("x.yaml"));
        ensure!(told, "no line names the file: {:?}", host.log());
        Ok(())
    };
    eventually("a log line", Duration::from_secs(5), told).await?;
    assert_eq!(greeting(&host).await?, "hello");
    let seen = host.events();
    replace_yaml(&host, &component()?.env("GREETING", "again").yaml())?;
    ready_after(&host, &seen).await?;
    assert_eq!(greeting(&host).await?, "again");
    Ok(())
}

#[tokio::test]
async fn a_file_that_is_written_again_with_the_same_content_is_no_new_version() -> Result<()> {
    let image = Image::of("hello-wasip2")?;
    let host = watching(Component::file("x", image.path())).await?;
    image.replace_by("hello-wasip2")?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(host.events_of("ready").len(), 1, "{:?}", host.events());
    Ok(())
}

#[tokio::test]
async fn without_watch_a_new_file_is_not_looked_at() -> Result<()> {
    let image = Image::of("hello-wasip2")?;
    let host = Host::of([Component::file("x", image.path())]).start().await?;
    image.replace_by("faults-p2")?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(status(&host).await?, 200);
    assert_eq!(host.events_of("ready").len(), 1, "{:?}", host.events());
    Ok(())
}

#[tokio::test]
async fn components_in_folders_of_a_folder_are_said_not_to_be_read() -> Result<()> {
    let catalog = tempfile::tempdir()?;
    let place = |folder: &str, name: &str| -> Result<PathBuf> {
        let folder = catalog.path().join(folder);
        fs::create_dir_all(&folder)?;
        let text = Component::file(name, place::guest("hello-wasip2")?).yaml();
        // Whole at once: what is told is what is there when it is looked.
        fs::write(catalog.path().join("new"), text)?;
        fs::rename(catalog.path().join("new"), folder.join(format!("{name}.yaml")))?;
        Ok(folder)
    };
    place("", "y")?;
    let early = place("early", "early")?;
    let x = Component::file("x", place::guest("hello-wasip2")?);
    let folder = catalog.path().as_os_str();
    let host =
        Host::of([x]).args([std::ffi::OsStr::new("--watch"), std::ffi::OsStr::new("-f"), folder]).start().await?;
    let said = |folder: &Path| {
        let folder = folder.to_string_lossy().into_owned();
        host.log().iter().filter(|line| line.contains("are not read") && line.contains(&folder)).count()
    };
    ensure!(said(&early) == 1, "{:?}", host.log());
    let late = place("late", "late")?;
    place("", "z")?;
    eventually("a word about the new folder", SWITCH, async || {
        ensure!(said(&late) == 1, "{:?}", host.log());
        Ok(())
    })
    .await?;
    ensure!(said(&early) == 1, "it was told again: {:?}", host.log());
    Ok(())
}
