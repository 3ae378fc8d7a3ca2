//! Endpoints in pods' network namespaces: the real plugin, the real keeper, real namespaces; this test is the runtime.

use std::{
    fs,
    io::{Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use pillion_protocol::{
    keeper::{self, FromHost, ToHost},
    pod::Pod,
};
use pillion_sockets::link::Link;
use pillion_tests::{
    netns::Netns,
    node::{Node, PREVIOUS, Sandbox},
    process, program,
};
use serde_json::json;

const BOTH: (bool, bool) = (true, true);
const NEITHER: (bool, bool) = (false, false);

#[test]
fn a_pods_ports_accept_connections_before_its_first_container() -> Result<()> {
    let node = Node::with_keeper()?;
    let netns = Netns::with_loopback(node.folder(), "a")?;
    let sandbox = Sandbox::new("cart-0", "c1", &netns, "clock=8081, jwt-authz=8082, flags=8083");
    let said = node.cni("ADD", &sandbox)?;
    assert!(said.success, "{said:?}");
    assert_eq!(said.stdout, PREVIOUS, "what came before goes out byte for byte");
    for port in 8081..=8083 {
        assert_eq!(netns.accepts(port), BOTH, "{port}");
    }
    let other = Netns::with_loopback(node.folder(), "b")?;
    assert_eq!(other.accepts(8081), NEITHER, "another pod has none of it");
    assert!(netns.listen(8081).is_err(), "nobody in the pod can take the port");
    assert!(node.cni("ADD", &sandbox)?.success, "asking again changes nothing");
    assert!(node.cni("DEL", &sandbox)?.success);
    assert_eq!(netns.accepts(8081), NEITHER);
    netns.listen(8081)?;
    Ok(())
}

#[test]
fn a_pod_without_the_annotation_is_passed_through_and_nobody_is_asked() -> Result<()> {
    let node = Node::new()?;
    let netns = Netns::new(node.folder(), "a")?;
    let mut sandbox = Sandbox::new("plain", "c1", &netns, "");
    let blank = |text| json!({"pillion.dev/sidecars": text, "pillion.dev/wait": "nonsense"});
    let others = json!({"app": "shop", "pillion.dev/wait": "nonsense"});
    for annotations in [json!({}), json!(null), others, blank(""), blank(" \n")] {
        sandbox.annotations = annotations;
        for command in ["ADD", "DEL", "CHECK", "GC", "STATUS"] {
            let said = node.cni(command, &sandbox)?;
            // Whoever asks a keeper waits for 4.5 s, and there is none here.
            assert!(said.success && said.took < Duration::from_secs(4), "{command}: {said:?}");
            assert_eq!(said.stdout, if command == "ADD" { PREVIOUS } else { "" });
        }
    }
    Ok(())
}

#[test]
fn without_a_keeper_a_pod_with_sidecars_fails_soon_and_still_goes_away() -> Result<()> {
    let node = Node::new()?;
    let netns = Netns::with_loopback(node.folder(), "a")?;
    let sandbox = Sandbox::new("cart-0", "c1", &netns, "clock=8081");
    let within_time = |why: &str| -> Result<()> {
        let said = node.cni("ADD", &sandbox)?;
        let (code, text) = said.error()?;
        assert_eq!(code, 11, "try again later: {text}");
        assert!(text.contains("the keeper does not answer") && text.contains("does the Pillion agent run"), "{text}");
        assert!(said.took < Duration::from_secs(10), "{why}: {:?}", said.took);
        for command in ["DEL", "CHECK", "STATUS", "GC"] {
            let said = node.cni(command, &sandbox)?;
            assert!(said.success && said.took < Duration::from_secs(4), "{why}: {command}: {said:?}");
        }
        Ok(())
    };
    within_time("down")?;
    fs::create_dir_all(node.cni_socket().parent().unwrap_or(node.folder()))?;
    let _hanging = UnixListener::bind(node.cni_socket())?;
    within_time("hanging")
}

#[test]
fn del_always_succeeds_and_ends_only_the_sandbox_that_it_names() -> Result<()> {
    let node = Node::with_keeper()?;
    let netns = Netns::with_loopback(node.folder(), "a")?;
    let first = Sandbox::new("cart-0", "c1", &netns, "clock=8081");
    assert!(node.cni("DEL", &first)?.success, "before ADD");
    assert!(node.cni("ADD", &first)?.success);
    let again = Netns::with_loopback(node.folder(), "b")?;
    let second = Sandbox::new("cart-0", "c2", &again, "clock=8081");
    assert!(node.cni("ADD", &second)?.success, "the pod's pause process died: it gets another sandbox");
    assert_eq!(again.accepts(8081), BOTH);
    assert_eq!(netns.accepts(8081), NEITHER, "nothing holds the old namespace any more");
    let late = Sandbox { netns: PathBuf::new(), ..first };
    assert!(node.cni("DEL", &late)?.success, "its namespace is gone");
    assert_eq!(again.accepts(8081), BOTH, "a late DEL of the old sandbox changes nothing");
    let garbage = node.cni_with("DEL", &late, "no configuration")?;
    assert!(garbage.success, "{garbage:?}");
    Ok(())
}

#[test]
fn what_an_annotation_cannot_mean_is_said_with_the_text_at_fault() -> Result<()> {
    let node = Node::with_keeper()?;
    let netns = Netns::with_loopback(node.folder(), "a")?;
    let many: Vec<String> = (0..100).map(|i| format!("c{i}={}", 2000 + i)).collect();
    let table = [
        ("clock", "\"clock\" is no sidecar: expected NAME=PORT"),
        ("clock=8081, flags=8081", "port 8081 is given to both"),
        ("clock=80", "\"80\" is no port for a sidecar: allowed are 1024 to 65535"),
        ("clock=70000", "\"70000\" is no port"),
        (&many.join(","), "100 sidecars are too many"),
        (&"x".repeat(64 << 10), "65536 bytes are too long"),
    ];
    for (sidecars, expected) in table {
        let (code, text) = node.cni("ADD", &Sandbox::new("cart-0", "c1", &netns, sidecars))?.error()?;
        assert_eq!(code, 100);
        assert!(text.contains("annotation pillion.dev/sidecars") && text.contains(expected), "{text}");
    }
    let mut sandbox = Sandbox::new("cart-0", "c1", &netns, "clock=8081");
    sandbox.annotations = json!({"pillion.dev/sidecars": "clock=8081", "pillion.dev/wait": "later"});
    let (_, text) = node.cni("ADD", &sandbox)?.error()?;
    assert!(text.contains("pillion.dev/wait: \"later\" is nothing to wait for"), "{text}");
    assert_eq!(netns.accepts(8081), NEITHER);
    Ok(())
}

#[test]
fn what_cannot_be_bound_is_refused_whole() -> Result<()> {
    let node = Node::with_keeper()?;
    let netns = Netns::with_loopback(node.folder(), "a")?;
    let taken = netns.listen(8082)?;
    let sandbox = Sandbox::new("cart-0", "c1", &netns, "clock=8081, flags=8082");
    let (_, text) = node.cni("ADD", &sandbox)?.error()?;
    assert!(text.contains("127.0.0.1 port 8082 cannot be listened on in the pod"), "{text}");
    assert_eq!(netns.accepts(8081), NEITHER, "all or nothing");
    drop(taken);
    assert!(node.cni("ADD", &sandbox)?.success, "the kubelet tries again");
    assert_eq!((netns.accepts(8081), netns.accepts(8082)), (BOTH, BOTH));

    let refused = |netns: PathBuf| -> Result<String> {
        Ok(node.cni("ADD", &Sandbox { pod: "other", id: "c9", netns, ..sandbox.clone() })?.error()?.1)
    };
    let own = refused("/proc/self/ns/net".into())?;
    assert!(own.contains("hostNetwork"), "{own}");
    let file = refused("/dev/null".into())?;
    assert!(file.contains("no network namespace that can be entered"), "{file}");
    let mount = refused("/proc/self/ns/mnt".into())?;
    assert!(mount.contains("no network namespace that can be entered"), "{mount}");
    let nothing = refused(node.folder().join("none"))?;
    assert!(nothing.contains("cannot be opened"), "{nothing}");
    Ok(())
}

#[test]
fn the_nodes_own_namespace_is_known_or_the_keeper_does_not_start() -> Result<()> {
    let mut node = Node::new()?;
    // A keeper in a namespace of its own, as in a pod.
    node.start_keeper_with(&["unshare", "-n"])?;
    let own = format!("/proc/{}/ns/net", std::process::id());
    let sandbox =
        Sandbox { netns: own.into(), ..Sandbox::new("cart-0", "c1", &Netns::new(node.folder(), "a")?, "clock=8081") };
    let (_, text) = node.cni("ADD", &sandbox)?.error()?;
    assert!(text.contains("hostNetwork"), "{text}");

    let proc = tempfile::tempdir()?;
    let file = proc.path().join("file");
    fs::write(&file, "")?;
    let [folder, file] = [proc.path(), &file].map(|path| path.display().to_string());
    for (arguments, named) in [
        (["--proc", &folder], format!("{folder}/1/ns/net")),
        (["--node-netns", &file], format!("{file} is not a file of a namespace")),
    ] {
        let mut keeper = program::clean(program::named("pillion-keeper")?);
        keeper.args(arguments).arg("--state").arg(proc.path().join("state"));
        for socket in ["--cni-socket", "--host-socket"] {
            keeper.arg(socket).arg(proc.path().join("no/such/folder").join(socket));
        }
        let ended = keeper.output()?;
        let said = String::from_utf8_lossy(&ended.stderr);
        assert!(!ended.status.success() && said.contains(&named) && said.contains("--node-netns"), "{said}");
    }
    Ok(())
}

#[test]
fn ipv6_comes_as_soon_as_the_loopback_device_is_up_and_is_no_condition() -> Result<()> {
    let node = Node::with_keeper()?;
    let netns = Netns::new(node.folder(), "a")?;
    let sandbox = Sandbox::new("cart-0", "c1", &netns, "clock=8081");
    let said = thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(Duration::from_millis(200));
            netns.set_loopback_up()
        });
        node.cni("ADD", &sandbox)
    })?;
    assert!(said.success, "{said:?}");
    assert_eq!(netns.accepts(8081), BOTH);

    let without = Netns::with_loopback(node.folder(), "b")?;
    without.within(|| fs::write("/proc/sys/net/ipv6/conf/lo/disable_ipv6", "1"))?;
    let second = node.cni("ADD", &Sandbox::new("cart-1", "c2", &without, "clock=8081"))?;
    // Where a device that is down has to be waited for, and never comes up, that takes 1 s more.
    let down = Netns::new(node.folder(), "c")?;
    let waited = node.cni("ADD", &Sandbox::new("cart-2", "c3", &down, "clock=8081"))?.took;
    assert!(
        second.success && second.took + Duration::from_millis(600) < waited,
        "nothing is waited for: {second:?}, {waited:?}"
    );
    assert_eq!(without.accepts(8081), (true, false));
    Ok(())
}

#[test]
fn ipv6_comes_with_a_loopback_device_that_is_up_after_the_pods_start() -> Result<()> {
    let node = Node::with_keeper()?;
    let netns = Netns::new(node.folder(), "a")?;
    let said = node.cni("ADD", &Sandbox::new("cart-0", "c1", &netns, "clock=8081, flags=8082"))?;
    assert!(said.success, "{said:?}");
    netns.set_loopback_up()?;
    assert_eq!(netns.accepts(8081), (true, false));
    // Everything is compared half a minute later only.
    let began = Instant::now();
    while (netns.accepts(8081), netns.accepts(8082)) != (BOTH, BOTH) {
        assert!(began.elapsed() < Duration::from_secs(15), "{}", node.log());
        thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

#[test]
fn a_keeper_that_is_killed_or_ended_finds_its_pods_again() -> Result<()> {
    let mut node = Node::with_keeper()?;
    let (kept, gone) = (Netns::with_loopback(node.folder(), "a")?, Netns::with_loopback(node.folder(), "b")?);
    assert!(node.cni("ADD", &Sandbox::new("cart-0", "c1", &kept, "clock=8081, flags=8082"))?.success);
    assert!(node.cni("ADD", &Sandbox::new("cart-1", "c2", &gone, "clock=8081"))?.success);
    node.kill_keeper()?;
    drop(gone);
    node.start_keeper()?;
    assert_eq!((kept.accepts(8081), kept.accepts(8082)), (BOTH, BOTH));
    assert!(node.log().contains("its network namespace is gone"), "{}", node.log());
    node.end_keeper()?;
    node.start_keeper()?;
    assert_eq!(kept.accepts(8081), BOTH, "its end removed nothing that it needs");
    Ok(())
}

/// Says this to a socket of the keeper's, as a frame, and gives the first answer.
fn say(client: &mut UnixStream, text: &str) -> Result<()> {
    client.write_all(&u32::try_from(text.len())?.to_be_bytes())?;
    Ok(client.write_all(text.as_bytes())?)
}

fn heard(client: &mut UnixStream) -> Result<String> {
    client.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut length = [0; 4];
    client.read_exact(&mut length)?;
    let mut text = vec![0; usize::try_from(u32::from_be_bytes(length))?];
    client.read_exact(&mut text)?;
    Ok(String::from_utf8(text)?)
}

#[test]
fn a_plugin_and_a_host_of_the_next_version_are_understood_or_told_so() -> Result<()> {
    let node = Node::with_keeper()?;
    for (call, answer) in [
        (r#"{"version":1,"newer":1,"call":{"del":{"sandbox":"c1","newer":{}}}}"#, r#""done""#),
        (r#"{"version":1,"call":{"later":{"sandbox":"c1"}}}"#, r#"does not understand \"later\""#),
        (r#"{"version":2,"call":{"later":{}}}"#, "speaks version 2"),
    ] {
        let mut plugin = UnixStream::connect(node.cni_socket())?;
        say(&mut plugin, call)?;
        let heard = heard(&mut plugin)?;
        assert!(heard.contains(answer), "{call}: {heard}");
    }
    let mut host = UnixStream::connect(node.host_socket())?;
    let desired = r#"{"desired":{"pod":{"uid":"u-9","namespace":"n","name":"p","newer":1},"sidecars":"a=8081","netns":null,"newer":[]}}"#;
    for said in [
        r#"{"hello":{"version":1,"listeners_max":100,"newer":true}}"#,
        r#""later""#,
        r#"{"later":{"pods":[1,2]}}"#,
        r#"{"component":{"name":"a","fate":"compiling"}}"#,
        desired,
        r#"{"complete":{"newer":1}}"#,
    ] {
        say(&mut host, said)?;
    }
    assert_eq!(heard(&mut host)?, r#""complete""#, "{}", node.log());
    assert!(node.log().contains("what this keeper does not know"), "{}", node.log());
    Ok(())
}

#[test]
fn whoever_says_nonsense_to_the_keeper_disturbs_nobody_and_leaves_nothing_behind() -> Result<()> {
    let node = Node::with_keeper()?;
    let netns = Netns::with_loopback(node.folder(), "a")?;
    let sandbox = Sandbox::new("cart-0", "c1", &netns, "clock=8081");
    assert!(node.cni("ADD", &sandbox)?.success);
    let held = process::descriptors(node.keeper()?)?;
    let _silent: Vec<_> = (0..20).map(|_| UnixStream::connect(node.cni_socket())).collect::<Result<_, _>>()?;
    for nonsense in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 64 << 10], &[0, 0, 0, 2, b'{', b'}'], &[0]] {
        let mut client = UnixStream::connect(node.cni_socket())?;
        // It may be refused before it has said everything.
        _ = client.write_all(nonsense);
    }
    // A gigabyte, as long as somebody listens.
    let mut client = UnixStream::connect(node.cni_socket())?;
    let chunk = vec![0x7f; 1 << 20];
    let written = (0..1024).take_while(|_| client.write_all(&chunk).is_ok()).count();
    assert!(written < 1024, "it was read to its end");
    let said = node.cni("ADD", &Sandbox::new("cart-1", "c2", &netns, "flags=8082"))?;
    assert!(said.success && said.took < Duration::from_secs(4), "{said:?}");
    drop(_silent);
    thread::sleep(Duration::from_millis(2_200));
    assert!(node.cni("DEL", &Sandbox::new("cart-1", "c2", &netns, "flags=8082"))?.success);
    assert!(process::descriptors(node.keeper()?)? <= held, "nothing leaks");
    Ok(())
}

#[test]
fn a_pod_that_the_plugin_was_asked_for_is_no_other_pod_whatever_a_host_is_told() -> Result<()> {
    let node = Node::with_keeper()?;
    let netns = Netns::with_loopback(node.folder(), "a")?;
    let sandbox = Sandbox::new("cart-0", "c1", &netns, "clock=8081");
    assert!(node.cni("ADD", &sandbox)?.success);
    let stream = UnixStream::connect(node.host_socket())?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    let mut link = Link::bounded(stream, keeper::MAX_MESSAGE);
    link.send(&FromHost::Hello { version: keeper::VERSION, listeners_max: 1_000 }, &[])?;
    link.send(&FromHost::Complete, &[])?;
    let pod = |namespace: &str, name: &str| Pod {
        uid: "cart-0".parse().unwrap(),
        namespace: namespace.into(),
        name: name.into(),
    };
    let desire = |pod: Pod| FromHost::Desired { pod, sidecars: "flags=9090".parse().unwrap(), netns: None };
    for (namespace, name) in [("bank", "cart-0"), ("shop", "other")] {
        link.send(&desire(pod(namespace, name)), &[])?;
        let why = loop {
            if let ToHost::Failed { pod: of, why } = link.receive::<ToHost>()?.message {
                assert_eq!(of, pod(namespace, name));
                break why;
            }
        };
        assert!(why.contains(r#"the pod "cart-0" of the namespace "shop""#), "{why}");
    }
    // The API having it no more is not its end, either.
    link.send(&FromHost::Deleted("cart-0".parse()?), &[])?;
    link.send(&desire(pod("shop", "cart-0")), &[])?;
    while !matches!(link.receive::<ToHost>()?.message, ToHost::Bind(endpoint) if endpoint.port.get() == 9090) {}
    assert!(node.cni("DEL", &sandbox)?.success);
    assert_eq!(netns.accepts(9090), NEITHER);
    Ok(())
}
