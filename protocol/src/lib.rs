//! The words that Pillion's parts share.
//!
//! Plain data and the grammars that read it: no IO, no async runtime, no engine. What both sides of a wire or of a file must
//! agree on is here; what one side decides is not.
//!
//! | module | holds |
//! |---|---|
//! | [`annotation`] | `pillion.dev/sidecars: "NAME=PORT, …"` |
//! | [`cni`] | the versions that the CNI plugin speaks |
//! | [`component`] | the `Component` and `ClusterComponent` resources |
//! | [`digest`] | `sha256:…` |
//! | [`hosts`] | `allowedOutboundHosts` |
//! | [`id`] | components as pods of a namespace see them |
//! | [`keeper`] | what the CNI plugin asks of the keeper, and what the keeper tells the host |
//! | [`login`] | who somebody is at a registry |
//! | [`name`] | names of components and bindings |
//! | [`pod`] | pods and their sandboxes |
//! | [`quantity`] | sizes and durations as people write them |
//! | [`mod@reference`] | references to artifacts in registries |
//! | [`resolution`] | what control asks of registries |
//! | [`stream`] | what control and a node say to each other |
//! | [`text`] | others' text, fit to be shown to people, and how much of it |

#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod annotation;
pub mod cni;
pub mod component;
pub mod digest;
pub mod hosts;
pub mod id;
pub mod keeper;
pub mod login;
pub mod name;
pub mod pod;
pub mod quantity;
pub mod reference;
pub mod resolution;
pub mod stream;
pub mod text;
