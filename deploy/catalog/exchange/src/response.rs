//! What is answered.

use serde_json::Value;

/// A whole response, held in memory: the catalog's answers are small.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// Names and values. `content-length` is added on the wire.
    pub headers: Vec<(String, String)>,
    /// The body; may be empty.
    pub body: String,
}

impl Response {
    /// An answer without a body.
    pub fn empty(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: String::new() }
    }

    /// Plain text. A browser is told to take it as nothing else, since much of it may come from the caller.
    pub fn text(status: u16, body: impl Into<String>) -> Self {
        Self { body: body.into(), ..Self::empty(status) }
            .with("content-type", "text/plain; charset=utf-8")
            .with("x-content-type-options", "nosniff")
    }

    /// JSON on one line.
    pub fn json(status: u16, body: &Value) -> Self {
        Self { body: format!("{body}\n"), ..Self::empty(status) }.with("content-type", "application/json")
    }

    /// The same with one header more.
    #[must_use]
    pub fn with(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// The first header `name`, which is given in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str())
    }
}
