//! Reports: what became of what a node was told. They are taken from who has a stream, and are of the node that the stream is of.

use std::{collections::BTreeMap, net::SocketAddr};

use axum::{
    body::Body,
    extract::{ConnectInfo, State},
    http::{HeaderMap, StatusCode},
};
use pillion_protocol::{
    id::ComponentId,
    pod::PodUid,
    stream::{ComponentReport, PodReport, Report},
    text,
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

use super::{Refused, Served, identity, leads, read};

/// The most places that a component's guests may call out to, and the most characters of one, that people are shown; nodes say fewer.
const OUTBOUND: usize = 64;
const PLACE: usize = 2_048;

pub(super) async fn take(
    State(Served { control, crowd, .. }): State<Served>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    headers: HeaderMap,
    body: Body,
) -> Result<StatusCode, Refused> {
    let who = || {
        leads(&control)?;
        let token = identity::hash(identity::token(&headers)?);
        control.sessions.node_of(&token).ok_or(Refused::NoSession)
    };
    let node = match who() {
        Ok(node) => node,
        Err(refused) => return Err(refused.after(body).await),
    };
    crowd.know(&peer);
    let (report, unread) = read::<Said>(body).await?.report();
    if unread > 0 {
        tracing::warn!(node = &*node, unread, "a report has entries that cannot be read; the others count");
    }
    control.report(&node, report);
    Ok(StatusCode::NO_CONTENT)
}

/// A report as it comes: an entry that is of no use must not keep the others from being heard.
#[derive(Deserialize)]
struct Said {
    #[serde(default)]
    components: BTreeMap<String, Value>,
    #[serde(default)]
    pods: BTreeMap<String, Value>,
    #[serde(default)]
    left_out: Option<String>,
}

impl Said {
    /// What can be read of it, each text as long as people are shown it; and how many entries cannot.
    fn report(self) -> (Report, usize) {
        let all = self.components.len().saturating_add(self.pods.len());
        let mut components: BTreeMap<ComponentId, ComponentReport> = readable(self.components);
        let mut pods: BTreeMap<PodUid, PodReport> = readable(self.pods);
        for said in components.values_mut() {
            said.failure = said.failure.as_deref().map(text::reason);
            said.outbound.truncate(OUTBOUND);
            said.outbound.iter_mut().for_each(|place| *place = text::shown(place, PLACE));
        }
        for said in pods.values_mut() {
            said.failure = said.failure.as_deref().map(text::reason);
        }
        let read = components.len().saturating_add(pods.len());
        (Report { components, pods, left_out: self.left_out.as_deref().map(text::reason) }, all.saturating_sub(read))
    }
}

fn readable<K: TryFrom<String> + Ord, V: DeserializeOwned>(said: BTreeMap<String, Value>) -> BTreeMap<K, V> {
    said.into_iter()
        .filter_map(|(key, said)| Some((key.try_into().ok()?, serde_json::from_value(said).ok()?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn one_bad_text_costs_itself_only() {
        let said = json!({
            "components": {
                "shop/clock": {"version": "v", "failure": "no\u{1b}image"},
                "shop/long": {"version": "v", "failure": "x".repeat(1_000_000), "outbound": ["y".repeat(1_000_000)]},
                "shop/../x": {"version": "v"},
                "shop/digest": {"version": "v", "digest": "none"},
                "shop/text": {"version": "v", "failure": 7},
            },
            "pods": {"u-1": {"bound": [8081]}, "u-2": {"bound": [80]}, "": {}, "u-3": {"failure": "z".repeat(1_000_000)}},
            "left_out": "failures",
            "newer": true,
        });
        let (report, unread) = serde_json::from_value::<Said>(said).unwrap().report();
        let ids: Vec<_> = report.components.keys().map(ToString::to_string).collect();
        let uids: Vec<_> = report.pods.keys().map(ToString::to_string).collect();
        assert_eq!(
            (ids, uids, unread),
            (vec!["shop/clock".into(), "shop/long".into()], vec!["u-1".into(), "u-3".into()], 5)
        );
        let clock = &report.components[&"shop/clock".parse().unwrap()];
        assert_eq!(clock.failure.as_deref(), Some("no\u{fffd}image"));
        let long = serde_json::to_string(&report).unwrap().len();
        assert!(long < 10_000, "{long}");
        assert_eq!(report.left_out.as_deref(), Some("failures"));
    }

    #[test]
    fn what_a_node_writes_is_read() {
        let report: Report = serde_json::from_value(json!({
            "components": {"shop/clock": {"version": "v", "outbound": ["https://a.example:443"]}},
            "pods": {"u-1": {"bound": [8081], "late": true}}, "left_out": "failures",
        }))
        .unwrap();
        let said: Said = serde_json::from_value(serde_json::to_value(&report).unwrap()).unwrap();
        assert_eq!(said.report(), (report, 0));
    }
}
