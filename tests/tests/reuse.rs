//! `spec.instances.reuse`: p3 instances that serve several requests, one after another, for components that ask for it.

use anyhow::Result;
use pillion_tests::{Component, Connection, Host, Protocol, get};

#[tokio::test]
async fn instances_that_are_used_again_answer_like_new_ones() -> Result<()> {
    let spin = Component::guest("spin", "hello-spin")?.instances(3);
    let faults = Component::guest("faults", "faults-p3")?.instances(100);
    let host = Host::of([spin, faults]).start().await?;
    for protocol in Protocol::ALL {
        let mut connection = Connection::open(protocol, host.port("spin")?).await?;
        for _ in 0..20 {
            assert_eq!(connection.get("/").await?.text(), "hello\n");
        }
    }
    let port = host.port("faults")?;
    for path in ["/hello", "/trap", "/hello", "/loop", "/hello", "/body-trap", "/hello"] {
        let answer = get(Protocol::H1, port, path).await;
        if path == "/hello" {
            assert_eq!(answer?.text(), "hello\n", "an instance that failed is never used again");
        }
    }
    Ok(())
}

#[tokio::test]
async fn an_instance_that_leaks_is_replaced_before_a_request_feels_it() -> Result<()> {
    let host = Host::of([Component::guest("faults", "faults-p3")?.instances(10_000)]).start().await?;
    let mut connection = Connection::open(Protocol::H1, host.port("faults")?).await?;
    for number in 0..3_000 {
        let answer = connection.get("/leak").await?;
        assert_eq!(answer.status, 200, "{number}: {answer:?}");
    }
    Ok(())
}

#[tokio::test]
async fn many_at_once_share_no_instance() -> Result<()> {
    let host = Host::of([Component::guest("faults", "faults-p3")?.instances(100)]).start().await?;
    let port = host.port("faults")?;
    for _ in 0..3 {
        let answers = futures::future::try_join_all((0..40).map(|_| get(Protocol::H1, port, "/sleep?ms=50"))).await?;
        assert!(answers.iter().all(|answer| answer.status == 200));
    }
    Ok(())
}
