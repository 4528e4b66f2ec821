//! The system calls that no safe library offers, each with its proof, and what the runner does to
//! itself before it listens.

use rustix::process::{
    DumpableBehavior, Resource, Rlimit, Signal, getpid, set_child_subreaper, set_dumpable_behavior,
    set_parent_process_death_signal, setrlimit, setsid,
};
use rustix::thread::set_no_new_privs;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::Command;

/// Keeps the runner's memory from being read, forbids core dumps and more privileges here and in every child, and makes
/// orphans ours where we are not pid 1 (outside of a pod).
///
/// # Errors
/// The kernel refuses one of them.
pub fn harden() -> io::Result<()> {
    if !cfg!(feature = "weakened") {
        set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
        // Of this thread and all that it starts; the others start later.
        set_no_new_privs(true)?;
        setrlimit(
            Resource::Core,
            Rlimit {
                current: Some(0),
                maximum: Some(0),
            },
        )?;
    }
    set_child_subreaper(Some(getpid()))?;
    Ok(())
}

/// Whether this process is the init of its pid namespace: then every process in it is a descendant
/// or came in from outside (`kubectl exec`).
#[must_use]
pub fn is_init() -> bool {
    getpid().as_raw_nonzero().get() == 1
}

/// Makes the child the leader of its own session (no terminal to be stopped by, one group to kill)
/// and lets the kernel kill it when the runner's thread dies, so that outside of a pod nothing
/// outlives a runner that was killed.
pub(crate) fn detach(command: &mut Command) {
    // SAFETY: between fork and exec only async-signal-safe calls are allowed. Both calls are plain
    // system calls of rustix's own backend: no allocation, no lock, no errno of libc.
    #[expect(unsafe_code, reason = "std has no safe setsid; proof above")]
    unsafe {
        command.pre_exec(|| {
            setsid()?;
            set_parent_process_death_signal(Some(Signal::KILL))?;
            Ok(())
        });
    }
}

/// Signals to end, held back from this process until this is dropped: they come by [`HeldSignals::next`]
/// instead. Those that would not end it, because they are ignored or blocked, stay so. For a process of one thread.
#[derive(Debug)]
pub(crate) struct HeldSignals {
    file: std::fs::File,
    before: libc::sigset_t,
}

impl HeldSignals {
    /// Holds them.
    ///
    /// # Errors
    /// Too many open files.
    pub(crate) fn hold() -> io::Result<Self> {
        // SAFETY: all zeros are valid values of both types. The calls read and write what they are given,
        // which lives until they are over, and keep nothing. A descriptor that signalfd returns is new and
        // belongs to nobody else.
        #[expect(unsafe_code, reason = "rustix knows neither call; proof above")]
        unsafe {
            let mut set: libc::sigset_t = std::mem::zeroed();
            let mut before: libc::sigset_t = std::mem::zeroed();
            libc::pthread_sigmask(libc::SIG_BLOCK, std::ptr::null(), &raw mut before);
            libc::sigemptyset(&raw mut set);
            for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT] {
                let mut action: libc::sigaction = std::mem::zeroed();
                libc::sigaction(signal, std::ptr::null(), &raw mut action);
                let ends = action.sa_sigaction == libc::SIG_DFL;
                if ends && libc::sigismember(&raw const before, signal) == 0 {
                    libc::sigaddset(&raw mut set, signal);
                }
            }
            let fd = libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            let file = std::fs::File::from(OwnedFd::from_raw_fd(fd));
            match libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) {
                0 => Ok(Self { file, before }),
                error => Err(io::Error::from_raw_os_error(error)),
            }
        }
    }

    /// The number of one that came; never waits.
    ///
    /// # Errors
    /// Those of read.
    pub(crate) fn next(&mut self) -> io::Result<Option<u8>> {
        let mut info = [0; size_of::<libc::signalfd_siginfo>()];
        match self.file.read(&mut info) {
            // The number comes first, four bytes; all signals are below 65.
            Ok(_) => Ok(u32::from_ne_bytes([info[0], info[1], info[2], info[3]])
                .try_into()
                .ok()
                .filter(|number| *number != 0)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl AsFd for HeldSignals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Drop for HeldSignals {
    fn drop(&mut self) {
        // SAFETY: `before` is what pthread_sigmask gave, which cannot fail with SIG_SETMASK.
        #[expect(unsafe_code, reason = "rustix cannot set the mask; proof above")]
        unsafe {
            libc::pthread_sigmask(
                libc::SIG_SETMASK,
                &raw const self.before,
                std::ptr::null_mut(),
            );
        }
    }
}

/// Ends this process by a signal as if it had never been handled. Returns where that signal ends nobody, or
/// was blocked by whoever started this process.
pub(crate) fn die_of(signal: i32) {
    // SAFETY: both calls take integers only. The default disposition replaces handlers of ours and runs no code.
    #[expect(unsafe_code, reason = "rustix cannot reset a signal; proof above")]
    unsafe {
        libc::signal(signal, libc::SIG_DFL);
        libc::raise(signal);
    }
}

/// SIGKILL to every process of the pid namespace but this one; does nothing unless [`is_init`],
/// because elsewhere it would reach the whole machine.
pub(crate) fn kill_namespace() {
    if is_init() {
        // SAFETY: kill takes two integers and touches no memory.
        #[expect(unsafe_code, reason = "rustix has no kill(-1); proof above")]
        unsafe {
            libc::kill(-1, libc::SIGKILL);
        }
    }
}

/// Lets no open files come over a Unix socket, and over those accepted from it (from Linux 6.16): whoever gets
/// one must close it, and closing may wait, as for a TCP socket that lingers. Older kernels know no way.
///
/// # Errors
/// Another than that the kernel does not know the option.
pub(crate) fn refuse_files(socket: impl AsFd) -> io::Result<()> {
    pass_files(socket.as_fd(), false)
}

/// Takes that back, for one connection.
///
/// # Errors
/// As [`refuse_files`].
pub(crate) fn take_files(socket: impl AsFd) -> io::Result<()> {
    pass_files(socket.as_fd(), true)
}

fn pass_files(socket: BorrowedFd<'_>, pass: bool) -> io::Result<()> {
    /// `asm-generic/socket.h`; libc has no name for it yet.
    const SO_PASSRIGHTS: libc::c_int = 83;
    let pass = libc::c_int::from(pass);
    let size = libc::socklen_t::try_from(size_of_val(&pass)).unwrap_or(0);
    // SAFETY: the kernel reads `size` bytes of `pass`, which lives until the call is over, and keeps nothing.
    #[expect(unsafe_code, reason = "rustix does not know the option; proof above")]
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_PASSRIGHTS,
            (&raw const pass).cast(),
            size,
        )
    };
    match done {
        0 => Ok(()),
        _ => match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ENOPROTOOPT) => Ok(()),
            error => Err(error),
        },
    }
}

/// Who connected; `None`: a process that has no number here, being of another pid namespace.
pub(crate) fn peer_pid(socket: impl AsFd) -> Option<i32> {
    let mut peer = libc::ucred {
        pid: 0,
        uid: 0,
        gid: 0,
    };
    let mut size = libc::socklen_t::try_from(size_of_val(&peer)).unwrap_or(0);
    // SAFETY: the kernel writes at most `size` bytes to `peer`, a plain structure of three integers.
    #[expect(
        unsafe_code,
        reason = "rustix takes the number 0 for impossible; proof above"
    )]
    let done = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut peer).cast(),
            &raw mut size,
        )
    };
    (done == 0 && peer.pid > 0).then_some(peer.pid)
}

/// Landlock ABI of the kernel; 0 where it is absent, switched off or forbidden by seccomp.
#[must_use]
pub fn landlock_abi() -> u32 {
    const CREATE_RULESET_VERSION: libc::c_uint = 1;
    // SAFETY: with the VERSION flag the kernel demands a null attribute of size 0, reads nothing and
    // returns a number instead of a descriptor (landlock_create_ruleset(2)).
    #[expect(
        unsafe_code,
        reason = "one call does not justify a library; proof above"
    )]
    let abi = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<libc::c_void>(),
            0_usize,
            CREATE_RULESET_VERSION,
        )
    };
    u32::try_from(abi).unwrap_or(0)
}
