//! What is known of components' images, and what that makes of the components. Decides, and does no IO.

use std::collections::BTreeMap;

use pillion_protocol::{
    component::Image as SpecImage,
    digest::Digest,
    id::ComponentId,
    reference::Reference,
    resolution::{Question, Resolution},
    stream::WantedComponent,
};

use crate::{
    catalog::Published,
    resource::{Access, Reason, Rejection},
};

/// What is known of components' images.
#[derive(Default)]
pub struct Images(BTreeMap<ComponentId, Image>);

/// A component, and what is known of its image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// What the component is but for that, or why it is not accepted.
    pub accepted: Result<WantedComponent, Rejection>,
    /// Whose pods may have it.
    access: Option<Access>,
    /// What its image was found to be; `None` before anybody was asked.
    pub resolution: Option<Resolution>,
    /// How often its registry was asked in vain.
    failures: u32,
}

/// An image with the digest that it was found to have, as a component's status keeps it: `REGISTRY/REPOSITORY:TAG@sha256:…`.
fn kept(image: &Reference, digest: Digest) -> String {
    match image.digest() {
        Some(_) => image.to_string(),
        None => format!("{image}@{digest}"),
    }
}

/// What a status says of `image`, if it says anything of that one.
fn kept_of(image: &Reference, status: &str) -> Option<Digest> {
    let digest = status.rsplit_once('@')?.1.parse().ok()?;
    (kept(image, digest) == status).then_some(digest)
}

impl Image {
    /// The image as the component names it.
    fn reference(&self) -> Option<&Reference> {
        match &self.accepted.as_ref().ok()?.spec.image {
            SpecImage::Reference(image) => Some(image),
            SpecImage::Path(_) => None,
        }
    }

    /// The image with its digest, if that was found, as a status keeps it.
    pub fn resolved_image(&self) -> Option<String> {
        match self.resolution {
            Some(Resolution::Resolved(digest)) => Some(kept(self.reference()?, digest)),
            _ => None,
        }
    }

    /// What is to be asked, if anything is.
    fn question(&self) -> Option<Question> {
        let login = self.accepted.as_ref().ok()?.login.clone();
        let is_open = !matches!(self.resolution, Some(Resolution::Resolved(_)));
        is_open.then_some(Question { image: self.reference()?.clone(), login })
    }

    /// The component as nodes are told it. Before its image is known, one that was published stays as it was.
    fn published(&self, before: Option<&Published>) -> Published {
        let rejected = |reason, message: &str| Err(Rejection::new(reason, message));
        let accepted = match (&self.accepted, &self.resolution) {
            (Err(rejection), _) => Err(rejection.clone()),
            (Ok(_), None) => {
                if let Some(before) = before.filter(|before| before.accepted.is_ok()) {
                    return before.clone().with_access(self.access.clone());
                }
                rejected(Reason::Resolving, "its image is being looked at")
            }
            (Ok(_), Some(Resolution::Refused(why))) => rejected(Reason::ImageRefused, why),
            // A node may reach what control does not: it is told the tag, and asks itself, whatever others had pulled.
            (Ok(wanted), Some(Resolution::Unread(_))) => Ok(WantedComponent { unproven: true, ..wanted.clone() }),
            (Ok(wanted), Some(Resolution::Resolved(digest))) => Ok(at(wanted, *digest)),
        };
        Published::new(accepted, self.access.clone())
    }
}

/// The component with its image at a digest.
fn at(wanted: &WantedComponent, digest: Digest) -> WantedComponent {
    let mut wanted = wanted.clone();
    if let SpecImage::Reference(image) = &wanted.spec.image {
        wanted.spec.image = SpecImage::Reference(image.at(digest));
    }
    wanted
}

impl Images {
    /// A component is new or has changed; `status` is what its status has of its image. Gives it as nodes are told it, and whether its
    /// registry is to be asked now.
    pub fn accept(
        &mut self,
        id: &ComponentId,
        accepted: Result<WantedComponent, Rejection>,
        access: Option<Access>,
        status: Option<&str>,
        before: Option<&Published>,
    ) -> (Published, bool) {
        let old = self.0.remove(id);
        let mut new = Image { accepted, access, resolution: None, failures: 0 };
        let kept = status.zip(new.reference()).and_then(|(status, image)| kept_of(image, status));
        new.resolution = match (&old, kept) {
            (_, Some(digest)) => Some(Resolution::Resolved(digest)),
            (Some(old), None) if old.reference() == new.reference() => old.resolution.clone(),
            _ => None,
        };
        // Other credentials may lead further.
        let question = new.question();
        let is_news = old.as_ref().and_then(Image::question) != question;
        new.failures = old.filter(|_| !is_news).map_or(0, |old| old.failures);
        let (published, ask) = (new.published(before), is_news && question.is_some());
        self.0.insert(id.clone(), new);
        (published, ask)
    }

    /// A component is no more.
    pub fn remove(&mut self, id: &ComponentId) {
        self.0.remove(id);
    }

    /// A component, and what is known of its image.
    pub fn get(&self, id: &ComponentId) -> Option<&Image> {
        self.0.get(id)
    }

    /// Those whose registries are to be asked.
    pub fn open(&self) -> impl Iterator<Item = &ComponentId> {
        self.0.iter().filter(|(_, image)| image.question().is_some()).map(|(id, _)| id)
    }

    /// What a component's registry is to be asked, if anything.
    pub fn question(&self, id: &ComponentId) -> Option<Question> {
        self.get(id)?.question()
    }

    /// A registry was asked. Gives the component as nodes are told it now, if that was still the question; and how often it was asked in vain, if
    /// it is to be asked again.
    pub fn resolve(
        &mut self,
        id: &ComponentId,
        question: &Question,
        resolution: Resolution,
    ) -> Option<(Published, Option<u32>)> {
        let image = self.0.get_mut(id).filter(|image| image.question().as_ref() == Some(question))?;
        // What it was found to be is not forgotten when the registry is away.
        let stays =
            matches!(image.resolution, Some(Resolution::Refused(_))) && matches!(resolution, Resolution::Unread(_));
        if !stays {
            image.resolution = Some(resolution);
        }
        image.failures = image.failures.saturating_add(1);
        let again = image.question().map(|_| image.failures);
        // Something is known of it now, so what was published before does not count.
        Some((image.published(None), again))
    }
}

#[cfg(test)]
mod tests {
    use pillion_protocol::{component::ComponentSpec, login::Login};

    use super::*;

    fn wanted(image: &str) -> WantedComponent {
        ComponentSpec::new(SpecImage::Reference(image.parse().unwrap())).into()
    }

    fn clock() -> ComponentId {
        "clock".parse().unwrap()
    }

    fn digest(byte: u8) -> Digest {
        Digest::from_sha256([byte; 32])
    }

    /// The image that nodes are told, or why they are told none.
    fn told(published: &Published) -> Result<String, Reason> {
        published.accepted.as_ref().map(|wanted| wanted.spec.image.to_string()).map_err(|rejection| rejection.reason)
    }

    #[test]
    fn nodes_are_told_a_digest_and_nothing_before() {
        let mut images = Images::default();
        let (first, ask) = images.accept(&clock(), Ok(wanted("r.example/clock:1")), None, None, None);
        assert_eq!((told(&first), ask), (Err(Reason::Resolving), true));
        let question = images.question(&clock()).unwrap();
        let (one, again) = images.resolve(&clock(), &question, Resolution::Resolved(digest(1))).unwrap();
        assert_eq!(again, None);
        assert_eq!(told(&one), Ok(format!("r.example/clock@{}", digest(1))));
        assert_eq!(images.open().count(), 0);
        // Another image: what was served goes on until it is known, and an answer to the old question is none.
        let (still, ask) = images.accept(&clock(), Ok(wanted("r.example/clock:2")), None, None, Some(&one));
        assert_eq!((told(&still), ask), (told(&one), true));
        assert_eq!(images.resolve(&clock(), &question, Resolution::Resolved(digest(9))), None);
        // The same image with other settings keeps its digest.
        let question = images.question(&clock()).unwrap();
        images.resolve(&clock(), &question, Resolution::Resolved(digest(2))).unwrap();
        let (same, ask) = images.accept(&clock(), Ok(wanted("r.example/clock:2")), None, None, None);
        assert_eq!((told(&same), ask), (Ok(format!("r.example/clock@{}", digest(2))), false));
    }

    #[test]
    fn what_a_status_keeps_is_not_asked_again() {
        let mut images = Images::default();
        let status = format!("r.example/clock:1@{}", digest(1));
        let (kept, ask) = images.accept(&clock(), Ok(wanted("r.example/clock:1")), None, Some(&status), None);
        assert_eq!((told(&kept), ask), (Ok(format!("r.example/clock@{}", digest(1))), false));
        assert_eq!(images.get(&clock()).unwrap().resolved_image().unwrap(), status);
        let (other, ask) = images.accept(&clock(), Ok(wanted("r.example/clock:10")), None, Some(&status), None);
        assert_eq!((told(&other), ask), (Err(Reason::Resolving), true));
        for broken in ["", "r.example/clock:10", "r.example/clock:10@sha256:1", "@"] {
            assert_eq!(kept_of(&"r.example/clock:10".parse().unwrap(), broken), None);
        }
        let pinned: Reference = format!("r.example/clock@{}", digest(3)).parse().unwrap();
        assert_eq!(kept_of(&pinned, &pinned.to_string()), Some(digest(3)));
    }

    #[test]
    fn what_control_cannot_read_nodes_try_and_what_it_finds_wanting_they_do_not() {
        let mut images = Images::default();
        images.accept(&clock(), Ok(wanted("r.example/clock:1")), None, None, None);
        let question = images.question(&clock()).unwrap();
        let mut times = 0;
        let mut after = |resolution| {
            let (published, again) = images.resolve(&clock(), &question, resolution).unwrap();
            times += 1;
            assert_eq!(again, Some(times));
            told(&published)
        };
        assert_eq!(after(Resolution::Unread("HTTP 401".into())), Ok("r.example/clock:1".into()));
        // That control read it as who the component is, is the proof that the component may have it.
        assert_eq!(after(Resolution::Refused("a tar".into())), Err(Reason::ImageRefused));
        assert_eq!(after(Resolution::Unread("HTTP 503".into())), Err(Reason::ImageRefused));
        // Other credentials are another question.
        let login = Login::Basic { username: "ann".into(), password: "word".into() };
        let (_, ask) = images.accept(
            &clock(),
            Ok(WantedComponent { login: Some(login), ..wanted("r.example/clock:1") }),
            None,
            None,
            None,
        );
        assert!(ask);
        assert_eq!(images.resolve(&clock(), &question, Resolution::Resolved(digest(1))), None);
    }

    #[test]
    fn who_may_have_it_counts_at_once() {
        let mut images = Images::default();
        let status = format!("r.example/clock:1@{}", digest(1));
        let (one, _) = images.accept(&clock(), Ok(wanted("r.example/clock:1")), None, Some(&status), None);
        let nobody = Some(Access::default());
        let (still, _) = images.accept(&clock(), Ok(wanted("r.example/clock:2")), nobody.clone(), None, Some(&one));
        assert_eq!((told(&still), still.access), (told(&one), nobody));
    }
}
