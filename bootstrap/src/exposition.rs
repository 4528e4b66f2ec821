//! Checks what a daemon shows to Prometheus, for tests: names, units, labels, figures and docs.
//!
//! By <https://prometheus.io/docs/practices/naming/> and the OpenMetrics text format.

use std::collections::{BTreeMap, BTreeSet};

/// Most series of one metric. Every label has few values; more means that one is not bounded.
const SERIES_MAX: usize = 100;
/// Units that are no base units, and words that say what the type says already.
const BAD_ENDINGS: &[&str] = &[
    "_ms",
    "_milliseconds",
    "_microseconds",
    "_minutes",
    "_hours",
    "_kib",
    "_kb",
    "_mb",
    "_mib",
    "_percent",
    "_count",
    "_sum",
    "_bucket",
    "_total",
    "_gauge",
    "_counter",
    "_histogram",
];

/// What is expected of an exposition.
#[derive(Clone, Copy, Debug)]
pub struct Expected<'a> {
    /// Every name begins so.
    pub prefix: &'a str,
    /// Labels and values beyond those that the docs list, as where they refer to another page.
    pub labels: &'a [(&'a str, &'a [&'a str])],
    /// Text of docs/metrics.md: a row "| `name` | type | `label`: value, value; `label`: … |" for each
    /// metric, and none without one.
    pub docs: &'a str,
}

#[derive(Debug, Default)]
struct Metric {
    kind: String,
    help: String,
    /// Series, with their values.
    series: BTreeMap<String, f64>,
}

/// All that is wrong, in words; empty: nothing.
#[must_use]
pub fn wrong(text: &str, expected: Expected<'_>) -> Vec<String> {
    let mut wrong = Vec::new();
    if !text.ends_with("# EOF\n") {
        wrong.push("it does not end with # EOF".to_owned());
    }
    let mut metrics: BTreeMap<String, Metric> = BTreeMap::new();
    let mut current = String::new();
    for line in text.lines().filter(|line| *line != "# EOF") {
        if let Some(rest) = line.strip_prefix("# ") {
            let mut words = rest.splitn(3, ' ');
            let (what, name) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
            let rest = words.next().unwrap_or("").to_owned();
            name.clone_into(&mut current);
            let metric = metrics.entry(current.clone()).or_default();
            match what {
                "HELP" if metric.help.is_empty() => metric.help = rest,
                "TYPE" if metric.kind.is_empty() => metric.kind = rest,
                "UNIT" => {}
                _ => wrong.push(format!("twice, or nothing known: {line}")),
            }
            continue;
        }
        let metric = metrics.entry(current.clone()).or_default();
        match sample(line) {
            Some((name, labels, value)) => {
                if !fits(&name, &current, &metric.kind) {
                    wrong.push(format!(
                        "{name} is no sample of {current} ({})",
                        metric.kind
                    ));
                }
                wrong.extend(
                    labels
                        .iter()
                        .filter_map(|label| bad_label(&name, &current, label, &expected)),
                );
                if !value.is_finite() || (metric.kind != "gauge" && value < 0.0) {
                    wrong.push(format!("{line}: no such figure"));
                }
                let series = line.rsplit_once(' ').map_or(line, |(series, _)| series);
                if metric.series.insert(series.to_owned(), value).is_some() {
                    wrong.push(format!("{series} comes twice"));
                }
            }
            None => wrong.push(format!("not understood: {line}")),
        }
    }
    for (name, metric) in &metrics {
        check(name, metric, expected.prefix, &mut wrong);
    }
    check_docs(&metrics, expected, &mut wrong);
    wrong
}

type Label = (String, String);

fn sample(line: &str) -> Option<(String, Vec<Label>, f64)> {
    let (series, value) = line.rsplit_once(' ')?;
    let value = value.parse().ok()?;
    let Some((name, labels)) = series.split_once('{') else {
        return Some((series.to_owned(), Vec::new(), value));
    };
    let labels = labels.strip_suffix('}')?;
    let labels = labels
        .split(',')
        .map(|label| {
            let (name, value) = label.split_once('=')?;
            let value = value.strip_prefix('"')?.strip_suffix('"')?;
            Some((name.to_owned(), value.to_owned()))
        })
        .collect::<Option<_>>()?;
    Some((name.to_owned(), labels, value))
}

fn fits(sample: &str, metric: &str, kind: &str) -> bool {
    matches!(
        (kind, sample.strip_prefix(metric)),
        ("gauge", Some(""))
            | ("counter", Some("_total"))
            | ("info", Some("_info"))
            | ("histogram", Some("_bucket" | "_sum" | "_count"))
    )
}

/// Labels and values of a metric by its row in the docs.
fn documented<'a>(docs: &'a str, metric: &str) -> Vec<(&'a str, Vec<&'a str>)> {
    let of_metric = |line: &&str| {
        line.strip_prefix("| `").is_some_and(|rest| {
            rest.strip_prefix(metric).is_some_and(|rest| {
                ["` |", "_total` |", "_info` |"]
                    .iter()
                    .any(|end| rest.starts_with(end))
            })
        })
    };
    let row = docs.lines().find(of_metric).unwrap_or_default();
    let cell = row.split('|').nth(3).unwrap_or_default();
    cell.split(';')
        .filter_map(|label| {
            let (name, values) = label.trim().strip_prefix('`')?.split_once("`:")?;
            Some((name, values.split(',').map(str::trim).collect()))
        })
        .collect()
}

fn bad_label(
    sample: &str,
    metric: &str,
    (name, value): &Label,
    expected: &Expected<'_>,
) -> Option<String> {
    if name == "le" && sample.ends_with("_bucket") {
        return None;
    }
    let documented = documented(expected.docs, metric);
    let mut values = documented
        .iter()
        .map(|(label, values)| (*label, values.as_slice()))
        .chain(expected.labels.iter().copied())
        .filter(|(label, _)| label == name)
        .peekable();
    if values.peek().is_none() {
        return Some(format!("{sample} has a label {name} that is not expected"));
    }
    let known = values.any(|(_, values)| values.contains(&value.as_str()));
    (!known).then(|| format!("{sample} has {name}={value:?}, which is none of its values"))
}

fn check(name: &str, metric: &Metric, prefix: &str, wrong: &mut Vec<String>) {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    if !name.starts_with(prefix) || !name.chars().all(plain) || name.contains("__") {
        wrong.push(format!("{name} is no name with the prefix {prefix}"));
    }
    if let Some(ending) = BAD_ENDINGS.iter().find(|end| name.ends_with(*end)) {
        wrong.push(format!("{name} must not end with {ending}"));
    }
    if metric.help.len() < 12 {
        wrong.push(format!("{name} has no help: {:?}", metric.help));
    }
    if metric.kind == "histogram" {
        if !["_seconds", "_bytes", "_tokens"]
            .iter()
            .any(|unit| name.ends_with(unit))
        {
            wrong.push(format!("{name} is a histogram without a unit"));
        }
        check_buckets(name, metric, wrong);
    } else if metric.series.len() > SERIES_MAX {
        wrong.push(format!("{name} has {} series", metric.series.len()));
    }
}

/// Buckets grow and the last one counts all.
fn check_buckets(name: &str, metric: &Metric, wrong: &mut Vec<String>) {
    let of = |ending: &str| -> Vec<(&String, f64)> {
        let begin = format!("{name}{ending}");
        let mine = metric.series.iter().filter(|(s, _)| s.starts_with(&begin));
        mine.map(|(series, value)| (series, *value)).collect()
    };
    let all: f64 = of("_count").iter().map(|(_, value)| value).sum();
    let last: f64 = of("_bucket")
        .iter()
        .filter(|(series, _)| series.contains("le=\"+Inf\""))
        .map(|(_, value)| value)
        .sum();
    if (all - last).abs() > f64::EPSILON {
        wrong.push(format!("{name} counts {all}, its last bucket {last}"));
    }
}

fn check_docs(metrics: &BTreeMap<String, Metric>, expected: Expected<'_>, wrong: &mut Vec<String>) {
    let rows: BTreeSet<(&str, &str)> = expected
        .docs
        .lines()
        .filter_map(|line| line.strip_prefix("| `"))
        .filter(|line| line.starts_with(expected.prefix))
        .filter_map(|line| {
            let (name, rest) = line.split_once("` |")?;
            Some((name, rest.split('|').next()?.trim()))
        })
        .collect();
    let shown: BTreeMap<String, &str> = metrics
        .iter()
        .map(|(name, metric)| {
            let ending = match metric.kind.as_str() {
                "counter" => "_total",
                "info" => "_info",
                _ => "",
            };
            (format!("{name}{ending}"), metric.kind.as_str())
        })
        .collect();
    for (name, kind) in &shown {
        if !rows.contains(&(name.as_str(), *kind)) {
            wrong.push(format!("docs/metrics.md lacks a row | `{name}` | {kind} |"));
        }
    }
    for (name, _) in rows {
        if !shown.contains_key(name) {
            wrong.push(format!("docs/metrics.md has {name}, which is not shown"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "# HELP p_turns Turns that ended.\n# TYPE p_turns counter\n\
                        p_turns_total{end=\"a\"} 1\np_turns_total{end=\"b\"} 0\n\
                        # HELP p_wait_seconds How long it took.\n# TYPE p_wait_seconds histogram\n\
                        p_wait_seconds_sum 1.5\np_wait_seconds_count 2\n\
                        p_wait_seconds_bucket{le=\"1.0\"} 1\np_wait_seconds_bucket{le=\"+Inf\"} 2\n# EOF\n";
    const DOCS: &str = "| `p_turns_total` | counter | `end`: a, b; `other`: c | x |\n| `p_wait_seconds` | histogram | y |\n";

    fn lint(text: &str) -> Vec<String> {
        let expected = Expected {
            prefix: "p_",
            labels: &[],
            docs: DOCS,
        };
        wrong(text, expected)
    }

    #[test]
    fn each_rule_finds_its_breach() {
        assert_eq!(lint(GOOD), Vec::<String>::new());
        for (from, to, word) in [
            ("# EOF\n", "", "EOF"),
            ("end=\"b\"", "end=\"c\"", "none of its values"),
            ("end=\"b\"", "id=\"b\"", "not expected"),
            ("end=\"b\"", "end=\"a\"", "twice"),
            (
                "p_turns_total{end=\"b\"} 0",
                "p_turns{end=\"b\"} 0",
                "no sample",
            ),
            ("\"b\"} 0", "\"b\"} NaN", "no such figure"),
            ("\"b\"} 0", "\"b\"} -1", "no such figure"),
            ("\"b\"} 0", "\"b\"} x", "not understood"),
            ("Turns that ended.", "", "no help"),
            ("+Inf\"} 2", "+Inf\"} 1", "last bucket"),
            ("p_wait_seconds", "p_wait_ms", "_ms"),
            ("p_wait_seconds", "p_wait", "without a unit"),
            ("p_wait_seconds", "q_wait_seconds", "prefix"),
            (
                "# TYPE p_turns counter",
                "# TYPE p_turns gauge",
                "no sample",
            ),
            ("p_turns", "p_others", "lacks a row"),
            ("p_turns", "p_others", "not shown"),
        ] {
            let found = lint(&GOOD.replace(from, to));
            assert!(
                found.iter().any(|said| said.contains(word)),
                "{to:?}: {found:?}"
            );
        }
    }
}
