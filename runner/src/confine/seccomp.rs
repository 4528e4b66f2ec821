//! System calls that lead around the other measures. They fail with EPERM; nothing is killed.
//!
//! Landlock bounds TCP only, by `bind` and `connect`: sockets of other kinds (multipath TCP, raw, packet),
//! connecting by `sendto` (TCP Fast Open) and io_uring would go past it, so they are shut here. This comes
//! on top of the container's own filter (`RuntimeDefault`) and does not rely on it.

use contract::pod::EgressMode;
use rustix::process::getpid;
use seccompiler::{
    BpfProgram, Error, SeccompAction,
    SeccompCmpArgLen::{Dword, Qword},
    SeccompCmpOp,
    SeccompCmpOp::Eq,
    SeccompCmpOp::MaskedEq,
    SeccompCmpOp::Ne,
    SeccompCondition, SeccompFilter, SeccompRule, TargetArch, sock_filter,
};
use std::collections::BTreeMap;

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// Refused whatever the arguments. In groups: looking into other processes; kernel and machine; file
/// systems; keys; what was made to pass filters by.
const REFUSED: &[i64] = &[
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_syslog,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_open_by_handle_at,
    libc::SYS_quotactl,
    libc::SYS_setns,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
];

/// Kinds of namespaces, as bits of `clone` and `unshare`.
const NAMESPACES: [i32; 7] = [
    libc::CLONE_NEWNS,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWCGROUP,
];
/// `unshare` only: `clone` has other uses for this bit.
const CLONE_NEWTIME: i32 = 0x80;

/// Numbers of the x32 ABI have this bit: the same calls under other numbers.
const X32: u32 = 0x4000_0000;

/// The filters, in the order to apply them.
///
/// # Errors
/// The architecture is neither x86_64 nor aarch64.
pub fn filters(egress: EgressMode) -> Result<Vec<BpfProgram>, Error> {
    let mut rules: Rules = REFUSED.iter().map(|call| (*call, Vec::new())).collect();
    rules.insert(libc::SYS_socket, sockets(egress)?);
    for (call, flags) in [
        (libc::SYS_sendto, 3),
        (libc::SYS_sendmsg, 2),
        (libc::SYS_sendmmsg, 3),
    ] {
        rules.insert(call, vec![has(flags, libc::MSG_FASTOPEN)?]);
    }
    let namespaces = |also: &[i32]| -> Result<Vec<_>, Error> {
        let all = NAMESPACES.iter().chain(also);
        all.map(|bit| has(0, *bit)).collect()
    };
    rules.insert(libc::SYS_clone, namespaces(&[])?);
    rules.insert(libc::SYS_unshare, namespaces(&[CLONE_NEWTIME])?);
    others_limits(&mut rules)?;
    // Its flags are in memory, where a filter cannot look. With this error C libraries use clone.
    let clone3 = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    Ok(vec![
        program(rules, libc::EPERM)?,
        program(clone3, libc::ENOSYS)?,
    ])
}

/// Limits of other processes, and when this one runs: the kernel asks for the same user only, and a limit of
/// CPU time or of files ends pid 1. For `prlimit64` any thread's number stands for its process, so only
/// "myself" (0) may be limited; to look is free.
fn others_limits(rules: &mut Rules) -> Result<(), Error> {
    let null = |op| SeccompCondition::new(2, Qword, op, 0);
    let other = SeccompRule::new(vec![arg(0, Ne, 0)?, null(Ne)?])?;
    rules.insert(libc::SYS_prlimit64, vec![other]);
    let own = getpid().as_raw_nonzero().get();
    let is = |index, value| Ok::<_, Error>(SeccompRule::new(vec![arg(index, Eq, value)?])?);
    for call in [
        libc::SYS_sched_setscheduler,
        libc::SYS_sched_setparam,
        libc::SYS_sched_setattr,
        libc::SYS_sched_setaffinity,
    ] {
        rules.insert(call, vec![is(0, own)?]);
    }
    // By process and group, and those of "all of this user".
    for (call, user) in [(libc::SYS_setpriority, 2), (libc::SYS_ioprio_set, 3)] {
        rules.insert(call, vec![is(1, own)?, is(0, user)?]);
    }
    Ok(())
}

/// Kinds of sockets that are refused.
fn sockets(egress: EgressMode) -> Result<Vec<SeccompRule>, Error> {
    let known = [
        libc::AF_UNIX,
        libc::AF_INET,
        libc::AF_INET6,
        libc::AF_NETLINK,
    ];
    let mut rules = vec![SeccompRule::new(
        known
            .map(|family| arg(0, Ne, family))
            .into_iter()
            .collect::<Result<_, _>>()?,
    )?];
    let mask = 0xf;
    for family in [libc::AF_INET, libc::AF_INET6] {
        let mut refuse = |kind: i32, but: &[i32]| -> Result<(), Error> {
            let mut all = vec![arg(0, Eq, family)?, arg(1, MaskedEq(mask), kind)?];
            for protocol in but {
                all.push(arg(2, Ne, *protocol)?);
            }
            rules.push(SeccompRule::new(all)?);
            Ok(())
        };
        for kind in [
            libc::SOCK_RAW,
            libc::SOCK_RDM,
            libc::SOCK_SEQPACKET,
            libc::SOCK_DCCP,
            10,
        ] {
            refuse(kind, &[])?;
        }
        refuse(libc::SOCK_STREAM, &[0, libc::IPPROTO_TCP])?;
        // Names are looked up by UDP; behind the egress proxy nobody needs to.
        match egress {
            EgressMode::Open => refuse(libc::SOCK_DGRAM, &[0, libc::IPPROTO_UDP])?,
            EgressMode::ProxyOnly => refuse(libc::SOCK_DGRAM, &[])?,
        }
    }
    rules.push(SeccompRule::new(vec![
        arg(0, Eq, libc::AF_NETLINK)?,
        arg(2, Ne, libc::NETLINK_ROUTE)?,
        arg(2, Ne, libc::NETLINK_SOCK_DIAG)?,
    ])?);
    Ok(rules)
}

fn arg(index: u8, op: SeccompCmpOp, value: i32) -> Result<SeccompCondition, Error> {
    Ok(SeccompCondition::new(
        index,
        Dword,
        op,
        u64::from(value.cast_unsigned()),
    )?)
}

fn has(index: u8, bit: i32) -> Result<SeccompRule, Error> {
    let bits = u64::from(bit.cast_unsigned());
    Ok(SeccompRule::new(vec![arg(index, MaskedEq(bits), bit)?])?)
}

/// The filter as a program, behind a look at the architecture: the library's own look kills, and it knows
/// nothing of x32.
fn program(rules: Rules, errno: i32) -> Result<BpfProgram, Error> {
    let arch: TargetArch = std::env::consts::ARCH.try_into()?;
    let (audit, x32) = match arch {
        TargetArch::x86_64 => (0xC000_003E, X32),
        TargetArch::aarch64 => (0xC000_00B7, u32::MAX),
        _ => (0xC000_00F3, u32::MAX),
    };
    let refuse = SeccompAction::Errno(errno.cast_unsigned());
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refuse, arch)?;
    let rest: BpfProgram = filter.try_into()?;
    let eperm = u32::from(SeccompAction::Errno(libc::EPERM.cast_unsigned()));
    // struct seccomp_data begins with the number, then the architecture, 4 bytes each.
    let op = |code, jt, jf, k| sock_filter { code, jt, jf, k };
    let mut all = vec![
        op(LOAD, 0, 0, 4),
        op(JUMP_EQUAL, 1, 0, audit),
        op(RETURN, 0, 0, eperm),
        op(LOAD, 0, 0, 0),
        op(JUMP_GREATER_EQUAL, 0, 1, x32),
        op(RETURN, 0, 0, eperm),
    ];
    all.extend(rest);
    Ok(all)
}

/// BPF_LD | BPF_W | BPF_ABS
const LOAD: u16 = 0x20;
/// BPF_JMP | BPF_JEQ | BPF_K
const JUMP_EQUAL: u16 = 0x15;
/// BPF_JMP | BPF_JGE | BPF_K
const JUMP_GREATER_EQUAL: u16 = 0x35;
/// BPF_RET | BPF_K
const RETURN: u16 = 0x06;
