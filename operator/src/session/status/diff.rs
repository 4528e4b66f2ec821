//! The smallest JSON merge patch from one status to another.

use serde::Serialize;
use serde_json::{Map, Value};

/// The merge patch (RFC 7396) that turns `before` into `after`; `None` if they are equal. Lists are
/// replaced as a whole.
pub fn merge_patch<T: Serialize>(before: Option<&T>, after: &T) -> Option<Value> {
    let before = before.map_or(Value::Object(Map::new()), json);
    difference(&before, &json(after))
}

fn json<T: Serialize>(value: &T) -> Value {
    serde_json::to_value(value).expect("a status has a JSON form")
}

fn difference(before: &Value, after: &Value) -> Option<Value> {
    if before == after {
        return None;
    }
    let (Value::Object(before), Value::Object(after)) = (before, after) else {
        return Some(after.clone());
    };
    let mut patch = Map::new();
    for (key, value) in after {
        match before.get(key) {
            Some(old) => {
                if let Some(change) = difference(old, value) {
                    patch.insert(key.clone(), change);
                }
            }
            None => {
                patch.insert(key.clone(), value.clone());
            }
        }
    }
    for key in before.keys().filter(|key| !after.contains_key(*key)) {
        patch.insert(key.clone(), Value::Null);
    }
    Some(Value::Object(patch))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_what_differs_is_sent() {
        let before = json!({"a": 1, "b": {"c": 1, "d": 2}, "e": [1], "gone": true});
        let after = json!({"a": 1, "b": {"c": 1, "d": 3}, "e": [1, 2], "new": {"x": 1}});
        assert_eq!(
            merge_patch(Some(&before), &after),
            Some(json!({"b": {"d": 3}, "e": [1, 2], "new": {"x": 1}, "gone": null}))
        );
        assert_eq!(merge_patch(Some(&after), &after), None);
        assert_eq!(merge_patch(None, &json!({"a": 1})), Some(json!({"a": 1})));
    }
}
