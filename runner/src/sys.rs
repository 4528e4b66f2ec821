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
/// instead. One that is ignored stays so. For a process of one thread.
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
        let mut set = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
        let mut before = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: sigemptyset initialises `set`, sigaddset and signalfd only use it afterwards, and
        // pthread_sigmask initialises `before` when it succeeds, which is checked before that is used. A
        // descriptor that signalfd returns is new and belongs to nobody else.
        #[expect(unsafe_code, reason = "rustix knows neither call; proof above")]
        unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT] {
                libc::sigaddset(set.as_mut_ptr(), signal);
            }
            let fd = libc::signalfd(-1, set.as_ptr(), libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            let file = std::fs::File::from(OwnedFd::from_raw_fd(fd));
            match libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), before.as_mut_ptr()) {
                0 => Ok(Self {
                    file,
                    before: before.assume_init(),
                }),
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

/// Lets no open files come over the connections of a listening Unix socket (from Linux 6.16): whoever gets
/// one must close it, and closing may wait, as for a TCP socket that lingers. Older kernels know no way.
///
/// # Errors
/// Another than that the kernel does not know the option.
pub(crate) fn refuse_files(socket: impl AsFd) -> io::Result<()> {
    /// `asm-generic/socket.h`; libc has no name for it yet.
    const SO_PASSRIGHTS: libc::c_int = 83;
    let off: libc::c_int = 0;
    let size = libc::socklen_t::try_from(size_of_val(&off)).unwrap_or(0);
    // SAFETY: the kernel reads `size` bytes of `off`, which lives until the call is over, and keeps nothing.
    #[expect(unsafe_code, reason = "rustix does not know the option; proof above")]
    let done = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            SO_PASSRIGHTS,
            (&raw const off).cast(),
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
