//! Each capture and what it is mapped to, word for word.

use super::super::Mapped;
use super::capture::{Capture, all, folder};
use std::fmt::Write as _;

/// `UPDATE_GOLDEN=1 cargo test -p sidecar golden` writes the files anew; read the difference.
#[test]
fn captures_map_to_their_golden_files() {
    let update = std::env::var_os("UPDATE_GOLDEN").is_some();
    let mut wrong = Vec::new();
    for capture in all() {
        let path = folder()
            .join("golden")
            .join(format!("{}.txt", capture.name));
        let is = golden(&capture);
        if update {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, &is).unwrap();
        }
        let should = std::fs::read_to_string(&path).unwrap_or_default();
        if is != should {
            let line = is
                .lines()
                .zip(should.lines())
                .find(|(is, should)| is != should);
            wrong.push(format!("{}: {line:#?}", capture.name));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn golden(capture: &Capture) -> String {
    let mut text = String::new();
    for turn in 0..capture.turns.len() {
        let mut map = capture.map(turn);
        writeln!(text, "turn {}", turn + 1).unwrap();
        for event in &capture.events {
            list(&mut text, &map.on_event(event));
        }
        let said = capture.settle(&mut map);
        if !said.is_empty() {
            text.push_str("from stored messages\n");
            list(&mut text, &said);
        }
        writeln!(text, "{:#?}", map.outcome()).unwrap();
    }
    text
}

fn list(text: &mut String, said: &[Mapped]) {
    for Mapped { agent, body } in said {
        writeln!(text, "{agent} {}", serde_json::to_string(body).unwrap()).unwrap();
    }
}
