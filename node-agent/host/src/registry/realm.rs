//! Whether a token server that a registry names may be asked, and told a login. Decides, and does no IO: a registry is a stranger, and so
//! is whoever it says gives its tokens.

use pillion_protocol::login::Login;
use reqwest::Url;

use super::{
    manifest::shown,
    message::Source,
    reach::{Reach, authority},
};

impl Source {
    /// The address of the token server that the registry names, if it may be asked with the login there is.
    ///
    /// # Errors
    ///
    /// Why it may not, for people, with what to do.
    pub(super) fn judge_realm(&self, realm: &str, reach: &Reach) -> Result<Url, String> {
        let wrong = |why: &str| format!("the token server {:?} that it names {why}", shown(realm));
        let url = Url::parse(realm).map_err(|_| wrong("is not a valid address"))?;
        let server = authority(&url).ok_or_else(|| wrong("is not a valid address"))?;
        match url.scheme() {
            "https" => {}
            "http" if self.plain_http => {}
            "http" => return Err(wrong("is one without TLS, where the registry has TLS: it is not asked")),
            _ => return Err(wrong("is not a valid address: expected https")),
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(wrong("has a user in its address"));
        }
        if self.token_servers.contains(&server) {
            return Ok(url);
        }
        let advice =
            format!("if it is meant: registries.{:?}.tokenServers: [{server:?}] in the registries file", self.registry);
        reach.judge(&url).map_err(|why| format!("{why}; {advice}"))?;
        let host = url.host_str().unwrap_or_default();
        if self.login != Login::Anonymous && !are_related(name(self.api_host()), host) {
            return Err(format!("{}; {advice}", wrong("is of another domain, and is told no login")));
        }
        Ok(url)
    }

    /// The host that is asked, with its port if it has one of its own.
    pub(super) fn api_host(&self) -> &str {
        match self.registry.as_str() {
            "docker.io" => "registry-1.docker.io",
            other => other,
        }
    }
}

/// A host without its port.
fn name(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, _)) if !host.ends_with(']') => name,
        _ => host,
    }
}

/// Whether two hosts are one, or of one owner by the Public Suffix List.
fn are_related(one: &str, other: &str) -> bool {
    let plain = |host: &str| host.trim_end_matches('.').to_ascii_lowercase();
    let (one, other) = (plain(one), plain(other));
    let is_address = |host: &str| host.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok();
    // The Services of a cluster have one suffix, and as many owners as namespaces.
    let is_shared = |host: &str| host.ends_with(".cluster.local");
    if one == other {
        return true;
    }
    if is_address(&one) || is_address(&other) || is_shared(&one) {
        return false;
    }
    let owner = psl::domain_str(&one);
    owner.is_some() && owner == psl::domain_str(&other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_told_a_login_is_the_registry_or_of_its_owner() {
        let table = [
            ("registry-1.docker.io", "auth.docker.io", true),
            ("registry.gitlab.com", "gitlab.com", true),
            ("ghcr.io", "ghcr.io", true),
            ("GHCR.io", "ghcr.io.", true),
            ("acme.azurecr.io", "acme.azurecr.io", true),
            ("registry.acme.co.uk", "auth.acme.co.uk", true),
            ("registry.corp.internal", "gitlab.corp.internal", true),
            ("registry.acme.co.uk", "evil.co.uk", false),
            ("acme.github.io", "evil.github.io", false),
            ("registry.example.com", "example.com.evil.org", false),
            ("registry.example.com", "evilexample.com", false),
            ("registry.shop.svc.cluster.local", "auth.evil.svc.cluster.local", false),
            ("registry", "auth", false),
            ("10.0.0.7", "10.0.0.7", true),
            ("10.0.0.7", "11.0.0.7", false),
            ("com", "com.", true),
        ];
        for (registry, realm, expected) in table {
            assert_eq!(are_related(registry, realm), expected, "{registry} {realm}");
        }
    }

    #[test]
    fn a_realm_is_judged_before_anybody_is_told_anything() {
        let ann = || Login::Basic { username: "ann".into(), password: "hunter2".into() };
        let source = |registry: &str, plain_http: bool, login: Login| Source {
            registry: registry.into(),
            plain_http,
            ca: None,
            login,
            is_everybodys: true,
            token_servers: vec!["auth.other.org".into(), "127.0.0.1:9999".into()],
            named: vec!["named.example".into()],
        };
        let table = [
            ("docker.io", false, true, "https://auth.docker.io/token", ""),
            ("registry.gitlab.com", false, true, "https://gitlab.com/jwt/auth", ""),
            ("r.example.com", false, true, "https://auth.other.org/token", ""),
            ("r.example.com", false, true, "http://auth.example.com/token", "without TLS"),
            ("r.example.com", true, true, "http://auth.example.com/token", ""),
            ("r.example.com", false, true, "https://evil.org/token", "is of another domain, and is told no login"),
            ("r.example.com", false, true, "https://evil.org/token", "tokenServers: [\"evil.org\"]"),
            ("r.example.com", false, false, "https://evil.org/token", ""),
            ("r.example.com", false, false, "https://169.254.169.254/secret", "is next to this machine"),
            ("r.example.com", true, false, "http://localhost:9999/secret", "is next to this machine"),
            ("r.example.com", true, false, "http://[::1]:9999/secret", "is next to this machine"),
            ("r.example.com", true, false, "http://127.0.0.1:9998/secret", "is next to this machine"),
            ("r.example.com", true, true, "http://127.0.0.1:9999/token", ""),
            ("localhost:5000", true, true, "http://localhost:5000/token", ""),
            ("r.example.com", false, false, "ftp://r.example.com/", "expected https"),
            ("r.example.com", false, false, "https://ann:word@r.example.com/", "has a user"),
            ("r.example.com", false, false, "/token", "is not a valid address"),
        ];
        for (registry, plain_http, knows, realm, expected) in table {
            let source = source(registry, plain_http, if knows { ann() } else { Login::Anonymous });
            match (source.judge_realm(realm, &Reach::new(&source)), expected) {
                (Ok(_), "") => {}
                (Ok(url), _) => panic!("{url} is asked: expected {expected}"),
                (Err(why), expected) => assert!(!expected.is_empty() && why.contains(expected), "{realm}: {why}"),
            }
        }
    }
}
