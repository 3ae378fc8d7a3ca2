//! What a caller gets when the guest gives no answer: SPECIFICATION.md §2.

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Response, StatusCode, header};
use http_body_util::Full;
use serde::Serialize;

use crate::scheduler::run::{End, Stop};

/// The header that names the reason.
pub const ERROR_HEADER: HeaderName = HeaderName::from_static("pillion-error");

/// The most bytes of a detail, which may hold a guest's own text.
const DETAIL: usize = 2_000;

/// Why the host answers in the guest's stead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// The guest trapped before its response's head.
    Trap(String),
    /// The guest returned without a response.
    NoResponse,
    /// The guest answered with a `wasi:http` error code.
    GuestError(String),
    /// The guest ended after a growth that its memory limit denied.
    MemoryLimit,
    /// The guest used its CPU time.
    CpuLimit,
    /// No response head in time.
    HeadTimeout,
    /// The whole request took too long.
    TotalTimeout,
    /// The request's body stood still.
    IdleTimeout,
    /// All places of the binding are taken and its queue is full.
    ConcurrencyLimit,
    /// The node's instances or memory are used up.
    NodeLimit,
    /// The component is still being compiled.
    NotReady,
    /// Control has not told of the pod.
    Untold,
    /// The component cannot be served.
    Unavailable(String),
    /// The pod may not have the component.
    NotAllowed(String),
    /// A request that no guest gets to see.
    BadRequest(&'static str),
    /// A fault of the host.
    Host(String),
}

#[derive(Serialize)]
struct Body<'a> {
    r#type: String,
    title: &'a str,
    status: u16,
    detail: &'a str,
    component: &'a str,
    binding: &'a str,
}

impl Problem {
    /// The name in the `pillion-error` header.
    pub fn reason(&self) -> &'static str {
        self.parts().1
    }

    /// Whether it is of the caller's making.
    pub(super) fn is_the_callers(&self) -> bool {
        self.parts().0.is_client_error()
    }

    fn parts(&self) -> (StatusCode, &'static str, &'static str) {
        match self {
            Self::Trap(_) => (StatusCode::BAD_GATEWAY, "trap", "The component trapped"),
            Self::NoResponse => (StatusCode::BAD_GATEWAY, "no-response", "The component returned without a response"),
            Self::GuestError(_) => {
                (StatusCode::BAD_GATEWAY, "guest-error", "The component answered with an error code")
            }
            Self::MemoryLimit => {
                (StatusCode::BAD_GATEWAY, "memory-limit", "The component needs more memory than its limit")
            }
            Self::CpuLimit => (StatusCode::GATEWAY_TIMEOUT, "cpu-limit", "The component used its CPU time"),
            Self::HeadTimeout => (StatusCode::GATEWAY_TIMEOUT, "head-timeout", "The component did not answer in time"),
            Self::TotalTimeout => (StatusCode::GATEWAY_TIMEOUT, "total-timeout", "The request took too long"),
            Self::IdleTimeout => (StatusCode::GATEWAY_TIMEOUT, "idle-timeout", "The request's body stood still"),
            Self::ConcurrencyLimit => {
                (StatusCode::SERVICE_UNAVAILABLE, "concurrency-limit", "Too many requests to this component at once")
            }
            Self::NodeLimit => (StatusCode::SERVICE_UNAVAILABLE, "node-limit", "The node has no room for this request"),
            Self::NotReady => (StatusCode::SERVICE_UNAVAILABLE, "not-ready", "The component is still being compiled"),
            Self::Untold => (StatusCode::SERVICE_UNAVAILABLE, "not-ready", "The node does not know this pod yet"),
            Self::Unavailable(_) => (StatusCode::SERVICE_UNAVAILABLE, "unavailable", "The component cannot be served"),
            Self::NotAllowed(_) => (StatusCode::FORBIDDEN, "not-allowed", "This pod may not have the component"),
            Self::BadRequest(_) => {
                (StatusCode::BAD_REQUEST, "bad-request", "The request is not one that can be served")
            }
            Self::Host(_) => (StatusCode::INTERNAL_SERVER_ERROR, "host-error", "The host failed"),
        }
    }

    /// What exactly, for the caller and for the log.
    pub(super) fn detail(&self) -> String {
        let text = match self {
            Self::Trap(text)
            | Self::GuestError(text)
            | Self::Unavailable(text)
            | Self::NotAllowed(text)
            | Self::Host(text) => text.as_str(),
            Self::NoResponse => "the guest ended and set no response",
            Self::MemoryLimit => "see spec.limits.memory of the component",
            Self::CpuLimit => "see spec.limits.cpuTime of the component",
            Self::HeadTimeout => "see spec.limits.headTimeout of the component",
            Self::TotalTimeout => "see spec.limits.totalTimeout of the component",
            Self::IdleTimeout => "see spec.limits.idleTimeout of the component",
            Self::ConcurrencyLimit => "see spec.limits.concurrency and spec.limits.queue of the component",
            Self::NodeLimit => "all instances or all memory for guests of this node are in use",
            Self::NotReady => "it was not ready within spec.limits.headTimeout",
            Self::Untold => "Pillion's control has not told the node of this pod: is control away?",
            Self::BadRequest(text) => text,
        };
        match text.char_indices().nth(DETAIL) {
            Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
            None => text.to_owned(),
        }
    }

    /// The response.
    pub fn response(&self, component: &str, binding: &str) -> Response<Full<Bytes>> {
        let (status, reason, title) = self.parts();
        let detail = self.detail();
        let kind = format!("https://pillion.dev/errors/{reason}");
        let body = Body { r#type: kind, title, status: status.as_u16(), detail: &detail, component, binding };
        let mut response = Response::new(Full::from(serde_json::to_vec(&body).unwrap_or_default()));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert(ERROR_HEADER, HeaderValue::from_static(reason));
        if matches!(self, Self::ConcurrencyLimit | Self::NodeLimit | Self::NotReady | Self::Untold) {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

impl From<&End> for Problem {
    /// What a guest that ended like this, before its response's head, means to its caller.
    fn from(end: &End) -> Self {
        match end {
            End::Returned => Self::NoResponse,
            End::Trapped(text) => Self::Trap(text.clone()),
            End::CpuLimit => Self::CpuLimit,
            End::MemoryLimit => Self::MemoryLimit,
            End::NodeLimit => Self::NodeLimit,
            End::Stopped(Stop::HeadTimeout) => Self::HeadTimeout,
            End::Stopped(Stop::TotalTimeout) => Self::TotalTimeout,
            End::Stopped(Stop::IdleTimeout) => Self::IdleTimeout,
            End::Stopped(Stop::BrokenBody) => Self::BadRequest("the request's body is malformed or broke off"),
            End::Stopped(Stop::CallerGone | Stop::Linger) => Self::Host("the request was stopped".into()),
            End::Host(text) => Self::Host((*text).into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    #[tokio::test]
    async fn a_problem_says_what_and_who() {
        let response = Problem::ConcurrencyLimit.response("clock", "clock");
        assert_eq!(response.status(), 503);
        assert_eq!(response.headers()[ERROR_HEADER], "concurrency-limit");
        assert_eq!(response.headers()[header::RETRY_AFTER], "1");
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(body["status"], 503);
        assert_eq!(body["component"], "clock");
        assert_eq!(body["type"], "https://pillion.dev/errors/concurrency-limit");
    }

    #[test]
    fn a_guests_text_is_bounded() {
        assert!(Problem::Trap("x".repeat(1_000_000)).detail().len() < 3_000);
    }
}
