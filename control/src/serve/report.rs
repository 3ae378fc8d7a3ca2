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
    leads(&control)?;
    let token = identity::hash(identity::token(&headers)?);
    let node = control.sessions.node_of(&token).ok_or(Refused::NoSession)?;
    let report: Report = read(body).await?;
    control.report(&node, report);
    Ok(StatusCode::NO_CONTENT)
}
