//! Components from the toolchains that people use answer, and see what they should see.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use pillion_tests::{Component, FAULTS, Host, Protocol, eventually, get, wait_until};

const SDKS: [(&str, &str); 5] = [
    ("hello-wasip2", "hello\n"),
    ("hello-wstd", "hello\n"),
    ("hello-spin", "hello\n"),
    ("hello-js", "hello from JavaScript\n"),
    ("hello-python", "hello from Python\n"),
];

#[tokio::test]
async fn components_of_five_toolchains_answer_side_by_side_over_both_protocols() -> Result<()> {
    let components = SDKS.map(|(guest, _)| Component::guest(guest, guest)).into_iter().collect::<Result<Vec<_>>>()?;
    let host = Host::of(components).start().await?;
    for (guest, expected) in SDKS {
        for protocol in Protocol::ALL {
            let answer = get(protocol, host.port(guest)?, "/").await?;
            assert_eq!((answer.status.as_u16(), answer.text().as_str()), (200, expected), "{guest} {protocol:?}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_guest_sees_the_request_as_it_was_made() -> Result<()> {
    let host = Host::of([Component::guest("js", "hello-js")?]).start().await?;
    let answer = get(Protocol::H1, host.port("js")?, "/some/path?query=1").await?;
    assert_eq!((answer.header("x-method"), answer.header("x-path")), ("GET", "/some/path"));
    Ok(())
}

#[tokio::test]
async fn the_environment_is_what_the_component_says_and_nothing_of_the_hosts() -> Result<()> {
    let faults =
        FAULTS.map(|name| Ok(Component::guest(name, name)?.env("GREETING", "hello, Välkommen").env("EMPTY", "")));
    let host = Host::of(faults.into_iter().collect::<Result<Vec<_>>>()?).variable("OF_THE_HOST", "1").start().await?;
    for guest in FAULTS {
        let port = host.port(guest)?;
        assert_eq!(get(Protocol::H1, port, "/env?name=GREETING").await?.text(), "hello, Välkommen", "{guest}");
        let empty = get(Protocol::H1, port, "/env?name=EMPTY").await?;
        assert_eq!((empty.status.as_u16(), empty.text().as_str()), (200, ""), "{guest}");
        for name in ["PATH", "HOME", "OF_THE_HOST", "PWD"] {
            assert_eq!(get(Protocol::H1, port, &format!("/env?name={name}")).await?.status, 404, "{guest} {name}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn configuration_is_what_the_component_says() -> Result<()> {
    let host = Host::of_faults(|component| component.config("theme", "dark")).await?;
    for guest in FAULTS {
        assert_eq!(get(Protocol::H1, host.port(guest)?, "/config?name=theme").await?.text(), "dark", "{guest}");
        assert_eq!(get(Protocol::H1, host.port(guest)?, "/config?name=other").await?.status, 404, "{guest}");
    }
    Ok(())
}

#[tokio::test]
async fn the_clock_is_right_and_random_bytes_differ() -> Result<()> {
    let host = Host::of_faults(|component| component).await?;
    for guest in FAULTS {
        let port = host.port(guest)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        let told: u64 = get(Protocol::H1, port, "/clock").await?.text().parse()?;
        assert!(told.abs_diff(now) <= 2, "{guest}: the guest's clock says {told}, ours {now}");
        let (first, second) = (get(Protocol::H1, port, "/random").await?, get(Protocol::H1, port, "/random").await?);
        assert_eq!(first.body.len(), 32, "{guest}");
        assert_ne!(first.body, second.body, "{guest}");
    }
    Ok(())
}

#[tokio::test]
async fn log_lines_carry_component_binding_and_stream() -> Result<()> {
    let host = Host::of_faults(|component| component).await?;
    for guest in FAULTS {
        assert_eq!(get(Protocol::H1, host.port(guest)?, "/log?lines=3&bytes=20").await?.text(), "done\n");
        let of = |stream: &str| {
            let lines = host.guest_lines().into_iter();
            let lines = lines.filter(|line| line["component"] == guest && line["stream"] == stream);
            lines.map(|line| (line["binding"].clone(), line["message"].clone())).collect::<Vec<_>>()
        };
        wait_until("the lines of the guest", Duration::from_secs(2), || (of("stderr").len() == 1).then_some(()))
            .await?;
        let x = "x".repeat(18);
        let expected: Vec<_> = (0..3).map(|n| (guest.into(), format!("{n} {x}").into())).collect();
        assert_eq!(of("stdout"), expected, "{guest}");
        assert_eq!(of("stderr"), [(guest.into(), "3 lines of 20 bytes".into())], "{guest}");
    }
    Ok(())
}

#[tokio::test]
async fn a_long_log_line_is_cut_into_lines_of_8_kib() -> Result<()> {
    let host = Host::of_faults(|component| component).await?;
    for guest in FAULTS {
        get(Protocol::H1, host.port(guest)?, "/log?lines=1&bytes=20000").await?;
        let lengths = async || {
            let lines = host.guest_lines().into_iter();
            let lines = lines.filter(|line| line["component"] == guest && line["stream"] == "stdout");
            let lengths: Vec<_> = lines.map(|line| line["message"].as_str().unwrap_or_default().len()).collect();
            anyhow::ensure!(lengths.iter().sum::<usize>() == 20_000, "{guest}: lines of {lengths:?} bytes");
            Ok(lengths)
        };
        let lengths = eventually("20,000 bytes in the log", Duration::from_secs(2), lengths).await?;
        assert_eq!(lengths, [8192, 8192, 3616], "{guest}");
    }
    Ok(())
}

#[tokio::test]
async fn a_flood_of_log_lines_is_bounded_and_what_is_dropped_is_counted() -> Result<()> {
    let host = Host::of_faults(|component| component).await?;
    for guest in FAULTS {
        let began = std::time::Instant::now();
        get(Protocol::H1, host.port(guest)?, "/log?lines=2000&bytes=30").await?;
        // Each line that is let through tells how many were not since the last one.
        let told = async || {
            get(Protocol::H1, host.port(guest)?, "/log?lines=1&bytes=30").await?;
            let lines: Vec<_> = host.guest_lines().into_iter().filter(|line| line["component"] == guest).collect();
            let dropped: usize = lines.iter().filter_map(|line| usize::try_from(line["dropped"].as_u64()?).ok()).sum();
            let written = lines.iter().filter(|line| line["stream"].is_string()).count();
            anyhow::ensure!(written + dropped > 2_000, "{guest}: {written} written and {dropped} dropped of 2,000");
            Ok(written)
        };
        let written = eventually("a count of all that was dropped", Duration::from_secs(30), told).await?;
        let allowed = 200 + usize::try_from(began.elapsed().as_millis())? / 10 + 1;
        assert!((200..=allowed).contains(&written), "{guest}: {written} lines, {allowed} are allowed");
    }
    Ok(())
}
