//! docs/errors.md explains every reason, and none that is not there.

use operator::reason::Reason;

#[test]
fn every_reason_is_explained() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/errors.md");
    let text = std::fs::read_to_string(path).unwrap();
    let section = text
        .split("\n## ")
        .find(|section| section.starts_with("Conditions and Events"))
        .unwrap();
    let rows: Vec<(&str, usize)> = section
        .lines()
        .filter_map(|line| line.strip_prefix("| `"))
        .map(|line| {
            let (reason, rest) = line.split_once("` |").unwrap();
            let said = rest.split('|').filter(|cell| cell.trim().len() > 2).count();
            (reason, said)
        })
        .collect();
    for reason in Reason::ALL {
        let name = reason.as_str();
        let of: Vec<_> = rows.iter().filter(|(row, _)| *row == name).collect();
        assert_eq!(of.len(), 1, "{name} must stand once in docs/errors.md");
        assert!(of[0].1 >= 2, "{name}: what it means and what to do");
    }
    for (row, _) in rows {
        assert!(Reason::parse(row).is_some(), "there is no reason {row}");
    }
}
