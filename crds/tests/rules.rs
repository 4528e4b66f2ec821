//! Every rule of the schema has a case in `rules.yaml`; the end-to-end tests try those on a real API
//! server.

use serde_json::Value;

fn messages(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            for rule in map
                .get("x-kubernetes-validations")
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
            {
                found.push(
                    rule["message"]
                        .as_str()
                        .expect("every rule says what to do")
                        .to_owned(),
                );
            }
            map.values().for_each(|v| messages(v, found));
        }
        Value::Array(list) => list.iter().for_each(|v| messages(v, found)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[test]
fn every_rule_has_a_case() {
    let table: Value = serde_saphyr::from_str(include_str!("rules.yaml")).unwrap();
    let refusals: Vec<&str> = table["cases"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| c["refused"].as_str().unwrap())
        .filter(|r| !r.is_empty())
        .collect();
    let mut rules = Vec::new();
    messages(
        &serde_json::to_value(crds::schema::all()).unwrap(),
        &mut rules,
    );
    assert!(rules.len() > 20, "{rules:#?}");
    for rule in &rules {
        assert!(
            refusals.iter().any(|r| rule.contains(r)),
            "no case is refused with: {rule}"
        );
    }
}
