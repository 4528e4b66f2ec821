//! Checkpoints of the workspace, with the real agent as the one who changes it.

use crate::{
    callers::post,
    reader::{Reader, speaks},
    stack::{LONG, Setup, Stack, TOKEN, run},
};
use contract::{
    ErrorCode, SessionId,
    checkpoint::{Checkpoint, CheckpointDetail, CheckpointKind, CreateBranch, Fork},
    client::ClientError,
    event::StatusKind,
};
use serde_json::{Value, json};
use std::{fs, process::Command};
use tokio::time::Instant;

fn setup(checkpoints: Value) -> Setup {
    Setup::default().config(json!({
        "limits": {"maxConcurrentSessions": 10, "turnTimeoutSeconds": 600},
        "checkpoints": checkpoints,
    }))
}

/// What the events of a session say of checkpoints, in order.
fn told(reader: &Reader) -> Vec<CheckpointDetail> {
    reader
        .statuses(StatusKind::Checkpoint)
        .into_iter()
        .map(|status| serde_json::from_value(status.detail.clone().unwrap()).unwrap())
        .collect()
}

fn code<T: std::fmt::Debug>(answer: Result<T, ClientError>) -> ErrorCode {
    match answer {
        Err(ClientError::Api { body, .. }) => body.details.code,
        other => panic!("{other:?}"),
    }
}

fn file(stack: &Stack, name: &str) -> Option<String> {
    fs::read_to_string(stack.dir.join("workspace").join(name)).ok()
}

fn git(dir: &std::path::Path, args: &[&str]) -> String {
    let done = Command::new("git")
        .current_dir(dir)
        .args([
            "-c",
            "user.name=t",
            "-c",
            "user.email=t@t",
            "-c",
            "safe.directory=*",
        ])
        .args(args)
        .output()
        .unwrap();
    assert!(done.status.success(), "git {args:?}: {done:?}");
    String::from_utf8(done.stdout).unwrap()
}

async fn list(stack: &Stack) -> Vec<Checkpoint> {
    stack.client.checkpoints().await.unwrap().checkpoints
}

fn fork(id: &SessionId, restore: Option<bool>) -> Fork {
    Fork {
        session_id: id.clone(),
        prompt: "SCENARIO:recall".into(),
        model_config: None,
        system_prompt: None,
        restore,
    }
}

#[test]
fn every_turn_leaves_a_checkpoint_that_can_be_compared_restored_and_exported() {
    run(async {
        let stack = Stack::start(setup(json!({}))).await;
        let (id, mut reader) = stack.play("SCENARIO:write a.txt <<<one\n>>>").await;
        reader.complete();
        stack
            .play_on(&id, &mut reader, "SCENARIO:write a.txt <<<two\n>>>")
            .await;
        fs::write(stack.dir.join("workspace/b.bin"), [0, 1, 2, 0xff]).unwrap();
        stack
            .play_on(&id, &mut reader, "SCENARIO:write sub/c.txt <<<new\n>>>")
            .await;
        reader.complete();
        let all = list(&stack).await;
        let ids: Vec<&str> = all.iter().map(|c| c.checkpoint_id.as_str()).collect();
        assert_eq!(ids, ["c1", "c2", "c3"]);
        for (checkpoint, told) in all.iter().zip(told(&reader)) {
            assert_eq!(told.root.as_ref(), Some(&checkpoint.root));
            assert_eq!(told.checkpoint_id.as_ref(), Some(&checkpoint.checkpoint_id));
            assert!(!told.mixed && told.failed.is_none());
            assert_eq!(checkpoint.kind, CheckpointKind::Turn);
            assert_eq!(checkpoint.session_id.as_ref(), Some(&id));
        }
        assert_eq!(all[2].turn, Some(3));

        // Between any two.
        let diff = stack.client.diff("c1", "c2").await.unwrap();
        let [only] = &diff.files[..] else {
            panic!("{diff:?}")
        };
        assert_eq!(
            (only.path.as_str(), only.status.as_str()),
            ("a.txt", "modified")
        );
        assert_eq!(only.hunks, "@@ -1 +1 @@\n-one\n+two\n");
        let back = stack.client.diff("c3", "c1").await.unwrap();
        let paths: Vec<&str> = back.files.iter().map(|f| f.path.as_str()).collect();
        assert_eq!(paths, ["a.txt", "b.bin", "sub/c.txt"]);
        assert!(back.files[1].binary);

        // The real git takes the patch, and from nothing the whole.
        let other = tempfile::tempdir().unwrap();
        git(other.path(), &["init", "-q"]);
        fs::write(other.path().join("a.txt"), "one\n").unwrap();
        let patch = stack.client.patch("c1", "c3").await.unwrap();
        fs::write(other.path().join("p"), &patch).unwrap();
        git(other.path(), &["apply", "--check", "p"]);
        git(other.path(), &["apply", "p"]);
        let applied = fs::read_to_string(other.path().join("a.txt")).unwrap();
        assert_eq!(applied, "two\n");
        let binary = fs::read(other.path().join("b.bin")).unwrap();
        assert_eq!(binary, [0, 1, 2, 0xff]);
        let whole = stack.client.patch("empty", "c1").await.unwrap();
        assert!(String::from_utf8_lossy(&whole).contains("+one\n"));

        // As a branch of the workspace's own repository, where nothing else moves.
        let body = CreateBranch {
            name: "kept/two".into(),
            message: None,
        };
        let workspace = stack.dir.join("workspace");
        let made = stack.client.branch("c2", &body).await.unwrap();
        assert_eq!(git(&workspace, &["show", "kept/two:a.txt"]), "two\n");
        assert_eq!(
            git(&workspace, &["rev-parse", "kept/two"]).trim(),
            made.commit
        );
        assert_eq!(
            code(stack.client.branch("c2", &body).await),
            ErrorCode::CheckpointBlocked
        );
        let bad = CreateBranch {
            name: "../x".into(),
            message: None,
        };
        assert_eq!(
            code(stack.client.branch("c2", &bad).await),
            ErrorCode::InvalidRequest
        );
        git(&workspace, &["branch", "-D", "kept/two"]);

        // All of it comes back, and what was there is a checkpoint too.
        let restored = stack.client.restore("c1").await.unwrap();
        assert!(restored.exact, "{restored:?}");
        assert_eq!(file(&stack, "a.txt").as_deref(), Some("one\n"));
        assert!(!workspace.join("b.bin").exists() && !workspace.join("sub").exists());
        assert_eq!(restored.before.kind, CheckpointKind::BeforeRestore);
        assert_eq!(restored.before.checkpoint_id, "c4");
        stack.client.restore("c4").await.unwrap();
        assert_eq!(file(&stack, "sub/c.txt").as_deref(), Some("new\n"));

        // A restart forgets nothing, and ids go on.
        let before = list(&stack).await;
        stack.kill_sidecar();
        stack.start_sidecar();
        stack.ready().await;
        assert_eq!(list(&stack).await, before);
        let manual = stack.client.take_checkpoint().await.unwrap();
        assert_eq!(
            (manual.checkpoint_id.as_str(), manual.kind),
            ("c6", CheckpointKind::Manual)
        );
        let metrics = stack.metrics().await;
        assert_eq!(metrics["opencode_sidecar_checkpoints_kept"], 6.0);
    });
}

#[test]
fn while_a_turn_runs_nothing_is_restored_and_a_checkpoint_says_so() {
    run(async {
        let stack = Stack::start(setup(json!({}))).await;
        let (_, reader) = stack.play("SCENARIO:write a.txt <<<one\n>>>").await;
        reader.complete();
        let running = stack.begin("SCENARIO:slow 4000 20").await;
        let mut slow = Reader::default();
        stack.read(&mut slow, &running, speaks).await;
        assert_eq!(
            code(stack.client.restore("c1").await),
            ErrorCode::TurnRunning
        );
        let beside = stack.id();
        assert_eq!(
            code(stack.client.fork("c1", &fork(&beside, None)).await),
            ErrorCode::TurnRunning
        );
        assert!(stack.client.take_checkpoint().await.unwrap().mixed);
        // The end of another turn in the meantime.
        let (_, reader) = stack.play("SCENARIO:hello").await;
        assert!(told(&reader)[0].mixed, "{:#?}", told(&reader));
        stack.client.cancel(&running).await.unwrap();
        stack.read_turn(&mut slow, &running).await;
        let after = told(&slow);
        assert_eq!(after.len(), 1, "cancelled turns have one too");
        assert!(!after[0].mixed);
        assert!(stack.client.restore("c1").await.unwrap().exact);
        stack.still_works().await;
    });
}

/// What OpenCode has of the user's words in a session.
async fn prompts(stack: &Stack, id: &SessionId) -> Vec<String> {
    let told = stack.client.session(id).await.unwrap();
    let path = format!("/session/{}/message", told.opencode_session_id.unwrap());
    let messages = stack.ask_opencode(&path).await;
    let users = messages.as_array().unwrap().iter();
    users
        .filter(|message| message["info"]["role"] == "user")
        .map(|message| message["parts"].to_string())
        .collect()
}

#[test]
fn a_fork_goes_on_from_where_the_checkpoint_was() {
    run(async {
        let mut setup = setup(json!({}));
        setup.config["limits"]["maxConcurrentSessions"] = json!(1);
        let stack = Stack::start(setup).await;
        let (id, mut reader) = stack
            .play("REMEMBER: the first SCENARIO:write a.txt <<<one\n>>>")
            .await;
        stack
            .play_on(
                &id,
                &mut reader,
                "REMEMBER: the second SCENARIO:write a.txt <<<two\n>>>",
            )
            .await;
        let forked = stack.id();
        let told = stack.client.fork("c1", &fork(&forked, None)).await.unwrap();
        assert_eq!(told.session_id, forked);
        let mut of_fork = Reader::default();
        stack.read_turn(&mut of_fork, &forked).await;
        let said = &of_fork.complete().final_message;
        assert!(said.contains("the first"), "{said}");
        let heard = prompts(&stack, &forked).await;
        assert!(
            heard.len() == 2 && heard[0].contains("the first"),
            "{heard:?}"
        );
        assert_eq!(file(&stack, "a.txt").as_deref(), Some("one\n"));
        // The first conversation is as it was.
        stack.play_on(&id, &mut reader, "SCENARIO:recall").await;
        reader.complete();
        assert_eq!(prompts(&stack, &id).await.len(), 3);

        // Without the workspace, from the last turn; an id is used once.
        fs::write(stack.dir.join("workspace/a.txt"), "mine\n").unwrap();
        let again = stack.client.fork("c2", &fork(&forked, Some(false))).await;
        assert_eq!(code(again), ErrorCode::SessionExists);
        let third = stack.id();
        stack
            .client
            .fork("c2", &fork(&third, Some(false)))
            .await
            .unwrap();
        let mut of_third = Reader::default();
        stack.read_turn(&mut of_third, &third).await;
        assert!(of_third.complete().final_message.contains("the first"));
        let heard = prompts(&stack, &third).await;
        assert!(
            heard.len() == 3 && heard[1].contains("the second"),
            "{heard:?}"
        );
        assert_eq!(file(&stack, "a.txt").as_deref(), Some("mine\n"));
        // Sent several times at once it is one fork.
        let (fourth, path) = (stack.id(), "/checkpoints/c2/fork");
        let body = serde_json::to_string(&fork(&fourth, Some(false))).unwrap();
        let conversations = async || {
            let all = stack.ask_opencode("/session").await;
            all.as_array().unwrap().len()
        };
        let before = conversations().await;
        let send = || {
            let request = post(&stack, path, body.clone());
            request.header("idempotency-key", "walrus").send()
        };
        for answer in futures::future::join_all([send(), send(), send(), send()]).await {
            let answer = answer.unwrap();
            assert_eq!(answer.status(), 201, "{:?}", answer.text().await);
        }
        assert_eq!(conversations().await, before + 1);
        stack.read_turn(&mut Reader::default(), &fourth).await;
        // One that is refused leaves nothing behind.
        let busy = stack.begin("SCENARIO:slow 2000 20").await;
        stack.read(&mut Reader::default(), &busy, speaks).await;
        let before = conversations().await;
        let refused = fork(&stack.id(), Some(false));
        let refused = stack.client.fork("c2", &refused).await;
        assert_eq!(code(refused), ErrorCode::TooManySessions);
        assert_eq!(conversations().await, before);
        stack.client.cancel(&busy).await.unwrap();
        // It goes on like any other, also for a new process.
        stack.kill_sidecar();
        stack.start_sidecar();
        stack.ready().await;
        stack.play_on(&third, &mut of_third, "SCENARIO:hello").await;
        of_third.complete();
    });
}

#[test]
fn no_store_and_no_room_break_no_turn() {
    run(async {
        let mut setup = setup(json!({"maxBytes": 100_000, "keep": 3}));
        setup.volumes = vec![("home", "64m")];
        let stack = Stack::start(setup).await;
        // More than the quota.
        let mut state = 1_u32;
        let noise: Vec<u8> = (0..300_000)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 24) as u8
            })
            .collect();
        fs::write(stack.dir.join("workspace/large"), &noise).unwrap();
        let (id, mut reader) = stack.play("SCENARIO:hello").await;
        reader.complete();
        assert_eq!(
            told(&reader)[0].failed,
            Some(ErrorCode::CheckpointTooLarge),
            "{:#?}",
            told(&reader)
        );
        let seen = stack.client.checkpoints().await.unwrap();
        assert!(seen.checkpoints.is_empty());
        assert!(seen.last_error.unwrap().contains("maxSize"));
        // Nothing of it is left, and a smaller one fits.
        fs::remove_file(stack.dir.join("workspace/large")).unwrap();
        stack.play_on(&id, &mut reader, "SCENARIO:hello").await;
        assert!(told(&reader)[1].failed.is_none());

        // A store that is no folder.
        let store = stack.dir.join("home/.local/share/opencode-operator");
        fs::rename(&store, store.with_extension("kept")).unwrap();
        fs::write(&store, "").unwrap();
        stack.play_on(&id, &mut reader, "SCENARIO:hello").await;
        reader.complete();
        assert_eq!(told(&reader)[2].failed, Some(ErrorCode::CheckpointFailed));
        fs::remove_file(&store).unwrap();
        fs::rename(store.with_extension("kept"), &store).unwrap();

        // Old ones go.
        for _ in 0..4 {
            stack.play_on(&id, &mut reader, "SCENARIO:hello").await;
            reader.complete();
        }
        let deadline = Instant::now() + LONG;
        loop {
            let ids: Vec<String> = list(&stack)
                .await
                .into_iter()
                .map(|c| c.checkpoint_id)
                .collect();
            if ids == ["c3", "c4", "c5"] {
                break;
            }
            assert!(Instant::now() < deadline, "{ids:?}");
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        assert_eq!(
            code(stack.client.restore("c1").await),
            ErrorCode::CheckpointNotFound
        );
        stack.client.restore("c3").await.unwrap();

        // A full volume.
        stack.fill_volume("home");
        assert_eq!(
            code(stack.client.take_checkpoint().await),
            ErrorCode::VolumeFull
        );
        assert_eq!(
            code(stack.client.restore("c5").await),
            ErrorCode::VolumeFull
        );
        stack.free_volume("home");
        stack.client.take_checkpoint().await.unwrap();
        stack.still_works().await;
    });
}

#[test]
fn a_tampered_store_restores_nothing() {
    run(async {
        let stack = Stack::start(setup(json!({"mode": "on-demand"}))).await;
        let (id, mut reader) = stack.play("SCENARIO:write a.txt <<<one\n>>>").await;
        assert!(told(&reader).is_empty());
        stack.client.take_checkpoint().await.unwrap();
        stack
            .play_on(&id, &mut reader, "SCENARIO:write a.txt <<<two\n>>>")
            .await;
        let packs = stack
            .dir
            .join("home/.local/share/opencode-operator/checkpoints/objects/pack");
        for entry in fs::read_dir(packs).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|end| end == "pack") {
                let mut bytes = fs::read(&path).unwrap();
                let middle = bytes.len() / 2;
                for byte in &mut bytes[12..middle] {
                    *byte ^= 0x55;
                }
                fs::write(&path, bytes).unwrap();
            }
        }
        let refused = code(stack.client.restore("c1").await);
        assert_eq!(refused, ErrorCode::CheckpointDamaged);
        assert_eq!(file(&stack, "a.txt").as_deref(), Some("two\n"));
        stack.still_works().await;
    });
}

#[test]
fn a_restore_that_meets_the_death_of_the_sidecar_is_whole_before_a_turn_works() {
    run(async {
        let stack = Stack::start(setup(json!({"mode": "on-demand"}))).await;
        let many = stack.dir.join("workspace/many");
        fs::create_dir(&many).unwrap();
        for n in 0..3000 {
            fs::write(many.join(format!("f{n}")), format!("one {n}")).unwrap();
        }
        stack.client.take_checkpoint().await.unwrap();
        for n in 0..3000 {
            fs::write(many.join(format!("f{n}")), format!("two {n}")).unwrap();
        }
        let restoring = tokio::spawn({
            let client = stack.client.clone();
            async move { client.restore("c1").await }
        });
        // From the moment on when it is noted.
        let noted = stack.dir.join("journal/sessions/opencode-operator.pod");
        let deadline = Instant::now() + LONG;
        while !contains(&noted, b"\"restoring\"") {
            assert!(Instant::now() < deadline, "{}", stack.logs());
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        stack.kill_sidecar();
        assert!(restoring.await.unwrap().is_err());
        stack.start_sidecar();
        stack.ready().await;
        let (_, reader) = stack
            .play("SCENARIO:bash <<<cat many/f0 many/f2999>>>")
            .await;
        reader.complete();
        let output = reader.bodies().find_map(|body| match body {
            contract::EventBody::ToolResult(result) => Some(result.output.clone()),
            _ => None,
        });
        assert_eq!(output.unwrap().trim(), "one 0one 2999");
        for n in 0..3000 {
            let text = fs::read_to_string(many.join(format!("f{n}"))).unwrap();
            assert_eq!(text, format!("one {n}"));
        }
    });
}

fn contains(dir: &std::path::Path, text: &[u8]) -> bool {
    let Ok(files) = fs::read_dir(dir) else {
        return false;
    };
    files.filter_map(Result::ok).any(|file| {
        let bytes = fs::read(file.path()).unwrap_or_default();
        bytes.windows(text.len()).any(|window| window == text)
    })
}

#[test]
fn requests_that_make_no_sense_are_refused_in_words() {
    run(async {
        let stack = Stack::start(setup(json!({"mode": "off"}))).await;
        let (_, reader) = stack.play("SCENARIO:hello").await;
        assert!(told(&reader).is_empty());
        assert_eq!(
            code(stack.client.take_checkpoint().await),
            ErrorCode::CheckpointsOff
        );
        let post = |path: &'static str, body: &'static str| {
            let request = stack.http.post(stack.url(path)).bearer_auth(TOKEN);
            let request = request
                .header("content-type", "application/json")
                .body(body);
            async move {
                let answer = request.send().await.unwrap();
                let status = answer.status().as_u16();
                (status, answer.text().await.unwrap())
            }
        };
        for (path, body, status, word) in [
            ("/checkpoints/c9/restore", "", 404, "checkpoint_not_found"),
            (
                "/checkpoints/c9/restore",
                "{\"x\":1}",
                404,
                "checkpoint_not_found",
            ),
            (
                "/checkpoints/..%2f..%2fetc/restore",
                "",
                400,
                "checkpoint_id",
            ),
            ("/checkpoints/c/restore", "", 400, "checkpoint_id"),
            ("/checkpoints/empty/restore", "", 400, "checkpoint_id"),
            ("/checkpoints", "{\"x\":1}", 400, "body"),
            ("/checkpoints/c9/fork", "{\"restore\":1}", 400, "session_id"),
            ("/checkpoints/c9/fork", "{\"restore\":1}", 400, "restore"),
            ("/checkpoints/c9/branch", "{}", 400, "name"),
            (
                "/checkpoints/c9/branch",
                "{\"name\":\"x\"}",
                404,
                "checkpoint_not_found",
            ),
        ] {
            let (got, text) = post(path, body).await;
            assert!(got == status && text.contains(word), "{path}: {got} {text}");
        }
        assert_eq!(
            code(stack.client.diff("empty", "c4").await),
            ErrorCode::CheckpointNotFound
        );
        let url = stack.url("/checkpoints");
        let open = stack.http.get(url).send().await.unwrap();
        assert_eq!(open.status(), 401);
    });
}
