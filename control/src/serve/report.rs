//! Reports: what became of what a node was told. They are taken from who has a stream, and are of the node that the stream is of.

use axum::{
    body::Body,
    extract::State,
    http::{HeaderMap, StatusCode},
};
use pillion_protocol::stream::Report;

use super::{Refused, Served, identity, leads, read};

pub(super) async fn take(
    State(Served { control, .. }): State<Served>,
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
    let report: Report = read(body).await?;
    control.report(&node, report);
    Ok(StatusCode::NO_CONTENT)
}
