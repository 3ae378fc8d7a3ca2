//! Registries: from a reference to components in the store.
//!
//! The protocol is the OCI's distribution specification, over `reqwest`: which registry is asked, with whose credentials, how often, how much
//! it may say, whom else it may have us ask, and what of it is believed. Whatever is pulled is pulled by a child process, the *puller*: it parses what strangers say over the
//! network, and it alone, and only for one artifact, holds that artifact's credentials. The supervisor starts it, so that the worker,
//! in which guests run, never sees any.
//!
//! | file | holds |
//! |---|---|
//! | `settings` | the node's settings for registries |
//! | `credentials` | who we are at a registry: docker config JSON, then the kubelet's providers (`provider`) |
//! | `message` | what supervisor and puller say to each other |
//! | `puller` | the child: an artifact into the store |
//! | `resolver` | control's child: what a tag leads to, and whether nodes can serve it |
//! | `client` | one registry: each question bounded in time, memory and number (`retry`), each failure in words (`problem`) |
//! | `token` | who we are there: a password, or the token of the server that it names, if `realm` lets that be asked |
//! | `reach` | whom a question may reach, and by which proxy |
//! | `download` | a blob on its way to disk, counted and hashed |
//! | `manifest` | what an artifact's manifest says it holds |
//! | `push` | a component into a registry |

pub mod client;
pub mod credentials;
mod download;
pub mod manifest;
pub mod message;
mod problem;
mod provider;
pub mod puller;
pub mod push;
mod reach;
mod realm;
pub mod resolver;
mod retry;
pub mod settings;
mod token;

pub(crate) use self::problem::chain;
