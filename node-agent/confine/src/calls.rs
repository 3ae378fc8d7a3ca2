//! System calls by what they are for. A call that is not listed here is refused to every process; of some that are, the arguments are looked at, too:
//! see `arguments`.

use libc::*;

/// Memory, signals, time, what a process may know of itself, and descriptors that it has.
pub const BASE: &[i64] = &[
    SYS_brk,
    SYS_madvise,
    SYS_membarrier,
    SYS_mincore,
    SYS_mlock,
    SYS_mmap,
    SYS_mprotect,
    SYS_mremap,
    SYS_munmap,
    SYS_futex,
    SYS_get_robust_list,
    SYS_set_robust_list,
    SYS_rseq,
    SYS_set_tid_address,
    SYS_gettid,
    SYS_getpid,
    SYS_getppid,
    SYS_getuid,
    SYS_geteuid,
    SYS_getgid,
    SYS_getegid,
    SYS_getrusage,
    SYS_prlimit64,
    SYS_prctl,
    SYS_uname,
    SYS_sysinfo,
    SYS_capget,
    SYS_getcpu,
    SYS_sched_getaffinity,
    SYS_sched_yield,
    SYS_getrandom,
    SYS_clock_gettime,
    SYS_clock_getres,
    SYS_clock_nanosleep,
    SYS_nanosleep,
    SYS_gettimeofday,
    SYS_restart_syscall,
    SYS_rt_sigaction,
    SYS_rt_sigprocmask,
    SYS_rt_sigreturn,
    SYS_sigaltstack,
    SYS_tgkill,
    SYS_read,
    SYS_readv,
    SYS_pread64,
    SYS_write,
    SYS_writev,
    SYS_pwrite64,
    SYS_lseek,
    SYS_close,
    SYS_fstat,
    SYS_fcntl,
    SYS_dup,
    SYS_dup3,
    SYS_ftruncate,
    SYS_fsync,
    SYS_fdatasync,
    SYS_ioctl,
    SYS_exit,
    SYS_exit_group,
    #[cfg(target_arch = "x86_64")]
    SYS_arch_prctl,
    #[cfg(target_arch = "x86_64")]
    SYS_getrlimit,
    #[cfg(target_arch = "x86_64")]
    SYS_dup2,
];

/// Threads.
pub const THREADS: &[i64] = &[SYS_clone];

/// Files and folders.
pub const FILES: &[i64] = &[
    SYS_openat,
    SYS_openat2,
    SYS_newfstatat,
    SYS_statx,
    SYS_statfs,
    SYS_fstatfs,
    SYS_faccessat,
    SYS_faccessat2,
    SYS_getdents64,
    SYS_getcwd,
    SYS_readlinkat,
    SYS_mkdirat,
    SYS_unlinkat,
    SYS_linkat,
    SYS_renameat,
    SYS_renameat2,
    SYS_fchmod,
    SYS_fchmodat,
    SYS_utimensat,
    SYS_flock,
    SYS_fallocate,
    SYS_fadvise64,
    SYS_copy_file_range,
    SYS_sendfile,
    SYS_umask,
    SYS_memfd_create,
    #[cfg(target_arch = "x86_64")]
    SYS_open,
    #[cfg(target_arch = "x86_64")]
    SYS_stat,
    #[cfg(target_arch = "x86_64")]
    SYS_lstat,
    #[cfg(target_arch = "x86_64")]
    SYS_access,
    #[cfg(target_arch = "x86_64")]
    SYS_readlink,
    #[cfg(target_arch = "x86_64")]
    SYS_mkdir,
    #[cfg(target_arch = "x86_64")]
    SYS_rmdir,
    #[cfg(target_arch = "x86_64")]
    SYS_unlink,
    #[cfg(target_arch = "x86_64")]
    SYS_link,
    #[cfg(target_arch = "x86_64")]
    SYS_rename,
    #[cfg(target_arch = "x86_64")]
    SYS_chmod,
];

/// Waiting for descriptors.
pub const POLLING: &[i64] = &[
    SYS_ppoll,
    SYS_pselect6,
    SYS_epoll_create1,
    SYS_epoll_ctl,
    SYS_epoll_pwait,
    SYS_epoll_pwait2,
    SYS_eventfd2,
    SYS_timerfd_create,
    SYS_timerfd_settime,
    SYS_pipe2,
    #[cfg(target_arch = "x86_64")]
    SYS_poll,
    #[cfg(target_arch = "x86_64")]
    SYS_epoll_wait,
    #[cfg(target_arch = "x86_64")]
    SYS_pipe,
];

/// Sockets.
pub const SOCKETS: &[i64] = &[
    SYS_socket,
    SYS_socketpair,
    SYS_bind,
    SYS_listen,
    SYS_accept4,
    SYS_connect,
    SYS_shutdown,
    SYS_getsockname,
    SYS_getpeername,
    SYS_getsockopt,
    SYS_setsockopt,
    SYS_sendto,
    SYS_recvfrom,
    SYS_sendmsg,
    SYS_recvmsg,
    SYS_sendmmsg,
    SYS_recvmmsg,
];

/// A thread's class.
pub const SCHEDULING: &[i64] = &[SYS_sched_setscheduler, SYS_sched_getscheduler, SYS_setpriority, SYS_getpriority];

/// Changes of files.
pub const WATCHING: &[i64] = &[SYS_inotify_init1, SYS_inotify_add_watch, SYS_inotify_rm_watch];

/// Other programs, which confine themselves as they begin.
pub const SPAWNING: &[i64] = &[
    SYS_capset,
    SYS_close_range,
    SYS_seccomp,
    SYS_execve,
    SYS_wait4,
    SYS_waitid,
    SYS_kill,
    SYS_setpgid,
    SYS_getpgid,
    SYS_chdir,
    SYS_fchdir,
    SYS_pidfd_open,
    SYS_pidfd_send_signal,
    #[cfg(target_arch = "x86_64")]
    SYS_vfork,
    // How musl begins one that is to do something before it is another program.
    #[cfg(target_arch = "x86_64")]
    SYS_fork,
];

/// Network namespaces.
pub const NAMESPACES: &[i64] = &[SYS_setns];
