//! Limits hold, for one request, for a binding and for the node; what was taken comes back.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use pillion_tests::{
    Answer, Component, Connection, FAULTS, Host, Protocol,
    client::{empty, request},
    eventually, get,
};

/// Fetches a path so often at once, each time over a connection of its own.
async fn at_once(port: u16, path: &str, many: usize) -> Result<Vec<Answer>> {
    let answers = (0..many).map(|_| get(Protocol::H1, port, path));
    futures::future::join_all(answers).await.into_iter().collect()
}

/// How many of these answers have a `pillion-error`; empty: none.
fn with(answers: &[Answer], reason: &str) -> usize {
    answers.iter().filter(|answer| answer.header("pillion-error") == reason).count()
}

#[tokio::test]
async fn so_many_run_so_many_wait_and_the_rest_is_turned_away() -> Result<()> {
    let host = Host::of_faults(|component| component.limit("concurrency", 2).limit("queue", 3)).await?;
    for guest in FAULTS {
        let began = Instant::now();
        let answers = at_once(host.port(guest)?, "/sleep?ms=300", 8).await?;
        assert_eq!((with(&answers, ""), with(&answers, "concurrency-limit")), (5, 3), "{guest}: {answers:?}");
        let took = began.elapsed();
        assert!((900..5_000).contains(&took.as_millis()), "{guest}: two, two and one take 300 ms each: {took:?}");
        assert_eq!(with(&at_once(host.port(guest)?, "/hello", 5).await?, ""), 5, "{guest}: places are free again");
    }
    Ok(())
}

#[tokio::test]
async fn waiting_for_a_place_counts_towards_the_head_timeout() -> Result<()> {
    let host = Host::of_faults(|component| component.limit("concurrency", 1).limit("headTimeout", "300ms")).await?;
    for guest in FAULTS {
        let mut first = Connection::open(Protocol::H1, host.port(guest)?).await?;
        let held = first.send(request("GET", "/body-never", empty())?).await?;
        let began = Instant::now();
        let answer = get(Protocol::H1, host.port(guest)?, "/hello").await?;
        assert_eq!(answer.header("pillion-error"), "head-timeout", "{guest}");
        assert!((280..4_000).contains(&began.elapsed().as_millis()), "{guest}: {:?}", began.elapsed());
        drop(held);
    }
    Ok(())
}

#[tokio::test]
async fn who_waits_for_a_place_and_goes_away_leaves_the_queue() -> Result<()> {
    let host = Host::of_faults(|component| component.limit("concurrency", 1).limit("queue", 1)).await?;
    for guest in FAULTS {
        let port = host.port(guest)?;
        let mut first = Connection::open(Protocol::H1, port).await?;
        let held = first.send(request("GET", "/body-never", empty())?).await?;
        for _ in 0..5 {
            let gone = tokio::time::timeout(Duration::from_millis(50), get(Protocol::H1, port, "/hello")).await;
            assert!(gone.is_err(), "{guest}: there is no place");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // The last one may be on its way out of the queue.
        let waiting = tokio::spawn(async move { placed(Protocol::H1, port, "/hello").await });
        tokio::time::sleep(Duration::from_millis(100)).await;
        drop((held, first));
        assert_eq!(waiting.await??.1.text(), "hello\n", "{guest}");
    }
    Ok(())
}

#[tokio::test]
async fn memory_below_the_limit_is_given_and_above_it_denied() -> Result<()> {
    let host = Host::of_faults(|component| component.limit("memory", "32Mi")).await?;
    for guest in FAULTS {
        let port = host.port(guest)?;
        assert_eq!(get(Protocol::H1, port, "/touch?mib=20").await?.text(), "done\n", "{guest}");
        let answer = get(Protocol::H1, port, "/touch?mib=40").await?;
        assert_eq!((answer.status.as_u16(), answer.header("pillion-error")), (502, "memory-limit"), "{guest}");
    }
    Ok(())
}

#[tokio::test]
async fn cpu_time_is_what_a_guest_computes_and_not_what_it_waits() -> Result<()> {
    let host = Host::of_faults(|component| component.limit("cpuTime", "150ms").limit("headTimeout", "50s")).await?;
    for guest in FAULTS {
        let port = host.port(guest)?;
        assert_eq!(get(Protocol::H1, port, "/sleep?ms=600").await?.text(), "done\n", "{guest}: waiting is free");
        assert_eq!(get(Protocol::H1, port, "/spin?ms=20").await?.text(), "done\n", "{guest}");
        let answer = get(Protocol::H1, port, "/spin?ms=60000").await?;
        assert_eq!(answer.header("pillion-error"), "cpu-limit", "{guest}");
    }
    Ok(())
}

#[tokio::test]
async fn the_nodes_memory_is_shared_and_comes_back() -> Result<()> {
    let components = FAULTS.map(|name| Component::guest(name, name)).into_iter().collect::<Result<Vec<_>>>()?;
    let host = Host::of(components).args(["--memory", "16Mi"]).start().await?;
    for guest in FAULTS {
        let port = host.port(guest)?;
        for _ in 0..3 {
            let answers = at_once(port, "/sleep?ms=300", 60).await?;
            let (served, refused) = (with(&answers, ""), with(&answers, "node-limit"));
            assert!(
                served >= 1 && refused >= 1 && served + refused == 60,
                "{guest}: {served} served, {refused} refused"
            );
            assert!(
                answers.iter().all(|answer| answer.status == 200 || answer.header("retry-after") == "1"),
                "{guest}"
            );
        }
        assert_eq!(get(Protocol::H1, port, "/hello").await?.text(), "hello\n", "{guest}");
    }
    Ok(())
}

/// Fetches a path as soon as there is a place: the guest before may still be on its way out when its answer is there.
async fn placed(protocol: Protocol, port: u16, path: &str) -> Result<(Instant, Answer)> {
    let attempt = async || {
        let (began, answer) = (Instant::now(), get(protocol, port, path).await?);
        ensure!(answer.header("pillion-error") != "concurrency-limit", "{}", answer.text());
        Ok((began, answer))
    };
    eventually("a place", Duration::from_secs(1), attempt).await
}

#[tokio::test]
async fn work_after_the_answer_is_ended_after_the_linger_timeout() -> Result<()> {
    let host = Host::of_faults(|component| {
        let component = component.limit("lingerTimeout", "2s").limit("cpuTime", "1h");
        component.limit("concurrency", 1).limit("queue", 0)
    })
    .await?;
    for guest in FAULTS {
        let port = host.port(guest)?;
        for protocol in Protocol::ALL {
            for path in ["/body-complete-then-loop", "/body-complete-then-never"] {
                let (began, answer) = placed(protocol, port, path).await?;
                assert_eq!((answer.status.as_u16(), answer.text().as_str()), (200, "hello\n"), "{guest} {path}");
                assert!(began.elapsed() < Duration::from_millis(1_900), "{guest} {path}: {:?}", began.elapsed());
                let early = get(protocol, port, "/hello").await?;
                assert_eq!(early.header("pillion-error"), "concurrency-limit", "{guest} {path}: it still works");
                let free = async || {
                    ensure!(get(protocol, port, "/hello").await?.status == 200, "the place is taken");
                    Ok(began.elapsed())
                };
                let took = eventually("the end of lingering", Duration::from_secs(12), free).await?;
                assert!((1_900..10_000).contains(&took.as_millis()), "{guest} {path}: {took:?}");
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn without_lingering_work_ends_with_the_answer() -> Result<()> {
    let host = Host::of_faults(|component| {
        let component = component.limit("lingerTimeout", "0s").limit("cpuTime", "1h");
        component.limit("concurrency", 1).limit("queue", 0)
    })
    .await?;
    for guest in FAULTS {
        for path in ["/body-complete-then-loop", "/body-complete-then-never"] {
            let (began, answer) = placed(Protocol::H1, host.port(guest)?, path).await?;
            assert_eq!(answer.text(), "hello\n", "{guest} {path}");
            let free = async || {
                ensure!(get(Protocol::H1, host.port(guest)?, "/hello").await?.status == 200, "the place is taken");
                Ok(())
            };
            eventually("a free place", Duration::from_secs(4), free)
                .await
                .with_context(|| format!("{guest} {path}"))?;
            // By default it may go on for 5 s.
            assert!(began.elapsed() < Duration::from_secs(4), "{guest} {path}: {:?}", began.elapsed());
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_request_that_waits_for_long_does_not_end_before_its_limits() -> Result<()> {
    let host = Host::of_faults(|component| component.limit("idleTimeout", "200ms").limit("headTimeout", "5s")).await?;
    for guest in FAULTS {
        let answer = get(Protocol::H1, host.port(guest)?, "/sleep?ms=800").await?;
        assert_eq!(answer.text(), "done\n", "{guest}: idleTimeout is about bodies, not about the head");
    }
    Ok(())
}
