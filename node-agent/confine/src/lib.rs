//! What each of a node's processes may ask of the kernel: its capabilities, and its system calls.
//!
//! Every process confines itself as it begins, before it starts a thread, whoever started it and with whatever rights. What it gives
//! up it cannot get back: `no_new_privs` is set, and children inherit the filter and add their own to it.
//!
//! | file | holds |
//! |---|---|
//! | `calls` | system calls by what they are for |
//! | `arguments` | what is looked at in the arguments of some |

#![forbid(unsafe_code)]

mod arguments;
mod calls;

use std::collections::BTreeMap;

use landlock::{ABI, Access, AccessFs, Ruleset, RulesetAttr, RulesetCreatedAttr, path_beneath_rules};
use rustix::{
    process::{DumpableBehavior, set_dumpable_behavior},
    thread::{CapabilitySet, CapabilitySets},
};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, SeccompRule};

/// A process of the node's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Process {
    /// Enters network namespaces and holds listeners.
    Keeper,
    /// Starts workers and compilers.
    Supervisor,
    /// Runs guests.
    Worker,
    /// Pulls one artifact from a registry.
    Puller,
    /// Asks a registry what an image is, for control.
    Resolver,
    /// Follows what control says to the node.
    Follower,
    /// Puts the CNI plugin on the node, or takes it away.
    Installer,
    /// Compiles one component, on one thread, from a descriptor to another.
    Compiler,
}

/// Why a process cannot be confined.
#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    /// The kernel refuses.
    #[error("capabilities cannot be dropped: {0}")]
    Capabilities(#[source] rustix::io::Errno),
    /// The kernel refuses.
    #[error("files cannot be closed off: {0}")]
    Files(#[from] landlock::RulesetError),
    /// The kernel cannot filter system calls, or not on this architecture.
    #[error("system calls cannot be filtered: {0}")]
    Filter(#[from] seccompiler::Error),
    /// The filter is none.
    #[error("system calls cannot be filtered: {0}")]
    Backend(#[from] seccompiler::BackendError),
}

impl Process {
    /// The capabilities that it keeps, if it has them.
    ///
    /// CAP_SYS_ADMIN: `setns` into pods' network namespaces. CAP_SYS_PTRACE: to look at `/proc/PID/ns/net` of pods' processes.
    /// CAP_DAC_OVERRIDE: to write the node's CNI folders where they are another user's.
    fn capabilities(self) -> CapabilitySet {
        match self {
            Self::Keeper => CapabilitySet::SYS_ADMIN | CapabilitySet::SYS_PTRACE,
            Self::Installer => CapabilitySet::DAC_OVERRIDE,
            Self::Supervisor | Self::Worker | Self::Puller | Self::Resolver | Self::Follower | Self::Compiler => {
                CapabilitySet::empty()
            }
        }
    }

    fn calls(self) -> Vec<&'static [i64]> {
        use calls::{BASE, FILES, NAMESPACES, POLLING, SCHEDULING, SOCKETS, SPAWNING, THREADS, WATCHING};
        match self {
            Self::Keeper => vec![BASE, THREADS, FILES, POLLING, SOCKETS, NAMESPACES],
            Self::Supervisor => vec![BASE, THREADS, FILES, POLLING, SOCKETS, SCHEDULING, WATCHING, SPAWNING],
            Self::Worker => vec![BASE, THREADS, FILES, POLLING, SOCKETS, SCHEDULING],
            Self::Puller | Self::Resolver | Self::Follower => vec![BASE, THREADS, FILES, POLLING, SOCKETS],
            Self::Installer => vec![BASE, THREADS, FILES, POLLING, SOCKETS, WATCHING],
            Self::Compiler => vec![BASE],
        }
    }

    /// Confines the calling thread, and every thread that it starts from now on.
    ///
    /// # Errors
    ///
    /// See [`ConfineError`].
    pub fn confine(self) -> Result<(), ConfineError> {
        drop_capabilities(self.capabilities()).map_err(ConfineError::Capabilities)?;
        if matches!(self, Self::Supervisor | Self::Puller | Self::Resolver | Self::Follower) {
            // Workers are the same user: without this they could look into their memory, in which passwords are, and write into it.
            set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(ConfineError::Capabilities)?;
        }
        if self == Self::Resolver {
            read_only(&RESOLVING)?;
        }
        // This sets no_new_privs, too.
        Ok(seccompiler::apply_filter(&self.filter()?)?)
    }

    /// Whatever is not listed fails with ENOSYS, as on a kernel that does not know it: libraries fall back.
    fn filter(self) -> Result<BpfProgram, ConfineError> {
        let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
            self.calls().into_iter().flatten().map(|call| (*call, Vec::new())).collect();
        rules.extend(arguments::looked_at(self)?);
        let otherwise = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
        let filter = SeccompFilter::new(rules, otherwise, SeccompAction::Allow, std::env::consts::ARCH.try_into()?)?;
        Ok(filter.try_into()?)
    }
}

/// What names and certificates are found by: their files, and the libraries that read them.
const RESOLVING: [&str; 5] = ["/etc", "/usr", "/lib", "/lib64", "/proc/self"];

/// Leaves of all files those beneath `folders`, to be read, where the kernel can (5.13 and later); and of all processes this one, to be looked into.
fn read_only(folders: &[&str]) -> Result<(), landlock::RulesetError> {
    let (all, read) = (AccessFs::from_all(ABI::V1), AccessFs::from_read(ABI::V1));
    let rules = Ruleset::default().handle_access(all)?.create()?;
    rules.add_rules(path_beneath_rules(folders, read))?.restrict_self().map(drop)
}

/// Keeps what is in `keep`, as far as the process has it, and drops everything else for good.
fn drop_capabilities(keep: CapabilitySet) -> rustix::io::Result<()> {
    use rustix::thread;
    let now = thread::capabilities(None)?;
    if now.effective.contains(CapabilitySet::SETPCAP) {
        for capability in CapabilitySet::all().difference(keep).iter() {
            match thread::remove_capability_from_bounding_set(capability) {
                // One that this kernel does not know.
                Ok(()) | Err(rustix::io::Errno::INVAL) => {}
                Err(error) => return Err(error),
            }
        }
    }
    thread::clear_ambient_capability_set()?;
    let kept = now.permitted.intersection(keep);
    thread::set_capabilities(
        None,
        CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() },
    )
}

#[cfg(test)]
mod tests {
    use std::{fs::File, net::TcpListener, os::fd::AsFd, process::Command, thread};

    use rustix::thread::{LinkNameSpaceType, capabilities, move_into_link_name_space, no_new_privs};

    use super::*;

    /// On a thread of its own, as far as a filter is concerned a process of its own.
    fn confined<T: Send + 'static>(process: Process, then: impl FnOnce() -> T + Send + 'static) -> T {
        let within = move || {
            process.confine().unwrap();
            assert!(no_new_privs().unwrap());
            then()
        };
        thread::spawn(within).join().unwrap()
    }

    fn enter_own_namespace() -> rustix::io::Result<()> {
        let netns = File::open("/proc/thread-self/ns/net").unwrap();
        move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))
    }

    #[test]
    fn a_worker_enters_nothing_and_starts_nothing() {
        confined(Process::Worker, || {
            assert!(enter_own_namespace().is_err());
            assert_eq!(capabilities(None).unwrap().permitted, CapabilitySet::empty());
            assert!(Command::new("/bin/true").spawn().is_err());
            assert!(rustix::mount::mount("none", "/mnt", "tmpfs", rustix::mount::MountFlags::empty(), None).is_err());
            TcpListener::bind("127.0.0.1:0").unwrap();
            assert!(std::os::unix::net::UnixListener::bind("/tmp/no.sock").is_err());
            assert_eq!(thread::spawn(|| 7).join().unwrap(), 7, "threads are started");
        });
    }

    #[test]
    fn a_puller_connects_and_starts_nothing() {
        confined(Process::Puller, || {
            assert!(enter_own_namespace().is_err());
            assert_eq!(capabilities(None).unwrap().permitted, CapabilitySet::empty());
            assert!(Command::new("/bin/true").spawn().is_err());
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            assert!(std::os::unix::net::UnixListener::bind("/tmp/no.sock").is_err());
        });
    }

    #[test]
    fn a_resolver_reads_what_it_needs_and_no_token() {
        let token = tempfile::NamedTempFile::new().unwrap();
        let path = token.path().to_owned();
        confined(Process::Resolver, move || {
            assert!(File::open("/etc/passwd").is_ok() && File::open("/proc/self/statm").is_ok());
            assert!(File::open(path).is_err(), "needs Linux 5.13");
            let of_parent = format!("/proc/{}/mem", rustix::process::getppid().unwrap().as_raw_nonzero());
            assert!(File::open(of_parent).is_err());
            assert!(Command::new("/bin/true").spawn().is_err());
        });
    }

    #[test]
    fn a_supervisor_starts_programs_and_enters_nothing() {
        confined(Process::Supervisor, || {
            assert!(Command::new("/bin/true").status().unwrap().success());
            assert!(enter_own_namespace().is_err());
            assert_eq!(capabilities(None).unwrap().permitted, CapabilitySet::empty());
        });
    }

    #[test]
    fn a_compiler_opens_nothing() {
        confined(Process::Compiler, || {
            assert!(File::open("/proc/self/status").is_err());
            assert!(TcpListener::bind("127.0.0.1:0").is_err());
            assert!(thread::Builder::new().spawn(|| ()).is_err());
            assert_eq!(vec![7; 1 << 20].len(), 1 << 20);
        });
    }

    #[test]
    fn a_keeper_enters_namespaces_and_starts_nothing() {
        let had = capabilities(None).unwrap().permitted;
        confined(Process::Keeper, move || {
            let kept = CapabilitySet::SYS_ADMIN | CapabilitySet::SYS_PTRACE;
            assert_eq!(capabilities(None).unwrap().permitted, had.intersection(kept));
            assert_eq!(enter_own_namespace().is_ok(), had.contains(CapabilitySet::SYS_ADMIN));
            assert!(Command::new("/bin/true").spawn().is_err());
            assert!(!rustix::thread::capability_is_in_bounding_set(CapabilitySet::NET_ADMIN).unwrap());
        });
    }
}
