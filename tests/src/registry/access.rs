//! What was asked of the registry, from its access log.

use std::collections::BTreeMap;

/// A line of the access log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Served {
    /// The method.
    pub method: String,
    /// The path, without a query: `/v2/NAME/manifests/REFERENCE`, `/v2/NAME/blobs/DIGEST`.
    pub path: String,
    /// The status.
    pub status: u16,
    /// Bytes of the answer's body that were written.
    pub bytes: u64,
}

/// What was asked of a registry, in the order in which it was answered.
#[derive(Clone, Debug, Default)]
pub struct Requests {
    /// Every request, also those of fixtures: one to `/v2/` at each start, and pushes, which are `POST` and `PUT`.
    pub all: Vec<Served>,
}

impl Requests {
    /// Reads lines in Apache's combined format; other lines are left out.
    pub(super) fn read(log: &str) -> Self {
        Self { all: log.lines().filter_map(served).collect() }
    }

    /// How many GETs of blobs were answered with content, by path.
    pub fn blobs(&self) -> BTreeMap<String, usize> {
        self.count("GET", "/blobs/")
    }

    /// How many GETs of manifests were answered with content, by path.
    pub fn manifests(&self) -> BTreeMap<String, usize> {
        self.count("GET", "/manifests/")
    }

    /// How many HEADs of manifests were answered with success, by path.
    pub fn manifest_heads(&self) -> BTreeMap<String, usize> {
        self.count("HEAD", "/manifests/")
    }

    /// How many answers had this status.
    pub fn with_status(&self, status: u16) -> usize {
        self.all.iter().filter(|served| served.status == status).count()
    }

    fn count(&self, method: &str, kind: &str) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        let is = |served: &&Served| {
            served.method == method && served.path.contains(kind) && (200..300).contains(&served.status)
        };
        for served in self.all.iter().filter(is) {
            *counts.entry(served.path.clone()).or_default() += 1;
        }
        counts
    }
}

/// `ADDRESS - USER [TIME] "METHOD URI HTTP/1.1" STATUS BYTES "REFERRER" "AGENT"`
fn served(line: &str) -> Option<Served> {
    let mut parts = line.split('"');
    let mut request = parts.nth(1)?.split(' ');
    let mut answer = parts.next()?.split_whitespace();
    let (method, uri) = (request.next()?.to_owned(), request.next()?);
    let path = uri.split_once('?').map_or(uri, |(path, _)| path).to_owned();
    Some(Served { method, path, status: answer.next()?.parse().ok()?, bytes: answer.next()?.parse().ok()? })
}
