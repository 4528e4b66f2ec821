//! The real OpenCode within the runner's domains: what it must still do, and what a workspace, a HOME and
//! tools must not get done. Each attack is first made on a runner that isolates nothing.

use crate::{
    process,
    reader::Reader,
    stack::{LONG, Setup, Stack, run},
};
use contract::{EventBody, SessionId, event::OutputSource, runner::Measure};
use serde_json::json;
use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

fn setup(isolated: bool) -> Setup {
    let setup = Setup::default().config(json!({
        "limits": {"maxConcurrentSessions": 5, "turnTimeoutSeconds": 300},
        "tools": [],
    }));
    Setup {
        runner_env: if isolated {
            Vec::new()
        } else {
            vec![("RUNNER_ISOLATION", "off")]
        },
        ..setup
    }
}

/// What the commands of a turn printed.
fn printed(reader: &Reader) -> String {
    reader.texts(OutputSource::Tool).into_values().collect()
}

async fn bash(stack: &Stack, command: &str) -> String {
    let (_, reader) = stack.play(&format!("SCENARIO:bash <<<{command}>>>")).await;
    printed(&reader)
}

/// A module that leaves a mark when OpenCode's process runs it.
fn plant(path: &Path, mark: &Path) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let text = format!(
        "import fs from 'fs'; fs.writeFileSync({:?}, String(process.pid));\n\
         export default {{ id: 'planted', setup() {{}} }};\n",
        mark.display().to_string()
    );
    fs::write(path, text).unwrap();
}

/// Places from which OpenCode takes modules into its process.
fn plant_all(stack: &Stack) {
    let (work, home) = (stack.dir.join("workspace"), stack.dir.join("home"));
    let places = [
        (work.join(".opencode/plugin/a.js"), "workspace-plugin"),
        (work.join(".opencode/plugins/b.ts"), "workspace-plugins"),
        (work.join(".opencode/tool/c.ts"), "workspace-tool"),
        (work.join("named.js"), "workspace-config"),
        (home.join(".opencode/plugin/d.js"), "home-plugin"),
        (home.join(".opencode/tool/e.js"), "home-tool"),
        (home.join(".config/opencode/plugin/f.js"), "config-plugin"),
    ];
    for (path, mark) in places {
        plant(&path, &stack.dir.join("tmp").join(format!("mark-{mark}")));
    }
    let config = json!({"plugins": ["./named.js"]}).to_string();
    fs::write(work.join("opencode.json"), config).unwrap();
}

fn marks(stack: &Stack) -> Vec<String> {
    let entries = fs::read_dir(stack.dir.join("tmp")).unwrap();
    let mut marks: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with("mark-"))
        .collect();
    marks.sort();
    marks
}

/// Kills OpenCode and waits for the next one.
async fn renew(stack: &Stack) {
    let before = stack.opencode().await;
    process::kill(before);
    let deadline = Instant::now() + LONG;
    while process::lives(before) {
        assert!(Instant::now() < deadline, "{}", stack.logs());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    stack.ready().await;
}

#[test]
fn no_module_of_workspace_or_home_runs_in_opencode() {
    run(async {
        let weak = Stack::start(setup(false)).await;
        plant_all(&weak);
        weak.begin("SCENARIO:hello").await;
        // Whether such a turn ends is up to the modules.
        let deadline = Instant::now() + LONG;
        for wanted in [
            "mark-workspace-plugin",
            "mark-workspace-plugins",
            "mark-workspace-config",
            "mark-config-plugin",
        ] {
            while !marks(&weak).iter().any(|mark| mark == wanted) {
                assert!(Instant::now() < deadline, "{wanted}: {:?}", marks(&weak));
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        drop(weak);

        let stack = Stack::start(setup(true)).await;
        plant_all(&stack);
        stack.still_works().await;
        let log = || fs::read_to_string(stack.dir.join("runner.log")).unwrap();
        assert!(log().contains("not loaded: "), "nothing was even tried");
        // By a tool in one turn, for the next and for the next process.
        let text = format!(
            "require('fs').writeFileSync('{}', '')",
            stack.dir.join("tmp/mark-later").display()
        );
        let command = format!("echo \"{text}\" > .opencode/plugin/z.js; echo ok");
        assert_eq!(bash(&stack, &command).await, "ok\n");
        stack.still_works().await;
        renew(&stack).await;
        stack.still_works().await;
        assert!(
            log().contains("z.js"),
            "the planted module was not even tried"
        );
        assert!(marks(&stack).is_empty(), "{:?}", marks(&stack));
    });
}

/// Configuration in every place of workspace and HOME where one would look for it; all of it names a badger.
fn plant_configuration(stack: &Stack) {
    let (work, home) = (stack.dir.join("workspace"), stack.dir.join("home"));
    let mark = |name: &str| stack.dir.join("tmp").join(format!("mark-{name}"));
    let config = |name: &str| {
        json!({
            "agent": {"badger": {"prompt": "dig", "mode": "primary"}},
            "command": {"badger": {"template": "dig"}},
            "provider": {"badger": {"npm": "@ai-sdk/openai-compatible", "models": {"badger": {}}}},
            "mcp": {"badger": {"type": "local", "command": ["touch", mark(name)], "enabled": true}},
        })
        .to_string()
    };
    let asset = "---\nname: badger\ndescription: badger\n---\ndig\n";
    let mut files = Vec::new();
    for (name, folder) in [
        ("workspace", work.join(".opencode")),
        ("home", home.join(".opencode")),
        ("config", home.join(".config/opencode")),
    ] {
        for file in ["opencode.json", "opencode.jsonc", "config.json"] {
            files.push((folder.join(file), config(name)));
        }
        for file in [
            "agent/badger.md",
            "agents/badger.md",
            "command/badger.md",
            "commands/badger.md",
            "mode/badger.md",
            "skill/badger/SKILL.md",
            "skills/badger/SKILL.md",
        ] {
            files.push((folder.join(file), asset.to_owned()));
        }
    }
    for file in ["opencode.json", "opencode.jsonc"] {
        files.push((work.join(file), config("project")));
    }
    // What the program itself, which is a Bun, might take from its folder.
    let module = format!("require('fs').writeFileSync({:?}, '')", mark("bun"));
    files.push((work.join("badger.js"), module));
    let preload = "preload = [\"./badger.js\"]\n";
    files.push((work.join("bunfig.toml"), preload.to_owned()));
    files.push((home.join(".bunfig.toml"), preload.to_owned()));
    let environment = "OPENCODE_SERVER_USERNAME=badger\nBUN_OPTIONS=--preload=./badger.js\n";
    files.push((work.join(".env"), environment.to_owned()));
    for (path, text) in files {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
}

/// What OpenCode was told by others than the sidecar, by where it shows.
async fn badgers(stack: &Stack) -> Vec<&'static str> {
    // The next process is there, and has looked around.
    stack.play("SCENARIO:hello").await;
    let mut found = Vec::new();
    for path in [
        "/agent",
        "/command",
        "/config",
        "/config/providers",
        "/mcp",
        "/skill",
    ] {
        let told = stack.ask_opencode(path).await.to_string();
        assert!(told.len() > 2 || path == "/mcp", "{path} tells nothing");
        if told.contains("badger") {
            found.push(path);
        }
    }
    found
}

#[test]
fn no_file_of_workspace_or_home_configures_opencode() {
    run(async {
        let weak = Stack::start(setup(false)).await;
        plant_configuration(&weak);
        renew(&weak).await;
        let found = badgers(&weak).await;
        assert!(found.contains(&"/agent"), "not even without: {found:?}");
        drop(weak);

        let stack = Stack::start(setup(true)).await;
        plant_configuration(&stack);
        renew(&stack).await;
        assert_eq!(badgers(&stack).await, [""; 0]);
        assert!(marks(&stack).is_empty(), "{:?}", marks(&stack));
    });
}

#[test]
fn tools_learn_no_password_and_reach_no_port_of_the_pod() {
    run(async {
        for isolated in [false, true] {
            let stack = Stack::start(setup(isolated)).await;
            let ports = [stack.port, stack.proxy_port, stack.opencode_port];
            let dial = |port: u16| {
                format!("(exec 3<>/dev/tcp/127.0.0.1/{port}) 2>/dev/null && echo reached {port}; ")
            };
            let command = format!(
                "{}env | grep -c ^OPENCODE_ ; echo config=$XDG_CONFIG_HOME preload=$BUN_INSPECT_PRELOAD",
                ports.map(dial).concat()
            );
            let said = bash(&stack, &command).await;
            let home = stack.dir.join("home/.config");
            if isolated {
                assert_eq!(said, format!("0\nconfig={} preload=\n", home.display()));
            } else {
                for port in ports {
                    assert!(said.contains(&format!("reached {port}\n")), "{said}");
                }
            }
            // What git runs for OpenCode after each step is a tool's child too.
            let script = "#!/bin/bash\nenv | grep -c ^OPENCODE_SERVER_PASSWORD > fsmonitor.txt\n\
                (exec 3<>/dev/tcp/127.0.0.1/PORT) 2>/dev/null && echo reached >> fsmonitor.txt\n";
            let script = script.replace("PORT", &stack.opencode_port.to_string());
            let hook = stack.dir.join("workspace/hook.sh");
            fs::write(&hook, script).unwrap();
            bash(
                &stack,
                "chmod +x hook.sh; printf 'x filter=evil\\n' > .gitattributes; git config filter.evil.clean ./hook.sh; \
                 git config core.fsmonitor ./hook.sh; echo x > x; echo done",
            )
            .await;
            bash(&stack, "echo y >> x; echo done").await;
            let found = fs::read_to_string(stack.dir.join("workspace/fsmonitor.txt"));
            eprintln!("isolated {isolated}: git's hook found {found:?}");
            if isolated {
                assert!(found.is_err() || found.is_ok_and(|text| text == "0\n"));
            }
        }
    });
}

#[test]
fn everything_an_agent_does_still_works_and_the_report_says_so() {
    run(async {
        let stack = Stack::start(setup(true)).await;
        let script = "SCENARIO:script <<<
- parts:
    - tool: {name: write, args: {filePath: a.txt, content: \"one\\ntwo\\n\"}}
- parts:
    - tool: {name: read, args: {filePath: a.txt}}
- parts:
    - tool: {name: edit, args: {filePath: a.txt, oldString: two, newString: three}}
- parts:
    - tool: {name: grep, args: {pattern: three}}
- parts:
    - tool: {name: glob, args: {pattern: \"*.txt\"}}
- parts:
    - tool: {name: bash, args: {command: \"git add -A && git -c user.name=a -c user.email=a@b.c commit -qm x && git log --oneline | wc -l; (sleep 300 >/dev/null 2>&1 &) ; python3 -c 'import socket,threading; s=socket.socket(); s.bind((chr(49)+chr(50)+chr(55)+\\\".0.0.1\\\",0)); s.listen(); c=socket.create_connection(s.getsockname()); print(c is not None)'\", description: commit}}
- parts: [{say: All done.}]
>>>";
        let (id, reader) = stack.play(script).await;
        let complete = reader.complete();
        assert_eq!(complete.final_message, "All done.");
        let failed: Vec<_> = reader
            .bodies()
            .filter(|body| matches!(body, EventBody::ToolResult(result) if !result.ok))
            .collect();
        assert!(failed.is_empty(), "{failed:#?}");
        assert_eq!(
            fs::read_to_string(stack.dir.join("workspace/a.txt")).unwrap(),
            "one\nthree\n"
        );
        let said = printed(&reader);
        assert!(said.contains("1\n") && said.contains("True"), "{said}");
        let diff: SessionId = id;
        assert!(
            complete.files_modified.contains(&"a.txt".to_owned()),
            "{diff}: {complete:?}"
        );

        let (_, reader) = stack.play("SCENARIO:sub-agent").await;
        assert_eq!(
            reader.complete().final_message,
            "The sub-agent has finished."
        );

        let contract::runner::Reply::State(state) =
            stack.ask_runner(&contract::runner::Request::Watch).await
        else {
            panic!()
        };
        let enforced = state.isolation.unwrap().enforced;
        if enforced.contains(&Measure::Files) {
            for measure in [
                Measure::ToolPorts,
                Measure::ToolEnvironment,
                Measure::SystemCalls,
            ] {
                assert!(enforced.contains(&measure), "{enforced:?}");
            }
        } else {
            eprintln!("this kernel has no Landlock: {enforced:?}");
        }
        let summary = isolation_said(&stack).await;
        assert!(
            summary.contains("SharedUser") && summary.contains("one user"),
            "{summary}"
        );
    });
}

/// What the sidecar tells the operator.
async fn isolation_said(stack: &Stack) -> String {
    use futures::StreamExt;
    let answer = stack
        .http
        .get(stack.url("/events"))
        .bearer_auth(crate::stack::TOKEN)
        .send()
        .await
        .unwrap();
    let mut bytes = answer.bytes_stream();
    let mut text = String::new();
    while !text.contains("\n\n") || !text.contains("isolation") {
        text.push_str(&String::from_utf8_lossy(
            &bytes.next().await.unwrap().unwrap(),
        ));
    }
    text
}
