//! The real program on folders like a node's.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

const LIST: &str = r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"bridge"}]}"#;
const SINGLE: &str = r#"{"cniVersion":"1.0.0","name":"n","type":"bridge"}"#;
const PRIMARY: &str = "10-primary.conflist";
const DERIVED: &str = "10-primary.00-pillion.conflist";

/// A node's folders, and what runs on them.
struct Node {
    folder: TempDir,
    running: Vec<Running>,
}

struct Running {
    child: Child,
    log: Arc<Mutex<String>>,
}

impl Drop for Node {
    fn drop(&mut self) {
        for running in &mut self.running {
            _ = running.child.kill();
            _ = running.child.wait();
        }
    }
}

impl Node {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("bin")).unwrap();
        fs::create_dir(folder.path().join("net.d")).unwrap();
        fs::write(folder.path().join("plugin"), "the plugin").unwrap();
        Self { folder, running: Vec::new() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn conf(&self, name: &str) -> PathBuf {
        self.path("net.d").join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.conf(name), text).unwrap();
    }

    fn has_entry(&self, name: &str) -> bool {
        fs::read_to_string(self.conf(name)).is_ok_and(|text| text.contains("pillion-cni") && text.contains("/s.sock"))
    }

    fn command(&self, command: &str) -> Command {
        let mut started = Command::new(env!("CARGO_BIN_EXE_pillion-keeper"));
        started.arg(command).arg("--bin-dir").arg(self.path("bin")).arg("--conf-dir").arg(self.path("net.d"));
        if command == "install-cni" {
            started.arg("--plugin").arg(self.path("plugin")).args(["--cni-socket", "/s.sock"]);
        }
        started.env_clear().stdout(Stdio::null()).stderr(Stdio::piped());
        started
    }

    fn once(&self) -> Output {
        self.command("install-cni").arg("--once").output().unwrap()
    }

    fn uninstall(&self) -> Output {
        self.command("uninstall-cni").output().unwrap()
    }

    fn start(&mut self) {
        let mut child = self.command("install-cni").spawn().unwrap();
        let (lines, log) = (BufReader::new(child.stderr.take().unwrap()).lines(), Arc::new(Mutex::new(String::new())));
        let written = Arc::clone(&log);
        thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                *written.lock().unwrap() += &(line + "\n");
            }
        });
        self.running.push(Running { child, log });
    }

    fn log(&self) -> String {
        self.running.last().unwrap().log.lock().unwrap().clone()
    }

    fn terminate(&mut self) -> Option<i32> {
        let running = self.running.last_mut().unwrap();
        kill_process(Pid::from_child(&running.child), Signal::TERM).unwrap();
        running.child.wait().unwrap().code()
    }

    fn names(&self, folder: &str) -> Vec<String> {
        let names =
            fs::read_dir(self.path(folder)).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.collect();
        names.sort();
        names
    }
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Waits until it is so.
fn soon(what: &str, within: u64, is: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_millis(within);
    while !is() {
        assert!(Instant::now() < end, "not within {within} ms: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

fn identity(path: &Path) -> (u64, i64, i64) {
    let file = fs::metadata(path).unwrap();
    (file.ino(), file.mtime(), file.mtime_nsec())
}

#[test]
fn once_installs_and_a_second_time_writes_nothing() {
    let node = Node::new();
    node.write(PRIMARY, LIST);
    fs::set_permissions(node.conf(PRIMARY), fs::Permissions::from_mode(0o640)).unwrap();
    let output = node.once();
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(node.has_entry(PRIMARY));
    assert_eq!(fs::metadata(node.conf(PRIMARY)).unwrap().mode() & 0o7777, 0o640);
    let binary = node.path("bin/pillion-cni");
    assert_eq!(fs::metadata(&binary).unwrap().mode() & 0o7777, 0o755);
    let before = (identity(&binary), identity(&node.conf(PRIMARY)));
    assert!(node.once().status.success());
    assert_eq!((identity(&binary), identity(&node.conf(PRIMARY))), before);
    assert_eq!((node.names("bin"), node.names("net.d")), (vec!["pillion-cni".to_owned()], vec![PRIMARY.to_owned()]));
    fs::write(node.path("plugin"), "a newer plugin").unwrap();
    assert!(node.once().status.success());
    assert_eq!(fs::read_to_string(&binary).unwrap(), "a newer plugin");
}

#[test]
fn once_fails_with_a_reason() {
    let node = Node::new();
    let fails = |expected: &str| {
        let output = node.once();
        let text = stderr(&output);
        assert!(!output.status.success() && text.contains(expected), "{expected}: {text}");
    };
    fails("there is no CNI configuration in");
    node.write(PRIMARY, "{");
    fails("it is not valid JSON");
    node.write(PRIMARY, r#"{"name":"n","plugins":[{"type":"a"}]}"#);
    fails("it has no \"cniVersion\"");
    node.write(PRIMARY, &LIST.replace("bridge", &"b".repeat(1 << 20)));
    fails("larger than 1 MiB");
    fs::remove_dir_all(node.path("net.d")).unwrap();
    fails("net.d: No such file or directory (os error 2); it must exist: mount the node's folder there");
    fs::create_dir(node.path("net.d")).unwrap();
    fs::remove_file(node.path("plugin")).unwrap();
    fs::remove_file(node.path("bin/pillion-cni")).unwrap();
    fails("the plugin's binary");
    let mut relative = Command::new(env!("CARGO_BIN_EXE_pillion-keeper"));
    let output = relative.args(["install-cni", "--cni-socket", "s.sock"]).output().unwrap();
    assert!(!output.status.success() && stderr(&output).contains("must be an absolute path"), "{}", stderr(&output));
}

#[test]
fn the_entry_waits_for_a_configuration_and_follows_it() {
    let mut node = Node::new();
    node.start();
    soon("it says that it waits", 1000, || node.log().contains("waits for the cluster's CNI"));
    assert!(node.names("net.d").is_empty());
    node.write(PRIMARY, LIST);
    soon("the entry is put in", 1000, || node.has_entry(PRIMARY));
    // The primary rewrites its file, by rename and in place, deletes it, and another one comes that sorts earlier.
    node.write("new.tmp", &LIST.replace("bridge", "other"));
    fs::rename(node.conf("new.tmp"), node.conf(PRIMARY)).unwrap();
    soon("after a rename", 1000, || node.has_entry(PRIMARY));
    assert!(fs::read_to_string(node.conf(PRIMARY)).unwrap().contains("other"));
    fs::remove_file(node.conf(PRIMARY)).unwrap();
    node.write("05-earlier.conflist", LIST);
    soon("in an earlier file", 1000, || node.has_entry("05-earlier.conflist"));
    fs::remove_file(node.path("bin/pillion-cni")).unwrap();
    soon("the binary comes back", 1000, || node.path("bin/pillion-cni").exists());
    assert_eq!(node.terminate(), Some(0));
    assert!(node.has_entry("05-earlier.conflist") && node.path("bin/pillion-cni").exists());
}

#[test]
fn a_single_plugin_gets_a_derived_list_that_lives_as_long_as_it() {
    let mut node = Node::new();
    let source = "10-primary.conf";
    node.write(source, SINGLE);
    node.start();
    soon("derived", 1000, || node.has_entry(DERIVED));
    node.write(source, &SINGLE.replace("bridge", "other"));
    soon("derived again", 1000, || fs::read_to_string(node.conf(DERIVED)).unwrap().contains("other"));
    assert!(!node.has_entry(source));
    fs::remove_file(node.conf(source)).unwrap();
    soon("gone with its source", 1000, || !node.conf(DERIVED).exists());
    // A link is not edited either.
    fs::write(node.path("target"), LIST).unwrap();
    symlink(node.path("target"), node.conf(PRIMARY)).unwrap();
    soon("derived from a link", 1000, || node.has_entry(DERIVED));
    assert_eq!(fs::read_to_string(node.path("target")).unwrap(), LIST);
}

#[test]
fn a_broken_file_is_left_alone_until_it_is_mended_and_others_wait_for_it_a_moment() {
    let mut node = Node::new();
    node.write(PRIMARY, &LIST[..30]);
    node.write("20-other.conflist", LIST);
    node.start();
    thread::sleep(Duration::from_millis(300));
    assert_eq!(fs::read_to_string(node.conf(PRIMARY)).unwrap(), &LIST[..30]);
    assert!(!node.has_entry("20-other.conflist") && !node.log().contains("no runtime can use"));
    node.write(PRIMARY, LIST);
    soon("mended", 1000, || node.has_entry(PRIMARY));
    node.write(PRIMARY, "{");
    soon("what stays broken is said", 3500, || node.log().contains("no runtime can use"));
    soon("the next one counts, as for CRI-O", 1000, || node.has_entry("20-other.conflist"));
    assert_eq!(fs::read_to_string(node.conf(PRIMARY)).unwrap(), "{");
}

#[test]
fn a_cni_that_undoes_the_entry_is_not_fought() {
    let mut node = Node::new();
    let list = LIST.replace("bridge", "cilium-cni");
    node.write(PRIMARY, &list);
    node.write("99-old.conf.cilium_bak", SINGLE);
    node.start();
    let end = Instant::now() + Duration::from_secs(3);
    let mut undone = 0;
    while !node.log().contains("undoes the entry") {
        assert!(Instant::now() < end, "{}", node.log());
        if node.has_entry(PRIMARY) {
            node.write(PRIMARY, &list);
            undone += 1;
        }
        thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(undone, 3);
    node.write(PRIMARY, &list);
    thread::sleep(Duration::from_millis(200));
    assert_eq!(fs::read_to_string(node.conf(PRIMARY)).unwrap(), list);
    let log = node.log();
    let errors: Vec<_> = log.lines().filter(|line| line.contains("\"ERROR\"")).collect();
    assert!(errors.len() == 1 && errors[0].contains(PRIMARY) && errors[0].contains("cni.exclusive=false"), "{log}");
    assert!(log.contains("Cilium sets other CNIs' files aside"), "{log}");
}

#[test]
fn uninstall_leaves_what_was_there_before() {
    let node = Node::new();
    node.write("10-primary.conf", SINGLE);
    assert!(node.once().status.success());
    node.write(PRIMARY, LIST);
    fs::rename(node.conf("10-primary.conf"), node.conf("40-primary.conf")).unwrap();
    assert!(node.once().status.success());
    fs::copy(node.conf(PRIMARY), node.conf("30-other.conflist.cilium_bak")).unwrap();
    node.write("40-primary.00-pillion.conflist", "{");
    node.write("50-broken.conflist", "{");
    node.write(".pillion-x.tmp", "");
    fs::write(node.path("bin/.pillion-pillion-cni.tmp"), "").unwrap();
    fs::write(node.path("bin/bridge"), "").unwrap();
    assert!(node.has_entry(PRIMARY));
    for _ in 0..2 {
        let output = node.uninstall();
        assert!(output.status.success(), "{}", stderr(&output));
        let left = [PRIMARY, "30-other.conflist.cilium_bak", "40-primary.conf", "50-broken.conflist"];
        assert_eq!(
            (node.names("net.d"), node.names("bin")),
            (left.map(String::from).into(), vec!["bridge".to_owned()])
        );
        assert_eq!(fs::read_to_string(node.conf(PRIMARY)).unwrap(), LIST);
        assert_eq!(fs::read_to_string(node.conf(left[1])).unwrap(), LIST);
    }
    fs::remove_dir_all(node.path("net.d")).unwrap();
    fs::remove_dir_all(node.path("bin")).unwrap();
    assert!(node.uninstall().status.success());
}

#[test]
fn uninstall_keeps_the_binary_while_a_file_names_it() {
    let node = Node::new();
    node.write(PRIMARY, LIST);
    assert!(node.once().status.success());
    node.write("20-broken.conflist", r#"{"plugins":[{"type":"pillion-cni""#);
    let output = node.uninstall();
    assert!(!output.status.success() && stderr(&output).contains("20-broken.conflist"), "{}", stderr(&output));
    assert!(!node.has_entry(PRIMARY) && node.path("bin/pillion-cni").exists());
    fs::remove_file(node.conf("20-broken.conflist")).unwrap();
    assert!(node.uninstall().status.success() && !node.path("bin/pillion-cni").exists());
}
