// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The system calls that each role may make.

use std::collections::BTreeMap;

use libc::{
    SYS_accept, SYS_accept4, SYS_access, SYS_add_key, SYS_arch_prctl, SYS_bind, SYS_bpf, SYS_brk,
    SYS_capget, SYS_capset, SYS_chdir, SYS_chmod, SYS_chown, SYS_chroot, SYS_clock_getres,
    SYS_clock_gettime, SYS_clock_nanosleep, SYS_clone, SYS_clone3, SYS_close, SYS_close_range,
    SYS_connect, SYS_delete_module, SYS_dup, SYS_dup2, SYS_dup3, SYS_epoll_create1, SYS_epoll_ctl,
    SYS_epoll_pwait, SYS_epoll_pwait2, SYS_epoll_wait, SYS_eventfd2, SYS_execve, SYS_execveat,
    SYS_exit, SYS_exit_group, SYS_faccessat, SYS_faccessat2, SYS_fadvise64, SYS_fallocate,
    SYS_fchmod, SYS_fchmodat, SYS_fchown, SYS_fchownat, SYS_fcntl, SYS_fdatasync, SYS_finit_module,
    SYS_flock, SYS_fork, SYS_fstat, SYS_fstatfs, SYS_ftruncate, SYS_futex, SYS_getcpu, SYS_getcwd,
    SYS_getdents64, SYS_getegid, SYS_geteuid, SYS_getgid, SYS_getpeername, SYS_getpgrp, SYS_getpid,
    SYS_getppid, SYS_getrandom, SYS_getresgid, SYS_getresuid, SYS_getrlimit, SYS_getrusage,
    SYS_getsockname, SYS_getsockopt, SYS_gettid, SYS_gettimeofday, SYS_getuid, SYS_init_module,
    SYS_inotify_add_watch, SYS_inotify_init1, SYS_inotify_rm_watch, SYS_io_uring_enter,
    SYS_io_uring_register, SYS_io_uring_setup, SYS_ioctl, SYS_iopl, SYS_kexec_file_load,
    SYS_kexec_load, SYS_keyctl, SYS_kill, SYS_landlock_add_rule, SYS_landlock_create_ruleset,
    SYS_landlock_restrict_self, SYS_lchown, SYS_listen, SYS_lseek, SYS_lstat, SYS_madvise,
    SYS_membarrier, SYS_memfd_create, SYS_mincore, SYS_mlock, SYS_mlock2, SYS_mlockall, SYS_mmap,
    SYS_mount, SYS_mprotect, SYS_mremap, SYS_munlock, SYS_munmap, SYS_nanosleep, SYS_newfstatat,
    SYS_open, SYS_open_by_handle_at, SYS_openat, SYS_openat2, SYS_perf_event_open, SYS_personality,
    SYS_pidfd_open, SYS_pidfd_send_signal, SYS_pipe2, SYS_pivot_root, SYS_poll, SYS_ppoll,
    SYS_prctl, SYS_pread64, SYS_preadv, SYS_prlimit64, SYS_process_vm_readv, SYS_process_vm_writev,
    SYS_ptrace, SYS_pwrite64, SYS_pwritev, SYS_read, SYS_readlink, SYS_readlinkat, SYS_readv,
    SYS_reboot, SYS_recvfrom, SYS_recvmmsg, SYS_recvmsg, SYS_rename, SYS_renameat, SYS_renameat2,
    SYS_request_key, SYS_restart_syscall, SYS_rseq, SYS_rt_sigaction, SYS_rt_sigprocmask,
    SYS_rt_sigreturn, SYS_sched_getaffinity, SYS_sched_getparam, SYS_sched_getscheduler,
    SYS_sched_setaffinity, SYS_sched_yield, SYS_seccomp, SYS_sendmmsg, SYS_sendmsg, SYS_sendto,
    SYS_set_robust_list, SYS_set_tid_address, SYS_setns, SYS_setpriority, SYS_setrlimit,
    SYS_setsid, SYS_setsockopt, SYS_shutdown, SYS_sigaltstack, SYS_signalfd4, SYS_socket,
    SYS_socketpair, SYS_stat, SYS_statfs, SYS_statx, SYS_swapoff, SYS_swapon, SYS_sysinfo,
    SYS_tgkill, SYS_time, SYS_timerfd_create, SYS_timerfd_gettime, SYS_timerfd_settime, SYS_umask,
    SYS_umount2, SYS_uname, SYS_unlink, SYS_unlinkat, SYS_unshare, SYS_userfaultfd, SYS_vfork,
    SYS_wait4, SYS_waitid, SYS_write, SYS_writev,
};
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch,
};

use super::Role;

/// What a thread needs that serves guests or operators by descriptors that there are, with whatever
/// arguments.
const SERVE: &[i64] = &[
    // Descriptors.
    SYS_read,
    SYS_readv,
    SYS_pread64,
    SYS_preadv,
    SYS_write,
    SYS_writev,
    SYS_pwrite64,
    SYS_pwritev,
    SYS_close,
    SYS_dup,
    SYS_fcntl,
    SYS_fstat,
    SYS_lseek,
    SYS_fallocate,
    SYS_fadvise64,
    SYS_fdatasync,
    // Sockets, but not new ones.
    SYS_accept,
    SYS_accept4,
    SYS_recvmsg,
    SYS_recvmmsg,
    SYS_recvfrom,
    SYS_sendmsg,
    SYS_sendmmsg,
    SYS_sendto,
    SYS_shutdown,
    SYS_getsockopt,
    SYS_setsockopt,
    SYS_getsockname,
    SYS_getpeername,
    // Waiting.
    SYS_poll,
    SYS_ppoll,
    SYS_epoll_create1,
    SYS_epoll_ctl,
    SYS_epoll_wait,
    SYS_epoll_pwait,
    SYS_epoll_pwait2,
    SYS_eventfd2,
    SYS_signalfd4,
    SYS_timerfd_create,
    SYS_timerfd_settime,
    SYS_timerfd_gettime,
    SYS_futex,
    SYS_nanosleep,
    SYS_clock_nanosleep,
    SYS_restart_syscall,
    // Memory; what makes code of it is below.
    SYS_munmap,
    SYS_mremap,
    SYS_madvise,
    SYS_mincore,
    SYS_mlock,
    SYS_mlock2,
    SYS_mlockall,
    SYS_munlock,
    SYS_brk,
    SYS_membarrier,
    // Threads and their signals.
    SYS_set_robust_list,
    SYS_rseq,
    SYS_rt_sigaction,
    SYS_rt_sigprocmask,
    SYS_rt_sigreturn,
    SYS_sigaltstack,
    SYS_sched_yield,
    SYS_sched_getaffinity,
    SYS_sched_setaffinity,
    SYS_sched_getparam,
    SYS_sched_getscheduler,
    SYS_setpriority,
    SYS_exit,
    SYS_exit_group,
    // What there is.
    SYS_clock_gettime,
    SYS_clock_getres,
    SYS_gettimeofday,
    SYS_time,
    SYS_getcpu,
    SYS_getpid,
    SYS_gettid,
    SYS_getuid,
    SYS_geteuid,
    SYS_getgid,
    SYS_getegid,
    SYS_getrandom,
    SYS_getrusage,
    SYS_sysinfo,
    SYS_uname,
];

/// Libraries look for files, and do without. They are told that they may not.
const FILES: &[i64] = &[
    SYS_open,
    SYS_openat,
    SYS_openat2,
    SYS_stat,
    SYS_lstat,
    SYS_newfstatat,
    SYS_statx,
    SYS_statfs,
    SYS_access,
    SYS_faccessat,
    SYS_faccessat2,
    SYS_readlink,
    SYS_readlinkat,
    SYS_getcwd,
];

/// What the supervisor, and a worker before it has entered its own sandbox, need besides [`SERVE`]
/// and [`FILES`].
const SUPERVISE: &[i64] = &[
    // Programs and processes.
    SYS_clone,
    SYS_clone3,
    SYS_fork,
    SYS_vfork,
    SYS_execve,
    SYS_execveat,
    SYS_wait4,
    SYS_waitid,
    SYS_kill,
    SYS_tgkill,
    SYS_pidfd_open,
    SYS_pidfd_send_signal,
    SYS_setsid,
    SYS_getppid,
    SYS_getpgrp,
    SYS_set_tid_address,
    SYS_arch_prctl,
    SYS_prctl,
    SYS_prlimit64,
    SYS_getrlimit,
    SYS_setrlimit,
    SYS_mmap,
    SYS_mprotect,
    SYS_getresuid,
    SYS_getresgid,
    // Sandboxes.
    SYS_seccomp,
    SYS_landlock_create_ruleset,
    SYS_landlock_add_rule,
    SYS_landlock_restrict_self,
    SYS_capget,
    SYS_capset,
    // Descriptors. Who truncates a file kills who has it mapped, which is the worker itself, and with
    // it the next one.
    SYS_memfd_create,
    SYS_ftruncate,
    SYS_pipe2,
    SYS_dup2,
    SYS_dup3,
    SYS_close_range,
    SYS_flock,
    SYS_fstatfs,
    SYS_ioctl,
    // Sockets, all of them local.
    SYS_socketpair,
    SYS_bind,
    SYS_listen,
    SYS_connect,
    // Files, as far as landlock lets it.
    SYS_unlink,
    SYS_unlinkat,
    SYS_rename,
    SYS_renameat,
    SYS_renameat2,
    SYS_chmod,
    SYS_fchmod,
    SYS_fchmodat,
    SYS_chown,
    SYS_lchown,
    SYS_fchown,
    SYS_fchownat,
    SYS_inotify_init1,
    SYS_inotify_add_watch,
    SYS_inotify_rm_watch,
    SYS_getdents64,
    SYS_chdir,
    SYS_umask,
];

/// What nobody does who means well. A supervisor is killed that tries.
const HOSTILE: &[i64] = &[
    SYS_ptrace,
    SYS_process_vm_readv,
    SYS_process_vm_writev,
    SYS_bpf,
    SYS_perf_event_open,
    SYS_userfaultfd,
    SYS_io_uring_setup,
    SYS_io_uring_enter,
    SYS_io_uring_register,
    SYS_mount,
    SYS_umount2,
    SYS_pivot_root,
    SYS_chroot,
    SYS_unshare,
    SYS_setns,
    SYS_open_by_handle_at,
    SYS_init_module,
    SYS_finit_module,
    SYS_delete_module,
    SYS_kexec_load,
    SYS_kexec_file_load,
    SYS_add_key,
    SYS_request_key,
    SYS_keyctl,
    SYS_swapon,
    SYS_swapoff,
    SYS_reboot,
    SYS_iopl,
    SYS_personality,
];

/// The flag with which files are looked at by their descriptor.
const BY_DESCRIPTOR: u64 = libc::AT_EMPTY_PATH as u64;

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// Returns the filters of a role, in the order in which they are to be applied. The kernel asks all
/// of them, and does what the strictest says.
pub(super) fn filters(role: Role) -> Result<Vec<BpfProgram>, BackendError> {
    let allow = SeccompAction::Allow;
    match role {
        Role::Supervisor => {
            let mut allowed = any(&[SERVE, FILES, SUPERVISE]);
            allowed.insert(SYS_socket, vec![local_socket()?]);
            // Its filters are those of all workers that it will ever start, with libraries that
            // are newer than itself: what it does not know is said not to exist, which libraries
            // are prepared for, and kills nobody.
            let unknown = SeccompAction::Errno(libc::ENOSYS as u32);
            Ok(vec![
                program(any(&[HOSTILE]), allow.clone(), SeccompAction::KillProcess)?,
                program(allowed, unknown, allow)?,
            ])
        }
        Role::Worker => {
            let mut allowed = any(&[SERVE, FILES, &[SYS_fstatfs]]);
            worker_rules(&mut allowed)?;
            // Its arguments are in memory, where filters cannot look; libraries make do with the
            // older call, whose arguments are looked at.
            allowed.insert(SYS_clone3, vec![]);
            let refused = |calls, error: i32| {
                let refuse = SeccompAction::Errno(error as u32);
                program(calls, SeccompAction::Allow, refuse)
            };
            let mut files = any(&[FILES]);
            // What is open can be asked how long it is.
            let by_path = |argument| rule(argument, SeccompCmpOp::MaskedEq(BY_DESCRIPTOR), 0);
            files.insert(SYS_statx, vec![by_path(2)?]);
            files.insert(SYS_newfstatat, vec![by_path(3)?]);
            // What a descriptor is of is in the name of a link. Links to other files say no more
            // than where these are.
            for call in [SYS_readlink, SYS_readlinkat] {
                files.remove(&call);
            }
            Ok(vec![
                refused(any(&[&[SYS_clone3]]), libc::ENOSYS)?,
                refused(files, libc::EACCES)?,
                program(allowed, SeccompAction::KillProcess, allow)?,
            ])
        }
    }
}

/// Adds what a worker may do with some arguments only.
fn worker_rules(rules: &mut Rules) -> Result<(), BackendError> {
    // Memory is never code: not when it is mapped, nor later.
    for call in [SYS_mmap, SYS_mprotect] {
        rules.insert(call, vec![no_bits(2, libc::PROT_EXEC as u64)?]);
    }
    // Threads, but not processes.
    let threads = libc::CLONE_THREAD as u64;
    rules.insert(
        SYS_clone,
        vec![rule(0, SeccompCmpOp::MaskedEq(threads), threads)?],
    );
    // The names of threads and of memory.
    let prctl = [libc::PR_SET_NAME, libc::PR_SET_VMA];
    let prctl = prctl.map(|what| rule(0, SeccompCmpOp::Eq, what as u64));
    rules.insert(SYS_prctl, prctl.into_iter().collect::<Result<_, _>>()?);
    // Sockets that do not block; whether something is a terminal.
    let ioctl = [libc::FIONBIO, libc::FIOCLEX, libc::TCGETS];
    let ioctl = ioctl.map(|what| rule(1, SeccompCmpOp::Eq, what));
    rules.insert(SYS_ioctl, ioctl.into_iter().collect::<Result<_, _>>()?);
    // Limits are read, which is what the size of a stack depends on, and not set.
    rules.insert(SYS_prlimit64, vec![rule(2, SeccompCmpOp::Eq, 0)?]);
    // A process may abort itself.
    let own = u64::from(std::process::id());
    rules.insert(SYS_tgkill, vec![rule(0, SeccompCmpOp::Eq, own)?]);
    Ok(())
}

/// The calls, with whatever arguments.
fn any(lists: &[&[i64]]) -> Rules {
    let calls = lists.iter().copied().flatten();
    calls.map(|&call| (call, vec![])).collect()
}

fn program(
    rules: Rules,
    otherwise: SeccompAction,
    these: SeccompAction,
) -> Result<BpfProgram, BackendError> {
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    SeccompFilter::new(rules, otherwise, these, arch)?.try_into()
}

fn rule(argument: u8, op: SeccompCmpOp, value: u64) -> Result<SeccompRule, BackendError> {
    let len = if value > u64::from(u32::MAX) {
        SeccompCmpArgLen::Qword
    } else {
        SeccompCmpArgLen::Dword
    };
    SeccompRule::new(vec![SeccompCondition::new(argument, len, op, value)?])
}

fn no_bits(argument: u8, bits: u64) -> Result<SeccompRule, BackendError> {
    rule(argument, SeccompCmpOp::MaskedEq(bits), 0)
}

fn local_socket() -> Result<SeccompRule, BackendError> {
    rule(0, SeccompCmpOp::Eq, libc::AF_UNIX as u64)
}
