//! What the host itself answers, before any route.
//!
//! Paths and answers: `crates/trigger-http/src/server.rs` and `crates/http/src/app_info.rs` of spinframework/spin. Its
//! `oci_image_digest`, which Spin leaves out where it does not know it, is always left out.

use serde::Serialize;

use super::locked::App;

/// The paths below it never reach an application.
const PREFIX: &str = "/.well-known/spin/";

/// An answer of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WellKnown {
    /// 200 or 404.
    pub status: u16,
    /// The content type, if there is one.
    pub content_type: Option<&'static str>,
    /// The body.
    pub body: String,
}

#[derive(Serialize)]
struct Info<'app> {
    name: &'app str,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<&'app str>,
}

/// The host's answer for `path`; `None` if the application answers.
pub fn well_known(path: &str, app: &App) -> Option<WellKnown> {
    Some(match path.strip_prefix(PREFIX)? {
        "health" => WellKnown { status: 200, content_type: None, body: "OK".to_owned() },
        "info" => {
            let info = Info { name: &app.name, version: app.version.as_deref() };
            // Two texts are always JSON.
            let body = serde_json::to_string_pretty(&info).unwrap_or_default();
            WellKnown { status: 200, content_type: Some("application/json"), body }
        }
        _ => WellKnown { status: 404, content_type: None, body: String::new() },
    })
}

#[cfg(test)]
mod tests {
    use super::{super::lock_file::tests::pushed, *};

    #[test]
    fn the_host_answers_below_its_prefix_only() {
        let mut app = App::read(pushed().to_string().as_bytes()).unwrap();
        app.version = None;
        let table = [
            ("/.well-known/spin/health", Some((200, "OK"))),
            ("/.well-known/spin/info", Some((200, "{\n  \"name\": \"toys\"\n}"))),
            ("/.well-known/spin/", Some((404, ""))),
            ("/.well-known/spin/health/", Some((404, ""))),
            ("/.well-known/spin", None),
            ("/.well-known/spindle/health", None),
            ("/health", None),
        ];
        for (path, expected) in table {
            let answer = well_known(path, &app);
            assert_eq!(answer.as_ref().map(|answer| (answer.status, answer.body.as_str())), expected, "{path}");
        }
    }

    #[test]
    fn the_info_has_spins_shape() {
        let app = App::read(pushed().to_string().as_bytes()).unwrap();
        let info = well_known("/.well-known/spin/info", &app).unwrap();
        assert_eq!(info.content_type, Some("application/json"));
        assert_eq!(info.body, "{\n  \"name\": \"toys\",\n  \"version\": \"1.2.0\"\n}");
    }
}
