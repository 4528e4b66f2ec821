//! Why the kernel would not run a program: a look into its head instead of a bare ENOENT, or worse: of
//! what libc does with a file that the kernel does not take, which is to hand it to `/bin/sh`.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

#[cfg(target_arch = "x86_64")]
const MACHINE: u16 = 62;
#[cfg(target_arch = "aarch64")]
const MACHINE: u16 = 183;

const PT_INTERP: u32 = 3;
const HEADERS_MAX: u16 = 128;
const NAME_MAX: u64 = 4096;

/// What to tell people whose image has no glibc.
pub(crate) const GLIBC_HINT: &str = "OpenCode needs glibc 2.17 or newer; use an image with glibc \
    (Debian, Ubuntu, UBI, distroless/base), or add glibc to it: images with musl (Alpine) lack it";

/// Says why `program` cannot run here; `None`: nothing speaks against it.
#[must_use]
pub fn obstacle(program: &Path) -> Option<String> {
    let shown = program.display();
    // What cannot be read may still be run (mode 0111); exec tells better what is wrong.
    let mut file = File::open(program)
        .ok()
        .filter(|f| f.metadata().is_ok_and(|m| m.is_file()))?;
    let mut head = [0_u8; 256];
    let read = file.read(&mut head).unwrap_or(0);
    let head = &head[..read];
    if let Some(line) = head.strip_prefix(b"#!") {
        let line = line.split(|b| *b == b'\n').next().unwrap_or_default();
        let text = String::from_utf8_lossy(line);
        let interpreter = text.split_whitespace().next().unwrap_or_default();
        return (!Path::new(interpreter).exists()).then(|| {
            format!("{shown}: its interpreter {interpreter} is not in the image; add it")
        });
    }
    if !head.starts_with(b"\x7fELF") {
        return Some(format!("{shown} is no program for this system"));
    }
    if head.len() < 64 || head[4] != 2 || head[5] != 1 || u16_at(head, 18) != MACHINE {
        return Some(format!(
            "{shown} is built for another processor; use the image for {}",
            std::env::consts::ARCH
        ));
    }
    let loader = interpreter(&file, head)?;
    (!Path::new(&loader).exists())
        .then(|| format!("{shown}: its loader {loader} is not in the image. {GLIBC_HINT}"))
}

/// The path in the program header PT_INTERP; `None`: static, or not understood.
fn interpreter(file: &File, head: &[u8]) -> Option<String> {
    let table = u64_at(head, 32);
    let (size, count) = (u16_at(head, 54), u16_at(head, 56).min(HEADERS_MAX));
    let mut header = [0_u8; 56];
    for index in 0..count {
        let at = table.checked_add(u64::from(index) * u64::from(size))?;
        file.read_exact_at(&mut header, at).ok()?;
        if u32::from_le_bytes(header[..4].try_into().ok()?) == PT_INTERP {
            let length = u64_at(&header, 32).min(NAME_MAX);
            let mut name = vec![0; usize::try_from(length).ok()?];
            file.read_exact_at(&mut name, u64_at(&header, 8)).ok()?;
            let name = name.split(|b| *b == 0).next()?;
            return String::from_utf8(name.to_vec()).ok();
        }
    }
    None
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    bytes
        .get(at..at + 2)
        .map_or(0, |b| u16::from_le_bytes([b[0], b[1]]))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes
        .get(at..at + 8)
        .and_then(|b| b.try_into().ok())
        .map_or(0, u64::from_le_bytes)
}

/// What the dynamic loaders of glibc and musl write when a program starts but cannot be linked.
#[must_use]
pub fn is_loader_complaint(stderr: &str) -> bool {
    const SIGNS: [&str; 6] = [
        "error while loading shared libraries",
        "Error loading shared library",
        "Error relocating",
        "symbol lookup error",
        "symbol not found",
        "version `GLIBC",
    ];
    SIGNS.iter().any(|sign| stderr.contains(sign))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn real_programs_have_no_obstacle() {
        assert_eq!(obstacle(&std::env::current_exe().unwrap()), None);
        assert_eq!(obstacle(Path::new("/bin/sh")), None);
    }

    #[test]
    fn each_obstacle_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, bytes: &[u8]| {
            let path = dir.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            obstacle(&path).unwrap()
        };
        assert!(file("script", b"#!/no/such/shell -e\n").contains("/no/such/shell"));
        assert!(file("text", b"hello").contains("no program"));
        assert!(file("empty", b"").contains("no program"));
        assert!(file("short", b"\x7fELF\x02\x01").contains("another processor"));
        assert_eq!(obstacle(&dir.path().join("nothing")), None);
        assert_eq!(obstacle(dir.path()), None);

        let mut other = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        other.truncate(4096);
        other[18] ^= 0xff;
        assert!(file("machine", &other).contains("another processor"));
    }

    #[test]
    fn a_head_of_nonsense_is_survived() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("elf");
        let mut bytes = vec![0xff_u8; 300];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        bytes[18..20].copy_from_slice(&MACHINE.to_le_bytes());
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(obstacle(&path), None);
    }
}
