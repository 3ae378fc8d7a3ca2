//! The keeper: owns pods' network namespaces and every listener in them. It parses nothing from the network, runs no guest, and
//! outlives the host: while that is away, the kernel queues connections on the listeners that are held here.
//!
//! | file | holds |
//! |---|---|
//! | [`keeper`] | the one thread that owns everything, and what it reacts to |
//! | [`plan`] | what is to be bound and closed, decided without IO |
//! | [`netns`] | namespaces: who they are, and the only thread that enters them |
//! | [`state`] | the file that a restarted keeper finds its pods by |
//! | [`plugin`] | the socket of the CNI plugin |
//! | [`host`] | the socket of the host |

#![forbid(unsafe_code)]

pub mod host;
pub mod keeper;
pub mod netns;
pub mod plan;
pub mod plugin;
pub mod state;
