//! The host: the part of Pillion that runs every guest of a node.
//!
//! One program, `pillion`, is five processes. The [`supervisor`] holds the listeners and starts the others; the [`worker`]
//! runs guests; the [`compiler`] is a short-lived child that turns one component into native code, the puller of [`registry`]
//! another one that brings an artifact into the store, the [`follower`] hears what control says. `pillion run` on a laptop and the DaemonSet's container are the same code:
//! only where listeners and components come from differs.
//!
//! | room | holds |
//! |---|---|
//! | [`catalog`] | components and bindings, read from files or told by control |
//! | [`commands`] | the command line |
//! | [`compiler`] | the child that compiles, and what it finds out about a component |
//! | [`endpoint`] | listeners, connections, HTTP, what a caller gets |
//! | [`engine`] | wasmtime's settings, linking, loading |
//! | [`follower`] | the child that follows control |
//! | [`guest`] | what an instance sees: interfaces, logs, memory limit; how it is called |
//! | [`idle`] | the timer for silence that bodies and connections share |
//! | [`log`] | what is said on standard error: the program's own lines, and guests' |
//! | [`outbound`] | where guests may call out to, and the calls |
//! | [`program`] | other programs, run to their end |
//! | [`registry`] | from a reference to an artifact in the store |
//! | [`scheduler`] | admission, budgets, CPU time, which threads a guest runs on |
//! | [`spin`] | Spin applications: what one says, and which component of it answers |
//! | [`store`] | artifacts and native code on disk |
//! | [`supervisor`] | the first process, and the link to its worker |
//! | [`sys`] | the only `unsafe` |
//! | [`warnings`] | how many warnings one source may cause |
//! | [`worker`] | the process that runs guests: puts the rooms together |

#![deny(unsafe_code)]

pub mod catalog;
pub mod commands;
pub mod compiler;
pub mod endpoint;
pub mod engine;
pub mod follower;
pub mod guest;
pub mod idle;
pub mod log;
pub mod outbound;
pub mod program;
pub mod registry;
pub mod scheduler;
pub mod spin;
pub mod store;
pub mod supervisor;
pub mod sys;
pub mod warnings;
pub mod worker;
