//! A request without its body.

/// A request's method, target and headers, as the host handed them over.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// `GET`, `POST`, …
    pub method: String,
    /// `http` or `https`; empty if the host does not say.
    pub scheme: String,
    /// What the caller took us for: `localhost:8081`; empty if the host does not say.
    pub authority: String,
    /// `/path?query`, as sent.
    pub target: String,
    /// Names and values in the order they came; a name may come twice.
    pub headers: Vec<(String, Vec<u8>)>,
}

impl Head {
    /// The target without its query.
    pub fn path(&self) -> &str {
        self.target.split_once('?').map_or(self.target.as_str(), |(path, _)| path)
    }

    /// Every value of the header `name`, whose case does not matter.
    pub fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        self.headers
            .iter()
            .filter(move |(other, _)| other.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_slice())
    }

    /// The comma separated elements of every header `name`, trimmed. Values that are no UTF-8 are left out.
    pub fn elements<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.values(name)
            .filter_map(|value| str::from_utf8(value).ok())
            .flat_map(|value| value.split(','))
            .map(str::trim)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_ends_where_the_query_begins() {
        let of = |target: &str| Head { target: target.into(), ..Head::default() }.path().to_owned();
        assert_eq!(of("/a/b?c=/d?e"), "/a/b");
        assert_eq!(of("/a/b"), "/a/b");
    }

    #[test]
    fn elements_of_repeated_headers_are_one_list() {
        let headers = vec![
            ("Accept".into(), b"text/html, a/b;q=0.1".to_vec()),
            ("x".into(), vec![]),
            ("accept".into(), b"c/d".to_vec()),
        ];
        let head = Head { headers, ..Head::default() };
        assert_eq!(head.elements("ACCEPT").collect::<Vec<_>>(), ["text/html", "a/b;q=0.1", "c/d"]);
    }
}
