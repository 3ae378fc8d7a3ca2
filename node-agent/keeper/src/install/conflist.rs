//! What a folder of CNI configurations says, and what is to be changed in it. Text in, text out: no IO here.
//!
//! The rules are libcni's and those of its callers: of `*.conf`, `*.conflist` and `*.json` the first in the order of their names
//! is the network of every pod; containerd gives up at a file that it cannot read, CRI-O goes on to the next. Top-level keys that libcni
//! does not know are ignored. Our entry is spliced into the text: what others wrote stays as it is, byte for byte.

use std::{collections::BTreeMap, ops::Range};

use pillion_protocol::cni::VERSIONS;
use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, Value};

use super::multus;

/// Our plugin: its type in an entry, and the name of its binary.
pub const TYPE: &str = "pillion-cni";

/// How the names of our derived files end. With the stem of the source before it, such a name sorts right before the source (`0` is
/// less than `c` and `j`) and after whatever sorts before the source.
const DERIVED: &str = ".00-pillion.conflist";

/// The key that names the source of a derived file.
const FROM: &str = "pillion.dev/from";

/// Versions that a list of versions may name as well: no runtime chooses one of them if it can have a higher one.
const OLD: [&str; 3] = ["0.1.0", "0.2.0", ""];

/// A file of the folder, of those that a runtime reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its name.
    pub name: String,
    /// Whether it is a symbolic link. A runtime does not notice when a link's target changes: it is not edited, but derived from.
    pub linked: bool,
    /// What is in it.
    pub text: Result<String, Trouble>,
}

/// Why our entry cannot be put into a file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Trouble {
    /// No runtime can use it; it may be being written.
    #[error("{0}")]
    Broken(String),
    /// A runtime may well use it.
    #[error("{0}")]
    Refused(String),
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Files that no runtime can use and that sort before the one that counts, and why.
    pub broken: Vec<(String, String)>,
    /// Where our entry belongs.
    pub goal: Goal,
    /// A list that Multus makes the goal's file of: it gets the entry, too.
    pub source: Option<(String, Write)>,
    /// Derived files that have lost their reason, to be removed once the goal is reached.
    pub stale: Vec<String>,
}

/// Where our entry belongs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Goal {
    /// No file can be used.
    Nothing,
    /// The first file cannot have it.
    Refused {
        /// The file.
        file: String,
        /// Why not.
        why: String,
    },
    /// Into a file.
    Entry {
        /// The file.
        file: String,
        /// What to write; nothing if it is right already.
        write: Option<Write>,
        /// Whether the CNI is Cilium.
        cilium: bool,
    },
}

/// A file to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// What goes in.
    pub text: String,
    /// What is in it now: if it is something else by then, nothing may be written. Nothing if there is no such file.
    pub old: Option<String>,
    /// The file whose mode it gets.
    pub like: String,
}

/// Our entry in a list of plugins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry(String);

/// What matters in a file, single or list.
#[derive(Deserialize)]
struct Config<'a> {
    name: Option<String>,
    #[serde(rename = "cniVersion")]
    version: Option<String>,
    #[serde(rename = "cniVersions", default)]
    versions: Vec<String>,
    #[serde(rename = "type")]
    kind: Option<String>,
    #[serde(borrow)]
    plugins: Option<&'a RawValue>,
    #[serde(borrow)]
    delegates: Option<&'a RawValue>,
}

/// An element of `plugins` or `delegates`.
pub(super) struct Plugin<'a> {
    pub(super) text: &'a str,
    /// Where it is in the file.
    pub(super) at: Range<usize>,
    kind: Option<String>,
}

impl Entry {
    /// The entry that tells the plugin of the keeper's `socket`.
    #[must_use]
    pub fn new(socket: &str) -> Self {
        #[derive(Serialize)]
        struct Written<'a> {
            r#type: &'a str,
            capabilities: BTreeMap<&'a str, bool>,
            socket: &'a str,
        }
        let capabilities = BTreeMap::from([("io.kubernetes.cri.pod-annotations", true)]);
        Self(serde_json::to_string(&Written { r#type: TYPE, capabilities, socket }).unwrap_or_default())
    }
}

impl Plugin<'_> {
    fn is_ours(&self) -> bool {
        self.kind.as_deref() == Some(TYPE)
    }
}

/// Whether a runtime reads files of this name.
#[must_use]
pub fn is_read(name: &str) -> bool {
    [".conf", ".conflist", ".json"].iter().any(|suffix| name.ends_with(suffix))
}

/// Whether we made this file from another one.
#[must_use]
pub fn is_derived(name: &str) -> bool {
    name.ends_with(DERIVED)
}

/// What is to be done so that our entry is in what the runtime uses.
#[must_use]
pub fn plan(files: &[Found], entry: &Entry) -> Plan {
    let sorted: BTreeMap<&str, &Found> = files.iter().map(|found| (found.name.as_str(), found)).collect();
    let mut broken = Vec::new();
    let mut goal = Goal::Nothing;
    for found in sorted.values().filter(|found| !is_derived(&found.name)) {
        match aim(found, &sorted, entry) {
            Ok(found) => goal = found,
            Err(Trouble::Refused(why)) => goal = Goal::Refused { file: found.name.clone(), why },
            Err(Trouble::Broken(why)) => {
                broken.push((found.name.clone(), why));
                continue;
            }
        }
        break;
    }
    let first = files.iter().find(|found| matches!(&goal, Goal::Entry { file, .. } if *file == found.name));
    let source = first.and_then(|first| multus::source(first.text.as_ref().ok()?, &sorted, entry));
    let kept = if let Goal::Entry { file, .. } = &goal { file } else { "" };
    let stale =
        sorted.keys().filter(|name| is_derived(name) && **name != kept).map(|name| (*name).to_owned()).collect();
    Plan { broken, goal, source, stale }
}

fn aim(found: &Found, files: &BTreeMap<&str, &Found>, entry: &Entry) -> Result<Goal, Trouble> {
    let text = found.text.as_ref().map_err(Clone::clone)?;
    let thin = multus::made(&found.name, text);
    if thin && found.linked {
        let why = "it is a symbolic link, and Multus would take a list derived from it for its own master network";
        return Err(Trouble::Refused(why.into()));
    }
    let list = found.name.strip_suffix(".conflist");
    if thin && list.is_none() {
        let write =
            multus::put(text, entry)?.map(|new| Write { text: new, old: Some(text.clone()), like: found.name.clone() });
        return Ok(Goal::Entry { file: found.name.clone(), write, cilium: false });
    }
    let whole = if list.is_some() { text.clone() } else { list_of(text)? };
    let put = put(&whole, entry)?;
    let cilium = plugins(&whole)?.iter().any(|plugin| plugin.kind.as_deref() == Some("cilium-cni"));
    let like = found.name.clone();
    if list.is_some() && !found.linked {
        let write = put.map(|new| Write { text: new, old: Some(text.clone()), like });
        return Ok(Goal::Entry { file: found.name.clone(), write, cilium });
    }
    let stem = list.or_else(|| found.name.rsplit_once('.').map(|(stem, _)| stem)).unwrap_or_default();
    let file = format!("{stem}{DERIVED}");
    let new = marked(&put.unwrap_or(whole), &found.name);
    let old = files.get(file.as_str()).and_then(|found| found.text.as_ref().ok());
    let write = (old != Some(&new)).then(|| Write { text: new, old: old.cloned(), like });
    Ok(Goal::Entry { file, write, cilium })
}

/// A single plugin's configuration as a list, as libcni makes it.
pub(super) fn list_of(text: &str) -> Result<String, Trouble> {
    let config = read(text)?;
    if config.kind.is_none_or(|kind| kind.is_empty()) {
        return Err(Trouble::Broken("it has no \"type\"; a list of plugins belongs in a .conflist".into()));
    }
    let missing = |key: &str| Trouble::Refused(format!("it has no \"{key}\""));
    let name = Value::from(config.name.filter(|name| !name.is_empty()).ok_or_else(|| missing("name"))?);
    let version = Value::from(config.version.ok_or_else(|| missing("cniVersion"))?);
    let plugin = text.trim();
    Ok(format!("{{\n  \"cniVersion\": {version},\n  \"name\": {name},\n  \"plugins\": [\n    {plugin}\n  ]\n}}\n"))
}

/// A list with the name of its source in it.
fn marked(list: &str, source: &str) -> String {
    let (head, rest) = list.split_once('{').unwrap_or_default();
    format!("{head}{{\n  \"{FROM}\": {},{rest}", Value::from(source))
}

/// The list with our entry at its end, once; nothing if it is so already.
pub(super) fn put(text: &str, entry: &Entry) -> Result<Option<String>, Trouble> {
    check(text)?;
    let all = plugins(text)?;
    let same = |plugin: &Plugin<'_>| {
        let value = |text| serde_json::from_str::<Value>(text).ok();
        plugin.is_ours() && value(plugin.text) == value(&entry.0)
    };
    if all.last().is_some_and(same) && all.iter().filter(|plugin| plugin.is_ours()).count() == 1 {
        return Ok(None);
    }
    let mut new = without(text)?.unwrap_or_else(|| text.to_owned());
    let Some(last) = plugins(&new)?.pop().map(|last| last.at) else {
        return Err(Trouble::Broken("its \"plugins\" name none but our own".into()));
    };
    // On a line of its own where the one before has one.
    let line = new.get(..last.start).and_then(|before| before.rsplit_once('\n')).map(|(_, line)| line);
    let gap = line.filter(|line| line.trim().is_empty()).map_or(" ".to_owned(), |line| format!("\n{line}"));
    new.insert_str(last.end, &format!(",{gap}{}", entry.0));
    Ok(Some(new))
}

/// The list without our entry; nothing if there is none in it.
///
/// # Errors
///
/// A text that is no list of plugins.
pub fn without(text: &str) -> Result<Option<String>, Trouble> {
    let mut new = text.to_owned();
    loop {
        let all = plugins(&new)?;
        let Some(index) = all.iter().position(Plugin::is_ours) else {
            return Ok((new != text).then_some(new));
        };
        let at = |index: usize| all.get(index).map(|plugin| plugin.at.clone());
        let ours = at(index).unwrap_or_default();
        let gone = match (index.checked_sub(1).and_then(at), at(index + 1)) {
            (Some(before), _) => before.end..ours.end,
            (None, Some(after)) => ours.start..after.start,
            (None, None) => ours,
        };
        new.replace_range(gone, "");
    }
}

fn read(text: &str) -> Result<Config<'_>, Trouble> {
    serde_json::from_str(text).map_err(|error| {
        let what = if error.is_data() { "it is no CNI configuration" } else { "it is not valid JSON" };
        Trouble::Broken(format!("{what}: {error}"))
    })
}

/// Whether a runtime can use a list, and our plugin in it.
fn check(text: &str) -> Result<(), Trouble> {
    let config = read(text)?;
    if config.name.is_none() {
        return Err(Trouble::Broken("it has no \"name\"".into()));
    }
    let Some(version) = config.version else {
        return Err(Trouble::Refused("it has no \"cniVersion\"".into()));
    };
    let spoken = VERSIONS.contains(&version.as_str());
    let odd = config.versions.iter().find(|version| !VERSIONS.iter().chain(&OLD).any(|known| known == version));
    if let Some(version) = if spoken { odd } else { Some(&version) } {
        let spoken = VERSIONS.join(", ");
        return Err(Trouble::Refused(format!("its CNI version is {version:?}: {TYPE} speaks {spoken}")));
    }
    let all = plugins(text)?;
    if all.iter().any(|plugin| plugin.kind.as_ref().is_none_or(String::is_empty)) {
        return Err(Trouble::Broken("one of its \"plugins\" has no \"type\"".into()));
    }
    if all.is_empty() {
        return Err(Trouble::Broken("its \"plugins\" are empty".into()));
    }
    Ok(())
}

/// The name of a network.
pub(super) fn name(text: &str) -> Option<String> {
    read(text).ok()?.name
}

/// The type of a single plugin.
pub(super) fn kind(text: &str) -> Option<String> {
    read(text).ok()?.kind
}

/// The plugins of a list.
pub(super) fn plugins(text: &str) -> Result<Vec<Plugin<'_>>, Trouble> {
    let Some(list) = read(text)?.plugins else {
        return Err(Trouble::Refused("it has no \"plugins\" that an entry could be added to".into()));
    };
    elements(text, list).map_err(|error| Trouble::Broken(format!("its \"plugins\" are no list of plugins: {error}")))
}

/// The networks that a plugin calls others for; none for most.
pub(super) fn delegates(text: &str) -> Result<Vec<Plugin<'_>>, Trouble> {
    let odd = |error| Trouble::Refused(format!("its \"delegates\" are no list of networks: {error}"));
    read(text)?.delegates.map_or_else(|| Ok(Vec::new()), |list| elements(text, list).map_err(odd))
}

fn elements<'a>(text: &str, list: &'a RawValue) -> Result<Vec<Plugin<'a>>, serde_json::Error> {
    #[derive(Deserialize)]
    struct Typed {
        #[serde(rename = "type")]
        kind: Option<String>,
    }
    let list: Vec<&RawValue> = serde_json::from_str(list.get())?;
    let element = |raw: &'a RawValue| {
        let Typed { kind } = serde_json::from_str(raw.get())?;
        // Borrowed from the text, so the difference of addresses is where it is.
        let start = raw.get().as_ptr().addr() - text.as_ptr().addr();
        Ok(Plugin { text: raw.get(), at: start..start + raw.get().len(), kind })
    };
    list.into_iter().map(element).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: &str =
        r#"{"type":"pillion-cni","capabilities":{"io.kubernetes.cri.pod-annotations":true},"socket":"/s"}"#;
    const LIST: &str = "{\n  \"cniVersion\": \"0.3.1\", \"x\": [1.50, \"\\u0041\"],\n  \"name\": \"n\",\n  \"plugins\": [\n    \
                        {\"type\": \"bridge\",  \"mtu\": 1e3},\n    {\"type\":\"portmap\"}\n  ]\n}\n";
    const SINGLE: &str = r#" {"cniVersion":"1.0.0","name":"one","type":"ptp","mtu":1500}"#;

    fn entry() -> Entry {
        Entry::new("/s")
    }

    fn found(name: &str, text: &str) -> Found {
        Found { name: name.into(), linked: false, text: Ok(text.into()) }
    }

    /// A list around these plugins.
    fn list(plugins: &str) -> String {
        format!(r#"{{"cniVersion":"1.0.0","name":"n","plugins":[{plugins}]}}"#)
    }

    fn written(plan: &Plan) -> (&str, &Write) {
        match &plan.goal {
            Goal::Entry { file, write: Some(write), .. } => (file, write),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_entry_goes_to_the_end_and_everything_else_stays_byte_for_byte() {
        let (bridge, portmap) = (r#"{"type" : "bridge"}"#, r#"{"type":"portmap"}"#);
        let old = r#"{"type":"pillion-cni","socket":"/old"}"#;
        let wanted = list(&format!("{bridge}, {OURS}"));
        let table = [
            (list(bridge), Some(wanted.clone())),
            (wanted.clone(), None),
            (list(&format!("{bridge}, {old}")), Some(wanted.clone())),
            (list(&format!("{old}, {bridge}")), Some(wanted.clone())),
            (list(&format!("{old},{bridge},{OURS},{OURS}")), Some(wanted.clone())),
            (list(&format!("{bridge},{OURS},{portmap}")), Some(list(&format!("{bridge},{portmap}, {OURS}")))),
            (list(&format!("{bridge}, {}", OURS.replace(',', " ,\n"))), None),
        ];
        for (text, expected) in table {
            assert_eq!(put(&text, &entry()), Ok(expected), "{text}");
        }
        let new = put(LIST, &entry()).unwrap().unwrap();
        assert_eq!(new, LIST.replace("portmap\"}", &format!("portmap\"}},\n    {OURS}")));
        assert_eq!(without(&new), Ok(Some(LIST.into())), "there and back");
    }

    #[test]
    fn our_entries_come_out_and_nothing_else_does() {
        let table = [
            (list(r#"{"type":"a"}"#), None),
            (list(&format!(r#"{{"type":"a"}} , {OURS}"#)), Some(list(r#"{"type":"a"}"#))),
            (list(&format!(r#"{OURS} , {{"type":"a"}}"#)), Some(list(r#"{"type":"a"}"#))),
            (list(&format!(r#"{{"type":"a"}},{OURS},{{"type":"b"}}"#)), Some(list(r#"{"type":"a"},{"type":"b"}"#))),
            (list(&format!("{OURS},{OURS}")), Some(list(""))),
        ];
        for (text, expected) in table {
            assert_eq!(without(&text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_cannot_have_the_entry_says_why_and_only_what_runtimes_refuse_is_passed_over() {
        let refused = [
            ("a.conflist", r#"{"name":"n","plugins":[{"type":"a"}]}"#, "no \"cniVersion\""),
            ("a.conflist", r#"{"name":"n","cniVersion":"0.2.0","plugins":[{"type":"a"}]}"#, "\"0.2.0\""),
            (
                "a.conflist",
                r#"{"name":"n","cniVersion":"1.0.0","cniVersions":["0.1.0","9.0.0"],"plugins":[]}"#,
                "\"9.0.0\"",
            ),
            ("a.conflist", r#"{"name":"n","cniVersion":"1.0.0"}"#, "no \"plugins\""),
            ("a.conf", r#"{"name":"n","type":"a"}"#, "no \"cniVersion\""),
            ("a.conf", r#"{"cniVersion":"1.0.0","type":"a"}"#, "no \"name\""),
        ];
        for (name, text, why) in refused {
            let plan = plan(&[found(name, text), found("b.conflist", LIST)], &entry());
            assert!(matches!(&plan.goal, Goal::Refused { why: found, .. } if found.contains(why)), "{text}: {plan:?}");
        }
        let half = LIST.split_at(40).0;
        let broken = [
            ("a.conflist", "", "not valid JSON"),
            ("a.conflist", half, "not valid JSON"),
            ("a.conflist", "\u{feff}{}", "not valid JSON"),
            ("a.conflist", "[]", "no CNI configuration"),
            ("a.conflist", r#"{"plugins":7}"#, "no \"name\""),
            ("a.conflist", r#"{"name":"n","cniVersion":"1.0.0","plugins":7}"#, "no list"),
            ("a.conflist", r#"{"name":"n","cniVersion":"1.0.0","plugins":[1]}"#, "no list"),
            ("a.conflist", r#"{"name":"n","cniVersion":"1.0.0","plugins":[]}"#, "empty"),
            ("a.conflist", r#"{"name":"n","cniVersion":"1.0.0","plugins":[{}]}"#, "no \"type\""),
            ("a.conflist", &list(OURS).replace("/s", "/t"), "none but our own"),
            ("a.conf", LIST, "no \"type\""),
        ];
        for (name, text, why) in broken {
            let plan = plan(&[found("b.conflist", LIST), found(name, text)], &entry());
            assert!(plan.broken.iter().any(|(_, found)| found.contains(why)), "{text}: {plan:?}");
            assert_eq!(written(&plan).0, "b.conflist");
        }
        assert_eq!(plan(&[], &entry()).goal, Goal::Nothing);
    }

    #[test]
    fn a_single_plugin_gets_a_derived_list_that_sorts_right_before_it() {
        let name = "10-x.00-pillion.conflist";
        for source in ["10-x.conf", "10-x.json"] {
            assert!(name < source && "05-z.conflist" < name && is_derived(name) && is_read(name));
            let first = plan(&[found(source, SINGLE), found("20-y.conflist", LIST)], &entry());
            let (file, write) = written(&first);
            assert_eq!((file, write.old.as_ref()), (name, None));
            let value: Value = serde_json::from_str(&write.text).unwrap();
            let ours: Value = serde_json::from_str(OURS).unwrap();
            assert_eq!(
                (&value[FROM], &value["name"], &value["cniVersion"]),
                (&source.into(), &"one".into(), &"1.0.0".into())
            );
            assert_eq!(value["plugins"], Value::from(vec![serde_json::from_str(SINGLE).unwrap(), ours]));
            assert!(write.text.contains(SINGLE.trim()), "byte for byte");

            let derived = found(name, &write.text);
            let again = plan(&[found(source, SINGLE), derived.clone()], &entry());
            assert_eq!(again.goal, Goal::Entry { file: name.into(), write: None, cilium: false });
            let changed = plan(&[found(source, &SINGLE.replace("1500", "9000")), derived.clone()], &entry());
            assert!(changed.stale.is_empty());
            // It is no source itself, and goes when its reason has gone.
            let alone = plan(std::slice::from_ref(&derived), &entry());
            assert_eq!((alone.goal, alone.stale), (Goal::Nothing, vec![name.to_owned()]));
            let earlier = plan(&[found(source, SINGLE), derived, found("05-z.conflist", LIST)], &entry());
            assert_eq!((written(&earlier).0, earlier.stale.as_slice()), ("05-z.conflist", &[name.to_owned()][..]));
        }
    }

    #[test]
    fn a_linked_list_is_derived_from_too() {
        let mut link = found("10-x.conflist", LIST);
        link.linked = true;
        let plan = plan(&[link], &entry());
        let (file, write) = written(&plan);
        assert_eq!(file, "10-x.00-pillion.conflist");
        let rest = write.text.replacen("\n  \"pillion.dev/from\": \"10-x.conflist\",", "", 1);
        assert_eq!(without(&rest), Ok(Some(LIST.into())));
    }

    #[test]
    fn cilium_is_recognised() {
        for (kind, expected) in [("cilium-cni", true), ("bridge", false)] {
            let plan = plan(&[found("05-cilium.conflist", &list(&format!(r#"{{"type":"{kind}"}}"#)))], &entry());
            assert!(matches!(plan.goal, Goal::Entry { cilium, .. } if cilium == expected));
        }
    }

    #[test]
    fn every_version_that_the_plugin_speaks_gets_the_entry() {
        for version in VERSIONS {
            let text = format!(r#"{{"cniVersion":"{version}","name":"n","plugins":[{{"type":"bridge"}}]}}"#);
            let goal = plan(&[found("10-x.conflist", &text)], &entry()).goal;
            assert!(matches!(goal, Goal::Entry { write: Some(_), .. }), "{version}: {goal:?}");
        }
    }
}
