//! docs/errors.md explains every code, and none that is not there.

use contract::{ErrorCode, event::TurnError};

/// First cells and number of other cells that say something, of the tables below a heading.
fn rows(heading: &str) -> Vec<(String, usize)> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/errors.md");
    let text = std::fs::read_to_string(path).expect("docs/errors.md is there");
    let section = text
        .split("\n## ")
        .find(|section| section.starts_with(heading))
        .unwrap_or_else(|| panic!("docs/errors.md has no section {heading:?}"));
    section
        .lines()
        .filter_map(|line| line.strip_prefix("| `"))
        .map(|line| {
            let (code, rest) = line.split_once("` |").expect("one code in a first cell");
            let said = rest.split('|').filter(|cell| cell.trim().len() > 2).count();
            (code.to_owned(), said)
        })
        .collect()
}

fn explains(heading: &str, codes: &[&str], cells: usize) {
    let rows = rows(heading);
    for code in codes {
        let of: Vec<_> = rows.iter().filter(|(name, _)| name == code).collect();
        assert_eq!(of.len(), 1, "{code} must stand once under {heading:?}");
        assert!(
            of[0].1 >= cells,
            "{code} lacks a word on what it means or what to do"
        );
    }
    for (code, _) in &rows {
        assert!(codes.contains(&code.as_str()), "there is no code {code}");
    }
}

#[test]
fn every_code_of_an_answer_is_explained() {
    let codes: Vec<_> = ErrorCode::ALL.iter().map(|code| code.as_str()).collect();
    explains("Answers", &codes, 3);
    for (code, _) in rows("Answers") {
        let known = ErrorCode::ALL
            .iter()
            .find(|known| known.as_str() == code)
            .expect("checked before");
        let status = format!("| `{code}` | {} |", known.http_status());
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/errors.md");
        let text = std::fs::read_to_string(path).expect("docs/errors.md is there");
        assert!(text.contains(&status), "{code} has another status");
    }
}

#[test]
fn every_code_of_a_turn_is_explained() {
    let codes: Vec<_> = TurnError::ALL.iter().map(|code| code.as_str()).collect();
    explains("Turns", &codes, 2);
    for code in TurnError::ALL {
        let json = serde_json::to_string(code).expect("JSON");
        assert_eq!(json, format!("{:?}", code.as_str()));
    }
}
