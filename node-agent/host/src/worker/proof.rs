//! Whether what the store holds may be served to a component: what one namespace's login pulled is another's only once the registry has
//! let that to it, too.

use pillion_protocol::{component::Image, digest::Digest, id::ComponentId, reference::Reference};

use super::prepare::{Preparation, Preparer, locked};
use crate::supervisor::message::Wish;

/// What is known of a component and a version of its image.
#[derive(Clone, Copy, Debug)]
struct Known {
    /// Control could not read the image as who the component is.
    unproven: bool,
    /// A worker served this version to the component.
    served: bool,
    /// The registry has let its namespace to it, or everybody.
    proven: bool,
}

fn may_serve(known: Known) -> bool {
    !known.unproven || known.served || known.proven
}

impl Preparer {
    /// Control has said of a component whether its namespace has to be let to its image.
    pub(super) fn set_unproven(&self, id: &ComponentId, unproven: bool) {
        let mut all = locked(&self.unproven);
        if unproven {
            all.insert(id.clone());
        } else {
            all.remove(id);
        }
    }

    fn is_unproven(&self, id: &ComponentId) -> bool {
        locked(&self.unproven).contains(id)
    }

    /// Whether this version may be served to the component of a preparation.
    pub(super) fn may_serve(&self, preparation: &Preparation, version: Digest) -> bool {
        let Preparation { id, spec, .. } = preparation;
        let unproven = self.is_unproven(id) && matches!(spec.image, Image::Reference(_));
        let served = !preparation.pulled && preparation.version == Some(version);
        // The disk is looked at only where that matters.
        let proven = unproven && !served && self.library.is_proven(version, id.namespace.as_ref());
        may_serve(Known { unproven, served, proven })
    }

    /// What is to be asked for.
    pub(super) fn wish(&self, reference: &Reference, id: &ComponentId) -> Wish {
        let namespace = id.namespace.clone().filter(|_| self.is_unproven(id));
        Wish { reference: reference.clone(), namespace }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_pulled_needs_a_proof_and_what_serves_does_not() {
        let table = [
            (false, false, false, true),
            (true, false, false, false),
            (true, false, true, true),
            (true, true, false, true),
        ];
        for (unproven, served, proven, expected) in table {
            let known = Known { unproven, served, proven };
            assert_eq!(may_serve(known), expected, "{known:?}");
        }
    }
}
