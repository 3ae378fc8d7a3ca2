//! Whom a question to a registry may reach: what is next to this machine (loopback, link-local, clouds' metadata) is asked only where the
//! image's reference or the settings name that very host, never because a registry says so; and by which proxy.

use std::{collections::BTreeSet, env, net::SocketAddr, sync::Arc, time::Duration};

use reqwest::{
    NoProxy, Proxy, Url,
    dns::{Addrs, Name, Resolve, Resolving},
    redirect::Policy,
};

use super::message::Source;
use crate::outbound::is_next_to_us;

/// The most redirects of one question.
const REDIRECTS: usize = 10;

/// What no proxy is asked for.
const HERE: &str = "localhost,127.0.0.0/8,::1";

/// The hosts that are named, as `HOST` or `HOST:PORT`.
#[derive(Clone, Debug)]
pub(super) struct Reach(Arc<BTreeSet<String>>);

/// Why a host is not asked.
#[derive(Debug, thiserror::Error)]
#[error("{0} is next to this machine, and is not asked because a registry says so")]
struct NextToUs(String);

/// `HOST`, or `HOST:PORT` where the port is not the scheme's own.
pub(super) fn authority(url: &Url) -> Option<String> {
    let host = url.host_str()?;
    Some(url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}")))
}

impl Reach {
    pub(super) fn new(source: &Source) -> Self {
        let own = [source.registry.clone(), source.api_host().to_owned()];
        Self(Arc::new(own.into_iter().chain(source.token_servers.clone()).chain(source.named.clone()).collect()))
    }

    /// Whether this may be asked, as far as its address says it.
    pub(super) fn judge(&self, url: &Url) -> Result<(), String> {
        let host = authority(url).unwrap_or_default();
        let name = url.host_str().unwrap_or_default().trim_end_matches('.');
        let address = name.trim_matches(['[', ']']).parse();
        let is_here = name == "localhost" || name.ends_with(".localhost") || address.is_ok_and(is_next_to_us);
        if is_here && !self.0.contains(&host) { Err(NextToUs(host).to_string()) } else { Ok(()) }
    }

    /// Whether a name may lead anywhere.
    fn is_named(&self, name: &str) -> bool {
        self.0.iter().any(|host| host == name || host.strip_prefix(name).is_some_and(|port| port.starts_with(':')))
    }

    /// A client that goes no further. `follow`: redirects are followed.
    pub(super) fn client(&self, timeout: Duration, follow: bool) -> reqwest::ClientBuilder {
        let reach = self.clone();
        let follow = Policy::custom(move |attempt| match reach.judge(attempt.url()) {
            _ if !follow => attempt.stop(),
            _ if attempt.previous().len() > REDIRECTS => attempt.error("it redirects too often"),
            Err(why) => attempt.error(why),
            Ok(()) => attempt.follow(),
        });
        let (proxies, hosts) = proxies(|name| env::var(name).ok());
        let guard = Guard { reach: self.clone(), proxies: hosts };
        let client = reqwest::Client::builder().no_proxy().redirect(follow).dns_resolver(Arc::new(guard));
        let client = client.connect_timeout(timeout).read_timeout(timeout);
        proxies.into_iter().fold(client, reqwest::ClientBuilder::proxy)
    }
}

/// The proxies that the environment names, and their hosts. As curl has it: the name in lower case first, and `HTTP_PROXY` too.
fn proxies(variable: impl Fn(&str) -> Option<String>) -> (Vec<Proxy>, BTreeSet<String>) {
    let said = |name: &str| {
        let said = variable(&name.to_ascii_lowercase()).or_else(|| variable(name));
        said.filter(|value| !value.trim().is_empty())
    };
    let none = said("NO_PROXY").map_or_else(|| HERE.to_owned(), |hosts| format!("{hosts},{HERE}"));
    let (mut proxies, mut hosts) = (Vec::new(), BTreeSet::new());
    type Make = fn(String) -> reqwest::Result<Proxy>;
    let made: [(&str, Make); 2] = [("HTTPS_PROXY", Proxy::https), ("HTTP_PROXY", Proxy::http)];
    for (name, make) in made {
        let Some(proxy) = said(name) else { continue };
        let url = if proxy.contains("://") { proxy } else { format!("http://{proxy}") };
        hosts.extend(Url::parse(&url).ok().and_then(|url| url.host_str().map(str::to_owned)));
        match make(url) {
            Ok(proxy) => proxies.push(proxy.no_proxy(NoProxy::from_string(&none))),
            // Its address may have a password in it.
            Err(_) => tracing::warn!(variable = name, "it is not a valid address of a proxy, and is ignored"),
        }
    }
    (proxies, hosts)
}

/// Looks names up, and leaves out addresses that are not to be asked.
struct Guard {
    reach: Reach,
    /// Proxies may be next to us.
    proxies: BTreeSet<String>,
}

impl Resolve for Guard {
    fn resolve(&self, name: Name) -> Resolving {
        let name = name.as_str().to_owned();
        let anywhere = self.proxies.contains(&name) || self.reach.is_named(&name);
        Box::pin(async move {
            let found: Vec<SocketAddr> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            let (near, far): (Vec<_>, Vec<_>) =
                found.into_iter().partition(|found| !anywhere && is_next_to_us(found.ip()));
            match near.first() {
                Some(near) if far.is_empty() => Err(NextToUs(format!("{name} ({})", near.ip())).into()),
                _ => Ok(Box::new(far.into_iter()) as Addrs),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use pillion_protocol::login::Login;

    use super::*;

    #[test]
    fn what_is_next_to_us_has_to_be_named() {
        let source = Source {
            registry: "localhost:5000".into(),
            plain_http: true,
            ca: None,
            login: Login::Anonymous,
            is_everybodys: true,
            token_servers: Vec::new(),
            named: vec!["10.0.0.7:5000".into(), "127.0.0.1:5001".into()],
        };
        let reach = Reach::new(&source);
        let table = [
            ("http://localhost:5000/v2/", true),
            ("http://localhost:5001/v2/", false),
            ("http://127.0.0.1:5001/v2/", true),
            ("http://127.0.0.1:5000/v2/", false),
            ("http://a.localhost/", false),
            ("http://localhost./", false),
            ("http://169.254.169.254/latest/meta-data", false),
            ("http://[::ffff:169.254.169.254]/", false),
            ("http://[fe80::1]/", false),
            ("http://0.0.0.0/", false),
            ("http://0x7f.1/", false),
            ("https://cdn.example/blob", true),
            ("http://10.0.0.9/blob", true),
        ];
        for (url, expected) in table {
            assert_eq!(reach.judge(&url.parse().unwrap()).is_ok(), expected, "{url}");
        }
    }

    #[tokio::test]
    async fn a_name_that_leads_next_to_us_is_not_asked() {
        let source = |registry: &str| Source {
            registry: registry.into(),
            plain_http: true,
            ca: None,
            login: Login::Anonymous,
            is_everybodys: true,
            token_servers: Vec::new(),
            named: Vec::new(),
        };
        let resolve = async |registry: &str| {
            let guard = Guard { reach: Reach::new(&source(registry)), proxies: BTreeSet::new() };
            guard.resolve("localhost".parse().unwrap()).await.map(Iterator::count).map_err(|error| error.to_string())
        };
        assert!(resolve("localhost:5000").await.unwrap() > 0);
        assert!(resolve("r.example").await.unwrap_err().contains("is next to this machine"));
    }

    #[test]
    fn proxies_come_from_the_environment() {
        let hosts = |variables: &[(&str, &str)]| {
            let of = |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| value.to_string());
            proxies(of).1.into_iter().collect::<Vec<_>>()
        };
        assert_eq!(hosts(&[]), [""; 0]);
        assert_eq!(hosts(&[("HTTPS_PROXY", "http://proxy.example:3128")]), ["proxy.example"]);
        assert_eq!(hosts(&[("https_proxy", "a.example:1"), ("HTTPS_PROXY", "b.example:1")]), ["a.example"]);
        assert_eq!(hosts(&[("HTTP_PROXY", " "), ("HTTPS_PROXY", "")]), [""; 0]);
    }
}
