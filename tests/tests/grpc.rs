//! gRPC as a client that others wrote speaks it: unary calls, streams both ways, trailers, failures.

use std::time::Duration;

use anyhow::{Context, Result};
use futures::{StreamExt, stream};
use http::uri::PathAndQuery;
use pillion_tests::{FAULTS, Host};
use tonic::{
    Code, IntoRequest, IntoStreamingRequest, Status,
    client::Grpc,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;

/// `message Ping { string text = 1; uint32 count = 2; }`
#[derive(Clone, PartialEq, Eq, prost::Message)]
struct Ping {
    #[prost(string, tag = "1")]
    text: String,
    #[prost(uint32, tag = "2")]
    count: u32,
}

fn ping(text: impl Into<String>, count: u32) -> Ping {
    Ping { text: text.into(), count }
}

type Codec = ProstCodec<Ping, Ping>;

async fn client(host: &Host, guest: &str) -> Result<Grpc<Channel>> {
    let endpoint = Endpoint::from_shared(format!("http://127.0.0.1:{}", host.port(guest)?))?;
    let mut client = Grpc::new(endpoint.timeout(Duration::from_secs(20)).connect().await?);
    client.ready().await?;
    Ok(client)
}

async fn unary(client: &mut Grpc<Channel>, path: &'static str, ping: Ping) -> Result<Ping, Status> {
    client.ready().await.map_err(|error| Status::unknown(error.to_string()))?;
    let path = PathAndQuery::from_static(path);
    client.unary(ping.into_request(), path, Codec::default()).await.map(tonic::Response::into_inner)
}

#[tokio::test]
async fn a_unary_call_gets_its_message_back() -> Result<()> {
    let host = Host::of_faults(|component| component).await?;
    for guest in FAULTS {
        let mut client = client(&host, guest).await?;
        for text in ["", "hello", &"x".repeat(1_000_000)] {
            let answer = unary(&mut client, "/pillion.test.Echo/Unary", ping(text, 7)).await?;
            assert_eq!(answer, ping(text, 7), "{guest}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn many_calls_share_a_channel() -> Result<()> {
    let host = Host::of_faults(|component| component).await?;
    for guest in FAULTS {
        let client = client(&host, guest).await?;
        let calls = (0..150).map(|number| {
            let mut client = client.clone();
            async move { unary(&mut client, "/pillion.test.Echo/Unary", ping(number.to_string(), number)).await }
        });
        for (number, answer) in (0..).zip(futures::future::join_all(calls).await) {
            assert_eq!(answer?, ping(number.to_string(), number), "{guest}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_server_streams_its_answers_and_then_its_trailers() -> Result<()> {
    let host = Host::of_faults(|component| component).await?;
    for guest in FAULTS {
        let mut client = client(&host, guest).await?;
        let path = PathAndQuery::from_static("/pillion.test.Echo/Stream");
        let answer = client.server_streaming(ping("again", 1_000).into_request(), path, Codec::default()).await?;
        let mut answers = answer.into_inner();
        let mut many = 0;
        while let Some(message) = answers.message().await? {
            assert_eq!(message.text, "again", "{guest}");
            many += 1;
        }
        assert_eq!(many, 1_000, "{guest}");
        let trailers = answers.trailers().await?.context("there are no trailers")?;
        // tonic has read and taken the status: that there was one is why the stream ended well.
        assert!(trailers.get("grpc-message").is_none_or(|message| message.is_empty()), "{guest}: {trailers:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_stream_both_ways_answers_each_message_before_the_next() -> Result<()> {
    let host = Host::of_faults(|component| component).await?;
    for guest in FAULTS {
        let mut client = client(&host, guest).await?;
        let (questions, receiver) = tokio::sync::mpsc::channel(1);
        let requests = stream::unfold(receiver, async |mut receiver: tokio::sync::mpsc::Receiver<Ping>| {
            Some((receiver.recv().await?, receiver))
        });
        questions.send(ping("0", 1)).await?;
        let path = PathAndQuery::from_static("/pillion.test.Echo/Stream");
        let answer = client.streaming(Box::pin(requests).into_streaming_request(), path, Codec::default()).await?;
        let mut answers = answer.into_inner();
        for number in 1..=20 {
            let message = tokio::time::timeout(Duration::from_secs(5), answers.message()).await??;
            assert_eq!(message.map(|message| message.text), Some((number - 1).to_string()), "{guest}");
            questions.send(ping(number.to_string(), 1)).await?;
        }
        drop(questions);
        let rest: Vec<_> = answers.collect().await;
        assert!(matches!(&rest[..], [Ok(last)] if last.text == "20"), "{guest}: {rest:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_client_streams_its_messages() -> Result<()> {
    let host = Host::of_faults(|component| component).await?;
    for guest in FAULTS {
        let mut client = client(&host, guest).await?;
        let requests = stream::iter((0..500).map(|number| ping(number.to_string(), 2)));
        let path = PathAndQuery::from_static("/pillion.test.Echo/Stream");
        let answer = client.streaming(requests.into_streaming_request(), path, Codec::default()).await?;
        let answers: Vec<_> = answer.into_inner().collect().await;
        assert_eq!(answers.len(), 1_000, "{guest}");
        for (number, answer) in answers.into_iter().enumerate() {
            assert_eq!(answer?.text, (number / 2).to_string(), "{guest}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_failure_has_its_status_and_its_message() -> Result<()> {
    let host = Host::of_faults(|component| component).await?;
    for guest in FAULTS {
        let mut client = client(&host, guest).await?;
        let status = unary(&mut client, "/pillion.test.Echo/Fail", ping("x", 1)).await.unwrap_err();
        assert_eq!((status.code(), status.message()), (Code::Internal, "broken"), "{guest}");
        // The channel is none the worse for it.
        assert_eq!(unary(&mut client, "/pillion.test.Echo/Unary", ping("x", 1)).await?.text, "x", "{guest}");
    }
    Ok(())
}

#[tokio::test]
async fn a_guest_that_fails_is_an_error_and_never_an_empty_answer() -> Result<()> {
    let host = Host::of_faults(|component| component).await?;
    for guest in FAULTS {
        let mut client = client(&host, guest).await?;
        let status = unary(&mut client, "/trap", ping("x", 1)).await.unwrap_err();
        let reason = status.metadata().get("pillion-error").and_then(|reason| reason.to_str().ok());
        assert_eq!((status.code() == Code::Ok, reason), (false, Some("trap")), "{guest}: before the head: {status:?}");
        let status = unary(&mut client, "/body-trap", ping("x", 1)).await.unwrap_err();
        assert_ne!(status.code(), Code::Ok, "{guest}: a body that is cut");
    }
    Ok(())
}
