//! Which route a request takes.
//!
//! As in Spin (`crates/routes/src/lib.rs` and the crate routefinder 0.5): the first pattern that matches, from the most to the
//! least specific. Of two patterns of one text the last counts, in the first one's place; of two that differ in their text
//! only, such as `/:a` and `/:b`, the first.

use super::{
    locked::Route,
    pattern::{Captures, Path, Pattern},
};

/// The routes of an application that are not private, in the order in which they are tried.
#[derive(Clone, Debug)]
pub struct Router {
    routes: Vec<(Pattern, usize)>,
}

/// The route that a path takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found<'router> {
    /// Its index among the routes that the router was made from.
    pub route: usize,
    /// Its pattern.
    pub pattern: &'router Pattern,
    /// The parts of the path that have a name, not decoded.
    pub captures: Vec<(String, String)>,
    /// What of the path trails the pattern's `/...`, with the slash before it; empty without `/...`.
    pub path_info: String,
}

impl Router {
    /// A router for `routes`.
    pub fn new(routes: &[Route]) -> Self {
        let mut sorted: Vec<(Pattern, usize)> = Vec::new();
        for (index, route) in routes.iter().enumerate() {
            let Some(pattern) = &route.pattern else { continue };
            match sorted.iter_mut().find(|(other, _)| other == pattern) {
                Some((_, replaced)) => *replaced = index,
                None => sorted.push((pattern.clone(), index)),
            }
        }
        sorted.sort_by_cached_key(|(pattern, _)| pattern.order());
        Self { routes: sorted }
    }

    /// The route for a request's `path`, without its query and not decoded.
    pub fn find(&self, path: &str) -> Option<Found<'_>> {
        let parts = Path::new(path);
        self.routes.iter().find_map(|(pattern, route)| {
            let Captures { named, wildcard } = pattern.captures(&parts)?;
            let captures = named.into_iter().map(|(name, value)| (name, value.to_owned())).collect();
            let path_info = wildcard.map(|rest| trailing(rest, path)).unwrap_or_default();
            Some(Found { route: *route, pattern, captures, path_info })
        })
    }
}

/// What a wildcard took, with the path's slash at the end that matching leaves out.
fn trailing(rest: &str, path: &str) -> String {
    let slash = if path.ends_with('/') { "/" } else { "" };
    if rest.is_empty() { slash.to_owned() } else { format!("/{rest}{slash}") }
}

#[cfg(test)]
mod tests {
    use super::{super::locked::Handler, *};

    /// Routes to components that are named as their patterns; `-` is private.
    fn router(patterns: &[&str]) -> Router {
        let pattern = |text: &&str| (*text != "-").then(|| text.to_string().try_into().unwrap());
        let handler = |text: &&str| Handler::Component(text.to_string());
        let routes: Vec<_> =
            patterns.iter().map(|text| Route { pattern: pattern(text), handler: handler(text) }).collect();
        Router::new(&routes)
    }

    #[test]
    fn the_most_specific_route_wins_in_any_order() {
        let table: [(&[&str], &str, Option<&str>); 17] = [
            (&["/...", "/exact"], "/exact", Some("/exact")),
            (&["/...", "/"], "/", Some("/")),
            (&["/...", "/:name", "/exact"], "/exact", Some("/exact")),
            (&["/...", "/:name", "/exact"], "/other", Some("/:name")),
            (&["/...", "/:name", "/exact"], "/other/more", Some("/...")),
            (&["/a/...", "/a/b/...", "/a/b/c/..."], "/a/b/c/d", Some("/a/b/c/...")),
            (&["/a/...", "/a/b/...", "/a/b/c/..."], "/a/b/d", Some("/a/b/...")),
            (&["/a/...", "/a/b/...", "/a/b/c/..."], "/a", Some("/a/...")),
            (&["/a/...", "/a"], "/a/", Some("/a")),
            (&["/:x/b/c", "/a/..."], "/a/b/c", Some("/a/...")),
            (&["/:x", "/:x/..."], "/a", Some("/:x")),
            (&["/:x", "/:x/..."], "/a/b", Some("/:x/...")),
            (&["/:x.json", "/:x"], "/a.json", Some("/:x.json")),
            (&["/:x.json", "/:x"], "/a.txt", Some("/:x")),
            (&["/a.b/...", "/a.:x/c"], "/a.b/c", Some("/a.b/...")),
            (&["/a", "/b"], "/c", None),
            (&["-"], "/", None),
        ];
        for (patterns, path, expected) in table {
            let mut patterns = patterns.to_vec();
            for _ in 0..2 {
                let router = router(&patterns);
                let found = router.find(path);
                assert_eq!(found.as_ref().map(|found| found.pattern.as_str()), expected, "{patterns:?} {path}");
                assert!(found.is_none_or(|found| patterns[found.route] == found.pattern.as_str()));
                patterns.reverse();
            }
        }
    }

    #[test]
    fn of_one_text_the_last_counts_and_of_one_meaning_the_first() {
        let table: [(&[&str], usize); 4] =
            [(&["/a", "/...", "/a"], 2), (&["/:a", "/:b"], 0), (&["/a", "/a/"], 0), (&["/:a", "/:b", "/:a"], 2)];
        for (patterns, expected) in table {
            assert_eq!(router(patterns).find("/a").unwrap().route, expected, "{patterns:?}");
        }
    }

    #[test]
    fn private_routes_do_not_shift_the_others() {
        assert_eq!(router(&["-", "/a"]).find("/a").unwrap().route, 1);
    }

    #[test]
    fn what_trails_keeps_its_slashes() {
        let table = [
            ("/test/...", "/test", ""),
            ("/test/...", "/test/", "/"),
            ("/test/...", "/test/a/b", "/a/b"),
            ("/test/...", "/test/a/b/", "/a/b/"),
            ("/test/...", "/test/a%20b", "/a%20b"),
            ("/...", "/a", "/a"),
            ("/...", "/", "/"),
            ("/test", "/test/", ""),
        ];
        for (pattern, path, expected) in table {
            assert_eq!(router(&[pattern]).find(path).unwrap().path_info, expected, "{pattern} {path}");
        }
    }

    #[test]
    fn a_pattern_is_bounded_in_what_a_request_is_compared_with() {
        for (text, expected) in
            [("/:a.:b".repeat(9), "more than 16 parameters"), ("/a".repeat(65), "more than 64 parts")]
        {
            let refused = Pattern::try_from(text).unwrap_err().to_string();
            assert!(refused.contains(expected), "{refused}");
        }
        let texts: Vec<_> = (0..1_000).map(|n| format!("/{}{n}", ":a.:b/".repeat(n % 8))).collect();
        let router = router(&texts.iter().map(String::as_str).collect::<Vec<_>>());
        assert!(router.find(&"/a.".repeat(10_000)).is_none());
    }
}
