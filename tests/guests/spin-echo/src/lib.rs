//! A component of a Spin application: it answers what its host tells it, as JSON.

use std::{collections::BTreeMap, env};

use serde_json::{Value, json};
use spin_sdk::{
    http::{self, IntoResponse, Request, Response, body::IncomingBodyExt},
    http_service, variables,
};

#[http_service]
async fn echo(request: Request) -> impl IntoResponse {
    let headers: BTreeMap<&str, String> = request
        .headers()
        .iter()
        .filter(|(name, _)| name.as_str().starts_with("spin-"))
        .map(|(name, value)| (name.as_str(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
        .collect();
    let mut answer = json!({
        "method": request.method().as_str(),
        "path": request.uri().path(),
        "headers": headers,
        "env": env::vars().collect::<BTreeMap<_, _>>(),
    });
    for pair in request.uri().query().unwrap_or_default().split('&') {
        match pair.split_once('=') {
            Some(("variable", name)) => answer["variable"] = variable(name).await,
            Some(("get", url)) => answer["get"] = get(&decoded(url)).await,
            _ => {}
        }
    }
    let body = answer.to_string();
    Response::builder().header("content-type", "application/json").header("content-length", body.len()).body(body)
}

async fn variable(name: &str) -> Value {
    match variables::get(name).await {
        Ok(value) => json!({"value": value}),
        Err(error) => json!({"error": error.to_string()}),
    }
}

async fn get(url: &str) -> Value {
    match http::get(url).await {
        Ok(response) => {
            let status = response.status().as_u16();
            match response.into_body().bytes().await {
                Ok(body) => json!({"status": status, "body": String::from_utf8_lossy(&body)}),
                Err(error) => json!({"status": status, "error": format!("{error:?}")}),
            }
        }
        Err(error) => json!({"error": format!("{error:?}")}),
    }
}

/// A value of a query, without its percent encoding.
fn decoded(text: &str) -> String {
    let mut bytes = text.bytes();
    let mut plain = Vec::with_capacity(text.len());
    let digit = |byte: Option<u8>| byte.and_then(|byte| char::from(byte).to_digit(16)).unwrap_or_default() as u8;
    while let Some(byte) = bytes.next() {
        plain.push(if byte == b'%' { digit(bytes.next()) << 4 | digit(bytes.next()) } else { byte });
    }
    String::from_utf8_lossy(&plain).into_owned()
}
