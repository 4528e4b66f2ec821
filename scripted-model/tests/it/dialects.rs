//! Each dialect, streaming and not, gives back what the script says.

use serde_json::json;

use crate::client::{Answer, DIALECTS, Dialect, ask, prompt, send, start};

const SCRIPT: &str = "SCENARIO:script <<<
- parts:
    - think: First I think, over several words.
    - say: 'Then I speak — with ümlauts. '
    - say: And go on.
    - tool: {name: write, args: {filePath: a.txt, content: \"line one is long enough for two\\nline two\"}}
    - tool: {name: bash, args: {command: ls}}
>>>";

fn without_ids(answer: &Answer) -> Answer {
    let mut answer = answer.clone();
    for tool in &mut answer.tools {
        assert!(tool.0.len() > 10, "{:?}", tool.0);
        tool.0.clear();
    }
    answer.done = false;
    answer
}

#[tokio::test]
async fn a_stream_and_a_document_say_what_the_script_says() {
    let model = start().await;
    for dialect in DIALECTS {
        let streamed = ask(&model, dialect, true, SCRIPT).await;
        assert_eq!(
            streamed.thinking, "First I think, over several words.",
            "{dialect:?}"
        );
        assert_eq!(
            streamed.text, "Then I speak — with ümlauts. And go on.",
            "{dialect:?}"
        );
        let names: Vec<&str> = streamed.tools.iter().map(|t| t.1.as_str()).collect();
        assert_eq!(names, ["write", "bash"], "{dialect:?}");
        let args: serde_json::Value = serde_json::from_str(&streamed.tools[0].2).unwrap();
        assert_eq!(args["content"], "line one is long enough for two\nline two");
        assert!(streamed.done && streamed.error.is_none() && streamed.broken == 0);
        let finish = if dialect == Dialect::Messages {
            "tool_use"
        } else {
            "tool_calls"
        };
        assert_eq!(streamed.finish.as_deref(), Some(finish), "{dialect:?}");
        let (input, cached, output) = streamed.usage.unwrap();
        assert!(
            input > 50 && cached == 0 && output > 20,
            "{dialect:?} {:?}",
            streamed.usage
        );

        let document = ask(&model, dialect, false, SCRIPT).await;
        // "stream":false is one byte longer, which may be one token.
        let mut expected = without_ids(&streamed);
        expected.usage = document.usage;
        assert_eq!(without_ids(&document), expected, "{dialect:?}");
        assert!(document.usage.unwrap().0.abs_diff(input) <= 1);
    }
}

#[tokio::test]
async fn usage_repeats_and_tool_ids_do_not() {
    let model = start().await;
    let other = start().await;
    let mut ids = std::collections::HashSet::new();
    for dialect in DIALECTS {
        let mut usage = std::collections::HashSet::new();
        for server in [&model, &model, &other] {
            let answer = ask(server, dialect, true, SCRIPT).await;
            usage.insert(answer.usage);
            for (id, ..) in answer.tools {
                assert!(ids.insert(id.clone()), "{id} came twice");
            }
        }
        assert_eq!(usage.len(), 1, "{dialect:?}");
    }
    assert_eq!(ids.len(), 18);
}

/// Plays an agent: asks until the model calls no more tools. Tools called and last text.
async fn work(dialect: Dialect, stream: bool, prompt: &str) -> (Vec<String>, Answer) {
    let model = start().await;
    let mut messages = vec![json!({"role": "user", "content": prompt})];
    let mut tools = Vec::new();
    loop {
        let response = send(&model, dialect, &dialect.body(stream, &messages)).await;
        let answer = dialect.read(stream, &response.unwrap().text().await.unwrap());
        if answer.tools.is_empty() {
            return (tools, answer);
        }
        tools.extend(answer.tools.iter().map(|t| t.1.clone()));
        messages.extend(dialect.history(&answer));
        assert!(messages.len() < 50, "no end");
    }
}

#[tokio::test]
async fn a_tool_loop_walks_through_the_steps() {
    for dialect in DIALECTS {
        for stream in [true, false] {
            let (tools, last) = work(dialect, stream, "SCENARIO:write-many").await;
            assert_eq!(tools, ["write", "write", "bash"], "{dialect:?} {stream}");
            assert_eq!(
                last.text, "Three files are changed.",
                "{dialect:?} {stream}"
            );
            assert!(last.usage.unwrap().1 > 0, "later calls read from the cache");
            let (tools, _) = work(dialect, stream, "SCENARIO:parallel").await;
            assert_eq!(tools, ["bash", "bash"], "{dialect:?} {stream}");
        }
    }
}

#[tokio::test]
async fn the_demo_is_a_story() {
    let (tools, last) = work(Dialect::Chat, true, "SCENARIO:demo").await;
    assert_eq!(tools, ["write", "write", "edit", "bash"]);
    assert!(last.text.starts_with("Done. `greet.sh`"), "{}", last.text);
}

#[tokio::test]
async fn ends_have_the_dialects_own_words() {
    let model = start().await;
    for (scenario, words) in [
        ("hello", ["stop", "stop", "end_turn"]),
        ("length", ["length", "max_output_tokens", "max_tokens"]),
        ("filter", ["content_filter", "content_filter", "refusal"]),
    ] {
        for (dialect, word) in DIALECTS.into_iter().zip(words) {
            for stream in [true, false] {
                let answer = ask(&model, dialect, stream, &format!("SCENARIO:{scenario}")).await;
                assert_eq!(answer.finish.as_deref(), Some(word), "{dialect:?} {stream}");
            }
        }
    }
}

#[tokio::test]
async fn the_second_turn_remembers_the_first() {
    let model = start().await;
    for dialect in DIALECTS {
        let first = ask(&model, dialect, true, "REMEMBER: blue heron 42").await;
        assert!(first.text.contains("1 user message(s)"), "{}", first.text);
        let mut messages = vec![json!({"role": "user", "content": "REMEMBER: blue heron 42"})];
        messages.extend(dialect.history(&first));
        messages.push(json!({"role": "user", "content": "What was it? SCENARIO:recall"}));
        let response = send(&model, dialect, &dialect.body(true, &messages))
            .await
            .unwrap();
        let second = dialect.read(true, &response.text().await.unwrap());
        assert_eq!(second.text, "You asked me to remember: blue heron 42");
        let forgotten = ask(&model, dialect, true, "SCENARIO:recall").await;
        assert_eq!(forgotten.text, "You asked me to remember: nothing at all");
    }
}

#[tokio::test]
async fn prompts_bring_commands_files_texts_and_tools() {
    let model = start().await;
    let first = async |text: &str| {
        let answer = ask(&model, Dialect::Chat, true, text).await;
        let (_, name, args) = answer.tools.into_iter().next().unwrap();
        (
            name,
            serde_json::from_str::<serde_json::Value>(&args).unwrap(),
        )
    };
    let (name, args) = first("SCENARIO:bash <<<echo \"$HOME\" '{{1}}' | cat <<<x\n>>>").await;
    assert_eq!(
        (name.as_str(), &args["command"]),
        ("bash", &json!("echo \"$HOME\" '{{1}}' | cat <<<x\n"))
    );
    let (name, args) = first("SCENARIO:write d/f.txt <<<a\nb\n>>>").await;
    assert_eq!(
        (name, args),
        (
            "write".into(),
            json!({"filePath": "d/f.txt", "content": "a\nb\n"})
        )
    );
    let (name, args) = first("SCENARIO:tool grep <<<{\"pattern\": \"x{2}\"}>>>").await;
    assert_eq!((name, args), ("grep".into(), json!({"pattern": "x{2}"})));
    let (name, args) = first("SCENARIO:sub-agent <<<SCENARIO:bash <<<true>>>>>>").await;
    assert_eq!(
        (name, &args["prompt"]),
        ("task".into(), &json!("SCENARIO:bash <<<true>>>"))
    );
    let said = ask(
        &model,
        Dialect::Chat,
        true,
        "SCENARIO:say <<<exactly \u{1f980}\r\n>>>",
    )
    .await;
    assert_eq!(said.text, "exactly \u{1f980}\r\n");
}

#[tokio::test]
async fn awkward_text_survives_and_is_cut_inside_characters() {
    let model = start().await;
    for dialect in DIALECTS {
        let document = ask(&model, dialect, false, "SCENARIO:unicode").await;
        for part in [
            "世界",
            "👩‍👩‍👧‍👦",
            "\r\nCR LF\r",
            "\u{0}",
            "\u{1b}[31m",
            "\u{2028}",
            "\n\nevent: end",
        ] {
            assert!(document.text.contains(part), "{part:?}");
        }
        let mut response = prompt(&model, dialect, true, "SCENARIO:unicode")
            .await
            .unwrap();
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.unwrap() {
            body.extend_from_slice(&chunk);
        }
        let streamed = dialect.read(true, std::str::from_utf8(&body).unwrap());
        assert_eq!(streamed.text, document.text, "{dialect:?}");
    }
}

#[tokio::test]
async fn long_texts_floods_and_lines_have_their_size() {
    let model = start().await;
    let words = ask(&model, Dialect::Chat, true, "SCENARIO:long 3000")
        .await
        .text;
    assert_eq!(words.split(' ').count(), 3000);
    assert!(words.starts_with("word1 word2 ") && words.ends_with(" word3000"));
    assert_eq!(
        ask(&model, Dialect::Messages, true, "SCENARIO:flood 5000")
            .await
            .text
            .len(),
        5000
    );
    let line = ask(
        &model,
        Dialect::Responses,
        true,
        "SCENARIO:long-line 100000",
    )
    .await
    .text;
    assert_eq!(line, "a".repeat(100_000));
}

#[tokio::test]
async fn titles_come_first_and_unknown_scenarios_are_refused() {
    let model = start().await;
    for dialect in DIALECTS {
        let mut body = dialect.body(
            false,
            &[json!({"role": "user", "content": "SCENARIO:err500"})],
        );
        let system = "You are a title generator. You output ONLY a thread title.";
        match dialect {
            Dialect::Chat => {
                let first = json!({"role": "system", "content": system});
                body["messages"].as_array_mut().unwrap().insert(0, first);
            }
            Dialect::Responses => body["instructions"] = system.into(),
            Dialect::Messages => body["system"] = json!([{"type": "text", "text": system}]),
        }
        let response = send(&model, dialect, &body).await.unwrap();
        assert_eq!(response.status(), 200, "{dialect:?}");
        let answer = dialect.read(false, &response.text().await.unwrap());
        assert_eq!(answer.text, "A scripted session");

        for (wrong, reason) in [
            ("SCENARIO:helo", "no scenario \"helo\""),
            ("SCENARIO:bash", "needs a value"),
            ("SCENARIO:slow many", "not a whole number"),
            ("SCENARIO:script <<<- {}>>>", "give parts or a fault"),
        ] {
            let response = prompt(&model, dialect, true, wrong).await.unwrap();
            assert_eq!(response.status(), 400, "{wrong}");
            let text = response.text().await.unwrap().replace("\\\"", "\"");
            assert!(text.contains(reason), "{wrong}: {text}");
        }
    }
}
