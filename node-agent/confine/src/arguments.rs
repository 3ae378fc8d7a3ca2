//! What is looked at in the arguments of system calls that can do much else than what they are allowed for.
//!
//! A process whose `SIGIO` goes to another one, by `F_SETOWN` or `FIOSETOWN`, signals it: any signal, by `F_SETSIG`. A terminal is typed into by
//! `TIOCSTI`. Neither needs a right beyond the same user's. Programs that the supervisor starts inherit its filter and are others' (credential
//! helpers), so the supervisor's does not look at these.

use libc::{
    AF_INET, AF_INET6, AF_NETLINK, AF_UNIX, CLONE_NEWNET, CLONE_THREAD, F_ADD_SEALS, F_DUPFD, F_DUPFD_CLOEXEC,
    F_GET_SEALS, F_GETFD, F_GETFL, F_SETFD, F_SETFL, IPPROTO_TCP, IPPROTO_UDP, NETLINK_ROUTE, O_ASYNC, SOCK_DGRAM,
    SOCK_RAW, SOCK_STREAM,
};
use seccompiler::{BackendError, SeccompCmpArgLen::Dword, SeccompCmpOp, SeccompCondition, SeccompRule};

use crate::{Process, calls};

/// Whether a system call may be made with these arguments: one of the rules holds.
pub type Looked = (i64, Vec<SeccompRule>);

/// The kind of a socket, without `SOCK_CLOEXEC` and `SOCK_NONBLOCK`: `SOCK_TYPE_MASK` in linux/net.h.
const KIND: u64 = 0xf;

/// `setpriority`'s word for a process; libraries give it different types.
const PRIO_PROCESS: u64 = 0;

/// Requests, as in asm-generic/ioctls.h, linux/sockios.h and linux/fs.h: non-blocking, bytes to read, close-on-exec, whether it is a terminal (twice)
/// and how large, the number of a network device (for `fe80::1%eth0`), and which pages were written (the engine's pool).
const REQUESTS: [u64; 8] = [0x5421, 0x541b, 0x5451, 0x5401, 0x802c_542a, 0x5413, 0x8933, 0xc060_6610];

/// What is looked at in the calls of a process, of those that it may make.
pub fn looked_at(process: Process) -> Result<Vec<Looked>, BackendError> {
    let lists = process.calls();
    let has = |list| lists.contains(&list);
    let mut looked = Vec::new();
    if has(calls::SPAWNING) {
        return Ok(looked);
    }
    looked.push((libc::SYS_fcntl, fcntl()?));
    looked.push((libc::SYS_ioctl, any(REQUESTS.map(|request| is(1, request)))?));
    if has(calls::THREADS) {
        // A new process is refused, a new thread is not. clone3 cannot be looked into.
        looked.push((libc::SYS_clone, any([has_all(0, CLONE_THREAD)])?));
    }
    if has(calls::NAMESPACES) {
        looked.push((libc::SYS_setns, any([is(1, number(CLONE_NEWNET))])?));
    }
    if has(calls::SCHEDULING) {
        for call in [libc::SYS_sched_setscheduler, libc::SYS_sched_getscheduler] {
            looked.push((call, any([is(0, 0)])?));
        }
        for call in [libc::SYS_setpriority, libc::SYS_getpriority] {
            looked.push((call, vec![all([is(0, PRIO_PROCESS), is(1, 0)])?]));
        }
    }
    if has(calls::SOCKETS) {
        // Pairs are no way to anybody.
        looked.push((libc::SYS_socketpair, any([is(0, number(AF_UNIX))])?));
        looked.push((libc::SYS_socket, sockets(matches!(process, Process::Keeper | Process::Installer))?));
    }
    if !matches!(process, Process::Keeper | Process::Installer) {
        // The supervisor is the same user, and may do more: it is neither signalled nor limited by them.
        looked.push((libc::SYS_tgkill, any([is(0, u64::from(std::process::id()))])?));
        looked.push((libc::SYS_prlimit64, any([is(0, 0)])?));
    }
    Ok(looked)
}

/// A descriptor's flags and copies, and the seals of memory that is shared.
fn fcntl() -> Result<Vec<SeccompRule>, BackendError> {
    let commands = [F_GETFD, F_SETFD, F_GETFL, F_DUPFD, F_DUPFD_CLOEXEC, F_GET_SEALS, F_ADD_SEALS];
    let mut rules = any(commands.map(|command| is(1, number(command))))?;
    rules.push(all([is(1, number(F_SETFL)), condition(2, SeccompCmpOp::MaskedEq(number(O_ASYNC)), 0)])?);
    Ok(rules)
}

/// TCP, UDP, and what the resolver asks the kernel about addresses. Unix sockets for those alone whom their peers do not take for somebody else:
/// who connects to the keeper's socket is known by the user.
fn sockets(unix: bool) -> Result<Vec<SeccompRule>, BackendError> {
    let kind = |kind| condition(1, SeccompCmpOp::MaskedEq(KIND), number(kind));
    let mut rules = Vec::new();
    for family in [AF_INET, AF_INET6] {
        for (of, protocol) in [(SOCK_STREAM, IPPROTO_TCP), (SOCK_DGRAM, IPPROTO_UDP)] {
            for protocol in [0, protocol] {
                rules.push(all([is(0, number(family)), kind(of), is(2, number(protocol))])?);
            }
        }
    }
    if unix {
        for of in [SOCK_STREAM, SOCK_DGRAM] {
            rules.push(all([is(0, number(AF_UNIX)), kind(of)])?);
        }
    } else {
        for of in [SOCK_RAW, SOCK_DGRAM] {
            rules.push(all([is(0, number(AF_NETLINK)), kind(of), is(2, number(NETLINK_ROUTE))])?);
        }
    }
    Ok(rules)
}

type Condition = Result<SeccompCondition, BackendError>;

/// A rule for each condition.
fn any<const N: usize>(conditions: [Condition; N]) -> Result<Vec<SeccompRule>, BackendError> {
    conditions.into_iter().map(|condition| SeccompRule::new(vec![condition?])).collect()
}

/// One rule for all conditions.
fn all<const N: usize>(conditions: [Condition; N]) -> Result<SeccompRule, BackendError> {
    SeccompRule::new(conditions.into_iter().collect::<Result<_, _>>()?)
}

fn is(argument: u8, value: u64) -> Condition {
    condition(argument, SeccompCmpOp::Eq, value)
}

fn has_all(argument: u8, bits: i32) -> Condition {
    condition(argument, SeccompCmpOp::MaskedEq(number(bits)), number(bits))
}

fn condition(argument: u8, operator: SeccompCmpOp, value: u64) -> Condition {
    SeccompCondition::new(argument, Dword, operator, value)
}

/// A constant of the kernel's, as the filter compares it.
fn number(constant: i32) -> u64 {
    u64::from(constant.unsigned_abs())
}

#[cfg(test)]
mod tests {
    use std::{fs::File, os::fd::AsFd, process::Command, thread};

    use libc::{
        AF_PACKET, AF_VSOCK, CLONE_NEWNS, F_NOTIFY, F_SETLEASE, F_SETOWN, IPPROTO_ICMP, NETLINK_ROUTE, O_NONBLOCK,
        SOCK_CLOEXEC, SOCK_NONBLOCK, SOCK_SEQPACKET, SYS_fcntl, SYS_ioctl, SYS_prlimit64, SYS_sched_setscheduler,
        SYS_setns, SYS_setpriority, SYS_socket, SYS_socketpair, SYS_tgkill,
    };
    use rustix::{
        fs::{OFlags, fcntl_getfl, fcntl_setfl},
        net::{AddressFamily, Protocol, SocketFlags, SocketType, ipproto, netlink, socket_with},
        thread::{LinkNameSpaceType, move_into_link_name_space},
    };

    use super::*;

    /// Of linux/fcntl.h, which the library leaves out.
    const F_SETSIG: i32 = 10;
    const F_SETOWN_EX: i32 = 15;

    /// What the kernel does with a call that comes to this filter: it runs the program on these words.
    fn allows(process: Process, call: i64, arguments: &[u64]) -> bool {
        let program = process.filter().unwrap();
        let arch = if cfg!(target_arch = "x86_64") { 0xc000_003e } else { 0xc000_00b7 };
        let mut words = vec![u32::try_from(call).unwrap(), arch, 0, 0];
        for argument in arguments.iter().chain(&[0; 6]).take(6) {
            words.extend([u32::try_from(argument & 0xffff_ffff).unwrap(), u32::try_from(argument >> 32).unwrap()]);
        }
        let (mut at, mut a) = (0, 0);
        loop {
            let step = &program[at];
            at += 1;
            let mut jump = |when| at += usize::from(if when { step.jt } else { step.jf });
            match step.code {
                0x20 => a = words[step.k as usize / 4],
                0x54 => a &= step.k,
                0x05 => at += step.k as usize,
                0x15 => jump(a == step.k),
                0x25 => jump(a > step.k),
                0x35 => jump(a >= step.k),
                0x06 => return step.k == 0x7fff_0000,
                other => panic!("the instruction {other:x}"),
            }
        }
    }

    #[test]
    fn calls_are_allowed_by_what_they_are_for() {
        use Process::{Compiler, Follower, Installer, Keeper, Puller, Resolver, Supervisor, Worker};
        let n = number;
        let own = u64::from(std::process::id());
        let all = [Keeper, Worker, Puller, Resolver, Follower, Installer, Compiler];
        for process in all {
            for command in [F_GETFD, F_SETFD, F_GETFL, F_DUPFD_CLOEXEC] {
                assert!(allows(process, SYS_fcntl, &[3, n(command), n(O_ASYNC)]), "{process:?} {command}");
            }
            assert!(allows(process, SYS_fcntl, &[3, n(F_SETFL), n(O_NONBLOCK)]), "{process:?}");
            assert!(!allows(process, SYS_fcntl, &[3, n(F_SETFL), n(O_NONBLOCK | O_ASYNC)]), "{process:?}");
            for command in [F_SETOWN, F_SETSIG, F_SETOWN_EX, F_SETLEASE, F_NOTIFY] {
                assert!(!allows(process, SYS_fcntl, &[3, n(command), 1]), "{process:?} {command}");
            }
            for request in REQUESTS {
                assert!(allows(process, SYS_ioctl, &[3, request]), "{process:?} {request:x}");
            }
            // TIOCSTI, TIOCLINUX, FIOSETOWN, SIOCSPGRP, FIOASYNC, TCSETS.
            for request in [0x5412, 0x541c, 0x8901, 0x8902, 0x5452, 0x5402] {
                assert!(!allows(process, SYS_ioctl, &[0, request]), "{process:?} {request:x}");
            }
        }
        for process in [Worker, Puller, Resolver, Follower, Compiler] {
            assert!(
                allows(process, SYS_tgkill, &[own, own, 6]) && !allows(process, SYS_tgkill, &[own + 1, own + 1, 9])
            );
            assert!(allows(process, SYS_prlimit64, &[0, 7]) && !allows(process, SYS_prlimit64, &[own + 1, 7]));
        }
        let sockets: [([i32; 3], bool, bool); 15] = [
            // Family, kind, protocol; may the worker; may the keeper.
            ([AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, IPPROTO_TCP], true, true),
            ([AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0], true, true),
            ([AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0], true, true),
            ([AF_INET6, SOCK_DGRAM, IPPROTO_UDP], true, true),
            ([AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE], true, false),
            ([AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0], false, true),
            ([AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0], false, true),
            // NETLINK_SOCK_DIAG, NETLINK_AUDIT, IPPROTO_SCTP, IPPROTO_MPTCP.
            ([AF_NETLINK, SOCK_RAW, 4], false, false),
            ([AF_NETLINK, SOCK_DGRAM, 9], false, false),
            ([AF_INET, SOCK_STREAM, 132], false, false),
            ([AF_INET6, SOCK_STREAM, 262], false, false),
            ([AF_INET, SOCK_SEQPACKET, 0], false, false),
            ([AF_INET, SOCK_DGRAM, IPPROTO_ICMP], false, false),
            ([AF_PACKET, SOCK_RAW, 3], false, false),
            ([AF_VSOCK, SOCK_STREAM, 0], false, false),
        ];
        for (words, worker, keeper) in sockets {
            for process in [Worker, Puller, Resolver, Follower] {
                assert_eq!(allows(process, SYS_socket, &words.map(n)), worker, "{process:?} {words:?}");
            }
            for process in [Keeper, Installer] {
                assert_eq!(allows(process, SYS_socket, &words.map(n)), keeper, "{process:?} {words:?}");
            }
            assert!(allows(Supervisor, SYS_socket, &words.map(n)) && !allows(Compiler, SYS_socket, &words.map(n)));
        }
        assert!(
            allows(Worker, SYS_socketpair, &[n(AF_UNIX), n(SOCK_STREAM)]) && !allows(Worker, SYS_socketpair, &[30, 1])
        );
        assert!(allows(Worker, SYS_sched_setscheduler, &[0, 5]) && !allows(Worker, SYS_sched_setscheduler, &[own, 5]));
        assert!(allows(Worker, SYS_setpriority, &[0, 0, 19]) && !allows(Worker, SYS_setpriority, &[0, own + 1, 19]));
        assert!(!allows(Worker, SYS_setpriority, &[2, 0, 19]), "all of a user's");
        assert!(allows(Keeper, SYS_setns, &[3, n(CLONE_NEWNET)]) && !allows(Worker, SYS_setns, &[3, n(CLONE_NEWNET)]));
        for other in [0, CLONE_NEWNS, CLONE_NEWNET | CLONE_NEWNS] {
            assert!(!allows(Keeper, SYS_setns, &[3, n(other)]), "{other:x}");
        }
    }

    /// On a thread of its own, as far as a filter is concerned a process of its own.
    fn confined(process: Process, then: impl FnOnce() + Send + 'static) {
        thread::spawn(move || process.confine().map(|()| then()).unwrap()).join().unwrap();
    }

    #[test]
    fn the_kernel_refuses_what_the_filter_does() {
        let mut other = Command::new("sleep").arg("60").spawn().unwrap();
        let (pid, parent) = (rustix::process::Pid::from_child(&other), File::open("/proc/self/ns/net").unwrap());
        confined(Process::Worker, move || {
            let (one, _other) = std::os::unix::net::UnixStream::pair().unwrap();
            one.set_nonblocking(true).unwrap();
            let flags = fcntl_getfl(&one).unwrap();
            assert!(flags.contains(OFlags::NONBLOCK));
            fcntl_setfl(&one, flags).unwrap();
            assert!(fcntl_setfl(&one, flags | OFlags::from_bits_retain(O_ASYNC.unsigned_abs())).is_err());
            one.try_clone().unwrap();
            assert_eq!(rustix::io::ioctl_fionread(&one), Ok(0));
            let socket =
                |family, kind, protocol: Option<Protocol>| socket_with(family, kind, SocketFlags::CLOEXEC, protocol);
            socket(AddressFamily::INET, SocketType::STREAM, Some(ipproto::TCP)).unwrap();
            socket(AddressFamily::NETLINK, SocketType::RAW, None).unwrap();
            assert!(socket(AddressFamily::NETLINK, SocketType::RAW, Some(netlink::SOCK_DIAG)).is_err());
            assert!(socket(AddressFamily::UNIX, SocketType::STREAM, None).is_err());
            assert!(socket(AddressFamily::INET, SocketType::STREAM, Some(ipproto::MPTCP)).is_err());
            let now = rustix::process::getpriority_process(None).unwrap();
            rustix::process::setpriority_process(None, now).unwrap();
            assert!(rustix::process::setpriority_process(Some(pid), 19).is_err());
        });
        confined(Process::Keeper, move || {
            move_into_link_name_space(parent.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            assert!(move_into_link_name_space(parent.as_fd(), None).is_err(), "of any type");
        });
        other.kill().unwrap();
        other.wait().unwrap();
    }
}
