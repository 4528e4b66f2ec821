//! What goes over the socket.
//!
//! | from | what |
//! |---|---|
//! | host | [`HELLO`]: somebody is there. Only now files are lent: what lies in a socket that nobody reads stays open |
//! | asker | a request: its length (four bytes, little-endian), then strings that end with a zero byte each: the program's name, the number of arguments, those, and the variables. Four open files come with the first bytes: stdin, stdout, stderr and the working directory |
//! | host | [`READY`]: all of it was read; nothing runs yet |
//! | asker | [`GO`]; from here on only a verdict tells whether something ran |
//! | asker | numbers of signals, a byte each, for the program |
//! | host | a [`Verdict`] |

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use std::ffi::{OsStr, OsString};
use std::io::{self, IoSlice, IoSliceMut, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;

/// Longest request, in bytes; longer ones run within OpenCode's domain.
pub(super) const JOB_MAX: usize = 256 * 1024;
/// Most arguments, and most variables.
const WORDS_MAX: usize = 4096;
const LENGTH: usize = 4;
const FILES: usize = 4;
pub(super) const HELLO: u8 = b'H';
pub(super) const READY: u8 = b'R';
pub(super) const GO: u8 = b'G';

/// A program to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// Its name, not its path.
    pub name: String,
    /// Without the name.
    pub args: Vec<OsString>,
    /// All variables.
    pub env: Vec<(OsString, OsString)>,
}

/// A job and the files that it works with.
#[derive(Debug)]
pub(super) struct Lent {
    pub(super) job: Job,
    pub(super) stdin: OwnedFd,
    pub(super) stdout: OwnedFd,
    pub(super) stderr: OwnedFd,
    pub(super) folder: OwnedFd,
}

/// How a program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// With this code.
    Exited(u8),
    /// By which signal.
    Killed(u8),
    /// Nothing was run and nothing will be.
    Refused,
}

pub(super) const VERDICT: usize = 2;

impl Verdict {
    /// It was killed, or nobody can know how it ended.
    pub(super) const KILLED: Self = Self::Killed(9);

    pub(super) fn bytes(self) -> [u8; VERDICT] {
        match self {
            Self::Exited(code) => [0, code],
            Self::Killed(signal) => [1, signal],
            Self::Refused => [2, 0],
        }
    }

    pub(super) fn read(bytes: [u8; VERDICT]) -> Option<Self> {
        match bytes {
            [0, code] => Some(Self::Exited(code)),
            [1, signal] => Some(Self::Killed(signal)),
            [2, 0] => Some(Self::Refused),
            _ => None,
        }
    }
}

impl From<ExitStatus> for Verdict {
    fn from(status: ExitStatus) -> Self {
        let small = |n: i32| u8::try_from(n).unwrap_or(u8::MAX);
        match (status.code(), status.signal()) {
            (Some(code), _) => Self::Exited(small(code)),
            (None, signal) => Self::Killed(small(signal.unwrap_or(libc::SIGKILL))),
        }
    }
}

impl Job {
    /// With its length; `None`: it is too long, or holds a zero byte.
    pub(super) fn bytes(&self) -> Option<Vec<u8>> {
        if self.args.len().max(self.env.len()) > WORDS_MAX {
            return None;
        }
        let mut bytes = vec![0; LENGTH];
        let count = self.args.len().to_string();
        let head = [OsStr::new(&self.name), OsStr::new(&count)];
        for text in head
            .into_iter()
            .chain(self.args.iter().map(OsString::as_os_str))
        {
            push(&mut bytes, &[text.as_bytes()])?;
        }
        for (name, value) in &self.env {
            push(&mut bytes, &[name.as_bytes(), b"=", value.as_bytes()])?;
        }
        let length = bytes.len() - LENGTH;
        let length = u32::try_from(length).ok().filter(|_| length <= JOB_MAX)?;
        bytes[..LENGTH].copy_from_slice(&length.to_le_bytes());
        Some(bytes)
    }

    /// What [`Job::bytes`] made, without its length.
    fn read(bytes: &[u8]) -> Option<Self> {
        let mut strings = bytes.strip_suffix(b"\0")?.split(|byte| *byte == 0);
        let name = String::from_utf8(strings.next()?.to_vec()).ok()?;
        let count: usize = std::str::from_utf8(strings.next()?).ok()?.parse().ok()?;
        if count > WORDS_MAX || strings.clone().count() > count.saturating_add(WORDS_MAX) {
            return None;
        }
        let own = |bytes: &[u8]| OsString::from_vec(bytes.to_vec());
        let args: Vec<OsString> = strings.by_ref().take(count).map(own).collect();
        if args.len() != count {
            return None;
        }
        let env = strings.map(|string| {
            // A name may begin with one, as some shells' do.
            let at = string.iter().skip(1).position(|byte| *byte == b'=')? + 1;
            Some((own(&string[..at]), own(&string[at + 1..])))
        });
        Some(Self {
            name,
            args,
            env: env.collect::<Option<_>>()?,
        })
    }
}

fn push(bytes: &mut Vec<u8>, parts: &[&[u8]]) -> Option<()> {
    for part in parts {
        if part.contains(&0) {
            return None;
        }
        bytes.extend_from_slice(part);
    }
    bytes.push(0);
    Some(())
}

/// Sends a request with its files, in the order of [`Lent`].
pub(super) fn send(
    mut stream: &UnixStream,
    job: &[u8],
    files: [BorrowedFd<'_>; FILES],
) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FILES))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(&files)) {
        return Err(io::ErrorKind::OutOfMemory.into());
    }
    let sent = sendmsg(
        stream,
        &[IoSlice::new(job)],
        &mut control,
        SendFlags::NOSIGNAL,
    )?;
    stream.write_all(job.get(sent..).unwrap_or_default())
}

/// Reads a request, each read as long as the stream's timeout.
pub(super) fn receive(stream: &UnixStream) -> io::Result<Lent> {
    let mut bytes = vec![0; 16 * 1024];
    let (count, files) = first(stream, &mut bytes)?;
    bytes.truncate(count);
    // What comes later brings no files: the kernel lets them go.
    loop {
        let missing = wanted(&bytes)? - bytes.len();
        if missing == 0 {
            break;
        }
        let missing = u64::try_from(missing).unwrap_or(0);
        if stream.take(missing).read_to_end(&mut bytes)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    let job = Job::read(&bytes[LENGTH..]).ok_or(io::ErrorKind::InvalidData)?;
    let files: [OwnedFd; FILES] = files
        .try_into()
        .map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    let [stdin, stdout, stderr, folder] = files;
    Ok(Lent {
        job,
        stdin,
        stdout,
        stderr,
        folder,
    })
}

/// Length of the whole, as far as it is known; never more than is bounded, never less than there is.
fn wanted(bytes: &[u8]) -> io::Result<usize> {
    let Some(length) = bytes.first_chunk::<LENGTH>() else {
        return Ok(LENGTH);
    };
    let length = usize::try_from(u32::from_le_bytes(*length)).unwrap_or(usize::MAX);
    if length > JOB_MAX || bytes.len() > LENGTH + length {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok(LENGTH + length)
}

/// The first bytes and the files that come with them, no more than there may be.
fn first(stream: &UnixStream, piece: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FILES))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut piece = [IoSliceMut::new(piece)];
    let got = recvmsg(stream, &mut piece, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut files = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(came) = message {
            files.extend(came);
        }
    }
    if got.flags.contains(ReturnFlags::CTRUNC) {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok((got.bytes, files))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn job() -> Job {
        Job {
            name: "git".to_owned(),
            args: ["", "a b", "--x=\n"].map(OsString::from).to_vec(),
            env: vec![
                ("HOME".into(), "/h".into()),
                ("EMPTY".into(), "".into()),
                ("X".into(), OsString::from_vec(vec![0xff, b'=', 0xfe])),
            ],
        }
    }

    #[test]
    fn a_job_comes_as_it_was() {
        let bytes = job().bytes().unwrap();
        assert_eq!(wanted(&bytes).unwrap(), bytes.len());
        assert_eq!(Job::read(&bytes[LENGTH..]), Some(job()));
        let bare = Job {
            args: Vec::new(),
            env: Vec::new(),
            ..job()
        };
        assert_eq!(Job::read(&bare.bytes().unwrap()[LENGTH..]), Some(bare));
    }

    #[test]
    fn what_cannot_be_told_is_not_told() {
        let with = |arg: OsString| Job {
            args: vec![arg],
            ..job()
        };
        assert_eq!(with("a\0b".into()).bytes(), None);
        assert_eq!(with("x".repeat(JOB_MAX).into()).bytes(), None);
        let many = Job {
            args: vec![OsString::new(); WORDS_MAX + 1],
            ..job()
        };
        assert_eq!(many.bytes(), None);
        for (args, variables) in [(WORDS_MAX + 1, 0), (0, WORDS_MAX + 1)] {
            let text = format!(
                "git\0{args}\0{}{}",
                "\0".repeat(args),
                "a=\0".repeat(variables)
            );
            assert_eq!(Job::read(text.as_bytes()), None);
        }
    }

    #[test]
    fn lengths_are_bounded_before_anything_is_held() {
        let most = u32::try_from(JOB_MAX).unwrap();
        assert_eq!(wanted(&most.to_le_bytes()).unwrap(), LENGTH + JOB_MAX);
        assert!(wanted(&(most + 1).to_le_bytes()).is_err());
        assert!(wanted(&[0, 0, 0, 0, 1]).is_err(), "more than was said");
    }

    #[test]
    fn verdicts_come_as_they_were() {
        for verdict in [Verdict::Exited(0), Verdict::Killed(15), Verdict::Refused] {
            assert_eq!(Verdict::read(verdict.bytes()), Some(verdict));
        }
        assert_eq!(Verdict::read([9, 0]), None);
    }

    proptest! {
        #[test]
        fn garbage_is_refused_or_means_what_it_says(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Some(job) = Job::read(&bytes) {
                let again = job.bytes().unwrap();
                prop_assert_eq!(Job::read(&again[LENGTH..]), Some(job));
            }
        }
    }
}
