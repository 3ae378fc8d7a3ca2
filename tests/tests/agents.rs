//! Keepers and hosts that take another's place: nobody who connects notices, and nothing is forgotten.

use std::{
    fs,
    io::{ErrorKind, Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};
use pillion_protocol::keeper::{Call, FromHost, MAX_MESSAGE, Request, ToHost, ToSuccessor, VERSION};
use pillion_sockets::link::Link;
use pillion_tests::{
    Connection, Protocol,
    load::{Knocking, Load},
    netns::Netns,
    node::{Node, Sandbox},
    process, soon,
};
use rustix::process::Signal;

const BOTH: (bool, bool) = (true, true);
const NEITHER: (bool, bool) = (false, false);

/// A node that serves `hello` in one pod.
fn node() -> Result<(Node, Netns)> {
    let node = Node::with_hello()?;
    let netns = Netns::with_loopback(node.folder(), "a")?;
    let said = node.cni("ADD", &Sandbox::new("cart-0", "c1", &netns, "hello=8081"))?;
    ensure!(said.success, "{said:?}");
    netns.says_hello(8081)?;
    Ok((node, netns))
}

#[test]
fn a_newer_agent_takes_everything_while_calls_go_on() -> Result<()> {
    let (mut node, netns) = node()?;
    let (load, knocking) = (Load::start(&netns, 8081, "/", 4)?, Knocking::start(&netns, 8081));
    thread::sleep(Duration::from_millis(500));
    for generation in 2..=4 {
        node.replace_agent()?;
        let status = node.status()?;
        assert_eq!((&status["generation"], &status["listeners"]), (&generation.into(), &2.into()), "{status}");
        let (pod, id) = (format!("new-{generation}"), format!("n{generation}"));
        let new = Netns::with_loopback(node.folder(), &pod)?;
        assert!(node.cni("ADD", &Sandbox::new(&pod, &id, &new, "hello=8081"))?.success);
        new.says_hello(8081)?;
        assert!(node.cni("DEL", &Sandbox::new(&pod, &id, &new, "hello=8081"))?.success);
    }
    let (seen, knocks) = (load.end()?, knocking.end()?);
    assert!(seen.answers > 100 && knocks.opened > 10, "{seen:?} {knocks:?}");
    assert_eq!((knocks.refused, seen.lost, seen.bad), (0, 0, 0), "nothing is refused, lost or wrong");
    Ok(())
}

#[test]
fn calls_over_http_2_go_on_too() -> Result<()> {
    let (mut node, netns) = node()?;
    let end = AtomicBool::new(false);
    let (answers, replaced) = thread::scope(|scope| {
        let calling = scope.spawn(|| call_over_http_2(netns.path(), &end));
        let mut replace = || -> Result<()> {
            for _ in 0..3 {
                thread::sleep(Duration::from_millis(300));
                let began = Instant::now();
                node.replace_agent()?;
                let took = began.elapsed();
                ensure!(took < Duration::from_secs(10), "a connection that is busy keeps the old host: {took:?}");
            }
            Ok(())
        };
        let replaced = replace();
        end.store(true, Relaxed);
        (calling.join(), replaced)
    });
    replaced?;
    let answers = answers.map_err(|_| anyhow::anyhow!("the caller panicked"))??;
    assert!(answers > 100, "{answers}");
    Ok(())
}

/// Calls one after the other on a connection, all the time; one that has said farewell is followed by another. Gives the number of
/// answers.
fn call_over_http_2(netns: &Path, end: &AtomicBool) -> Result<usize> {
    pillion_tests::netns::enter(netns)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut answers = 0;
        while !end.load(Relaxed) {
            let mut connection = Connection::open(Protocol::H2, 8081).await?;
            while !end.load(Relaxed) {
                match connection.get("/").await {
                    Ok(answer) if answer.status == 200 => answers += 1,
                    Ok(answer) => bail!("{}: {}", answer.status, answer.text()),
                    // It was not sent any more.
                    Err(error) if error.downcast_ref().is_some_and(hyper::Error::is_closed) => break,
                    Err(error) if error.downcast_ref().is_some_and(hyper::Error::is_canceled) => break,
                    Err(error) => return Err(error.context(format!("after {answers} answers"))),
                }
            }
        }
        Ok(answers)
    })
}

#[test]
fn while_two_hosts_are_there_both_hear_of_what_comes_and_goes() -> Result<()> {
    let (mut node, netns) = node()?;
    let old = node.start_next_agent()?;
    let other = Netns::with_loopback(node.folder(), "b")?;
    let sandbox = Sandbox::new("cart-1", "c2", &other, "hello=8081");
    assert!(node.cni("ADD", &sandbox)?.success);
    other.says_hello(8081)?;
    assert!(node.cni("DEL", &sandbox)?.success);
    soon("the end on both sides", || {
        ensure!(other.accepts(8081) == NEITHER, "it accepts");
        Ok(())
    })?;
    node.end_agent(old)?;
    netns.says_hello(8081)
}

#[test]
fn a_keeper_that_was_replaced_and_starts_again_takes_nothing_back() -> Result<()> {
    let (mut node, netns) = node()?;
    let mut old = node.start_next_agent()?;
    node.restart_keeper_of(&mut old)?;
    soon("its line in the log", || {
        ensure!(node.log().contains("another keeper holds the node's endpoints; this one waits"), "{}", node.log());
        Ok(())
    })?;
    assert_eq!(node.status()?["generation"], 2);
    // The newer one crashes and starts again: it comes before the old one, which waits longer.
    node.kill_keeper()?;
    node.start_keeper()?;
    assert_eq!(node.status()?["generation"], 2);
    node.end_agent(old)?;
    netns.says_hello(8081)
}

#[test]
fn a_successor_that_takes_nothing_leaves_the_keeper_as_it_was() -> Result<()> {
    let (node, netns) = node()?;
    let ask = |generation| -> Result<Link> {
        let stream = UnixStream::connect(node.cni_socket())?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        let link = Link::bounded(stream, MAX_MESSAGE);
        link.send(&Request { version: VERSION, call: Call::Handover { generation } }, &[])?;
        Ok(link)
    };
    // One that is no newer is refused.
    let refused = ask(1)?.receive::<ToSuccessor>()?.message;
    assert!(matches!(&refused, ToSuccessor::Refused(why) if why.contains("not newer")), "{refused:?}");
    // One that is, and goes away with everything in its hands.
    let mut link = ask(9)?;
    let mut listeners = 0;
    loop {
        let told = link.receive::<ToSuccessor>()?;
        match told.message {
            ToSuccessor::Held(_) => listeners += told.descriptors.len(),
            ToSuccessor::Complete => break,
            _ => {}
        }
    }
    assert_eq!(listeners, 2);
    drop(link);
    let status = node.status()?;
    assert_eq!((&status["generation"], &status["listeners"]), (&1.into(), &2.into()), "{status}");
    let other = Netns::with_loopback(node.folder(), "b")?;
    assert!(node.cni("ADD", &Sandbox::new("cart-1", "c2", &other, "hello=8081"))?.success);
    other.says_hello(8081)?;
    netns.says_hello(8081)
}

#[test]
fn a_keeper_whose_state_is_lost_learns_from_the_host_what_it_held() -> Result<()> {
    let (mut node, netns) = node()?;
    node.kill_keeper()?;
    fs::write(node.folder().join("state/pods.json"), "half of a fi")?;
    node.start_keeper()?;
    soon("what the host hands back", || {
        let status = node.status()?;
        ensure!(status["pods"] == 1 && status["listeners"] == 2, "{status}");
        Ok(())
    })?;
    netns.says_hello(8081)?;
    assert!(node.cni("DEL", &Sandbox::new("cart-0", "c1", &netns, "hello=8081"))?.success, "its sandbox is known");
    soon("its end", || {
        ensure!(netns.accepts(8081) == NEITHER, "it accepts");
        Ok(())
    })
}

#[test]
fn what_does_not_fit_is_refused_before_descriptors_run_out() -> Result<()> {
    let mut node = Node::new()?;
    // 512 of them are kept free.
    node.start_keeper_with(&["prlimit", "--nofile=536:536"])?;
    let (first, second) = (Netns::with_loopback(node.folder(), "a")?, Netns::with_loopback(node.folder(), "b")?);
    let sidecars = |many: u16| (0..many).map(|i| format!("c{i}={}", 2000 + i)).collect::<Vec<_>>().join(",");
    assert_eq!(node.status()?["listenersMax"], 24);
    assert!(node.cni("ADD", &Sandbox::new("cart-0", "c1", &first, &sidecars(10)))?.success);
    let held = process::descriptors(node.keeper()?)?;
    for _ in 0..3 {
        let (code, text) = node.cni("ADD", &Sandbox::new("cart-1", "c2", &second, &sidecars(8)))?.error()?;
        assert_eq!(code, 101);
        assert!(text.contains("8 more endpoints need 16 listeners, and this node can hold 22, of which 20"), "{text}");
    }
    assert_eq!(second.accepts(2000), NEITHER);
    assert!(process::descriptors(node.keeper()?)? <= held, "nothing leaks");
    assert!(node.cni("DEL", &Sandbox::new("cart-0", "c1", &first, &sidecars(10)))?.success);
    assert!(node.cni("ADD", &Sandbox::new("cart-1", "c2", &second, &sidecars(8)))?.success);
    assert_eq!(second.accepts(2007), BOTH);
    Ok(())
}

#[test]
fn many_clients_that_say_nothing_keep_nobody_from_the_keeper() -> Result<()> {
    let mut node = Node::new()?;
    node.start_keeper_with(&["prlimit", "--nofile=536:536"])?;
    let held = process::descriptors(node.keeper()?)?;
    let silent: Vec<_> = (0..100).map(|_| UnixStream::connect(node.cni_socket())).collect::<Result<_, _>>()?;
    let netns = Netns::with_loopback(node.folder(), "a")?;
    let said = node.cni("ADD", &Sandbox::new("cart-0", "c1", &netns, "clock=8081"))?;
    assert!(said.success, "{said:?}");
    drop(silent);
    assert!(node.cni("DEL", &Sandbox::new("cart-0", "c1", &netns, "clock=8081"))?.success);
    soon("no leak", || {
        let now = process::descriptors(node.keeper()?)?;
        ensure!(now <= held, "{now} descriptors, {held} before");
        Ok(())
    })
}

#[test]
fn strangers_are_not_served_at_the_hosts_socket() -> Result<()> {
    let node = Node::with_keeper()?;
    let connect = || -> Result<usize> {
        // This thread alone is another user from here on.
        rustix::thread::set_thread_uid(rustix::process::Uid::from_raw(65_533))?;
        Ok(UnixStream::connect(node.host_socket())?.read(&mut [0])?)
    };
    let read = thread::scope(|scope| scope.spawn(connect).join());
    assert_eq!(read.map_err(|_| anyhow::anyhow!("it panicked"))??, 0, "the connection ends at once");
    let mut link = UnixStream::connect(node.host_socket())?;
    link.write_all(&[0xff; 64])?;
    link.set_read_timeout(Some(Duration::from_secs(5)))?;
    // Reset, if it was not read to its end.
    let ended = link.read(&mut [0]).or_else(|error| match error.kind() {
        ErrorKind::ConnectionReset => Ok(0),
        _ => Err(error),
    });
    assert_eq!(ended?, 0, "nonsense ends the connection");
    assert!(process::runs(node.keeper()?));
    process::signal(node.keeper()?, Signal::TERM)
}

#[test]
fn a_listener_that_somebody_shuts_down_listens_again() -> Result<()> {
    let (node, netns) = node()?;
    let stream = UnixStream::connect(node.host_socket())?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut link = Link::bounded(stream, MAX_MESSAGE);
    link.send(&FromHost::Hello { version: VERSION, listeners_max: 100 }, &[])?;
    link.send(&FromHost::Complete, &[])?;
    let told = link.receive::<ToHost>()?;
    assert!(matches!(told.message, ToHost::Bind(_)), "{told:?}");
    for listener in &told.descriptors {
        rustix::net::shutdown(listener, rustix::net::Shutdown::Both)?;
    }
    soon("both addresses", || {
        ensure!(netns.accepts(8081) == BOTH, "they do not accept");
        netns.says_hello(8081)
    })
}
