//! From the types to the CustomResourceDefinitions that a cluster gets.

use crate::{OpenCodeSession, session::NAME_MAX};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::{Value, json};

/// Every CustomResourceDefinition of this project, as the chart installs them.
#[must_use]
pub fn all() -> Vec<CustomResourceDefinition> {
    vec![cleaned(OpenCodeSession::crd())]
}

/// Removes what the generator writes and the API server does not want: `nullable` (an explicit null
/// would pass the schema and then break CEL rules that ask `has()`) and number formats that exist
/// in OpenAPI only for signed numbers.
fn cleaned(crd: CustomResourceDefinition) -> CustomResourceDefinition {
    let mut value = serde_json::to_value(crd).expect("a definition has a JSON form");
    clean(&mut value);
    for version in value["spec"]["versions"]
        .as_array_mut()
        .into_iter()
        .flatten()
    {
        version["schema"]["openAPIV3Schema"]["x-kubernetes-validations"] = json!([{
            "rule": format!("self.metadata.name.size() <= {NAME_MAX}"),
            "message": format!("metadata.name must be at most {NAME_MAX} characters, so that the names of pod and claims fit; choose a shorter one"),
        }]);
    }
    serde_json::from_value(value).expect("cleaning keeps the shape")
}

fn clean(value: &mut Value) {
    match value {
        Value::Object(map) => {
            if map.get("nullable") == Some(&Value::Bool(true)) {
                map.remove("nullable");
            }
            if map.get("default") == Some(&Value::Null) {
                map.remove("default");
            }
            if map
                .get("format")
                .and_then(Value::as_str)
                .is_some_and(|f| f.starts_with("uint"))
            {
                map.remove("format");
            }
            if let Some(Value::Array(allowed)) = map.get_mut("enum") {
                allowed.retain(|v| !v.is_null());
            }
            map.values_mut().for_each(clean);
        }
        Value::Array(list) => list.iter_mut().for_each(clean),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// A map from resource names to quantities, as in a container's `resources`.
pub(crate) fn quantities(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": 16,
        "additionalProperties": {
            "x-kubernetes-int-or-string": true,
            "pattern": r"^(\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))(([KMGTPE]i)|[numkMGTPE]|([eE](\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))))?$",
            "maxLength": 32,
        },
    })
}

/// A time that limits something.
pub(crate) fn time_limit(_: &mut SchemaGenerator) -> Schema {
    duration(
        "duration(self) >= duration('1s') && duration(self) <= duration('168h')",
        "must lie between 1s and 168h; write it as in 1h30m",
    )
}

/// A time that limits something, or 0s for no limit.
pub(crate) fn patience(_: &mut SchemaGenerator) -> Schema {
    duration(
        "duration(self) == duration('0s') || (duration(self) >= duration('1s') && duration(self) <= duration('168h'))",
        "must be 0s or lie between 1s and 168h; write it as in 10m",
    )
}

/// An age at which something is renewed, or 0s for never.
pub(crate) fn age(_: &mut SchemaGenerator) -> Schema {
    duration(
        "duration(self) == duration('0s') || (duration(self) >= duration('1m') && duration(self) <= duration('8760h'))",
        "must be 0s or lie between 1m and 8760h; write it as in 24h",
    )
}

fn duration(rule: &str, message: &str) -> Schema {
    json_schema!({
        "type": "string",
        "minLength": 2,
        "maxLength": 20,
        "pattern": r"^([0-9]{1,9}h)?([0-9]{1,9}m)?([0-9]{1,9}s)?$",
        "x-kubernetes-validations": [{"rule": rule, "message": message}],
    })
}

/// A share of a volume.
pub(crate) fn store_size(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "string",
        "minLength": 1,
        "maxLength": 20,
        "pattern": r"^[0-9]+(\.[0-9]{1,3})?([kMGTP]|[KMGTP]i)?$",
        "x-kubernetes-validations": [
            {
                "rule": "quantity(self).compareTo(quantity('1Mi')) >= 0 && quantity(self).compareTo(quantity('64Ti')) <= 0",
                "message": "must lie between 1Mi and 64Ti; write it as in 2Gi",
            },
        ],
    })
}

/// The size of a volume.
pub(crate) fn volume_size(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "string",
        "minLength": 1,
        "maxLength": 20,
        "pattern": r"^[0-9]+(\.[0-9]{1,3})?([kMGTP]|[KMGTP]i)?$",
        "x-kubernetes-validations": [
            {
                "rule": "quantity(self).compareTo(quantity('64Mi')) >= 0 && quantity(self).compareTo(quantity('64Ti')) <= 0",
                "message": "must lie between 64Mi and 64Ti; write it as in 10Gi",
            },
        ],
    })
}
