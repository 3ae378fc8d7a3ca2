use pillion_protocol::{
    component::{ComponentSpec, Image},
    stream::{Key, Refusal, RefusalReason, ToNode, Version},
};

use super::*;
use crate::resource::{Rejection, ServiceAccount};

fn id(text: &str) -> ComponentId {
    text.parse().unwrap()
}

fn image(text: &str) -> Published {
    Published::new(Ok(ComponentSpec::new(Image::Reference(text.parse().unwrap())).into()), None)
}

pub(crate) fn pod(namespace: &str, name: &str, node: &str, sidecars: &str) -> (ApiUid, ListedPod) {
    let pod = Pod { uid: name.parse().unwrap(), namespace: namespace.into(), name: name.into() };
    let listed = ListedPod {
        pod,
        node: node.into(),
        service_account: "default".into(),
        doubt: None,
        host_network: false,
        claims: Box::default(),
        gated: false,
        runtime_class: None,
        sidecars: sidecars.parse(),
    };
    (name.into(), listed)
}

fn nodes(names: &[&str]) -> BTreeSet<NodeName> {
    names.iter().map(|name| NodeName::from(*name)).collect()
}

fn keys(view: &View) -> Vec<String> {
    view.resources.keys().map(|key| key.clone().into()).collect()
}

fn refusal(catalog: &Catalog, node: &str, pod: &str) -> Option<Refusal> {
    match catalog.view(node).resources.remove(&Key::Pod(pod.parse().unwrap())) {
        Some(ToNode::Pod { wanted, .. }) => wanted.refused.into_values().next(),
        _ => None,
    }
}

/// Two nodes: the shop's pods are on `a`, the bank's on `b`.
fn catalog() -> Catalog {
    let mut catalog = Catalog::default();
    catalog.publish(id("clock"), Some(image("r.example/clock:1")));
    for (uid, pod) in [
        pod("shop", "cart", "a", "clock=8081"),
        pod("shop", "till", "a", "clock=8081, flags=8082"),
        pod("bank", "vault", "b", "clock=8081"),
    ] {
        catalog.set_pod(uid, pod);
    }
    catalog
}

#[test]
fn a_node_is_told_of_its_own_pods_and_what_they_name() {
    let mut catalog = catalog();
    catalog.publish(id("unused"), Some(image("r.example/unused:1")));
    assert_eq!(keys(&catalog.view("a")), ["pod/cart", "pod/till", "component/shop/clock"]);
    assert_eq!(keys(&catalog.view("b")), ["pod/vault", "component/bank/clock"]);
    assert_eq!(keys(&catalog.view("c")), [""; 0]);
}

#[test]
fn a_change_matters_to_the_nodes_whose_pods_see_it_and_to_no_other() {
    let mut catalog = catalog();
    let flags = || Some(image("r.example/flags:1"));
    assert_eq!(catalog.publish(id("flags"), flags()), nodes(&["a"]));
    assert_eq!(catalog.publish(id("bank/flags"), flags()), nodes(&[]));
    assert_eq!(catalog.publish(id("clock"), None), nodes(&["a", "b"]));
    let (uid, moved) = pod("shop", "cart", "b", "clock=8081");
    assert_eq!(catalog.set_pod(Arc::clone(&uid), moved.clone()), nodes(&["a", "b"]));
    assert_eq!(catalog.set_pod(Arc::clone(&uid), moved), nodes(&[]), "nothing has changed");
    assert_eq!(catalog.remove_pod(&uid, Departure::Ended), nodes(&["b"]));
    assert_eq!(catalog.remove_pod(&uid, Departure::Ended), nodes(&[]));
}

#[test]
fn a_namespaces_own_component_comes_before_the_clusters() {
    let mut catalog = catalog();
    let of = |catalog: &Catalog, node: &str, key: &str| {
        let key = Key::try_from(key.to_owned()).unwrap();
        match catalog.view(node).resources.remove(&key) {
            Some(ToNode::Component { wanted, .. }) => wanted.spec.image.to_string(),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(catalog.publish(id("shop/clock"), Some(image("r.example/own:1"))), nodes(&["a"]));
    assert_eq!(of(&catalog, "a", "component/shop/clock"), "r.example/own:1");
    assert_eq!(of(&catalog, "b", "component/bank/clock"), "r.example/clock:1");
    assert_eq!(catalog.nodes_of(&id("clock")).into_keys().collect::<BTreeSet<_>>(), nodes(&["b"]));
    assert_eq!(catalog.nodes_of(&id("shop/clock")).into_keys().collect::<BTreeSet<_>>(), nodes(&["a"]));
    catalog.publish(id("shop/clock"), None);
    assert_eq!(of(&catalog, "a", "component/shop/clock"), "r.example/clock:1");
}

#[test]
fn what_is_not_served_says_why() {
    let mut catalog = catalog();
    let flags = refusal(&catalog, "a", "till").unwrap();
    assert_eq!(flags.reason, RefusalReason::Unknown);
    assert!(flags.message.contains("\"flags\"") && flags.message.contains("\"shop\""), "{}", flags.message);
    let access = Access {
        namespaces: vec!["shop".into()],
        service_accounts: vec![ServiceAccount { namespace: "bank".into(), name: "teller".into() }],
    };
    let closed = Published { access: Some(access), ..image("r.example/clock:1") };
    catalog.publish(id("clock"), Some(closed));
    assert_eq!(refusal(&catalog, "a", "cart"), None);
    let clock = refusal(&catalog, "b", "vault").unwrap();
    assert_eq!(clock.reason, RefusalReason::NotAllowed);
    assert!(clock.message.contains("\"bank/default\""), "{}", clock.message);
    assert_eq!(keys(&catalog.view("b")), ["pod/vault"], "what it may not have it is not told");
    let (uid, vault) = pod("bank", "vault", "b", "clock=8081");
    catalog.set_pod(uid, ListedPod { service_account: "teller".into(), ..vault });
    assert_eq!(refusal(&catalog, "b", "vault"), None);
    catalog.publish(id("clock"), Some(Published::new(Err(Rejection::invalid("\"x\" is no image".into())), None)));
    let clock = refusal(&catalog, "b", "vault").unwrap();
    assert!(clock.reason == RefusalReason::NotAccepted && clock.message.contains("\"x\" is no image"));
}

#[test]
fn pods_that_cannot_have_endpoints_are_no_nodes_business() {
    let mut catalog = catalog();
    let (uid, cart) = pod("shop", "cart", "a", "clock=8081");
    catalog.set_pod(Arc::clone(&uid), ListedPod { host_network: true, ..cart });
    let (other, wrong) = pod("shop", "till", "a", "clock=80");
    catalog.set_pod(other, wrong);
    assert_eq!(keys(&catalog.view("a")), [""; 0]);
}

#[test]
fn who_comes_back_is_told_what_is_otherwise() {
    let mut catalog = catalog();
    let view = catalog.view("a");
    assert_eq!(difference(&BTreeMap::new(), &view).len(), 3, "a first snapshot");
    let known: BTreeMap<Key, Version> =
        view.resources.iter().filter_map(|(key, told)| Some((key.clone(), told.version()?.clone()))).collect();
    assert_eq!(difference(&known, &view), []);
    catalog.publish(id("clock"), Some(image("r.example/clock:2")));
    catalog.remove_pod("till", Departure::Ended);
    let told = difference(&known, &catalog.view("a"));
    assert!(
        matches!(&told[..], [ToNode::Component { .. }, ToNode::PodEnded { uid }] if uid.as_str() == "till"),
        "{told:?}"
    );
    catalog.remove_pod("cart", Departure::Ended);
    let told = difference(&known, &catalog.view("a"));
    assert!(
        matches!(&told[..], [ToNode::PodEnded { .. }, ToNode::PodEnded { .. }, ToNode::ComponentGone { .. }]),
        "pods before what they name: {told:?}"
    );
}

#[test]
fn a_pod_that_is_merely_not_there_has_not_ended() {
    let known = BTreeMap::from([(Key::Pod("cart".parse().unwrap()), Version("v".into()))]);
    assert_eq!(difference(&known, &Catalog::default().view("a")), [], "a replica that knows less");
    let mut catalog = catalog();
    let (uid, wrong) = pod("shop", "cart", "a", "clock=80");
    catalog.set_pod(uid, wrong);
    let told = difference(&known, &catalog.view("a"));
    assert!(!told.iter().any(|told| matches!(told, ToNode::PodEnded { .. })), "a slip of the pen: {told:?}");
    catalog.remove_pod("cart", Departure::Ended);
    let told = difference(&known, &catalog.view("a"));
    assert!(told.iter().any(|told| matches!(told, ToNode::PodEnded { .. })), "{told:?}");
}

#[test]
fn a_pod_that_says_it_is_another_one_is_ignored() {
    let mut catalog = catalog();
    let (_, fake) = pod("bank", "cart", "a", "flags=9090");
    assert_eq!(catalog.set_pod("fake".into(), fake), nodes(&[]));
    let Some(ToNode::Pod { wanted, .. }) = catalog.view("a").resources.remove(&Key::Pod("cart".parse().unwrap()))
    else {
        panic!("the pod is gone")
    };
    assert_eq!(wanted.pod.namespace, "shop");
    assert_eq!(catalog.remove_pod("fake", Departure::Ended), nodes(&[]));
}

#[test]
fn a_pod_that_was_deleted_has_not_ended() {
    let mut catalog = catalog();
    let known = BTreeMap::from([(Key::Pod("cart".parse().unwrap()), Version("v".into()))]);
    catalog.remove_pod("cart", Departure::Deleted);
    let told = difference(&known, &catalog.view("a"));
    assert!(told.contains(&ToNode::PodDeleted { uid: "cart".parse().unwrap() }), "{told:?}");
    // The next copy of the same static pod.
    let (_, cart) = pod("shop", "cart", "a", "clock=8081");
    catalog.set_pod("copy".into(), cart);
    assert!(catalog.view("a").gone.is_empty());
}

#[test]
fn a_pod_that_is_not_believed_to_be_a_static_pods_copy_gets_nothing() {
    let mut catalog = catalog();
    let (uid, cart) = pod("shop", "cart", "a", "clock=8081");
    catalog.set_pod(uid, ListedPod { doubt: Some("no node owns it".into()), ..cart.clone() });
    assert!(!catalog.view("a").resources.contains_key(&Key::Pod("cart".parse().unwrap())));
    let problems = catalog.problems(&ListedPod { doubt: Some("no node owns it".into()), ..cart }, None, false);
    let problem = problems.values().next().unwrap();
    assert_eq!(problem.reason, "SidecarsImpossible");
    assert!(problem.message.contains("no node owns it"));
}

#[test]
fn a_final_component_comes_before_those_of_namespaces() {
    let mut catalog = catalog();
    catalog.publish(id("shop/clock"), Some(image("r.example/shops:1")));
    let cart = catalog.pod("cart").unwrap().clone();
    let meant = |catalog: &Catalog| catalog.resolve(&cart, &"clock".parse().unwrap()).map(|(id, _)| id.to_string());
    assert_eq!(meant(&catalog).as_deref(), Some("shop/clock"));
    let (components, told) = catalog.set_final(&"clock".parse().unwrap(), true);
    assert_eq!((components, told), (BTreeSet::from([id("clock"), id("shop/clock")]), nodes(&["a", "b"])));
    assert_eq!(catalog.set_final(&"clock".parse().unwrap(), true), Default::default(), "nothing has changed");
    assert_eq!(meant(&catalog).as_deref(), Some("clock"));
    assert!(catalog.is_overruled(&id("shop/clock")) && !catalog.is_overruled(&id("clock")));
    assert!(catalog.nodes_of(&id("shop/clock")).is_empty(), "nobody has it");
    catalog.set_final(&"clock".parse().unwrap(), false);
    assert_eq!(meant(&catalog).as_deref(), Some("shop/clock"));
}

mod lines {
    use pillion_protocol::{digest::Digest, stream::line};
    use proptest::{collection::vec, prelude::*};
    use serde_json::json;

    use super::*;
    use crate::resource::{Kind, Reason, Source, Spec, Values};

    /// A text of one character, up to more than all values of a component may have. Those that JSON has in more bytes come often.
    fn text() -> impl Strategy<Value = String> {
        let any_char = prop_oneof![Just('\u{1}'), Just('"'), Just('x'), any::<char>()];
        (any_char, 0_usize..700_000).prop_map(|(c, length)| std::iter::repeat_n(c, length).collect())
    }

    /// A component of the shop with these values, and a login with this password.
    fn accepted(values: &[String], password: &str) -> Result<WantedComponent, Rejection> {
        let env: Vec<_> =
            values.iter().enumerate().map(|(i, value)| json!({"name": format!("V{i}"), "value": value})).collect();
        let spec = json!({"image": "r.example/a:1", "imagePullSecrets": [{"name": "login"}], "env": env});
        let spec: Spec = serde_json::from_value(spec).unwrap();
        let config = json!({"auths": {"r.example": {"username": "ann", "password": password}}}).to_string();
        let secret = Source { kind: Kind::Secret, name: "login".into() };
        spec.accepted(&Values::of_namespace(
            "shop",
            [(secret, Ok(Some([(".dockerconfigjson".to_owned(), config)].into())))].into(),
        ))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn what_is_accepted_or_refused_makes_no_line_that_a_node_would_not_read(values in vec(text(), 0..3), password in text(), why in text()) {
            let name = "c".repeat(63);
            let accepted = accepted(&values, &password).map(|mut wanted| {
                let Image::Reference(image) = &wanted.spec.image else { panic!("a path") };
                wanted.spec.image = Image::Reference(image.at(Digest::from_sha256([255; 32])));
                wanted
            });
            if let Err(rejection) = &accepted {
                prop_assert_eq!(rejection.reason, Reason::TooLarge);
            }
            let mut catalog = Catalog::default();
            catalog.publish(id(&format!("shop/{name}")), Some(Published::new(accepted, None)));
            let refused = |number: usize| format!("{}{number:02}", "r".repeat(61));
            for number in 0..31 {
                let rejection = Rejection::invalid(why.clone());
                catalog.publish(id(&format!("shop/{}", refused(number))), Some(Published::new(Err(rejection), None)));
            }
            let sidecars: Vec<_> = (0..31).map(refused).chain([name]).zip(8_000..).map(|(name, port)| format!("{name}={port}")).collect();
            let (uid, pod) = pod("shop", "cart", "a", &sidecars.join(","));
            catalog.set_pod(uid, pod);
            let view = catalog.view("a");
            prop_assert!(!view.resources.is_empty());
            for told in view.resources.values() {
                prop_assert!(line(told).is_ok());
            }
        }
    }
}
