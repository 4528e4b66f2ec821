//! Package managers with no way out but the egress proxy: `pip`, `npm` and `git`, as commands of the agent.
//!
//! The proxy leads to no loopback address and to none of the machine's own, whatever its list says. So the
//! test begins itself anew in a network namespace that has nothing but loopback: an address of a private
//! network is routed to there, and connections to it do not begin at it. Nothing can leave the machine.

use crate::{
    launch::configure,
    stack::{LONG, Setup, Stack, TOKEN, run},
};
use axum::{
    Router,
    http::{StatusCode, Uri, header},
};
use contract::{egress::EgressReport, event::OutputSource};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, IsCa, KeyPair,
    KeyUsagePurpose,
};
use serde_json::{Value, json};
use std::{
    fs, io,
    net::SocketAddr,
    path::Path,
    process::{Command, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{
    net::{TcpListener, TcpStream},
    time::{Instant, sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, rustls, server::TlsStream};

const NAME: &str = "packages::package_managers_get_what_is_listed_and_nothing_else";
/// Set for the test that was begun anew: the network namespace that it must not be in.
const OUTSIDE: &str = "PACKAGES_OUTSIDE";
/// Of a private network: an entry of the list must say so.
const ADDRESS: &str = "10.77.0.1";

/// The same package three times, in a folder that is served as it is.
const PACKAGES: &str = r#"
mkdir -p files simple/quokka wheel/quokka-1.0.dist-info package work
cd wheel
echo 'said = "quokka by pip"' >quokka.py
printf 'Metadata-Version: 2.1\nName: quokka\nVersion: 1.0\n' >quokka-1.0.dist-info/METADATA
printf 'Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n' >quokka-1.0.dist-info/WHEEL
: >quokka-1.0.dist-info/RECORD
python3 -m zipfile -c ../files/quokka-1.0-py3-none-any.whl quokka.py quokka-1.0.dist-info
cd ..
echo '<a href="/files/quokka-1.0-py3-none-any.whl">quokka-1.0-py3-none-any.whl</a>' >simple/quokka/index.html

echo '{"name": "quokka", "version": "1.0.0"}' >package/package.json
echo 'module.exports = "quokka by npm"' >package/index.js
tar -czf files/quokka-1.0.0.tgz package
cat >quokka <<'END'
{"name": "quokka", "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": {"name": "quokka", "version": "1.0.0",
  "dist": {"tarball": "https://npm.test/files/quokka-1.0.0.tgz"}}}}
END

git init -q work
echo 'quokka by git' >work/quokka.txt
git -C work add .
git -C work -c user.name=a -c user.email=a@b.c commit -qm x
git clone -q --bare work quokka.git
git -C quokka.git update-server-info
"#;

/// Before a command that is to do without the proxy. By themselves they would try for minutes.
const DIRECT: &str =
    "unset HTTPS_PROXY https_proxy; export PIP_RETRIES=1 npm_config_fetch_retries=0;";

/// A package manager.
struct Manager {
    host: &'static str,
    /// Fetches the package, from no cache, and prints what is in it. `DIR` is a new folder.
    command: &'static str,
    contents: &'static str,
    /// What it says of the proxy's refusal: the status, and nothing of the sentence.
    refusal: &'static str,
    /// What it asks the server for at first.
    path: &'static str,
}

const MANAGERS: [Manager; 3] = [
    Manager {
        host: "pypi.test",
        // The interpreter itself: pyenv's wrapper wants to write to its own folder after an install.
        command: "export PIP_CERT=$PWD/ca.crt PIP_DISABLE_PIP_VERSION_CHECK=1; \
            python=$(python3 -c 'import sys; print(sys.executable)'); \
            $python -m pip install --no-cache-dir --index-url https://pypi.test/simple/ --target DIR quokka && \
            PYTHONPATH=DIR $python -c 'import quokka; print(quokka.said)'",
        contents: "quokka by pip\n",
        refusal: "Tunnel connection failed: 403 Forbidden",
        path: "/simple/quokka/",
    },
    Manager {
        host: "npm.test",
        command: "export NODE_EXTRA_CA_CERTS=$PWD/ca.crt; \
            npm install --no-audit --no-update-notifier --cache DIR.cache \
            --registry https://npm.test/ --prefix DIR quokka && \
            node -p 'require(\"./DIR/node_modules/quokka\")'",
        contents: "quokka by npm\n",
        refusal: "403 Forbidden - GET https://npm.test/quokka",
        path: "/quokka",
    },
    Manager {
        host: "git.test",
        command: "export GIT_SSL_CAINFO=$PWD/ca.crt; \
            git clone https://git.test/quokka.git DIR && cat DIR/quokka.txt",
        contents: "quokka by git\n",
        refusal: "403",
        path: "/quokka.git/info/refs",
    },
];

#[test]
fn package_managers_get_what_is_listed_and_nothing_else() {
    run(async {
        match std::env::var(OUTSIDE) {
            Ok(outside) => inside(&outside).await,
            Err(_) => eprintln!("{}", begin_anew().await),
        }
    });
}

// --- The network ------------------------------------------------------------------------------

fn network() -> String {
    let link = fs::read_link("/proc/self/ns/net").unwrap();
    link.into_os_string().into_string().unwrap()
}

/// Runs this very test in namespaces of its own and insists that it passed there. Returns what it said.
async fn begin_anew() -> String {
    for (words, missing) in [
        (
            "python3 -m pip --version",
            "Python 3 with pip (Debian: python3-pip)",
        ),
        ("npm --version", "Node.js with npm (Debian: npm)"),
        ("git --version", "git"),
        ("tar --version", "tar"),
        ("ip -Version", "iproute2"),
        (
            "unshare --net --mount true",
            "unshare (Debian: util-linux), and be root for it",
        ),
    ] {
        let tried = Command::new("sh").args(["-c", words]).output().unwrap();
        assert!(
            tried.status.success(),
            "`{words}` fails, so this test cannot run: install {missing}\n{}",
            String::from_utf8_lossy(&tried.stderr)
        );
    }
    let mut child = tokio::process::Command::new("unshare")
        .args(["--net", "--mount"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", NAME, "--nocapture"])
        .env(OUTSIDE, network())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    // Closes when this process ends, however it ends: see `end_with_the_other`.
    let alive = child.stdin.take();
    let output = timeout(5 * LONG, child.wait_with_output())
        .await
        .expect("the test within its own network does not end")
        .unwrap();
    drop(alive);
    let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    let said = said.concat();
    // With a wrong name it would run nothing, and succeed.
    let passed = output.status.success() && said.contains("1 passed");
    assert!(passed, "{}: {said}", output.status);
    said
}

/// Ends this process when the one that began it is gone.
fn end_with_the_other() {
    std::thread::spawn(|| {
        // Without a word: nobody is there to read one.
        let _ = io::copy(&mut io::stdin(), &mut io::sink());
        std::process::exit(1);
    });
}

fn make(folder: &Path, script: &str) {
    let made = Command::new("sh")
        .args(["-euc", script])
        .current_dir(folder)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&made.stderr);
    assert!(made.status.success(), "{said}");
}

/// Names, an address and a way to it, in the namespaces of this process.
fn furnish(folder: &Path, outside: &str) {
    assert_ne!(
        network(),
        outside,
        "this would change the machine's network"
    );
    let hosts = MANAGERS.map(|manager| format!("{ADDRESS} {}\n", manager.host));
    let hosts = format!("127.0.0.1 localhost\n{}", hosts.concat());
    fs::write(folder.join("hosts"), hosts).unwrap();
    make(
        folder,
        &format!(
            "ip link set lo up; ip route add local {ADDRESS} dev lo src 127.0.0.1
             mount --bind hosts /etc/hosts"
        ),
    );
}

// --- The server -------------------------------------------------------------------------------

/// An authority's certificate in PEM, and what a server of all the names needs.
fn authority() -> (String, rustls::ServerConfig) {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    // OpenSSL takes a certificate for self-signed whose issuer has its own name, as rcgen's defaults have.
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, "quokka's authority");
    params.distinguished_name = name;
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let names = MANAGERS.map(|manager| manager.host.to_owned());
    let mut params = CertificateParams::new(names.to_vec()).unwrap();
    // Python since 3.13 wants it.
    params.use_authority_key_identifier_extension = true;
    let leaf = params.signed_by(&key, &authority).unwrap();
    let config = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(
            vec![leaf.der().clone()],
            rustls::pki_types::PrivateKeyDer::Pkcs8(key.serialize_der().into()),
        )
        .unwrap();
    (authority.pem(), config)
}

/// What the server saw: `connection` for each, then host and path of each request.
type Seen = Arc<Mutex<Vec<String>>>;

struct Tls {
    listener: TcpListener,
    acceptor: TlsAcceptor,
    seen: Seen,
}

impl axum::serve::Listener for Tls {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let (stream, from) = self.listener.accept().await.unwrap();
            self.seen.lock().unwrap().push("connection".into());
            // Its client tells why not.
            if let Ok(Ok(stream)) = timeout(LONG, self.acceptor.accept(stream)).await {
                return (stream, from);
            }
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}

/// Serves the folder under each of the names, at the port of https.
async fn serve(folder: &Path, config: rustls::ServerConfig) -> Seen {
    let seen = Seen::default();
    let tls = Tls {
        listener: TcpListener::bind((ADDRESS, 443)).await.unwrap(),
        acceptor: TlsAcceptor::from(Arc::new(config)),
        seen: Arc::clone(&seen),
    };
    let (folder, noted) = (folder.to_owned(), Arc::clone(&seen));
    let router = Router::new().fallback(move |headers: header::HeaderMap, uri: Uri| async move {
        let host = headers[header::HOST].to_str().unwrap();
        noted.lock().unwrap().push(format!("{host}{}", uri.path()));
        let mut path = folder.join(uri.path().trim_start_matches('/'));
        let mut kind = "application/octet-stream";
        if path.is_dir() {
            // pip reads an index only if it is called HTML.
            (path, kind) = (path.join("index.html"), "text/html");
        }
        let bytes = fs::read(path).map_err(|_| StatusCode::NOT_FOUND)?;
        Ok::<_, StatusCode>(([(header::CONTENT_TYPE, kind)], bytes))
    });
    tokio::spawn(async move { axum::serve(tls, router).await });
    seen
}

// --- The agent --------------------------------------------------------------------------------

/// What a command of the agent printed, and its status after that.
#[expect(clippy::print_stderr, reason = "the story, for a test that fails")]
async fn bash(stack: &Stack, command: &str) -> String {
    let command = format!("{{ {command}; }} 2>&1; echo \"status $?\"");
    let begun = Instant::now();
    let (_, reader) = stack.play(&format!("SCENARIO:bash <<<{command}>>>")).await;
    reader.complete();
    let said: String = reader.texts(OutputSource::Tool).into_values().collect();
    eprintln!("{:.1} s: {command}\n{said}", begun.elapsed().as_secs_f64());
    said
}

async fn report(stack: &Stack) -> EgressReport {
    let asked = stack.http.get(stack.url("/egress")).bearer_auth(TOKEN);
    asked.send().await.unwrap().json().await.unwrap()
}

/// Changes the list and waits until it is in force.
async fn allow(stack: &Stack, list: Value) {
    // Nothing but the log tells that the file was read again.
    let changes = || stack.logged("\"configuration changed\"");
    let before = changes();
    configure(&stack.dir, &stack.model.base_url(), config(list));
    let deadline = Instant::now() + LONG;
    while changes() == before {
        assert!(Instant::now() < deadline, "{}", stack.logs());
        sleep(Duration::from_millis(20)).await;
    }
}

fn config(allow: Value) -> Value {
    json!({
        "limits": {"maxConcurrentSessions": 5, "turnTimeoutSeconds": 600},
        "egress": {"mode": "proxy-only", "allow": allow},
    })
}

/// Each fails while its host is not on the list, says so and is told of; with the host on the list the same
/// command gets its package, and only by the proxy.
async fn inside(outside: &str) {
    end_with_the_other();
    let folder = tempfile::tempdir().unwrap();
    furnish(folder.path(), outside);
    make(folder.path(), PACKAGES);
    let (authority, tls) = authority();
    let seen = serve(folder.path(), tls).await;
    let all = |manager: &Manager| json!({"host": manager.host, "private": true});

    let stack = Stack::start(Setup::default().config(config(json!([])))).await;
    fs::write(stack.dir.join("workspace/ca.crt"), authority).unwrap();
    for (n, manager) in MANAGERS.iter().enumerate() {
        // The others are allowed: it is this host that is missing.
        let others = MANAGERS.iter().filter(|other| other.host != manager.host);
        allow(&stack, others.map(all).collect()).await;
        let said = bash(&stack, &manager.command.replace("DIR", &format!("no{n}"))).await;
        assert!(said.contains(manager.refusal), "{said}");
        assert!(!said.contains(manager.contents), "{said}");
        assert!(!said.ends_with("status 0\n"), "{said}");
        let report = report(&stack).await;
        assert_eq!(report.refused.len(), n + 1, "{report:?}");
        let told = report.refused.iter().find(|told| told.host == manager.host);
        assert_eq!(told.map(|told| told.port), Some(443), "{report:?}");
        assert!(report.fragment.contains(manager.host), "{report:?}");
    }
    let none: [&str; 0] = [];
    assert_eq!(*seen.lock().unwrap(), none, "nothing came to the server");

    allow(&stack, MANAGERS.iter().map(all).collect()).await;
    for (n, manager) in MANAGERS.iter().enumerate() {
        let said = bash(&stack, &manager.command.replace("DIR", &format!("yes{n}"))).await;
        assert!(said.contains(manager.contents), "{said}\n{}", stack.logs());
        assert!(said.ends_with("status 0\n"), "{said}");
        let asked = format!("{}{}", manager.host, manager.path);
        let seen = seen.lock().unwrap();
        assert!(seen.contains(&asked), "{asked}: {seen:?}");
    }

    // By the proxy, all of it: each connection that came is one that the proxy tells of.
    let connections = || {
        let seen = seen.lock().unwrap();
        seen.iter().filter(|what| *what == "connection").count()
    };
    let let_through = stack.logged(r#""decision":"allowed""#);
    assert_eq!(connections(), let_through, "{}", stack.logs());
    // Without it nobody gets there, though the way that the sidecar takes is open to its neighbours: the kernel bars
    // the agent from it.
    for (n, manager) in MANAGERS.iter().enumerate() {
        let command = manager.command.replace("DIR", &format!("direct{n}"));
        let said = bash(&stack, &format!("{DIRECT} {command}")).await;
        assert!(!said.contains(manager.contents), "{said}");
        assert!(!said.ends_with("status 0\n"), "{said}");
    }
    assert_eq!(connections(), let_through, "somebody went around the proxy");
}
