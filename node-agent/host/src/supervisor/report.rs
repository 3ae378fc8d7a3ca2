//! A report that control takes: where there is too much to say, what matters least is left out, and that is said. Decides, and does no IO.

use pillion_protocol::{
    stream::{MAX_MESSAGE, Report},
    text,
};
use serde::Serialize;

/// The most bytes of a report without the words on what is left out.
const MOST: usize = MAX_MESSAGE - (4 << 10);

/// The most characters of a failure, where there are too many longer ones.
const SHORT: usize = 100;

/// In place of a failure, where there is no room for it.
const UNSAID: &str = "see the log of the node's agent";

/// The report with everything that there is room for. Whether something serves goes before why, and pods before components: a pod counts as
/// ready by its node's word.
pub(super) fn fit(mut report: Report) -> Report {
    if bytes_of(&report) <= MOST {
        return report;
    }
    type Step = (&'static str, fn(&mut Report));
    let steps: [Step; 3] = [
        ("where guests may call out to", |report| {
            report.components.values_mut().for_each(|said| said.outbound.clear())
        }),
        ("the ends of failures", |report| each_failure(report, |failure| text::shown(failure, SHORT))),
        ("failures", |report| each_failure(report, |_| UNSAID.to_owned())),
    ];
    let (mut left_out, mut bytes) = (Vec::new(), bytes_of(&report));
    for (what, leave_out) in steps {
        leave_out(&mut report);
        let now = bytes_of(&report);
        if now < bytes {
            left_out.push(what.to_owned());
        }
        bytes = now;
        if bytes <= MOST {
            break;
        }
    }
    let mut over = bytes.saturating_sub(MOST);
    let (components, pods) = (report.components.len(), report.pods.len());
    // That one fails is what may be missed: it is not served either way.
    report.components.retain(|id, said| said.failure.is_none() || said.digest.is_some() || stays(&mut over, id, said));
    report.components.retain(|id, said| stays(&mut over, id, said));
    report.pods.retain(|uid, said| stays(&mut over, uid, said));
    for (before, now, what) in [(components, report.components.len(), "components"), (pods, report.pods.len(), "pods")]
    {
        if now < before {
            left_out.push(format!("{} of {before} {what}", before.saturating_sub(now)));
        }
    }
    Report { left_out: Some(left_out.join(", ")), ..report }
}

/// Whether an entry stays, and what is over the most without it if it does not.
fn stays(over: &mut usize, key: &impl Serialize, said: &impl Serialize) -> bool {
    let is_over = *over > 0;
    if is_over {
        // With the colon; the comma may be the last one's.
        *over = over.saturating_sub(bytes_of(key).saturating_add(1).saturating_add(bytes_of(said)));
    }
    !is_over
}

/// Puts another text in the place of each failure that is longer than it.
fn each_failure(report: &mut Report, shorter: impl Fn(&str) -> String) {
    let of_components = report.components.values_mut().filter_map(|said| said.failure.as_mut());
    let of_pods = report.pods.values_mut().filter_map(|said| said.failure.as_mut());
    for failure in of_components.chain(of_pods) {
        let shorter = shorter(failure);
        if shorter.len() < failure.len() {
            *failure = shorter;
        }
    }
}

/// What cannot be written is never too short: nothing of it would be sent.
fn bytes_of(content: &impl Serialize) -> usize {
    text::encoded(content).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use pillion_protocol::{
        digest::Digest,
        stream::{ComponentReport, PodReport, Version, line},
    };
    use proptest::prelude::*;

    use super::*;

    fn component(failure: Option<String>, served: bool, outbound: Vec<String>) -> ComponentReport {
        let digest = served.then(|| Digest::from_sha256([7; 32]));
        ComponentReport { version: Version("0123456789abcdef".into()), digest, failure, outbound }
    }

    /// A node with so many components and pods; a function makes each component.
    fn report(components: usize, pods: usize, of: impl Fn(usize) -> ComponentReport) -> Report {
        let id = |number: usize| format!("{}/clock-{number:05}", "n".repeat(63)).parse().unwrap();
        let bound = PodReport { bound: [8081.try_into().unwrap()].into(), ..PodReport::default() };
        Report {
            components: (0..components).map(|number| (id(number), of(number))).collect(),
            pods: (0..pods).map(|number| (format!("pod-{number:05}").parse().unwrap(), bound.clone())).collect(),
            left_out: None,
        }
    }

    fn is_sayable(report: &Report) -> bool {
        line(report).is_ok()
    }

    #[test]
    fn what_there_is_room_for_is_said_whole() {
        let report = report(1_000, 1_000, |_| component(Some(text::reason(&"\"".repeat(5_000))), false, Vec::new()));
        assert_eq!(fit(report.clone()), report);
    }

    #[test]
    fn what_matters_least_is_left_out_and_that_is_said() {
        let hosts = |count| vec!["https://somewhere.example:443".to_owned(); count];
        let failure = || Some(text::reason(&"ä".repeat(5_000)));
        let table = [
            (report(1_000, 100, |_| component(None, true, hosts(200))), "where guests may call out to"),
            (
                report(3_000, 100, |_| component(failure(), false, hosts(1))),
                "where guests may call out to, the ends of failures",
            ),
            (
                report(14_000, 100, |_| component(failure(), false, hosts(1))),
                "where guests may call out to, the ends of failures, failures",
            ),
        ];
        for (report, expected) in table {
            assert!(!is_sayable(&report));
            let fits = fit(report.clone());
            assert!(is_sayable(&fits));
            assert_eq!(fits.left_out.as_deref(), Some(expected));
            assert_eq!((fits.components.len(), &fits.pods), (report.components.len(), &report.pods), "all are there");
            let fails = |report: &Report| report.components.values().filter(|said| said.failure.is_some()).count();
            assert_eq!(fails(&fits), fails(&report), "that they fail is said");
        }
    }

    #[test]
    fn what_serves_is_said_before_what_does_not_and_pods_before_components() {
        let is_served = |number: usize| number >= 35_000;
        let of = |number| component((!is_served(number)).then(|| "why".to_owned()), is_served(number), Vec::new());
        let fits = fit(report(40_000, 1_000, of));
        assert!(is_sayable(&fits));
        let served = fits.components.values().filter(|said| said.digest.is_some()).count();
        assert_eq!((served, fits.pods.len()), (5_000, 1_000));
        assert!(fits.components.len() > 5_000, "no more is left out than has to be");
        let left_out = fits.left_out.unwrap();
        assert!(left_out.ends_with(&format!("{} of 40000 components", 40_000 - fits.components.len())), "{left_out}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(6))]

        #[test]
        fn a_report_is_never_too_long(
            components in 0_usize..1_200, pods in 0_usize..500, text: String, length in 0_usize..2_000, served: bool,
        ) {
            let text = text::reason(&text.repeat(length));
            let fits = fit(report(components, pods, |_| component(Some(text.clone()), served, vec![text.clone(); length % 3])));
            prop_assert!(is_sayable(&fits));
        }
    }
}
