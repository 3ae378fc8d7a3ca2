//! The keeper: owns pods' network namespaces and every listener in them. It parses nothing from the network, runs no guest, and
//! outlives the host: while that is away, the kernel queues connections on the listeners that are held here.
//!
//! | file | holds |
//! |---|---|
//! | [`keeper`] | the one thread that owns everything, and what it reacts to |
//! | [`converge`], [`hear`] | its parts that compare and mend, and that hear what hosts say |
//! | [`plan`] | what is to be bound and closed, decided without IO |
//! | [`pod`] | a pod's listeners |
//! | [`netns`] | namespaces: who they are, and the only thread that enters them |
//! | [`find`] | namespaces of pods that no CNI plugin was asked for, by their processes |
//! | [`capacity`] | how many listeners there can be |
//! | [`state`] | the file that a restarted keeper finds its pods by |
//! | [`claim`], [`handover`] | who is the keeper, and how another one takes its place |
//! | [`plugin`], [`host`], [`socket`] | the sockets of the CNI plugin and of the host |
//! | [`status`] | `pillion-keeper status` |
//! | [`install`] | `pillion-keeper install-cni` and `uninstall-cni` |
//! | [`folders`] | `pillion-keeper make-folders` and `remove-folders` |

#![forbid(unsafe_code)]

pub mod capacity;
pub mod claim;
pub mod converge;
pub mod find;
pub mod folders;
pub mod handover;
pub mod hear;
pub mod host;
pub mod install;
pub mod keeper;
pub mod netns;
pub mod plan;
pub mod plugin;
pub mod pod;
pub mod socket;
pub mod state;
pub mod status;
