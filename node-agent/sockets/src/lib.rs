//! What the node's processes share of sockets: how listeners are opened, how they travel, and how one that arrived is checked.
//!
//! | module | holds |
//! |---|---|
//! | [`heard`] | messages of a neighbour of another version |
//! | [`link`] | messages over a Unix socket, with descriptors beside them |
//! | [`listen`] | listeners: opened, and checked where they arrive |
//! | [`sys`] | the only `unsafe` |

#![deny(unsafe_code)]

pub mod heard;
pub mod link;
pub mod listen;
pub mod sys;
