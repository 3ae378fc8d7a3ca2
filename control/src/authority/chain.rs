//! Which authorities there are, who signs, and when the next one is due.

use std::time::{Duration, SystemTime};

use anyhow::Result;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair, KeyUsagePurpose};
use serde::{Deserialize, Serialize};

const DAY: Duration = Duration::from_secs(86_400);

/// How long an authority is good.
const LASTS: Duration = Duration::from_secs(2 * 365 * 86_400);

/// When the next one is made.
const NEXT: Duration = Duration::from_secs(365 * 86_400);

/// How long nodes have to hear of one before it signs; the kubelet brings them a ConfigMap within minutes.
const HEARD: Duration = DAY;

/// Clocks differ.
const BEFORE: Duration = Duration::from_secs(3_600);

/// The authorities that nodes are to trust, the oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Chain(Vec<Signer>);

/// An authority.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signer {
    /// Its certificate, as PEM.
    certificate: String,
    /// Its key, as PEM.
    pub key: String,
    /// When it was made, in seconds since 1970.
    made: u64,
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signer").field("made", &self.made).finish_non_exhaustive()
    }
}

impl Signer {
    fn new(now: SystemTime) -> Result<Self> {
        let key = KeyPair::generate()?;
        let made = now.duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
        let new = Self { certificate: String::new(), key: key.serialize_pem(), made };
        Ok(Self { certificate: new.params()?.self_signed(&key)?.pem(), ..new })
    }

    /// What its certificate says.
    pub fn params(&self) -> Result<CertificateParams> {
        let made = SystemTime::UNIX_EPOCH + Duration::from_secs(self.made);
        let mut params = lasting(CertificateParams::new([])?, made, LASTS);
        params.distinguished_name.push(DnType::CommonName, "Pillion's control");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        Ok(params)
    }

    fn is_older(&self, than: Duration, now: SystemTime) -> bool {
        now.duration_since(SystemTime::UNIX_EPOCH + Duration::from_secs(self.made)).is_ok_and(|age| age > than)
    }
}

impl Chain {
    /// What is to take its place now, if it is not as it should be: without those that have ended, and with a new one if the youngest is old.
    ///
    /// # Errors
    ///
    /// No key can be made.
    pub fn next(&self, now: SystemTime) -> Result<Option<Self>> {
        let mut next = self.clone();
        next.0.retain(|signer| !signer.is_older(LASTS, now));
        if next.0.last().is_none_or(|youngest| youngest.is_older(NEXT, now)) {
            next.0.push(Signer::new(now)?);
        }
        Ok((next != *self).then_some(next))
    }

    /// Who signs: the youngest that nodes have heard of, else the oldest.
    pub fn signer(&self, now: SystemTime) -> Option<&Signer> {
        self.0.iter().rev().find(|signer| signer.is_older(HEARD, now)).or(self.0.first())
    }

    /// The certificates of all, as PEM.
    pub fn certificates(&self) -> String {
        self.0.iter().map(|signer| signer.certificate.as_str()).collect()
    }
}

/// A certificate that is good from `from` on for so long.
pub fn lasting(mut params: CertificateParams, from: SystemTime, time: Duration) -> CertificateParams {
    params.not_before = (from - BEFORE).into();
    params.not_after = (from + time).into();
    params
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_hear_of_an_authority_before_it_signs_and_of_the_older_one_until_it_ends() {
        let start = SystemTime::UNIX_EPOCH + 20_000 * DAY;
        let on = |day: u32| start + day * DAY;
        let first = Chain::default().next(on(0)).unwrap().unwrap();
        let signs = |chain: &Chain, day| chain.0.iter().position(|of| Some(of) == chain.signer(on(day))).unwrap();
        assert_eq!((first.0.len(), signs(&first, 0)), (1, 0), "the only one signs at once");
        assert_eq!(first.next(on(300)).unwrap(), None);
        let both = first.next(on(366)).unwrap().unwrap();
        assert_eq!(both.certificates().matches("BEGIN CERTIFICATE").count(), 2);
        assert_eq!((signs(&both, 366), signs(&both, 368)), (0, 1));
        assert_eq!(both.next(on(700)).unwrap(), None, "what the older one has signed is still good");
        let second = both.next(on(731)).unwrap().unwrap();
        assert_eq!((second.0.len(), &second.0[0]), (1, &both.0[1]));
        let late = first.next(on(5_000)).unwrap().unwrap();
        assert_eq!((late.0.len(), signs(&late, 5_000)), (1, 0), "control was away for years");
        assert_eq!(first.next(start - DAY).unwrap(), None, "a clock that went back ends nothing");
    }

    #[test]
    fn a_key_is_not_shown() {
        let chain = Chain::default().next(SystemTime::now()).unwrap().unwrap();
        assert!(!format!("{chain:?}").contains("PRIVATE"), "{chain:?}");
    }
}
