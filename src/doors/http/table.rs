//! Which route a request takes: by host first, then by path. Pure.
//!
//! A host's own routes come before those of `*.its-parent` (the longest first), those before the ones for any host; among
//! one host's routes the longest path wins. The first host pattern with a path that fits decides.

use crate::config::http::HostPattern;
use std::borrow::Cow;
use std::collections::HashMap;

/// What is sought by host and path.
#[derive(Debug)]
pub(super) struct Table<T> {
    exact: HashMap<String, Paths<T>>,
    /// The longest suffix first.
    below: Vec<(String, Paths<T>)>,
    any: Paths<T>,
}

/// The longest path first.
type Paths<T> = Vec<(String, T)>;

impl<T> Table<T> {
    /// Of two with the same host and path the first one is found.
    pub(super) fn new(routes: impl IntoIterator<Item = (HostPattern, String, T)>) -> Table<T> {
        let mut table = Table { exact: HashMap::new(), below: Vec::new(), any: Vec::new() };
        for (host, path, route) in routes {
            let paths = match host {
                HostPattern::Exact(name) => table.exact.entry(name).or_default(),
                HostPattern::Any => &mut table.any,
                HostPattern::Below(suffix) => {
                    let at = table.below.iter().position(|(s, _)| *s == suffix).unwrap_or_else(|| {
                        table.below.push((suffix, Vec::new()));
                        table.below.len() - 1
                    });
                    &mut table.below[at].1
                }
            };
            paths.push((path, route));
        }
        table.below.sort_by_key(|(suffix, _)| std::cmp::Reverse(suffix.len()));
        let all = table.exact.values_mut().chain(table.below.iter_mut().map(|(_, paths)| paths));
        for paths in all.chain([&mut table.any]) {
            paths.sort_by_key(|(path, _)| std::cmp::Reverse(path.len()));
        }
        table
    }

    /// By a host as [`host_name`] gives it, and a path as [`plain_path`] does.
    pub(super) fn find(&self, host: &str, path: &str) -> Option<&T> {
        let exact = self.exact.get(host).into_iter();
        let below = self.below.iter().filter(|(suffix, _)| is_below(host, suffix)).map(|(_, paths)| paths);
        exact.chain(below).chain([&self.any]).find_map(|paths| {
            let fits = |(prefix, _): &&(String, T)| is_under(path, prefix);
            paths.iter().find(fits).map(|(_, route)| route)
        })
    }
}

fn is_below(host: &str, suffix: &str) -> bool {
    host.len() > suffix.len() && host.ends_with(suffix)
}

/// Whether `path` is `prefix` or below it: `/api` has `/api` and `/api/x`, not `/apix`.
pub(super) fn is_under(path: &str, prefix: &str) -> bool {
    prefix == "/" || path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// `path` without `prefix`: what a backend sees that is not told where it hangs. `None`: it is not written with this
/// prefix (it may still lead there: `/x/../api`).
pub(super) fn without_prefix<'a>(path: &'a str, prefix: &str) -> Option<Cow<'a, str>> {
    if prefix == "/" {
        return Some(path.into());
    }
    let rest = path.strip_prefix(prefix)?;
    match rest.as_bytes().first() {
        None => Some("/".into()),
        // Two slashes would be the beginning of another host's name to a client that is redirected there.
        Some(b'/') if !rest.starts_with("//") => Some(rest.into()),
        _ => None,
    }
}

/// Lower case, without port and final dot.
pub(super) fn host_name(authority: &str) -> String {
    let host = match authority.rfind(']') {
        Some(end) => &authority[..=end],
        None => authority.split(':').next().unwrap_or_default(),
    };
    host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase()
}

/// A path as backends understand it: percent signs taken away, `.`, `..` and empty segments carried out. Routes go by
/// it, so that `/x/../admin` and `/%61dmin` meet the rules of `/admin`. `None`: it leads nowhere (`%zz`, a NUL, above
/// the root).
pub(super) fn plain_path(path: &str) -> Option<Cow<'_, str>> {
    if !path.contains(['%', '\\', '\0']) && !path.contains("//") && !path.contains("/.") {
        return Some(path.into());
    }
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let (byte, tail) = match (first, tail) {
            (b'%', [high, low, tail @ ..]) => (hex(*high)? << 4 | hex(*low)?, tail),
            (b'%', _) => return None,
            (byte, tail) => (byte, tail),
        };
        if byte == 0 {
            return None;
        }
        bytes.push(byte);
        rest = tail;
    }
    let text = String::from_utf8_lossy(&bytes);
    let mut segments: Vec<&str> = Vec::new();
    for segment in text.split('/') {
        match segment {
            "" | "." => {}
            ".." => drop(segments.pop()?),
            segment => segments.push(segment),
        }
    }
    let is_folder = ["/", "/.", "/.."].iter().any(|end| text.ends_with(end));
    let end = if is_folder && !segments.is_empty() { "/" } else { "" };
    Some(format!("/{}{end}", segments.join("/")).into())
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).map(|n| n as u8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pattern(text: &str) -> HostPattern {
        match text.strip_prefix('*') {
            Some("") => HostPattern::Any,
            Some(suffix) => HostPattern::Below(suffix.into()),
            None => HostPattern::Exact(text.into()),
        }
    }

    fn table(routes: &[(&str, &str)]) -> Table<String> {
        Table::new(routes.iter().map(|(h, p)| (pattern(h), (*p).to_owned(), format!("{h}{p}"))))
    }

    /// The most exact host that has a fitting path, then the longest path.
    #[test]
    fn the_nearest_route_wins() {
        let table = table(&[
            ("*", "/"),
            ("*", "/any"),
            ("*.example.com", "/"),
            ("*.a.example.com", "/"),
            ("www.example.com", "/api"),
            ("www.example.com", "/api/v2"),
        ]);
        for (host, path, found) in [
            ("other", "/", "*/"),
            ("other", "/any/x", "*/any"),
            ("other", "/anything", "*/"),
            ("b.example.com", "/any", "*.example.com/"),
            ("b.a.example.com", "/", "*.a.example.com/"),
            ("c.b.a.example.com", "/", "*.a.example.com/"),
            ("example.com", "/", "*/"),
            ("www.example.com", "/api", "www.example.com/api"),
            ("www.example.com", "/api/v2/x", "www.example.com/api/v2"),
            ("www.example.com", "/api/v20", "www.example.com/api"),
            ("www.example.com", "/", "*.example.com/"),
            ("", "/", "*/"),
        ] {
            assert_eq!(table.find(host, path).map(String::as_str), Some(found), "{host} {path}");
        }
        let none = super::tests::table(&[("a", "/b")]);
        assert_eq!(none.find("a", "/"), None);
        assert_eq!(none.find("b", "/b"), None);
    }

    /// Every way to write a path leads to the same one.
    #[test]
    fn paths_are_plain() {
        for (path, plain) in [
            ("/", Some("/")),
            ("/a/b", Some("/a/b")),
            ("/a/", Some("/a/")),
            ("//a", Some("/a")),
            ("/a//b", Some("/a/b")),
            ("/a/./b", Some("/a/b")),
            ("/x/../admin", Some("/admin")),
            ("/x/%2e%2E/admin", Some("/admin")),
            ("/%61dmin", Some("/admin")),
            ("/x%2f..%2fadmin", Some("/admin")),
            ("/a/..", Some("/")),
            ("/a/b/..", Some("/a/")),
            ("/..", None),
            ("/a/../../b", None),
            ("/%", None),
            ("/%zz", None),
            ("/%00", None),
            ("/.hidden", Some("/.hidden")),
            ("/a%20b", Some("/a b")),
        ] {
            assert_eq!(plain_path(path).as_deref(), plain, "{path}");
        }
    }

    /// A prefix is taken away where it is written, and what is left is a path.
    #[test]
    fn prefixes_are_taken_away() {
        for (path, prefix, left) in [
            ("/api/x", "/api", Some("/x")),
            ("/api", "/api", Some("/")),
            ("/api/", "/api", Some("/")),
            ("/apix", "/api", None),
            ("/x/../api", "/api", None),
            ("/api//evil", "/api", None),
            ("/x", "/", Some("/x")),
        ] {
            assert_eq!(without_prefix(path, prefix).as_deref(), left, "{path} {prefix}");
        }
    }

    /// Hosts are compared as names are.
    #[test]
    fn hosts_are_names() {
        for (authority, name) in [
            ("Example.COM", "example.com"),
            ("a:80", "a"),
            ("a.", "a"),
            ("a.:80", "a"),
            ("[::1]:80", "[::1]"),
            ("[::1]", "[::1]"),
            ("", ""),
        ] {
            assert_eq!(host_name(authority), name, "{authority}");
        }
    }

    /// The same by looking at every route and keeping the best.
    fn oracle(routes: &[(&str, &str)], host: &str, path: &str) -> Option<String> {
        let rank = |pattern: &str| match pattern.strip_prefix('*') {
            None => (host == pattern).then_some(1000),
            Some("") => Some(0),
            Some(suffix) => (host.ends_with(suffix) && host.len() > suffix.len()).then_some(suffix.len()),
        };
        let fits = |prefix: &str| prefix == "/" || path == prefix || path.starts_with(&format!("{prefix}/"));
        let all = routes.iter().filter(|(_, p)| fits(p));
        all.filter_map(|(h, p)| Some((rank(h)?, p.len(), format!("{h}{p}")))).max().map(|(_, _, name)| name)
    }

    proptest! {
        /// The table finds what a look at every route finds.
        #[test]
        fn as_the_oracle(
            mut routes in prop::collection::vec((0usize..7, 0usize..6), 0..12),
            host in 0usize..6,
            path in 0usize..8,
        ) {
            const HOSTS: [&str; 7] = ["*", "*.b", "*.c.b", "a.b", "a.c.b", "b", "a"];
            const PATHS: [&str; 6] = ["/", "/x", "/x/y", "/xy", "/x/y/z", "/y"];
            const ASKED: [&str; 6] = ["a.b", "a.c.b", "b", "z.c.b", "z", ""];
            const WANTED: [&str; 8] = ["/", "/x", "/x/", "/x/y", "/x/yz", "/xy", "/x/y/z/q", "/q"];
            routes.sort_unstable();
            routes.dedup();
            let routes: Vec<_> = routes.into_iter().map(|(h, p)| (HOSTS[h], PATHS[p])).collect();
            let (host, path) = (ASKED[host], WANTED[path]);
            prop_assert_eq!(table(&routes).find(host, path).cloned(), oracle(&routes, host, path));
        }

        /// A plain path is its own plain path, has no way up, and nothing here panics.
        #[test]
        fn plain_is_plain(path in "/[a/.%2eEfF\\\\\u{e9}]{0,24}") {
            if let Some(plain) = plain_path(&path) {
                prop_assert!(plain.starts_with('/') && !plain.contains("//"));
                prop_assert!(!plain.split('/').any(|s| s == "." || s == ".."), "{}", plain);
            }
        }
    }
}
