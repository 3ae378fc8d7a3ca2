//! Multus' thin entrypoint, which makes its configuration out of another CNI's. Text in, text out: no IO here.
//!
//! At each start it takes the first `.conf` or `.conflist` whose name does not begin with `00-multus.conf` for its *master network*, and
//! writes `00-multus.conf` (from CNI 1.0.0 on `00-multus.conflist`) with that network as its first delegate. A list that we derived from
//! `00-multus.conf` would be that first file: Multus' own master would be Multus, one level deeper with each start. So our entry goes into
//! the network that is in Multus' file, and into the list that Multus takes it from, so that what Multus writes next has it, too.
//! A `.conflist` of Multus' gets the entry as any list does: the runtime itself starts our plugin then.

use std::{collections::BTreeMap, ops::Range};

use super::conflist::{self, Entry, Found, Trouble, Write};

/// How the names of the files begin that the thin entrypoint makes, and never takes for its master.
const MADE: &str = "00-multus.conf";

/// Multus without a daemon. With one the type is `multus-shim`, and its daemon takes no file whose name begins with `00-multus`.
const THIN: &str = "multus";

/// Whether a list that is derived from this file could become Multus' master network.
#[must_use]
pub fn made(name: &str, text: &str) -> bool {
    let thin = |text: &str| conflist::kind(text).as_deref() == Some(THIN);
    name.starts_with(MADE)
        && (thin(text) || conflist::plugins(text).is_ok_and(|all| all.iter().any(|plugin| thin(plugin.text))))
}

/// Multus' own file with our entry in its master network; nothing if it is there already.
///
/// # Errors
///
/// A file that cannot have it.
pub fn put(text: &str, entry: &Entry) -> Result<Option<String>, Trouble> {
    let refused =
        |trouble: Trouble| Trouble::Refused(format!("its first \"delegates\", Multus' master network: {trouble}"));
    let (network, at) = master(text)?;
    let list =
        if conflist::plugins(network).is_ok() { None } else { Some(conflist::list_of(network).map_err(refused)?) };
    let put = conflist::put(list.as_deref().unwrap_or(network), entry).map_err(refused)?;
    Ok(put.map(|new| replaced(text, at, new.trim())))
}

/// The list that Multus took its master network from, with our entry; nothing if there is none that can have it, or it has it.
#[must_use]
pub fn source(text: &str, files: &BTreeMap<&str, &Found>, entry: &Entry) -> Option<(String, Write)> {
    let network = conflist::name(master(text).ok()?.0)?;
    files.values().find_map(|found| {
        let list = found.name.ends_with(".conflist") && !found.name.starts_with(MADE);
        let ours = found.linked || conflist::is_derived(&found.name);
        let old =
            found.text.as_ref().ok().filter(|text| list && !ours && conflist::name(text).as_ref() == Some(&network))?;
        let text = conflist::put(old, entry).ok()??;
        Some((found.name.clone(), Write { text, old: Some(old.clone()), like: found.name.clone() }))
    })
}

/// The file without our entry, in whatever network it is, also where one of Multus' is a delegate of Multus; nothing if it is in none.
#[must_use]
pub fn without(text: &str) -> Option<String> {
    let mut new = conflist::without(text).ok().flatten().unwrap_or_else(|| text.to_owned());
    for key in [conflist::plugins, conflist::delegates] {
        // From the last one on, so that where the others are stays right.
        let all: Vec<_> =
            key(&new).unwrap_or_default().into_iter().rev().map(|part| (part.at, without(part.text))).collect();
        for (at, part) in all {
            if let Some(part) = part {
                new = replaced(&new, at, &part);
            }
        }
    }
    (new != text).then_some(new)
}

/// The network that every pod has, and where it is.
fn master(text: &str) -> Result<(&str, Range<usize>), Trouble> {
    let first = conflist::delegates(text)?.into_iter().next();
    first.map(|network| (network.text, network.at)).ok_or_else(|| Trouble::Refused("it has no \"delegates\"".into()))
}

fn replaced(text: &str, at: Range<usize>, part: &str) -> String {
    let mut new = text.to_owned();
    new.replace_range(at, part);
    new
}

#[cfg(test)]
mod tests {
    use super::{super::conflist::Goal, *};

    const OURS: &str =
        r#"{"type":"pillion-cni","capabilities":{"io.kubernetes.cri.pod-annotations":true},"socket":"/s"}"#;
    const FLANNEL: &str = "10-flannel.conflist";

    fn entry() -> Entry {
        Entry::new("/s")
    }

    fn found(name: &str, text: &str) -> Found {
        Found { name: name.into(), linked: false, text: Ok(text.into()) }
    }

    fn network(name: &str, plugins: &str) -> String {
        format!(r#"{{"cniVersion":"0.3.1","name":"{name}","plugins":[{plugins}]}}"#)
    }

    fn thin(delegate: &str) -> String {
        format!(
            "{{\n  \"cniVersion\": \"0.3.1\",\n  \"name\": \"multus-cni-network\",\n  \"type\": \"multus\",\n  \"delegates\": [\n    {delegate}\n  ]\n}}\n"
        )
    }

    #[test]
    fn the_entry_goes_into_multus_network_and_the_list_it_is_made_of_and_nothing_is_derived() {
        let (bridge, both) = (r#"{"type":"bridge"}"#, format!(r#"{{"type":"bridge"}}, {OURS}"#));
        let (multus, flannel) =
            (found("00-multus.conf", &thin(&network("n", bridge))), found(FLANNEL, &network("n", bridge)));
        let other = found("05-other.conflist", &network("other", bridge));
        let plan = conflist::plan(&[flannel, multus, other.clone()], &entry());
        let Goal::Entry { file, write: Some(write), .. } = &plan.goal else { panic!("{plan:?}") };
        assert_eq!((file.as_str(), &write.text), ("00-multus.conf", &thin(&network("n", &both))));
        let (file, source) = plan.source.clone().unwrap();
        assert_eq!((file.as_str(), &source.text), (FLANNEL, &network("n", &both)));

        // What Multus makes of that list then has the entry: nothing is to do. A file that was derived before goes.
        let derived = found("00-multus.00-pillion.conflist", &network("multus-cni-network", bridge));
        let files = [found("00-multus.conf", &write.text), found(FLANNEL, &source.text), other, derived.clone()];
        let again = conflist::plan(&files, &entry());
        assert_eq!(again.goal, Goal::Entry { file: "00-multus.conf".into(), write: None, cilium: false });
        assert_eq!((again.source, again.stale), (None, vec![derived.name]));
    }

    #[test]
    fn a_network_of_one_plugin_becomes_a_list_within_multus_file() {
        let single = r#"{"cniVersion":"0.3.1","name":"n","type":"bridge"}"#;
        let plan = conflist::plan(&[found("00-multus.conf", &thin(single)), found("10-a.conf", single)], &entry());
        let Goal::Entry { file, write: Some(write), .. } = &plan.goal else { panic!("{plan:?}") };
        assert_eq!((file.as_str(), &plan.source), ("00-multus.conf", &None));
        let value: serde_json::Value = serde_json::from_str(&write.text).unwrap();
        let (single, ours): (serde_json::Value, serde_json::Value) =
            (serde_json::from_str(single).unwrap(), serde_json::from_str(OURS).unwrap());
        assert_eq!(value["delegates"][0]["name"], "n");
        assert_eq!(value["delegates"][0]["plugins"], serde_json::Value::from(vec![single, ours]));
        assert_eq!(put(&write.text, &entry()), Ok(None));
    }

    #[test]
    fn what_is_not_the_thin_entrypoints_is_treated_as_any_other() {
        let shim = r#"{"cniVersion":"0.3.1","name":"multus-cni-network","type":"multus-shim","clusterNetwork":"/x"}"#;
        let by_hand = thin(&network("n", r#"{"type":"bridge"}"#));
        for (name, text) in [("00-multus.conf", shim), ("70-multus.conf", by_hand.as_str())] {
            let plan = conflist::plan(&[found(name, text)], &entry());
            assert!(
                matches!(&plan.goal, Goal::Entry { file, .. } if file.ends_with("-multus.00-pillion.conflist")),
                "{plan:?}"
            );
        }
        // A list of Multus' own has the entry behind Multus, where the runtime starts our plugin.
        let multus = thin(&network("n", r#"{"type":"bridge"}"#));
        let list = found("00-multus.conflist", &network("multus-cni-network", &multus));
        let plan = conflist::plan(&[list.clone(), found(FLANNEL, &network("n", r#"{"type":"bridge"}"#))], &entry());
        let Goal::Entry { file, write: Some(write), .. } = plan.goal else { panic!("{plan:?}") };
        assert_eq!((file.as_str(), plan.source), ("00-multus.conflist", None));
        assert_eq!(conflist::without(&write.text), Ok(list.text.clone().ok()));
        // But nothing is derived from a link to it, nor put where there is no network.
        let link = Found { linked: true, ..list };
        let none = found("00-multus.conf", r#"{"cniVersion":"0.3.1","name":"m","type":"multus","delegates":[]}"#);
        for file in [link, none] {
            let plan = conflist::plan(&[file], &entry());
            assert!(matches!(plan.goal, Goal::Refused { .. }), "{plan:?}");
        }
    }

    #[test]
    fn our_entries_come_out_of_every_depth() {
        let clean =
            |deep: &str| thin(&network("m", &format!(r#"{{"type":"multus","delegates":[{deep}]}},{{"type":"b"}}"#)));
        let (inner, ours) = (network("n", r#"{"type":"a"}"#), network("n", &format!(r#"{{"type":"a"}},{OURS}"#)));
        let dirty = clean(&ours).replace(r#"{"type":"b"}"#, &format!(r#"{{"type":"b"}}, {OURS}"#));
        assert_eq!(without(&dirty), Some(clean(&inner)));
        assert_eq!(without(&clean(&inner)), None);
        assert_eq!(without("{"), None);
    }
}
